//! The control plane as a program of its own; `weft control-plane` is the same.

use clap::Parser;
use weft_control_plane::{app, config::ControlPlaneArgs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "weft-control-plane", version, about = "The control plane of the Weft service mesh")]
struct Cli {
    #[command(flatten)]
    args: ControlPlaneArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    app::run(Cli::parse().args).await
}
