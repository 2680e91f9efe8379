//! `weft ready`: whether a sidecar is ready, as an exit code for health checks of containers without a shell.

use std::process::ExitCode;

use clap::Args;

use crate::client;

/// Flags of `weft ready`.
#[derive(Args, Clone, Debug)]
pub struct ReadyArgs {
    /// Admin server of the sidecar
    #[arg(long, value_name = "ADDR", env = "WEFT_ADMIN")]
    admin: String,
}

/// Asks; what is missing is in the error.
pub async fn run(args: ReadyArgs) -> anyhow::Result<ExitCode> {
    client::get(&args.admin, "/ready").await?;
    Ok(ExitCode::SUCCESS)
}
