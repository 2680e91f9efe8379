//! `weft run`: a sidecar and an app as two children. The app starts when the sidecar is ready, gets the signals that we
//! get, and its end is the end of both.

use std::{
    ffi::OsString,
    io::IsTerminal as _,
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use rand::Rng as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use self::{
    instance::Instance,
    transparent::{Prepared, Redirected},
};
use crate::args::RunArgs;

mod instance;
mod sidecar;
mod transparent;

pub use transparent::enter as enter_cgroup;

/// The sidecar's lame-duck time and drain deadline, and a second for the rest.
const DRAIN: Duration = Duration::from_secs(31);
/// Back-off between restarts of a sidecar.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Runs the pair.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let kept = args.state_dir.as_deref().and_then(|dir| instance::load(dir, &args));
    let name = kept.as_ref().map_or_else(|| format!("{}-{}", args.name, suffix()), |kept| kept.name.clone());
    let prepared = args.transparent.then(|| Prepared::new(&args, &name)).transpose()?;
    let with = |listening: Option<&sidecar::Listening>| {
        let mut flags = sidecar_flags(&args, &name, listening);
        let fixed = listening.and_then(|listening| listening.redirect.as_ref());
        flags.extend(prepared.iter().flat_map(|prepared| prepared.flags(fixed)));
        flags
    };
    let flags = with(kept.as_ref().and_then(Instance::free));
    let started = tokio::select! {
        started = sidecar::start(&flags) => started?,
        signal = signals.next() => return Ok(ExitCode::from(128 + signal_number(signal))),
    };
    let sidecar::Started { mut child, listening } = started;
    // A sidecar that is started again must be where the app expects it.
    let flags = with(Some(&listening));
    if let Some(dir) = &args.state_dir {
        instance::save(dir, &Instance { name: name.clone(), listening: listening.clone() });
    }
    let started = redirected(prepared, &listening).and_then(|redirected| {
        let app = start_app(&args, &listening, redirected.as_ref())?;
        Ok((app, redirected))
    });
    let (mut app, redirected) = match started {
        Ok(started) => started,
        Err(error) => {
            stop(&mut child, DRAIN).await;
            return Err(error);
        }
    };
    let mut backoff = BACKOFF.0;
    let mut stopping = false;
    let status = loop {
        tokio::select! {
            status = app.wait() => break status.context("wait for the app")?,
            signal = signals.next() => {
                stopping = true;
                forward(&app, signal);
            }
            status = child.wait(), if !stopping => {
                let status = status.context("wait for the sidecar")?;
                eprintln!("weft run: sidecar ended ({status}); starting it again in {} ms", backoff.as_millis());
                tokio::select! {
                    status = app.wait() => break status.context("wait for the app")?,
                    signal = signals.next() => { stopping = true; forward(&app, signal); continue; }
                    () = tokio::time::sleep(backoff) => {}
                }
                backoff = next_backoff(backoff);
                tokio::select! {
                    status = app.wait() => break status.context("wait for the app")?,
                    signal = signals.next() => { stopping = true; forward(&app, signal); }
                    started = sidecar::start(&flags) => match started {
                        Ok(started) => { child = started.child; backoff = BACKOFF.0; }
                        Err(error) => eprintln!("weft run: {error:#}"),
                    },
                }
            }
        }
    };
    // Nothing is left of the app, and nobody is to find its ports redirected while the sidecar drains.
    drop(redirected);
    stop(&mut child, DRAIN).await;
    Ok(ExitCode::from(code(status)))
}

fn next_backoff(backoff: Duration) -> Duration {
    (backoff * 2).min(BACKOFF.1)
}

fn redirected(prepared: Option<Prepared>, listening: &sidecar::Listening) -> anyhow::Result<Option<Redirected>> {
    let Some(prepared) = prepared else { return Ok(None) };
    let ports = listening.redirect.as_ref().context("the sidecar does not say where it takes redirected traffic")?;
    prepared.redirect(ports).map(Some)
}

fn start_app(args: &RunArgs, listening: &sidecar::Listening, redirected: Option<&Redirected>) -> anyhow::Result<Child> {
    let inside = redirected.map(|redirected| redirected.command(&args.command)).transpose()?;
    let command = inside.as_ref().unwrap_or(&args.command);
    let (program, arguments) = command.split_first().context("no app given; put it behind `--`")?;
    Command::new(program)
        .args(arguments)
        .envs(environment(args, listening))
        .spawn()
        .with_context(|| format!("start the app: {}: failed; is it in PATH", program.display()))
}

/// What the app finds in its environment.
fn environment(args: &RunArgs, listening: &sidecar::Listening) -> Vec<(String, String)> {
    let mut variables = vec![
        ("WEFT_ADMIN".to_owned(), listening.admin.clone()),
        ("WEFT_OUTBOUND".to_owned(), listening.outbound.clone()),
    ];
    variables.extend(args.upstream.iter().map(|upstream| {
        let service = upstream.service.to_ascii_uppercase().replace('-', "_");
        (format!("WEFT_UPSTREAM_{service}"), format!("127.0.0.1:{}", upstream.local_port))
    }));
    variables
}

/// The sidecar's command line; `listening` pins the addresses of an earlier start, except those that are given.
fn sidecar_flags(args: &RunArgs, instance: &str, listening: Option<&sidecar::Listening>) -> Vec<OsString> {
    let mut flags: Vec<OsString> = vec!["sidecar".into(), "--announce".into()];
    let mut flag = |name: &str, value: OsString| flags.extend([name.into(), value]);
    flag("--name", instance.into());
    flag("--namespace", args.namespace.clone().into());
    flag("--service-account", args.service_account.clone().unwrap_or_else(|| args.name.clone()).into());
    flag("--label", format!("app={}", args.name).into());
    args.label.iter().for_each(|label| flag("--label", label.into()));
    args.port.iter().for_each(|port| flag("--port", port.into()));
    args.upstream.iter().for_each(|upstream| flag("--upstream", upstream.flag.clone().into()));
    let given = [args.outbound_listen, args.mesh_listen, args.admin_listen];
    let pinned = listening.map(|l| [&l.outbound, &l.mesh, &l.admin]);
    for (index, name) in ["--outbound-listen", "--mesh-listen", "--admin-listen"].into_iter().enumerate() {
        // Port 0 means any: one that was found before is as good, and the app knows it.
        let fixed = given[index].filter(|address| address.port() != 0).map(|address| address.to_string());
        let address = fixed.or_else(|| pinned.map(|p| p[index].clone())).or(given[index].map(|a| a.to_string()));
        if let Some(address) = address {
            flag(name, address.into());
        }
    }
    args.inbound_listen.iter().for_each(|front| flag("--inbound-listen", front.into()));
    if let Some(locality) = &args.locality {
        flag("--locality", locality.into());
    }
    if let Some(xds) = &args.xds {
        flag("--xds", xds.into());
    }
    if let Some(token) = &args.token {
        flag("--token", token.into());
    }
    if let Some(roots) = &args.roots {
        flag("--roots", roots.into());
    }
    if let Some(dir) = &args.state_dir {
        flag("--state-dir", dir.into());
    }
    if let Some(key) = &args.state_key {
        flag("--state-key", key.into());
    }
    if let Some(age) = &args.state_max_age {
        flag("--state-max-age", age.into());
    }
    flags
}

fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// SIGTERM, then SIGKILL when `deadline` has passed.
async fn stop(child: &mut Child, deadline: Duration) {
    send(child, Signal::TERM);
    if tokio::time::timeout(deadline, child.wait()).await.is_err() {
        eprintln!("weft run: sidecar has not drained in {} s; killing it", deadline.as_secs());
        child.kill().await.ok();
    }
}

fn send(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // It may have ended just now, which is what we want.
        kill_process(pid, signal).ok();
    }
}

fn forward(app: &Child, signal: Signal) {
    // A terminal has sent its Ctrl-C to the app already.
    if signal != Signal::INT || !std::io::stdin().is_terminal() {
        send(app, signal);
    }
}

fn signal_number(signal: Signal) -> u8 {
    u8::try_from(signal.as_raw()).unwrap_or(0)
}

/// The app's own code, 128 + n when signal n ended it.
fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map_or(1, |signal| 128 + signal);
    u8::try_from(status.code().unwrap_or_else(signal)).unwrap_or(1)
}

/// The signals that end us.
pub struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals over from the system's default.
    pub fn new() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("take over signals");
        Ok(Self {
            hangup: take(SignalKind::hangup())?,
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RunArgs {
        use clap::Parser as _;
        let line = "weft run --name web --upstream pay-ments.shop:80=9001 --locality eu/eu-1 --admin-listen 127.0.0.1:7 --inbound-listen 127.0.0.1:8=80 -- app";
        match crate::args::Cli::try_parse_from(line.split(' ')).unwrap().command {
            crate::args::Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn listening() -> sidecar::Listening {
        sidecar::Listening {
            admin: "127.0.0.1:1".into(),
            outbound: "127.0.0.1:2".into(),
            mesh: "127.0.0.1:3".into(),
            redirect: None,
        }
    }

    #[test]
    fn the_environment_names_each_upstream_in_capitals() {
        let environment = environment(&args(), &listening());
        let get = |name: &str| environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(get("WEFT_UPSTREAM_PAY_MENTS"), Some("127.0.0.1:9001"));
        assert_eq!(get("WEFT_ADMIN"), Some("127.0.0.1:1"));
        assert_eq!(get("WEFT_OUTBOUND"), Some("127.0.0.1:2"));
    }

    #[test]
    fn the_sidecar_gets_an_instance_name_and_the_app_label() {
        let flags = sidecar_flags(&args(), "web-abcde", None).join(&OsString::from(" "));
        let flags = flags.to_str().unwrap();
        assert!(flags.starts_with("sidecar --announce --name web-abcde --namespace default"), "{flags}");
        assert!(flags.contains("--service-account web --label app=web --upstream pay-ments.shop:80=9001"), "{flags}");
        assert!(flags.contains("--inbound-listen 127.0.0.1:8=80 --locality eu/eu-1"), "{flags}");
        assert!(flags.contains("--admin-listen 127.0.0.1:7") && !flags.contains("--mesh-listen"), "{flags}");
    }

    #[test]
    fn a_restarted_sidecar_keeps_its_addresses_and_those_that_are_given_win() {
        let flags = sidecar_flags(&args(), "web-abcde", Some(&listening())).join(&OsString::from(" "));
        let flags = flags.to_str().unwrap();
        assert!(flags.contains("--outbound-listen 127.0.0.1:2 --mesh-listen 127.0.0.1:3 --admin-listen 127.0.0.1:7"));
    }

    #[test]
    fn the_exit_code_is_the_apps_or_128_and_the_signal() {
        for (raw, expected) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(code(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }

    #[test]
    fn instance_names_differ_and_back_off_is_capped() {
        assert_eq!(suffix().len(), 5);
        assert_ne!(suffix(), suffix());
        assert_eq!(next_backoff(Duration::from_secs(9)), BACKOFF.1);
    }
}
