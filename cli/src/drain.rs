//! `weft drain`: what a pod's sidecar is told before the app is stopped.

use std::process::ExitCode;

use clap::Args;

use crate::client;

/// Flags of `weft drain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    /// Admin server of the sidecar
    #[arg(long, value_name = "ADDR", env = "WEFT_ADMIN")]
    admin: String,
}

/// Asks; the sidecar drains by itself, and goes on until it gets a signal.
pub async fn run(args: DrainArgs) -> anyhow::Result<ExitCode> {
    client::post(&args.admin, "/drain").await?;
    Ok(ExitCode::SUCCESS)
}
