//! Whether the app is well: asked at an interval, over TCP on all of its ports, over HTTP, gRPC's health protocol, or by a
//! command. The answer decides if the workload takes requests.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    str::FromStr,
    time::Duration,
};

use tokio::{process::Command, sync::watch};
use weft_proto::v1::Registration;

use crate::{
    config::{self, SidecarArgs},
    egress,
    health::{What, ask},
};

/// How often an app that is not well is asked, at least: callers wait for it.
const SOON: Duration = Duration::from_millis(250);

/// How the app is asked, as written in `--probe`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Kind {
    /// Each port takes a connection.
    #[default]
    Tcp,
    /// A GET of this path, at this port or the first one, is answered with 2xx or 3xx.
    Http(Option<u16>, String),
    /// `grpc.health.v1.Health/Check` of this service, at the first port, says SERVING.
    Grpc(String),
    /// `sh -c` of this ends with 0.
    Exec(String),
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("{text:?}: expected tcp, http:/PATH, http:PORT/PATH, grpc, grpc:SERVICE or exec:COMMAND");
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("tcp", None) => Ok(Self::Tcp),
            ("grpc", service) => Ok(Self::Grpc(service.unwrap_or_default().into())),
            ("http", Some(rest)) => {
                let (port, path) = rest.split_once('/').ok_or_else(expected)?;
                let port = if port.is_empty() { None } else { Some(config::port(port)?) };
                Ok(Self::Http(port, format!("/{path}")))
            }
            ("exec", Some(command)) if !command.trim().is_empty() => Ok(Self::Exec(command.into())),
            _ => Err(expected()),
        }
    }
}

/// Flags of the probe.
#[derive(Clone, Debug, clap::Args)]
pub struct ProbeArgs {
    /// How the app is asked whether it is well: tcp, http:[PORT]/PATH, grpc[:SERVICE] or exec:COMMAND
    #[arg(long, value_name = "PROBE", default_value = "tcp")]
    pub probe: Kind,
    /// How often the app is asked, such as 1s or 500ms; one that is not well at least four times a second
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub probe_interval: Duration,
    /// An answer that takes longer is none
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = time)]
    pub probe_timeout: Duration,
    /// So many failures in a row and the app leaves discovery; one success and it comes back
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub probe_threshold: u32,
}

/// Seconds or milliseconds, not 0.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?}: expected a number and a unit, such as 1s or 500ms, from 10ms to an hour");
    let (number, unit) = text.strip_suffix("ms").map_or((text.strip_suffix('s').unwrap_or(text), 1000), |ms| (ms, 1));
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)?;
    if (10..=3_600_000).contains(&millis) { Ok(Duration::from_millis(millis)) } else { Err(wrong()) }
}

impl ProbeArgs {
    /// What is asked of an app with these ports.
    ///
    /// # Errors
    /// When the probe needs a port and there is none.
    fn questions(&self, ports: &[u16]) -> Result<Vec<Question>, String> {
        let first =
            || ports.first().copied().ok_or_else(|| "--probe: there is no --port that could be asked".to_owned());
        Ok(match &self.probe {
            Kind::Tcp => ports.iter().map(|port| Question::Tcp(*port)).collect(),
            Kind::Http(port, path) => vec![Question::Ask(What::http(port.map_or_else(first, Ok)?, path))],
            Kind::Grpc(service) => vec![Question::Ask(What::grpc(first()?, service))],
            Kind::Exec(command) => vec![Question::Exec(command.clone())],
        })
    }
}

/// One thing that is asked.
#[derive(Debug)]
pub enum Question {
    /// Whether the port takes a connection.
    Tcp(u16),
    /// HTTP or gRPC.
    Ask(What),
    /// A command.
    Exec(String),
}

impl Question {
    async fn answer(&self) -> Result<(), String> {
        match self {
            Self::Tcp(port) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                egress::connect(address).await.map(drop).map_err(|error| format!("port {port}: {error}"))
            }
            Self::Ask(what) => ask(what, Ipv4Addr::LOCALHOST.into()).await,
            Self::Exec(command) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(command).kill_on_drop(true);
                let status = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
                match status.map_err(|error| format!("sh: {error}"))? {
                    status if status.success() => Ok(()),
                    status => Err(format!("{command:?}: {status}")),
                }
            }
        }
    }
}

/// Starts asking.
///
/// # Errors
/// When the probe needs a port and there is none.
pub fn start(args: &SidecarArgs, registration: &watch::Sender<Registration>) -> anyhow::Result<()> {
    let ports: Vec<u16> = args.ports.iter().map(|port| port.port).collect();
    let questions = args.probe.questions(&ports).map_err(anyhow::Error::msg)?;
    if args.announce {
        tokio::spawn(announce(registration.subscribe()));
    }
    tokio::spawn(run(questions, args.probe.clone(), registration.clone()));
    Ok(())
}

/// Asks for ever and keeps `healthy` of the registration.
async fn run(questions: Vec<Question>, args: ProbeArgs, registration: watch::Sender<Registration>) {
    let mut failures: u32 = 0;
    loop {
        let asked = async {
            for question in &questions {
                question.answer().await?;
            }
            Ok(())
        };
        let late = || Err(format!("no answer in {} ms", args.probe_timeout.as_millis()));
        let answer: Result<(), String> =
            tokio::time::timeout(args.probe_timeout, asked).await.unwrap_or_else(|_| late());
        failures = if answer.is_ok() { 0 } else { failures.saturating_add(1) };
        let changed = registration.send_if_modified(|registration| {
            let healthy = next(registration.healthy, answer.is_ok(), failures, args.probe_threshold);
            std::mem::replace(&mut registration.healthy, healthy) != healthy
        });
        let healthy = registration.borrow().healthy;
        match answer {
            Ok(()) if changed => tracing::info!("the app is healthy"),
            Err(why) if changed => tracing::warn!(why, "the app is not healthy: callers go elsewhere until it is"),
            _ => {}
        }
        tokio::time::sleep(if healthy { args.probe_interval } else { args.probe_interval.min(SOON) }).await;
    }
}

/// Prints, for `--announce`, how the app is whenever that changes.
async fn announce(mut registration: watch::Receiver<Registration>) {
    let mut told = None;
    loop {
        let healthy = registration.borrow_and_update().healthy;
        if told != Some(healthy) {
            told = Some(healthy);
            let mut out = std::io::stdout().lock();
            // Nobody listening any more is no reason to stop.
            let _ = writeln!(out, "{}", serde_json::json!({ "event": "health", "healthy": healthy }))
                .and_then(|()| out.flush());
        }
        if registration.changed().await.is_err() {
            return;
        }
    }
}

/// One success makes healthy, so many failures in a row make unhealthy.
const fn next(healthy: bool, alive: bool, failures: u32, threshold: u32) -> bool {
    alive || healthy && failures < threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_success_makes_healthy_and_three_failures_unhealthy() {
        assert!(next(false, true, 0, 3));
        assert!(next(true, false, 2, 3));
        assert!(!next(true, false, 3, 3));
        assert!(!next(false, false, 1, 3));
    }

    #[test]
    fn a_probe_is_tcp_http_grpc_or_a_command() {
        let kind = |text: &str| text.parse::<Kind>();
        assert_eq!(kind("tcp"), Ok(Kind::Tcp));
        assert_eq!(kind("http:/healthz?full=1"), Ok(Kind::Http(None, "/healthz?full=1".into())));
        assert_eq!(kind("http:8081/"), Ok(Kind::Http(Some(8081), "/".into())));
        assert_eq!(kind("grpc"), Ok(Kind::Grpc(String::new())));
        assert_eq!(kind("grpc:shop.v1.Orders"), Ok(Kind::Grpc("shop.v1.Orders".into())));
        assert_eq!(kind("exec:test -f a:b"), Ok(Kind::Exec("test -f a:b".into())));
        for wrong in ["", "http", "http:", "http:x/", "http:0/", "exec:", "exec: ", "tcp:80", "udp"] {
            assert!(kind(wrong).is_err(), "{wrong}");
        }
        let times = ["1s", "500ms", "2"].map(|text| time(text).map(|time| time.as_millis()));
        assert_eq!(times, [Ok(1000), Ok(500), Ok(2000)]);
        for wrong in ["", "s", "0s", "9ms", "-1s", "2h", "99999999999999999s"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_command_says_how_the_app_is() {
        assert_eq!(Question::Exec("true".into()).answer().await, Ok(()));
        let said = Question::Exec("exit 3".into()).answer().await;
        assert_eq!(said, Err("\"exit 3\": exit status: 3".into()));
    }
}
