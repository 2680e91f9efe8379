//! The sidecar as a program of its own; `weft sidecar` is the same.

use std::process::ExitCode;

use clap::Parser;
use weft_sidecar::{app, config::SidecarArgs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "weft-sidecar", version, about = "The sidecar of the Weft service mesh")]
struct Cli {
    #[command(flatten)]
    args: SidecarArgs,
}

fn main() -> anyhow::Result<ExitCode> {
    app::run(Cli::parse().args)
}
