//! A sidecar as a child process: started, and waited for until it says that it is ready.

use std::{ffi::OsString, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::watch,
    time::Instant,
};

use super::app;

/// How often we ask what the sidecar waits for; said when it is something new.
const PATIENCE: Duration = Duration::from_secs(3);
/// And again after so many times of the same.
const REPEAT: u32 = 10;

/// Where the sidecar listens.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Listening {
    /// The admin server.
    pub admin: String,
    /// Calls by Host.
    pub outbound: String,
    /// Other sidecars.
    pub mesh: String,
    /// In transparent mode, where it takes what is redirected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
}

/// Ports of a transparent sidecar.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Redirect {
    /// Calls of the app.
    pub outbound: u16,
    /// DNS of the app.
    pub dns: u16,
    /// Ports of the app, and where calls to them come.
    pub inbound: Vec<(u16, u16)>,
}

/// A line of `--announce`.
#[derive(Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase", tag = "event")]
enum Event {
    Listening(Listening),
    Ready,
    Health {
        healthy: bool,
    },
    Drained,
    #[serde(other)]
    Other,
}

/// What the sidecar that runs now has said.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Said {
    /// It runs.
    pub up: bool,
    /// The app is well.
    pub healthy: bool,
    /// It drains, and nobody calls the app any more.
    pub drained: bool,
}

/// A sidecar that is ready.
pub struct Started {
    /// The process; it is killed when this is dropped.
    pub child: Child,
    /// Where it listens.
    pub listening: Listening,
}

/// Starts this program with `flags` and waits until the sidecar is ready, for at most `limit`. What it says from then on
/// goes to `said`.
pub async fn start(flags: &[OsString], limit: Option<Duration>, said: &watch::Sender<Said>) -> anyhow::Result<Started> {
    let program = std::env::current_exe().context("path of this program: unknown")?;
    let mut command = Command::new(program);
    // In a group of its own: the terminal's keys are for the app, whose calls the sidecar carries until it has ended.
    command.args(flags).arg("--parent").arg(std::process::id().to_string()).process_group(0);
    app::without_ours(&mut command);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().context("start the sidecar")?;
    let deadline = limit.map(|limit| Instant::now() + limit);
    let stdout = child.stdout.take().context("the sidecar's output: not a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let (mut listening, mut healthy) = (None, false);
    let (mut told, mut same) = (String::new(), 0);
    loop {
        let next = (Instant::now() + PATIENCE).min(deadline.unwrap_or_else(|| Instant::now() + PATIENCE));
        match tokio::time::timeout_at(next, lines.next_line()).await {
            Err(_) => {
                let missing = waiting_for(listening.as_ref()).await;
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    bail!("gave up after --ready-timeout; still waiting for {missing}");
                }
                same = if missing == told { same + 1 } else { 0 };
                if same % REPEAT == 0 {
                    eprintln!("weft run: waiting for {missing}");
                }
                told = missing;
            }
            Ok(line) => match line.context("read the sidecar's output")? {
                None => {
                    let status = child.wait().await.context("wait for the sidecar")?;
                    bail!("the sidecar ended before it was ready: {status}; its last lines above say why");
                }
                Some(line) => match (serde_json::from_str(&line), listening.take()) {
                    (Ok(Event::Listening(addresses)), _) => listening = Some(addresses),
                    (Ok(Event::Ready), Some(addresses)) => {
                        said.send_replace(Said { up: true, healthy, drained: false });
                        tokio::spawn(listen(lines, said.clone()));
                        return Ok(Started { child, listening: addresses });
                    }
                    (Ok(Event::Health { healthy: now }), kept) => (listening, healthy) = (kept, now),
                    (_, kept) => listening = kept,
                },
            },
        }
    }
}

/// What the sidecar's own readiness says is missing.
async fn waiting_for(listening: Option<&Listening>) -> String {
    let Some(listening) = listening else { return "the sidecar to listen".to_owned() };
    match crate::client::ask(&listening.admin, "/ready").await {
        Ok((status, _)) if status.is_success() => "the sidecar to say that it is ready".to_owned(),
        // The first line says what; those after it tell times, which are never the same.
        Ok((_, text)) => {
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("waiting for: ").unwrap_or(line).to_owned()
        }
        Err(error) => format!("the sidecar to answer: {error:#}"),
    }
}

/// Passes on what a ready sidecar says, and keeps the pipe from filling up.
async fn listen(mut lines: Lines<BufReader<ChildStdout>>, said: watch::Sender<Said>) {
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(Event::Health { healthy }) => said.send_modify(|said| said.healthy = healthy),
            Ok(Event::Drained) => said.send_modify(|said| said.drained = true),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_understood_and_unknown_ones_ignored() {
        let line = r#"{"event":"listening","admin":"127.0.0.1:41","outbound":"127.0.0.1:42","mesh":"127.0.0.1:43","upstreams":{"catalog":"127.0.0.1:9001"}}"#;
        let Event::Listening(listening) = serde_json::from_str(line).unwrap() else { panic!("not listening") };
        assert_eq!(listening.mesh, "127.0.0.1:43");
        assert_eq!(listening.redirect, None);
        let line = r#"{"event":"listening","admin":"","outbound":"","mesh":"","redirect":{"outbound":1,"dns":2,"inbound":[[80,3]]}}"#;
        let Event::Listening(listening) = serde_json::from_str(line).unwrap() else { panic!("not listening") };
        assert_eq!(listening.redirect, Some(Redirect { outbound: 1, dns: 2, inbound: vec![(80, 3)] }));
        assert_eq!(serde_json::from_str::<Event>(r#"{"event":"ready"}"#).unwrap(), Event::Ready);
        let health = serde_json::from_str::<Event>(r#"{"event":"health","healthy":true}"#).unwrap();
        assert_eq!(health, Event::Health { healthy: true });
        assert_eq!(serde_json::from_str::<Event>(r#"{"event":"rotated","n":1}"#).unwrap(), Event::Other);
        assert!(serde_json::from_str::<Event>("hello").is_err());
    }
}
