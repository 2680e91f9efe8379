//! What systemd is told (`sd_notify`): when the app is started and healthy, that it stops, and, when it asks, that it is
//! still well.

use std::{os::unix::net::UnixDatagram, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::sidecar::Said;

/// The service manager; says nothing when there is none.
#[derive(Clone, Default)]
pub struct Notify {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment has it. A socket that cannot be reached is told and no reason to stop.
    pub fn from_environment() -> Self {
        let Some(path) = std::env::var("NOTIFY_SOCKET").ok().filter(|path| !path.is_empty()) else {
            return Self::default();
        };
        let socket = connect(&path).inspect_err(|error| {
            eprintln!("weft run: NOTIFY_SOCKET {path}: {error}; the service manager will not hear of this app");
        });
        let get = |name| std::env::var(name).ok();
        let watchdog = interval(get("WATCHDOG_USEC").as_deref(), get("WATCHDOG_PID").as_deref(), std::process::id());
        Self { socket: socket.ok().map(Arc::new), watchdog }
    }

    /// Sends one message.
    pub fn say(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // A manager that does not listen any more is no reason to stop.
            let _ = socket.send(message.as_bytes());
        }
    }

    /// Says that the app is ready once it is well, and from then on, as often as the watchdog wants, that it is.
    pub async fn tell(self, mut said: watch::Receiver<Said>) {
        if self.socket.is_none() || said.wait_for(|said| said.healthy).await.is_err() {
            return;
        }
        self.say("READY=1\nSTATUS=the app is started and healthy");
        let Some(every) = self.watchdog else { return };
        loop {
            if said.borrow().healthy {
                self.say("WATCHDOG=1");
            }
            tokio::time::sleep(every).await;
        }
    }
}

fn connect(path: &str) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A manager that hangs does not hang the app.
    socket.set_write_timeout(Some(Duration::from_millis(500)))?;
    match path.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
        }
        _ => socket.connect(path)?,
    }
    Ok(socket)
}

/// Half of the time that the watchdog waits, if it watches us.
fn interval(time: Option<&str>, whose: Option<&str>, ours: u32) -> Option<Duration> {
    let ours = ours.to_string();
    let time = time.filter(|_| whose.is_none_or(|pid| pid == ours))?.parse().ok().filter(|time| *time > 0)?;
    Some((Duration::from_micros(time) / 2).max(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_and_only_if_it_is_ours() {
        let half = Some(Duration::from_secs(1));
        assert_eq!(interval(Some("2000000"), None, 7), half);
        assert_eq!(interval(Some("2000000"), Some("7"), 7), half);
        assert_eq!(interval(Some("2000000"), Some("8"), 7), None);
        assert_eq!(interval(None, Some("7"), 7), None);
        for wrong in ["", "0", "-1", "x"] {
            assert_eq!(interval(Some(wrong), None, 7), None, "{wrong}");
        }
    }
}
