//! The composition root of the sidecar: binds, builds, starts, and stops in order.

pub mod worker;

use std::{
    io::{self, IsTerminal as _, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use tokio::sync::watch;
use weft_policy::model::Locality;
use weft_proto::v1::{self, Registration, WorkloadPort};
use weft_svid::TrustStore;

use self::worker::{Clock, Listeners, WorkerContext};
use crate::{
    admin::Admin,
    config::{SidecarArgs, SidecarConfig},
    discovery::{self, Backoff, Builder, Discovery, LEAVE, state::State},
    drain::{Drain, Phase},
    harden,
    identity::Enrolment,
    inbound::{self, Seen},
    listener, probe,
    snapshot::Snapshot,
    telemetry::{
        Telemetry,
        export::{self, Whose},
    },
};

/// Runs a sidecar until it has drained.
///
/// # Errors
/// When a listener cannot be bound or a flag makes no sense.
pub fn run(args: SidecarArgs) -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    harden::process();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn control(args: SidecarArgs) -> Result<()> {
    let mut reserved = Vec::new();
    let mut reserve = |what: &str, address: SocketAddr| -> Result<SocketAddr> {
        let (socket, address) = listener::reserve(address).with_context(|| format!("{what} {address}"))?;
        reserved.push(socket);
        Ok(address)
    };
    let mut upstreams = Vec::new();
    for flag in &args.upstreams {
        let upstream = flag.resolve(&args.namespace).map_err(anyhow::Error::msg)?;
        let local = SocketAddr::from(([127, 0, 0, 1], flag.local));
        upstreams.push((upstream, reserve("--upstream port", local)?));
    }
    let mut inbound = Vec::new();
    for (address, port) in &args.inbound_listen {
        inbound.push((reserve("--inbound-listen", *address)?, *port));
    }
    let listeners = Listeners {
        outbound: reserve("--outbound-listen", args.outbound_listen)?,
        mesh: reserve("--mesh-listen", args.mesh_listen)?,
        upstreams,
        inbound,
    };
    let admin = tokio::net::TcpListener::bind(args.admin_listen)
        .await
        .with_context(|| format!("--admin-listen {}", args.admin_listen))?;
    announce(&args, &listeners, admin.local_addr()?);

    let (telemetry, drain, trust) = (Telemetry::default(), Drain::default(), TrustStore::default());
    let (clock, arrivals) = (Clock::start(), Arc::<Seen>::default());
    let (demand, demands) = discovery::demand();
    let (identity, svid) = (watch::Sender::new(None), watch::Sender::new(None));
    let snapshot = watch::Sender::new(Arc::new(Snapshot::default()));
    let registration = watch::Sender::new(registration(&args, listeners.mesh));
    let state = State::new(&args.id(), listeners.upstreams.iter().map(|(upstream, _)| upstream.service.clone()));
    let missing = watch::Sender::new(state.missing());

    let label = |key: &str| args.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let whose = Whose {
        service: label("app").unwrap_or(&args.name),
        namespace: &args.namespace,
        instance: &args.name,
        version: label("version"),
    };
    let (spans, exporting) = export::queue(&telemetry, &whose);
    tokio::spawn(exporting.run(snapshot.subscribe()));
    let context = WorkerContext {
        config: Arc::new(SidecarConfig { namespace: args.namespace.clone() }),
        snapshot: snapshot.subscribe(),
        demand,
        identity: identity.subscribe(),
        telemetry: telemetry.clone(),
        drain: drain.clone(),
        listeners,
        clock,
        limiters: Arc::default(),
        spans,
        seen: Arc::clone(&arrivals),
        trust: trust.clone(),
    };
    let count = args.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let workers = worker::spawn(count, &context)?;
    drop(reserved);

    let seen = Admin {
        telemetry: telemetry.clone(),
        missing: missing.subscribe(),
        drain: drain.clone(),
        snapshot: snapshot.subscribe(),
    };
    tokio::spawn(seen.run(admin));
    let enrolment = Enrolment {
        xds: args.xds_address().into(),
        namespace: args.namespace.clone(),
        account: args.account().into(),
        token: args.token.clone(),
        trust: trust.clone(),
    };
    let discovery = Discovery {
        xds: args.xds_address().into(),
        namespace: args.namespace.clone(),
        svid: svid.subscribe(),
        trust,
        registration: registration.subscribe(),
        demand: demands,
        publish: snapshot,
        missing,
        telemetry: telemetry.clone(),
        state,
        builder: Builder::new(telemetry.clone(), args.locality(), clock),
        drain: drain.clone(),
        backoff: Backoff::default(),
    };
    tokio::spawn(announce_ready(args.announce, discovery.missing.subscribe(), telemetry.clone()));
    let registered = registration.clone();
    tokio::spawn(enrolment.run(identity, svid, move |result| report(&telemetry, &registered, result)));
    let discovery = tokio::spawn(discovery.run());
    tokio::spawn(inbound::tell(arrivals, context.snapshot.clone(), registration.clone()));
    tokio::spawn(probe::run(args.ports.iter().map(|port| port.port).collect(), registration.clone()));

    stop(&args, &drain, &registration).await?;
    // The control plane hears that this sidecar leaves before the process does.
    let _ = tokio::time::timeout(LEAVE * 2, discovery).await;
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}

/// Waits for a signal, then drains; a second signal means now.
async fn stop(args: &SidecarArgs, drain: &Drain, registration: &watch::Sender<Registration>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining");
    registration.send_modify(|registration| registration.draining = true);
    tokio::select! {
        () = drain.run(args.lame_duck, args.drain_timeout) => {}
        _ = terminate.recv() => drain.advance(Phase::Stopped),
        _ = interrupt.recv() => drain.advance(Phase::Stopped),
    }
    Ok(())
}

fn registration(args: &SidecarArgs, mesh: SocketAddr) -> Registration {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Registration {
        name: args.name.clone(),
        namespace: args.namespace.clone(),
        labels: args.labels.iter().cloned().collect(),
        address: args.advertised().to_string(),
        mesh_address: SocketAddr::new(args.advertised(), mesh.port()).to_string(),
        ports: args
            .ports
            .iter()
            .map(|port| WorkloadPort {
                port: u32::from(port.port),
                name: port.name.clone(),
                protocol: port.protocol.into(),
            })
            .collect(),
        healthy: false,
        draining: false,
        locality: args.locality.as_ref().map(|_| {
            let Locality { region, zone } = args.locality();
            v1::Locality { region: region.into(), zone: zone.into() }
        }),
        epoch_ms: u64::try_from(epoch).unwrap_or(u64::MAX),
        sidecar_version: env!("CARGO_PKG_VERSION").into(),
        certificate_end_ms: 0,
        service_account: args.account().into(),
        connections: Vec::new(),
    }
}

fn report(
    telemetry: &Telemetry,
    registration: &watch::Sender<Registration>,
    result: std::result::Result<SystemTime, &anyhow::Error>,
) {
    match result {
        Ok(not_after) => {
            let end = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
            let millis = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
            registration.send_modify(|registration| registration.certificate_end_ms = millis);
            let end = end.as_secs_f64();
            telemetry.gauge("weft_cert_expiry_seconds", "End of the certificate, Unix time", &[]).set(end);
            telemetry.counter("weft_cert_rotations_total", "Certificates obtained", &[]).increment(1);
            tracing::info!(?not_after, "certificate obtained");
        }
        Err(error) => tracing::warn!(error = format!("{error:#}"), "no new certificate; trying again"),
    }
}

fn announce(args: &SidecarArgs, listeners: &Listeners, admin: SocketAddr) {
    tracing::info!(outbound = %listeners.outbound, mesh = %listeners.mesh, %admin, "listening");
    if args.announce {
        let upstreams: serde_json::Map<_, _> = listeners
            .upstreams
            .iter()
            .map(|(upstream, address)| (upstream.service.name().to_owned(), address.to_string().into()))
            .collect();
        say(&serde_json::json!({
            "event": "listening", "admin": admin.to_string(), "outbound": listeners.outbound.to_string(),
            "mesh": listeners.mesh.to_string(), "upstreams": upstreams,
        }));
    }
}

async fn announce_ready(announce: bool, mut missing: watch::Receiver<Vec<String>>, telemetry: Telemetry) {
    if missing.wait_for(Vec::is_empty).await.is_ok() {
        telemetry.gauge("weft_ready", "1 once everything for the first request is there", &[]).set(1.0);
        tracing::info!("ready");
        if announce {
            say(&serde_json::json!({ "event": "ready" }));
        }
    }
}

fn say(event: &serde_json::Value) {
    let mut out = io::stdout().lock();
    // Nobody listening any more is no reason to stop.
    let _ = writeln!(out, "{event}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rule_12_the_registration_says_when_each_new_certificate_ends() {
        let (telemetry, registration) = (Telemetry::default(), watch::Sender::new(Registration::default()));
        let mut news = registration.subscribe();
        for seconds in [100, 200] {
            report(&telemetry, &registration, Ok(UNIX_EPOCH + Duration::from_secs(seconds)));
            assert!(news.has_changed().expect("open"));
            assert_eq!(news.borrow_and_update().certificate_end_ms, seconds * 1000);
        }
        report(&telemetry, &registration, Err(&anyhow::anyhow!("refused")));
        assert!(!news.has_changed().expect("open"), "the old one is kept");
    }
}
