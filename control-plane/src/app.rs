//! The composition root: builds the parts, connects them, serves until told to stop.

mod compiling;
mod conditions;
pub(crate) mod incoming;
mod operators;
mod sources;
mod spans;

use std::{
    io::{self, IsTerminal as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::service::{Interceptor, interceptor::InterceptedService};

use self::{
    compiling::Compiling,
    conditions::{Sink, Statuses},
    sources::Sources,
};
use crate::{
    api::{self, ApiState, Pushed},
    ca::{
        Ca,
        enrolment::{Enrolment, joins::Joins, review::Reviewer},
        external::Files,
        service::{IdentityService, PeerInfo},
        upkeep::MAINTENANCE,
    },
    config::ControlPlaneArgs,
    jwks, kubernetes,
    metrics::{self, Metrics},
    observe::server::Observing,
    push::{
        Reflected, View,
        proxies::Proxies,
        server::{self, Discovery},
    },
    registry::{Claims, RESTORED, Registry},
    sessions::Secret,
    store::Store,
};

/// Streams have this long to end when the control plane stops.
const STOP: Duration = Duration::from_secs(5);
/// What the authority needs is told again after this.
const WARNED: Duration = Duration::from_secs(86_400);

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot start.
pub async fn run(args: ControlPlaneArgs) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    operators::check(&args)?;
    let data_dir = args.data_dir();
    crate::ca::private_dir(&data_dir)?;
    // First: it lets no second process at the directory.
    let store = Store::open(&data_dir)?;
    let metrics = measured(&store);
    let ca = founded(&args, &data_dir).await?;
    let xds = TcpListener::bind(args.xds_listen).await.with_context(|| format!("listen on {}", args.xds_listen))?;
    let api = TcpListener::bind(args.api_listen).await.with_context(|| format!("listen on {}", args.api_listen))?;
    let identity = identity(&args, &data_dir, &ca, xds.local_addr()?).await?;
    let (access, https) = operators::access(&args, &data_dir, &ca, api.local_addr()?)?;
    let traces = spans::receive(&args).await?;
    let claims = if args.attested_labels_only { Claims::Attested } else { Claims::Free };
    let registry = Registry::open(&data_dir.join("registrations"), claims);
    let problems = Arc::new(Mutex::new(Vec::new()));
    let view = watch::Sender::new(Arc::new(View::default()));
    let reading = view.subscribe();
    let reflected = watch::Sender::new(Reflected::default());
    let reflecting = reflected.subscribe();
    let stopping = watch::Sender::new(false);
    // One for all of the time: a signal between two would be lost.
    let mut stopped = std::pin::pin!(stop());
    // The API server of a cluster may never answer.
    let following = until(stopped.as_mut(), Sources::follow(&args, &store, &stopping)).await?;
    let Some(Sources { resources, written, directory, sink, candidate }) = following else { return Ok(()) };
    // Nobody can have come back before there is something to serve.
    tokio::spawn(forget_restored(registry.clone(), args.xds_admission_rate.get()));
    let client = jwks::Client::new(&args.allow_jwks_host, args.jwks_ca.as_ref())?;
    let kept = jwks::Kept::new(data_dir.join("jwks"));
    let fetching = jwks::Fetching::new(resources.clone(), client, kept, jwks::Times::default());
    let compiling = Compiling {
        secret: Secret::open(&data_dir)?,
        sets: fetching.sets(),
        resources: resources.clone(),
        resources_ended: false,
        source: directory,
        registered: registry.watch(),
        trust: ca.watch(),
        ca: Arc::clone(&ca),
        view,
        reflected,
        found: watch::Sender::new(Arc::default()),
        problems: Arc::clone(&problems),
        metrics: metrics.clone(),
    };
    let proxies = Proxies::default();
    tokio::spawn(metrics::follow(reading.clone(), proxies.clone(), metrics.clone()));
    let elsewhere = matches!(sink, Sink::Cluster(_));
    let statuses = Statuses::new(store.clone(), sink, compiling.found.subscribe(), proxies.clone());
    tokio::spawn(statuses.run());
    tokio::spawn(compiling.run());
    tokio::spawn(fetching.run());

    // Nobody is served before the first compile: an empty view would look like an empty mesh.
    reading.clone().wait_for(|view| view.revision > 0).await.context("first compile")?;
    let discovery = Discovery::new(
        reading.clone(),
        registry.clone(),
        proxies.clone(),
        args.xds_admission_rate,
        ca.revocations(),
        stopping.subscribe(),
    )
    .measured(metrics.clone());
    tracing::info!(xds = %xds.local_addr()?, api = %api.local_addr()?, dev = args.dev, "control plane is up");
    let registered = registry.watch();
    let pushed = Pushed { view: reading, resources, registered, reflected: reflecting, problems };
    let mut state = ApiState::new(store, written, proxies, pushed, access);
    let observing = Observing::new(state.observers.clone(), ca.revocations(), stopping.subscribe());
    state.ca = Some(Arc::clone(&ca));
    state.enrolment = Some(identity.enrolment.clone());
    state.traces = traces;
    state.metrics = metrics;
    state.elsewhere = elsewhere;
    let router = api::router(state);
    let guard = Guard(Arc::clone(&ca));
    let ending = ended(stopping.subscribe());
    let mut grpc = tokio::spawn(
        server::transport()
            .add_service(InterceptedService::new(discovery.service(), guard.clone()))
            .add_service(InterceptedService::new(identity.server(), guard.clone()))
            .add_service(InterceptedService::new(observing.service(), guard))
            .serve_with_incoming_shutdown(incoming::incoming(xds, ca, args.xds_max_connections), ending),
    );
    tokio::select! {
        result = &mut grpc => result?.context("discovery server"),
        never = api::serve::serve(api, router, https, args.api_max_connections) => match never {},
        result = &mut stopped => {
            // What is registered stays in the file for the next process; then the streams end.
            registry.stop();
            stopping.send_replace(true);
            finish(grpc, candidate).await;
            result
        }
    }
}

/// What this makes; nothing if the control plane is to end before.
async fn until<T>(
    stopped: Pin<&mut impl Future<Output = Result<()>>>,
    made: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    tokio::select! {
        made = made => made.map(Some),
        result = stopped => result.map(|()| None),
    }
}

/// Waits for the end of the streams, and until the lease was given back, so that the next one need not wait for its end.
async fn finish(streams: impl Future, candidate: Option<JoinHandle<()>>) {
    let candidate = async {
        if let Some(candidate) = candidate {
            let _ = candidate.await;
        }
    };
    let _ = tokio::time::timeout(STOP, async { tokio::join!(streams, candidate) }).await;
}

/// Returns when the control plane is to end.
async fn ended(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The metrics, which the store tells of its writes.
fn measured(store: &Store) -> Metrics {
    let metrics = Metrics::default();
    let told = metrics.clone();
    store.observe(move |took, result| told.written(took, result));
    metrics
}

/// The authority, looked after, and what it does in a cluster.
async fn founded(args: &ControlPlaneArgs, data_dir: &Path) -> Result<Arc<Ca>> {
    let ca = Arc::new(authority(args, data_dir)?);
    tokio::spawn(maintain(Arc::clone(&ca)));
    kubernetes::start(args, &ca).await?;
    Ok(ca)
}

/// The authority, embedded or from files.
fn authority(args: &ControlPlaneArgs, data_dir: &Path) -> Result<Ca> {
    let (domain, lifetime) = (&args.trust_domain, args.svid_lifetime);
    match (&args.ca_cert, &args.ca_key, &args.ca_roots) {
        (Some(certificate), Some(key), Some(roots)) => {
            let files = Files::new(certificate.clone(), key.clone(), roots.clone());
            Ca::open_external(data_dir, domain, lifetime, files)
        }
        _ => Ca::open(data_dir, domain, lifetime),
    }
}

/// Does what the authority has to do by itself, and tells once a day what an operator has to.
async fn maintain(ca: Arc<Ca>) {
    let mut told: Option<SystemTime> = None;
    loop {
        let (now, looking) = (SystemTime::now(), Arc::clone(&ca));
        // It waits for the disk.
        if tokio::task::spawn_blocking(move || looking.maintain(now)).await.is_err() {
            tracing::error!("the authority's upkeep ended; it is started again");
        }
        if told.is_none_or(|told| now.duration_since(told).map_or(true, |since| since > WARNED))
            && let Some(warning) = ca.warning(now)
        {
            tracing::warn!(warning, "the certificate authority needs something");
            told = Some(now);
        }
        tokio::time::sleep(MAINTENANCE).await;
    }
}

/// Lets nobody call with a certificate that is not accepted any more, as it was when the connection began.
#[derive(Clone)]
struct Guard(Arc<Ca>);

impl Interceptor for Guard {
    fn call(&mut self, request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let info = request.extensions().get();
        let Some(PeerInfo { identity: Some(peer), presented: Some(presented), address, .. }) = info else {
            return Ok(request);
        };
        if let Some(why) = self.0.refuses(&peer.id, presented) {
            incoming::refuse(&self.0, (peer.id.as_str(), why), presented, *address);
            let text = format!("the certificate is not accepted any more ({why}): a new one needs a token");
            return Err(tonic::Status::permission_denied(text));
        }
        Ok(request)
    }
}

/// Who gets certificates, and by what.
async fn identity(args: &ControlPlaneArgs, data_dir: &Path, ca: &Arc<Ca>, xds: SocketAddr) -> Result<IdentityService> {
    // Sidecars look for it beside a control plane that they call at these addresses, and nowhere else.
    let found = xds.ip().is_unspecified() || xds.ip() == Ipv4Addr::LOCALHOST || xds.ip() == Ipv6Addr::LOCALHOST;
    let token = if args.dev { Some(Arc::new(ca.dev_token(found.then_some(xds.port()))?)) } else { None };
    let (url, ca_file, token_file) = (&args.kubernetes_api, &args.kubernetes_ca, &args.kubernetes_token);
    let reviewer = match &args.source.kubeconfig {
        // The tokens are of the cluster whose pods are known, wherever this process runs.
        Some(_) => Some(Reviewer::of(kubernetes::client(args).await?)),
        None => Reviewer::from_flags(url.as_deref(), ca_file.clone(), token_file.clone())?,
    };
    let enrolment = Enrolment::new(Arc::clone(ca), Joins::open(data_dir)?, ca.audit().clone());
    Ok(IdentityService { ca: Arc::clone(ca), token, enrolment, reviewer })
}

/// Forgets who has not come back after a restart, once there was time to let everybody in.
async fn forget_restored(registry: Registry, rate: u32) {
    let line = u32::try_from(registry.restored()).unwrap_or(u32::MAX) / rate;
    tokio::time::sleep(RESTORED + Duration::from_secs(1) * line).await;
    registry.forget_restored();
}

async fn stop() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    tracing::info!("stopping");
    Ok(())
}
