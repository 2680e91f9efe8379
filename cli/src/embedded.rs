//! The two components inside this binary.

use std::process::ExitCode;

pub use weft_control_plane::config::ControlPlaneArgs;
pub use weft_sidecar::config::SidecarArgs;

/// Runs the sidecar until it has drained.
pub fn sidecar(args: SidecarArgs) -> anyhow::Result<ExitCode> {
    weft_sidecar::app::run(args)
}

/// Runs the control plane until it is told to stop.
pub async fn control_plane(args: ControlPlaneArgs) -> anyhow::Result<ExitCode> {
    weft_control_plane::app::run(args).await?;
    Ok(ExitCode::SUCCESS)
}
