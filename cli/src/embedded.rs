//! The two components inside this binary. `weft sidecar` and `weft control-plane` run the components' own programs,
//! which stand beside this one, and hand them every argument.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::Context as _;
use clap::Args;

/// Arguments of the sidecar.
#[derive(Args, Debug)]
pub struct SidecarArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Arguments of the control plane.
#[derive(Args, Debug)]
pub struct ControlPlaneArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Runs the sidecar until it has drained.
pub fn sidecar(args: SidecarArgs) -> anyhow::Result<ExitCode> {
    become_program("weft-sidecar", &args.args)
}

/// Runs the control plane until it is told to stop.
pub async fn control_plane(args: ControlPlaneArgs) -> anyhow::Result<ExitCode> {
    become_program("weft-control-plane", &args.args)
}

fn become_program(name: &str, args: &[OsString]) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("path of this program: unknown")?.with_file_name(name);
    let error = std::process::Command::new(&program).args(args).exec();
    Err(error).with_context(|| format!("start {}: failed; build it with `cargo build --workspace`", program.display()))
}
