//! A sidecar that somebody supervises: it says when the app may be stopped, and ends with its supervisor, also when that
//! is killed and can say nothing.

use anyhow::{Result, ensure};

/// Has the system send SIGTERM when the process `parent`, which has started this one, is gone.
pub fn dies_with(parent: i32) -> Result<()> {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)) {
        tracing::warn!(%error, "if what has started this sidecar is killed, the sidecar will go on");
    }
    // It may have gone before that.
    ensure!(!is_orphan(parent), "--parent {parent}: that process, which was to watch over this sidecar, is gone");
    Ok(())
}

/// Whether `parent` is not the parent any more.
pub fn is_orphan(parent: i32) -> bool {
    rustix::process::getppid().is_none_or(|now| now.as_raw_nonzero().get() != parent)
}

/// The last caller has gone: the app may be stopped.
pub fn drained(announce: bool) {
    tracing::info!("no callers are left");
    if announce {
        super::say(&serde_json::json!({ "event": "drained" }));
    }
}
