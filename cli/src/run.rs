//! `weft run`: a sidecar and an app as two children. The app starts when the sidecar is ready, gets the signals that we
//! get, and its end is the end of both. Before a signal that ends it, the sidecar turns its callers away.

use std::{
    ffi::OsString,
    net::SocketAddr,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use rand::Rng as _;
use rustix::process::Signal;
use tokio::{process::Child, sync::watch, task::JoinHandle};

pub use self::{
    app::{AppArgs, become_app},
    signals::Signals,
    transparent::enter as enter_cgroup,
};
use self::{
    instance::Instance,
    keeper::Keeper,
    notify::Notify,
    sidecar::{Listening, Said},
    signals::forward,
    transparent::{Prepared, Redirected},
};
use crate::{args::RunArgs, client};

mod app;
mod env_file;
mod instance;
mod keeper;
mod notify;
#[cfg(target_os = "linux")]
mod orphans;
pub mod ports;
mod settings;
mod sidecar;
mod signals;
mod transparent;

/// Runs the pair.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let args = settings::merged(args)?;
    let mut signals = Signals::all()?;
    let variables = args.env_file.as_deref().map(env_file::read).transpose()?.unwrap_or_default();
    app::find(&args.command)?;
    let kept = args.state_dir.as_deref().and_then(|dir| instance::load(dir, &args));
    let name = kept.as_ref().map_or_else(|| format!("{}-{}", args.name, suffix()), |kept| kept.name.clone());
    look_at_ports(&args)?;
    #[cfg(target_os = "linux")]
    tokio::spawn(orphans::bury());
    let notify = Notify::from_environment();
    let said = watch::Sender::<Said>::default();
    let prepared = args.transparent.then(|| Prepared::new(&args, &name)).transpose()?;
    let with = |listening: Option<&Listening>| {
        let mut flags = sidecar_flags(&args, &name, listening);
        let fixed = listening.and_then(|listening| listening.redirect.as_ref());
        flags.extend(prepared.iter().flat_map(|prepared| prepared.flags(fixed)));
        flags
    };
    let flags = with(kept.as_ref().and_then(Instance::free));
    let limit = Some(args.ready_timeout).filter(|limit| !limit.is_zero());
    let started = tokio::select! {
        started = sidecar::start(&flags, limit, &said) => started?,
        signal = signals.next_end() => return Ok(ExitCode::from(128 + signals::number(signal))),
    };
    let sidecar::Started { child, listening } = started;
    // A sidecar that is started again must be where the app expects it.
    let keeper = Keeper::start(child, with(Some(&listening)), said.clone());
    if let Some(dir) = &args.state_dir {
        instance::save(dir, &Instance { name: name.clone(), listening: listening.clone() });
    }
    let started = redirected(prepared, &listening).and_then(|redirected| {
        let inside = redirected.as_ref().map(|redirected| redirected.command(&args.command)).transpose()?;
        // What we say is not to be mistaken.
        let environment = variables.into_iter().chain(app::environment(&args, &listening)).collect();
        Ok((app::start(inside.as_ref().unwrap_or(&args.command), environment)?, redirected))
    });
    let (app, redirected) = match started {
        Ok(started) => started,
        Err(error) => {
            keeper.end().await;
            return Err(error);
        }
    };
    let telling = tokio::spawn(notify.clone().tell(said.subscribe()));
    let running = Running { args: &args, admin: &listening.admin, said, notify, keeper: &keeper };
    let status = running.until_the_end(app, &mut signals).await;
    telling.abort();
    // Nothing is left of the app, and nobody is to find its ports redirected while the sidecar ends.
    drop(redirected);
    keeper.end().await;
    Ok(ExitCode::from(app::code(status?)))
}

fn redirected(prepared: Option<Prepared>, listening: &Listening) -> anyhow::Result<Option<Redirected>> {
    let Some(prepared) = prepared else { return Ok(None) };
    let ports = listening.redirect.as_ref().context("the sidecar does not say where it takes redirected traffic")?;
    prepared.redirect(ports).map(Some)
}

/// An app and its sidecar, both of which run.
struct Running<'a> {
    args: &'a RunArgs,
    admin: &'a str,
    said: watch::Sender<Said>,
    notify: Notify,
    keeper: &'a Keeper,
}

impl Running<'_> {
    /// Passes signals on until the app has ended. The first one that asks an app with ports to end is held back while
    /// callers leave; another one is not.
    async fn until_the_end(&self, mut app: Child, signals: &mut Signals) -> anyhow::Result<ExitStatus> {
        let mut leaving: Option<(JoinHandle<()>, Signal)> = None;
        let mut stopping = false;
        loop {
            let left = async {
                match &mut leaving {
                    Some((task, signal)) => {
                        let _ = task.await;
                        *signal
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = app.wait() => return status.context("wait for the app"),
                signal = left => {
                    leaving = None;
                    forward(&app, signal);
                }
                signal = signals.next() => match signal {
                    Signal::TERM | Signal::INT if !stopping => {
                        stopping = true;
                        self.notify.say("STOPPING=1\nSTATUS=callers are turned away, then the app is stopped");
                        self.keeper.drains();
                        if self.args.port.is_empty() {
                            forward(&app, signal);
                        } else {
                            leaving = Some((self.turn_callers_away(), signal));
                        }
                    }
                    signal => forward(&app, signal),
                },
            }
        }
    }

    /// Has the sidecar drain; ends when nobody calls the app any more, or when that takes too long.
    fn turn_callers_away(&self) -> JoinHandle<()> {
        let (admin, mut said) = (self.admin.to_owned(), self.said.subscribe());
        let limit = Duration::from_secs(self.args.drain_timeout);
        tokio::spawn(async move {
            let drained = async {
                match client::post(&admin, "/drain").await {
                    Ok(_) => {
                        let _ = said.wait_for(|said| said.drained || !said.up).await;
                    }
                    Err(error) => eprintln!("weft run: the sidecar does not drain: {error:#}"),
                }
            };
            if tokio::time::timeout(limit, drained).await.is_err() {
                let seconds = limit.as_secs();
                eprintln!(
                    "weft run: somebody still calls the app after {seconds} s (--drain-timeout); it is told to stop"
                );
            }
        })
    }
}

/// Everything that is to be listened on is free; one of the app's own ports that is not may be meant so.
fn look_at_ports(args: &RunArgs) -> anyhow::Result<()> {
    let given = [
        ("--outbound-listen", args.outbound_listen),
        ("--mesh-listen", args.mesh_listen),
        ("--admin-listen", args.admin_listen),
    ];
    let given = given.into_iter().filter_map(|(flag, address)| Some((flag, address?)));
    let upstreams = args.upstream.iter().map(|upstream| SocketAddr::from(([127, 0, 0, 1], upstream.local_port)));
    for (flag, address) in given.chain(upstreams.map(|address| ("--upstream", address))) {
        ports::free(flag, address)?;
    }
    for port in &args.port {
        let number = port.split('/').next().and_then(|port| port.rsplit(':').next()).and_then(|port| port.parse().ok());
        if let Some((number, holder)) = number.and_then(|number: u16| Some((number, ports::holder(number)?))) {
            eprintln!(
                "weft run: {holder} listens on port {number} of the app already; unless that is the app, it will fail"
            );
        }
    }
    Ok(())
}

/// The sidecar's command line; `listening` pins the addresses of an earlier start, except those that are given.
fn sidecar_flags(args: &RunArgs, instance: &str, listening: Option<&Listening>) -> Vec<OsString> {
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
    let more = [
        ("--probe", args.probe.clone()),
        ("--probe-interval", args.probe_interval.clone()),
        ("--probe-timeout", args.probe_timeout.clone()),
        ("--probe-threshold", args.probe_threshold.clone()),
        ("--lame-duck", args.lame_duck.map(|seconds| seconds.to_string())),
        ("--drain-timeout", Some(args.drain_timeout.to_string())),
    ];
    more.into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .for_each(|(name, value)| flag(name, value.into()));
    flags
}

fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RunArgs {
        use clap::Parser as _;
        let line = "weft run --name web --upstream pay-ments.shop:80=9001 --locality eu/eu-1 --admin-listen 127.0.0.1:7 \
                    --inbound-listen 127.0.0.1:8=80 --probe exec:true --lame-duck 1 -- app";
        match crate::args::Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            crate::args::Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn listening() -> Listening {
        let address = |port| format!("127.0.0.1:{port}");
        Listening { admin: address(1), outbound: address(2), mesh: address(3), redirect: None }
    }

    #[test]
    fn the_sidecar_gets_an_instance_name_and_the_app_label() {
        let flags = sidecar_flags(&args(), "web-abcde", None).join(&OsString::from(" "));
        let flags = flags.to_str().unwrap();
        assert!(flags.starts_with("sidecar --announce --name web-abcde --namespace default"), "{flags}");
        assert!(flags.contains("--service-account web --label app=web --upstream pay-ments.shop:80=9001"), "{flags}");
        assert!(flags.contains("--inbound-listen 127.0.0.1:8=80 --locality eu/eu-1"), "{flags}");
        assert!(flags.contains("--admin-listen 127.0.0.1:7") && !flags.contains("--mesh-listen"), "{flags}");
        assert!(flags.ends_with("--probe exec:true --lame-duck 1 --drain-timeout 25"), "{flags}");
    }

    #[test]
    fn a_restarted_sidecar_keeps_its_addresses_and_those_that_are_given_win() {
        let flags = sidecar_flags(&args(), "web-abcde", Some(&listening())).join(&OsString::from(" "));
        let flags = flags.to_str().unwrap();
        assert!(flags.contains("--outbound-listen 127.0.0.1:2 --mesh-listen 127.0.0.1:3 --admin-listen 127.0.0.1:7"));
    }

    #[test]
    fn instance_names_differ() {
        assert_eq!(suffix().len(), 5);
        assert_ne!(suffix(), suffix());
    }
}
