//! The inbound side of a sidecar over real sockets, whose configuration and trust a test changes, and its callers.

use std::{
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Response, Version};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::spawn_local,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_policy::{
    authorize::Authorization,
    model::{
        Access, Action, AuthorizationPolicy, AuthorizationRule, Condition, ConditionKind, IdentityMatch, InboundPort,
        ObjectName, Protocol, TlsMode, WorkloadConfig,
    },
};
use weft_svid::{Svid, TrustStore};
use zeroize::Zeroizing;

use crate::{
    app::worker::{Clock, Listeners, Worker, WorkerContext},
    config::SidecarConfig,
    discovery,
    drain::Drain,
    identity::MeshIdentity,
    inbound,
    outbound::tests::net::target,
    snapshot::Snapshot,
    telemetry::Telemetry,
    tunnel,
};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(20);

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root: Vec<u8>,
}

/// A sidecar's inbound side.
pub struct Side {
    pub telemetry: Telemetry,
    pub trust: TrustStore,
    pub authority: Authority,
    pub mesh: SocketAddr,
    pub front: SocketAddr,
    worker: Rc<Worker>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    pub identity: watch::Sender<Option<Arc<MeshIdentity>>>,
    pub port: InboundPort,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a root").der().to_vec();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// For a service account of namespace `shop`, until this far from now.
    pub fn svid(&self, account: &str, left: Duration) -> Svid {
        let mut params = CertificateParams::default();
        let id = format!("spiffe://weft.local/ns/shop/sa/{account}");
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = (SystemTime::now() - Duration::from_secs(300)).into();
        params.not_after = (SystemTime::now() + left).into();
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        Svid::new(vec![leaf], Zeroizing::new(key.serialize_der())).expect("valid")
    }
}

/// Everyone.
pub fn open() -> Access {
    Access { tls_mode: TlsMode::Permissive, authorization: Authorization::default() }
}

/// Under these policies.
pub fn under(policies: Vec<AuthorizationPolicy>) -> Access {
    Access { authorization: Authorization::new(policies), ..open() }
}

pub fn policy(name: &str, action: Action, conditions: Vec<ConditionKind>) -> AuthorizationPolicy {
    let condition = |kind| vec![vec![Condition { negated: false, kind }]];
    AuthorizationPolicy {
        name: ObjectName::new("shop", name),
        action,
        dry_run: false,
        rules: vec![AuthorizationRule { groups: conditions.into_iter().map(condition).collect() }],
    }
}

/// The service account `account` of namespace `shop`.
pub fn account(account: &str) -> ConditionKind {
    let id = format!("spiffe://weft.local/ns/shop/sa/{account}");
    ConditionKind::Identities(vec![IdentityMatch::Exact(weft_policy::SpiffeId::parse(&id).expect("valid"))])
}

impl Side {
    /// Beside an app at this port. Boxed, as are the callers below: the tests are futures too, and hold several.
    pub fn start(app: u16, protocol: Protocol, access: Access) -> Pin<Box<dyn Future<Output = Self>>> {
        Box::pin(Self::begin(app, protocol, access))
    }

    async fn begin(app: u16, protocol: Protocol, access: Access) -> Self {
        let (telemetry, trust, authority) = (Telemetry::default(), TrustStore::default(), Authority::new("root"));
        trust.set("weft.local", std::slice::from_ref(&authority.root), &[]).expect("a root");
        let own = authority.svid("web", Duration::from_secs(3600));
        let identity = MeshIdentity::new(&own, &trust, 1).expect("an identity");
        let identity = watch::Sender::new(Some(Arc::new(identity)));
        let port = InboundPort {
            port: app,
            protocol,
            services: vec![target("web")],
            rate_limits: vec![],
            access,
            request_authentications: vec![],
        };
        let snapshot = watch::Sender::new(Arc::new(Snapshot::default()));
        let (mesh, front) = (listener().await, listener().await);
        let addresses = (mesh.local_addr().expect("bound"), front.local_addr().expect("bound"));
        let context = WorkerContext {
            config: Arc::new(SidecarConfig { namespace: "shop".into() }),
            snapshot: snapshot.subscribe(),
            clock: Clock::start(),
            spans: crate::telemetry::export::SpanSink::none(&telemetry),
            limiters: Arc::default(),
            undeclared: tokio::sync::mpsc::channel(1).0,
            seen: Arc::default(),
            propagation: Arc::default(),
            trust: trust.clone(),
            demand: discovery::demand().0,
            identity: identity.subscribe(),
            telemetry: telemetry.clone(),
            drain: Drain::default(),
            virtual_ips: Default::default(),
            listeners: Listeners {
                outbound: addresses.0,
                mesh: addresses.0,
                upstreams: vec![],
                inbound: vec![],
                redirected: vec![],
            },
        };
        let worker = Rc::new(Worker::new(context));
        spawn_local(inbound::keep(Rc::clone(&worker)));
        spawn_local(Rc::clone(&worker.sessions).keep(worker.context.identity.clone()));
        let (one, two) = (Rc::clone(&worker), Rc::clone(&worker));
        spawn_local(async move {
            while let Ok((io, _)) = mesh.accept().await {
                spawn_local(inbound::mesh(Rc::clone(&one), io));
            }
        });
        spawn_local(async move {
            while let Ok((io, _)) = front.accept().await {
                spawn_local(inbound::plaintext(Rc::clone(&two), app, io));
            }
        });
        let (mesh, front) = addresses;
        let side = Self { telemetry, trust, authority, mesh, front, worker, snapshot, identity, port };
        side.set(side.port.access.clone());
        side
    }

    /// Another configuration of the port.
    pub fn set(&self, access: Access) {
        let port = InboundPort { access, ..self.port.clone() };
        self.publish(Some(vec![port]));
    }

    /// A configuration with these ports, or none at all.
    pub fn publish(&self, ports: Option<Vec<InboundPort>>) {
        let workload = ports.map(|ports| {
            Arc::new(WorkloadConfig {
                id: ObjectName::new("shop", "web-1"),
                ports,
                telemetry: Default::default(),
                outbound: Default::default(),
            })
        });
        self.snapshot.send_replace(Arc::new(Snapshot { workload, ..Snapshot::default() }));
    }

    /// Sessions of mutual TLS that are open.
    pub fn sessions(&self) -> usize {
        self.worker.sessions.count()
    }

    /// A TLS session of a service account.
    pub async fn tls(&self, svid: &Svid, alpn: &[u8]) -> TlsStream<TcpStream> {
        let config = weft_svid::client_config(Some(svid), &self.trust, &[alpn]).expect("a configuration");
        let name = ServerName::try_from("p80.web.shop.weft").expect("a name");
        let io = TcpStream::connect(self.mesh).await.expect("listens");
        Box::pin(TlsConnector::from(Arc::new(config)).connect(name, io)).await.expect("a session")
    }

    /// An HTTP/2 connection of a service account, for requests.
    pub async fn peer(&self, account: &str) -> SendRequest<Bytes> {
        let svid = self.authority.svid(account, Duration::from_secs(3600));
        http2(self.tls(&svid, b"h2").await).await
    }

    /// The same in plaintext.
    pub async fn plain(&self) -> SendRequest<Bytes> {
        http2(TcpStream::connect(self.front).await.expect("listens")).await
    }

    /// A tunnel of a service account to the port, or the status that refuses it.
    pub async fn tunnel(&self, account: &str) -> Result<(tunnel::Tunnel, SendRequest<Bytes>), (u16, String)> {
        let svid = self.authority.svid(account, Duration::from_secs(3600));
        let mut sender = http2(self.tls(&svid, tunnel::ALPN).await).await;
        let request = Request::builder().method(Method::CONNECT).uri("web.shop:80").version(Version::HTTP_2);
        let (response, send) =
            sender.send_request(request.body(()).expect("a request"), false).expect("an open connection");
        let response = within(response).await.expect("an answer");
        if response.status() != 200 {
            let why = response.headers()["proxy-status"].to_str().expect("ASCII").to_owned();
            return Err((response.status().as_u16(), why));
        }
        Ok((tunnel::Tunnel::new(send, response.into_body()), sender))
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

fn http2<IO>(io: IO) -> Pin<Box<dyn Future<Output = SendRequest<Bytes>>>>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    Box::pin(async {
        let (sender, connection) = h2::client::handshake(io).await.expect("HTTP/2");
        spawn_local(async move {
            let _ = connection.await;
        });
        within(sender.ready()).await.expect("ready")
    })
}

/// A request without a body, and its answer's head.
pub async fn ask(
    sender: &mut SendRequest<Bytes>,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<Response<h2::RecvStream>, h2::Error> {
    let mut request = Request::builder().method(method).uri(format!("http://web.shop{path}")).version(Version::HTTP_2);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let (response, _) = sender.send_request(request.body(()).expect("a request"), true)?;
    within(response).await
}

/// Not for ever.
pub async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("not within {LIMIT:?}"))
}

/// An app that sends back what it gets.
pub async fn echo() -> u16 {
    let listener = listener().await;
    let port = listener.local_addr().expect("bound").port();
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            spawn_local(async move {
                let mut bytes = [0; 1024];
                while let Ok(length @ 1..) = io.read(&mut bytes).await {
                    if io.write_all(&bytes[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// An app that answers every request with one chunk of a body that has no end.
pub async fn endless() -> u16 {
    let listener = listener().await;
    let port = listener.local_addr().expect("bound").port();
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            spawn_local(async move {
                let mut bytes = [0; 4096];
                while let Ok(1..) = io.read(&mut bytes).await {
                    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
                    if io.write_all(head).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}
