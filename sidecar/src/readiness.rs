//! What this sidecar still waits for, in words: told by `discovery` and `identity`, shown by `admin`, announced by
//! `app`.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

use crate::state::duration;

/// Shared by those who tell and those who show.
#[derive(Clone)]
pub struct Readiness(watch::Sender<Status>);

/// As of now.
#[derive(Clone, Debug)]
pub struct Status {
    /// What is missing of the configuration.
    configuration: Vec<String>,
    /// Why there is no valid certificate; `None`: there is one.
    certificate: Option<String>,
    /// The control plane could not be reached since.
    away: Option<Away>,
    /// The configuration comes from disk and was last right then.
    from_disk: Option<SystemTime>,
}

#[derive(Clone, Debug)]
struct Away {
    since: Instant,
    why: String,
}

impl Default for Readiness {
    fn default() -> Self {
        let (configuration, away, from_disk) = Default::default();
        let certificate = Some("certificate".into());
        Self(watch::Sender::new(Status { configuration, certificate, away, from_disk }))
    }
}

impl Readiness {
    /// What is missing of the configuration now.
    pub fn configuration(&self, missing: Vec<String>) {
        self.change(|status| replace(&mut status.configuration, missing));
    }

    /// Whether there is a valid certificate, or why not.
    pub fn certificate(&self, missing: Option<String>) {
        self.change(|status| replace(&mut status.certificate, missing));
    }

    /// The configuration comes from disk, or from the control plane.
    pub fn from_disk(&self, saved: Option<SystemTime>) {
        self.change(|status| replace(&mut status.from_disk, saved));
    }

    /// The control plane has answered.
    pub fn reached(&self) {
        self.change(|status| status.away.take().is_some());
    }

    /// The control plane could not be reached; what and why.
    pub fn away(&self, why: &str) {
        self.change(|status| {
            let since = status.away.as_ref().map_or_else(Instant::now, |away| away.since);
            status.away = Some(Away { since, why: why.into() });
            true
        });
    }

    fn change(&self, change: impl FnOnce(&mut Status) -> bool) {
        self.0.send_if_modified(change);
    }

    /// As it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }
}

fn replace<T: PartialEq>(held: &mut T, new: T) -> bool {
    let differs = *held != new;
    *held = new;
    differs
}

impl Status {
    /// Everything for requests is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.configuration.is_empty() && self.certificate.is_none()
    }

    /// When the configuration was last right, if it comes from disk.
    #[must_use]
    pub const fn saved(&self) -> Option<SystemTime> {
        self.from_disk
    }

    /// What is missing, and everything worth knowing about it, in lines.
    #[must_use]
    pub fn describe(&self, now: SystemTime) -> String {
        let mut text = if self.is_ready() {
            "ready\n".to_owned()
        } else {
            let missing: Vec<_> = self.certificate.iter().chain(&self.configuration).map(String::as_str).collect();
            format!("waiting for: {}\n", missing.join(", "))
        };
        if let Some(saved) = self.from_disk {
            let age = duration(now.duration_since(saved).unwrap_or_default());
            let _ = writeln!(text, "configuration from disk, last right {age} ago");
        }
        if let Some(away) = &self.away {
            let time = duration(away.since.elapsed());
            // Why there is no certificate is often why the control plane is away: once is enough.
            let _ = if text.contains(&away.why) {
                writeln!(text, "control plane away for {time}")
            } else {
                writeln!(text, "control plane away for {time}: {}", away.why)
            };
        }
        text
    }
}

/// Waits until what is missing has not changed for a while, and says it then: a start takes a moment anyway.
pub async fn tell(readiness: Readiness) {
    const PATIENCE: Duration = Duration::from_secs(3);
    let mut status = readiness.subscribe();
    while status.wait_for(|status| !status.is_ready()).await.is_ok() {
        let in_time = tokio::time::timeout(PATIENCE, async { status.wait_for(Status::is_ready).await.is_ok() }).await;
        if in_time.is_err() {
            let text = status.borrow().describe(SystemTime::now());
            tracing::warn!("not ready; {}", text.trim_end().replace('\n', "; "));
            let _ = status.wait_for(Status::is_ready).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readiness_says_what_is_missing_since_when_and_why() {
        let readiness = Readiness::default();
        readiness.configuration(vec!["trust bundle".into()]);
        readiness.away("control plane at 127.0.0.1:1: connection refused; is it running?");
        tokio::time::advance(Duration::from_secs(12)).await;
        readiness.away("control plane at 127.0.0.1:1: connection refused; is it running?");
        let status = readiness.subscribe();
        let now = SystemTime::now();
        assert_eq!(
            status.borrow().describe(now),
            "waiting for: certificate, trust bundle\ncontrol plane away for 12s: control plane at 127.0.0.1:1: \
             connection refused; is it running?\n"
        );
        readiness
            .certificate(Some("certificate (control plane at 127.0.0.1:1: connection refused; is it running?)".into()));
        assert_eq!(
            status.borrow().describe(now),
            "waiting for: certificate (control plane at 127.0.0.1:1: connection refused; is it running?), trust \
             bundle\ncontrol plane away for 12s\n",
            "the same reason is told once"
        );
        readiness.configuration(Vec::new());
        readiness.certificate(None);
        readiness.from_disk(Some(now - Duration::from_secs(7200)));
        readiness.reached();
        assert_eq!(status.borrow().describe(now), "ready\nconfiguration from disk, last right 2h ago\n");
        assert!(status.borrow().is_ready());
    }
}
