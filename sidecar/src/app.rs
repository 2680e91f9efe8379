//! The composition root of the sidecar: binds, builds, starts, and stops in order.

mod listeners;
mod restored;
mod supervised;
pub mod worker;

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _, Write},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use weft_policy::model::Locality;
use weft_proto::v1::{self, Registration, WorkloadPort};
use weft_svid::TrustStore;

use self::{
    listeners::Bound,
    restored::Restored,
    worker::{Clock, WorkerContext},
};
use crate::{
    admin::Admin,
    config::{PodArgs, SidecarArgs, SidecarConfig},
    discovery::{self, Backoff, Builder, Discovery, LEAVE},
    dns::Dns,
    drain::{Drain, Phase},
    egress, harden,
    health::Health,
    identity::{Enrolment, life::WallClock, renewal::Renewal},
    inbound,
    observe::{self, taps::Taps},
    probe,
    readiness::{self, Readiness, Status},
    snapshot::Snapshot,
    state::{Store, keep},
    telemetry::{
        Telemetry,
        access::AccessLog,
        export::{self, SpanSink, Whose},
        gauges, propagation,
    },
    token::PendingKey,
    virtual_ips::VirtualIps,
};

/// Between two looks for series that nobody uses.
const EXPIRE: Duration = Duration::from_secs(60);

/// Runs a sidecar until it has drained.
///
/// # Errors
/// When a listener cannot be bound or a flag makes no sense.
pub fn run(mut args: SidecarArgs) -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    harden::process();
    if let Some(parent) = args.parent {
        supervised::dies_with(parent)?;
    }
    if let Some(mark) = args.mark {
        egress::mark(mark).with_context(|| format!("--mark {mark}: may this process do that (CAP_NET_ADMIN)"))?;
    }
    args.labels = args.pod.labels(&args.labels)?;
    args.advertise = args.advertise.map(|advertise| advertise.found(args.xds_address())).transpose()?;
    args.mesh_listen = args.all_families(args.mesh_listen);
    args.pod.health_listen = args.pod.health_listen.map(|address| args.all_families(address));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn control(args: SidecarArgs) -> Result<()> {
    let Listening { bound, admin, own_ports, seen_at } = listen(&args).await?;
    let Bound { listeners, dns, reserved } = bound;
    let (undeclared, asked) = mpsc::channel(64);

    let (telemetry, drain, readiness) = (telemetry(&args), Drain::default(), Readiness::default());
    let (demand, demands) = discovery::demand();
    let virtual_ips = Arc::<VirtualIps>::default();
    let (identity, svid) = (watch::Sender::new(None), watch::Sender::new(None));
    let snapshot = watch::Sender::new(Arc::new(Snapshot::default()));
    let enrolment = enrolment(&args);
    let trust = enrolment.trust.clone();
    let Restored { store, stored, state, from_disk } = restored::restore(&args, &listeners, &enrolment, &telemetry)?;
    let registration = watch::Sender::new(registration(&args, listeners.mesh, seen_at, epoch(store.as_deref())));

    let (channels, taps) = observe::start(&telemetry);
    let (spans, recording) = record(&args, &telemetry, taps, snapshot.subscribe())?;
    let context = WorkerContext {
        config: Arc::new(SidecarConfig { namespace: args.namespace.clone() }),
        snapshot: snapshot.subscribe(),
        demand: demand.clone(),
        virtual_ips: Arc::clone(&virtual_ips),
        identity: identity.subscribe(),
        telemetry: telemetry.clone(),
        drain: drain.clone(),
        listeners,
        clock: Clock::start(),
        limiters: Arc::default(),
        spans,
        seen: Arc::default(),
        propagation: Arc::default(),
        trust: trust.clone(),
        undeclared,
    };
    let count = args.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let workers = worker::spawn(count, &context)?;
    drop(reserved);

    let seen = Admin {
        telemetry: telemetry.clone(),
        readiness: readiness.subscribe(),
        drain: drain.clone(),
        snapshot: snapshot.subscribe(),
    };
    show(seen, admin, &args.pod, args.advertised()).await?;
    let namespace = &args.namespace;
    drop(
        dns.map(|on| tokio::spawn(Dns::new(namespace, snapshot.subscribe(), demand, virtual_ips, &telemetry).run(on))),
    );
    let (saver, keeper) = store.clone().map(|store| keep::saver(store, args.state_max_age, telemetry.clone())).unzip();
    let wishes = watch::Sender::default();
    let renewal = Renewal {
        signer: Arc::new(enrolment),
        trust: trust.clone(),
        clock: WallClock::default(),
        wishes: wishes.subscribe(),
        publish: identity,
        discovery: svid.clone(),
        registration: registration.clone(),
        readiness: readiness.clone(),
        telemetry: telemetry.clone(),
        store,
    };
    let discovery = Discovery {
        xds: args.xds_address().into(),
        namespace: args.namespace.clone(),
        svid: svid.subscribe(),
        trust,
        registration: registration.subscribe(),
        demand: demands,
        publish: snapshot,
        readiness: readiness.clone(),
        wishes,
        from_disk,
        saver,
        telemetry: telemetry.clone(),
        state,
        builder: Builder::new(telemetry.clone(), args.locality(), Clock::start()).by_address(args.transparent),
        drain: drain.clone(),
        backoff: Backoff::default(),
        channels,
    };
    tokio::spawn(announce_ready(args.announce, readiness.subscribe(), telemetry));
    tokio::spawn(readiness::tell(readiness));
    let keeper = keeper.map(|keeper| tokio::spawn(keeper.run()));
    tokio::spawn(renewal.run(stored));
    let discovery = tokio::spawn(discovery.run());
    tell_of_traffic(&context, &registration);
    tokio::spawn(inbound::declare(asked, own_ports, registration.clone()));
    probe::start(&args, &registration)?;

    stop(&args, &drain, &registration).await?;
    // The control plane hears that this sidecar leaves before the process does.
    let _ = tokio::time::timeout(LEAVE * 2, discovery).await;
    if let Some(keeper) = keeper {
        let _ = tokio::time::timeout(LEAVE, keeper).await;
    }
    for worker in workers {
        let _ = worker.join();
    }
    // The queues are closed with the last of those who fill them; what they hold still goes out.
    drop(context);
    recording.end().await;
    Ok(())
}

/// Where this sidecar listens.
struct Listening {
    bound: Bound,
    admin: TcpListener,
    /// All of its ports.
    own_ports: BTreeSet<u16>,
    /// Where the control plane says that metrics are.
    seen_at: SocketAddr,
}

/// Finds every address, and tells them.
async fn listen(args: &SidecarArgs) -> Result<Listening> {
    let bound = listeners::bind(args)?;
    let admin =
        TcpListener::bind(args.admin_listen).await.with_context(|| format!("--admin-listen {}", args.admin_listen))?;
    let seen_at = listeners::announce(args, &bound, admin.local_addr()?);
    let health = args.pod.health_listen.map(|health| SocketAddr::new(args.advertised(), health.port()));
    let own_ports = bound.own_ports([Some(seen_at.port()), health.map(|health| health.port())].into_iter().flatten());
    let seen_at = health.filter(|_| args.pod.health_metrics).unwrap_or(seen_at);
    Ok(Listening { bound, admin, own_ports, seen_at })
}

fn enrolment(args: &SidecarArgs) -> Enrolment {
    Enrolment {
        xds: args.xds_address().into(),
        namespace: args.namespace.clone(),
        account: args.account().into(),
        token: args.token.clone(),
        roots: args.roots.clone(),
        pending: PendingKey::default(),
        trust: TrustStore::default(),
    }
}

/// The metrics of this sidecar.
fn telemetry(args: &SidecarArgs) -> Telemetry {
    let telemetry = Telemetry::new(&format!("{}/{}", args.namespace, args.account()));
    gauges::register(&telemetry);
    tokio::spawn(expire(telemetry.clone()));
    telemetry
}

/// Forgets the series of what is gone for long.
async fn expire(telemetry: Telemetry) {
    let mut tick = tokio::time::interval(EXPIRE);
    loop {
        telemetry.expire(tick.tick().await.into_std());
    }
}

/// Starts what tells others how this sidecar is.
async fn show(seen: Admin, admin: TcpListener, pod: &PodArgs, advertised: IpAddr) -> Result<()> {
    if let Some(address) = pod.health_listen {
        let listener = TcpListener::bind(address).await.with_context(|| format!("--health-listen {address}"))?;
        let health = Health::new(seen.readiness.clone(), seen.drain.clone(), advertised, &pod.app_probes);
        tokio::spawn(health.with_metrics(pod.health_metrics.then(|| seen.telemetry.clone())).run(listener));
    }
    tokio::spawn(seen.run(admin));
    Ok(())
}

/// What takes spans and lines of the access log from the workers.
struct Recording {
    exporting: JoinHandle<()>,
    logging: std::thread::JoinHandle<()>,
}

impl Recording {
    /// Waits a moment for what is still in the queues.
    async fn end(self) {
        let _ = tokio::time::timeout(LEAVE, self.exporting).await;
        let logging = tokio::task::spawn_blocking(|| self.logging.join());
        let _ = tokio::time::timeout(LEAVE, logging).await;
    }
}

/// Where the workers leave spans and lines of the access log, under the workload's name.
fn record(
    args: &SidecarArgs,
    telemetry: &Telemetry,
    taps: Taps,
    snapshot: watch::Receiver<Arc<Snapshot>>,
) -> Result<(SpanSink, Recording)> {
    let (log, logging) = AccessLog::start(telemetry, args.access_log.as_deref())?;
    let label = |key: &str| args.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let whose = Whose {
        service: label("app").unwrap_or(&args.name),
        namespace: &args.namespace,
        instance: &args.name,
        version: label("version"),
    };
    let (sink, exporting) = export::queue(telemetry, &whose, Some(log), Some(taps));
    Ok((sink, Recording { exporting: tokio::spawn(exporting.run(snapshot)), logging }))
}

/// Waits for a signal, then drains; a second signal means now. A drain that was asked for waits for the signal.
async fn stop(args: &SidecarArgs, drain: &Drain, registration: &watch::Sender<Registration>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = drain.asked() => Some(Instant::now()),
    };
    tracing::info!("draining");
    registration.send_modify(|registration| registration.draining = true);
    // Nobody calls an app without ports, and one whose supervisor is gone is gone too.
    let orphan = args.parent.is_some_and(supervised::is_orphan);
    let mut lame_duck = if args.ports.is_empty() { Duration::ZERO } else { args.lame_duck };
    if orphan {
        drain.advance(Phase::Stopped);
        return Ok(());
    }
    if let Some(asked) = asked {
        // The app has the signal already; ours comes when it has ended.
        tokio::select! {
            () = drain.quiesce(lame_duck, || supervised::drained(args.announce)) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        lame_duck = lame_duck.saturating_sub(asked.elapsed());
    }
    tokio::select! {
        () = drain.run(lame_duck, args.drain_timeout) => {}
        _ = terminate.recv() => drain.advance(Phase::Stopped),
        _ = interrupt.recv() => drain.advance(Phase::Stopped),
    }
    Ok(())
}

/// Tells this start from those before, of which it is the newest, in milliseconds.
fn epoch(store: Option<&Store>) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    store.map_or(now, |store| {
        store.next_epoch(now).unwrap_or_else(|refused| {
            tracing::warn!(%refused, "state: the number of this start is not kept: if the clock goes back, the next one may be refused");
            now
        })
    })
}

/// Has the control plane told, beside what a registration says at first, what was seen of the app's traffic.
fn tell_of_traffic(context: &WorkerContext, registration: &watch::Sender<Registration>) {
    let (seen, all) = (Arc::clone(&context.seen), Arc::clone(&context.propagation));
    tokio::spawn(inbound::tell(seen, context.snapshot.clone(), registration.clone()));
    tokio::spawn(propagation::tell(all, context.telemetry.clone(), registration.clone()));
}

fn registration(args: &SidecarArgs, mesh: SocketAddr, admin: SocketAddr, epoch_ms: u64) -> Registration {
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
                undeclared: false,
            })
            .collect(),
        healthy: false,
        draining: false,
        locality: args.locality.as_ref().map(|_| {
            let Locality { region, zone } = args.locality();
            v1::Locality { region: region.into(), zone: zone.into() }
        }),
        epoch_ms,
        sidecar_version: env!("CARGO_PKG_VERSION").into(),
        certificate_end_ms: 0,
        service_account: args.account().into(),
        connections: Vec::new(),
        trace_propagation: None,
        admin_address: admin.to_string(),
    }
}

async fn announce_ready(announce: bool, mut status: watch::Receiver<Status>, telemetry: Telemetry) {
    let gauge = telemetry.gauge("weft_ready", "1 while everything for requests is there", &[]);
    let mut first = true;
    while status.wait_for(Status::is_ready).await.is_ok() {
        gauge.set(1.0);
        tracing::info!("ready");
        if announce && first {
            say(&serde_json::json!({ "event": "ready" }));
        }
        first = false;
        if status.wait_for(|status| !status.is_ready()).await.is_ok() {
            gauge.set(0.0);
        }
    }
}

fn say(event: &serde_json::Value) {
    let mut out = io::stdout().lock();
    // Nobody listening any more is no reason to stop.
    let _ = writeln!(out, "{event}").and_then(|()| out.flush());
}
