//! The composition root: builds the parts, connects them, serves until told to stop.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use weft_proto::{
    ResourceType, discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    identity::identity_server::IdentityServer, v1::TrustBundle,
};
use weft_svid::{ClientAuth, TrustStore};

use crate::{
    api::{self, ApiState},
    ca::{
        Ca,
        service::{IdentityService, PeerInfo},
    },
    compile::{self, Compiled},
    config::ControlPlaneArgs,
    push::{View, server::Discovery},
    registry::{RESTORED, Registry},
    source::{Problem, Resources, Source},
    store::Store,
};

/// Life of the control plane's own certificate; it is made anew at half of it.
const OWN_LIFE: Duration = Duration::from_secs(24 * 3600);
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot start.
pub async fn run(args: ControlPlaneArgs) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).with_context(|| format!("--log {:?}", args.log))?;
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).try_init();
    if !args.api_listen.ip().is_loopback() {
        bail!("--api-listen {}: the API has no access control yet, so it listens on loopback only", args.api_listen);
    }
    let data_dir = args.data_dir();
    crate::ca::private_dir(&data_dir)?;
    let ca = Arc::new(Ca::open(&data_dir, &args.trust_domain, args.svid_lifetime)?);
    let xds = TcpListener::bind(args.xds_listen).await.with_context(|| format!("listen on {}", args.xds_listen))?;
    let api = TcpListener::bind(args.api_listen).await.with_context(|| format!("listen on {}", args.api_listen))?;
    let token = if args.dev { Some(ca.dev_token(&data_dir, xds.local_addr()?.port())?) } else { None };
    let resources = resources(&args)?;
    let registry = Registry::open(&data_dir.join("registrations"));
    let restored = registry.clone();
    tokio::spawn(async move {
        tokio::time::sleep(RESTORED).await;
        restored.forget_restored();
    });
    let problems = Arc::new(Mutex::new(Vec::new()));
    let view = watch::Sender::new(Arc::new(View::default()));
    let reading = view.subscribe();
    tokio::spawn(compile_loop(resources, registry.clone(), Arc::clone(&ca), view, Arc::clone(&problems)));

    let proxies = crate::push::server::Proxies::default();
    // Nobody is served before the first compile: an empty view would look like an empty mesh.
    let mut first = reading.clone();
    first.wait_for(|view| view.revision > 0).await.context("first compile")?;
    let stopping = registry.clone();
    let discovery = Discovery {
        view: reading.clone(),
        registry,
        proxies: Arc::clone(&proxies),
        streams: std::sync::atomic::AtomicU64::new(1),
    };
    tracing::info!(xds = %xds.local_addr()?, api = %api.local_addr()?, dev = args.dev, "control plane is up");
    let router = api::router(ApiState::new(Store::memory(), proxies, reading, problems));
    let grpc = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(AggregatedDiscoveryServiceServer::new(discovery))
        .add_service(IdentityServer::new(IdentityService { ca: Arc::clone(&ca), token }))
        .serve_with_incoming(incoming(xds, ca));
    tokio::select! {
        result = grpc => result.context("discovery server"),
        result = axum::serve(api, router) => result.context("API server"),
        result = stop() => {
            stopping.stop();
            result
        }
    }
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

/// The resources as they change, and where their problems are.
type Followed = (watch::Receiver<Arc<Resources>>, Option<Arc<Source>>);

/// The resources of the directory, followed; or none.
fn resources(args: &ControlPlaneArgs) -> Result<Followed> {
    let Some(directory) = &args.resources else {
        let none = Resources { trust_domain: args.trust_domain.clone(), ..Resources::default() };
        return Ok((watch::Sender::new(Arc::new(none)).subscribe(), None));
    };
    let source = Arc::new(Source::open(directory, &args.trust_domain)?);
    let following = Arc::clone(&source);
    tokio::spawn(async move {
        if let Err(error) = following.run().await {
            tracing::error!(%error, "the resource directory is no longer followed");
        }
    });
    Ok((source.watch(), Some(source)))
}

/// Compiles whenever resources or registrations change, and publishes what is different.
async fn compile_loop(
    (mut resources, source): Followed,
    registry: Registry,
    ca: Arc<Ca>,
    view: watch::Sender<Arc<View>>,
    problems: Arc<Mutex<Vec<Problem>>>,
) {
    use prost::Message;
    let mut registered = registry.watch();
    let (mut resources_alive, bundle) = (
        true,
        TrustBundle { trust_domain: ca.trust_domain().into(), roots: ca.roots().into_iter().map(Into::into).collect() },
    );
    let bundle = Compiled { bytes: bundle.encode_to_vec(), aliases: Vec::new() };
    loop {
        let (now, workloads) =
            (Arc::clone(&resources.borrow_and_update()), Arc::clone(&registered.borrow_and_update()));
        let (mut output, found) = compile::compile(&now, &workloads);
        output.insert((ResourceType::TrustBundle, ca.trust_domain().to_owned()), bundle.clone());
        let mut all = source.as_ref().map(|source| source.problems()).unwrap_or_default();
        all.extend(found);
        for problem in &all {
            tracing::debug!(%problem, "resource problem");
        }
        *problems.lock().unwrap_or_else(PoisonError::into_inner) = all;
        view.send_if_modified(|current| {
            let next = current.next(output);
            let changed = !next.same_content(current);
            if changed {
                *current = Arc::new(next);
            }
            changed
        });
        tokio::select! {
            changed = resources.changed(), if resources_alive => resources_alive = changed.is_ok(),
            changed = registered.changed() => if changed.is_err() { return },
        }
    }
}

/// TLS sessions on the discovery port. A handshake that fails or hangs costs nobody else anything.
fn incoming(listener: TcpListener, ca: Arc<Ca>) -> ReceiverStream<io::Result<PeerStream>> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut acceptor: Option<(tokio::time::Instant, TlsAcceptor)> = None;
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed; waiting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let fresh = acceptor.as_ref().is_some_and(|(made, _)| made.elapsed() < OWN_LIFE / 2);
            if !fresh {
                match tls(&ca) {
                    Ok(new) => acceptor = Some((tokio::time::Instant::now(), new)),
                    Err(error) => {
                        tracing::error!(error = format!("{error:#}"), "no certificate for the discovery port")
                    }
                }
            }
            let Some((_, acceptor)) = acceptor.clone() else { continue };
            let sender = sender.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, PeerStream::accept(acceptor, stream, address)).await {
                    Ok(Ok(stream)) => _ = sender.send(Ok(stream)).await,
                    Ok(Err(error)) => tracing::warn!(%address, %error, "TLS session refused"),
                    Err(_) => tracing::warn!(%address, "no TLS session in time"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

fn tls(ca: &Ca) -> Result<TlsAcceptor> {
    let trust = TrustStore::default();
    trust.set(ca.trust_domain(), &ca.roots())?;
    let config = weft_svid::server_config(&ca.own_svid(OWN_LIFE)?, &trust, ClientAuth::Optional, &[b"h2"])?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A TLS session with what it says of the peer.
struct PeerStream {
    io: Box<TlsStream<TcpStream>>,
    info: PeerInfo,
}

impl PeerStream {
    async fn accept(acceptor: TlsAcceptor, stream: TcpStream, address: std::net::SocketAddr) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let io = acceptor.accept(stream).await?;
        let identity = match io.get_ref().1.peer_certificates() {
            Some(chain) => Some(weft_svid::peer_identity(chain).map_err(io::Error::other)?),
            None => None,
        };
        Ok(Self { io: Box::new(io), info: PeerInfo { identity, address } })
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(context)
    }
}
