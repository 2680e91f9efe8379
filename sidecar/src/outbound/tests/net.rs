//! Apps, a worker and a caller in one thread, over real sockets: what stands between them is what runs in a sidecar.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::spawn_local,
};
use weft_policy::model::{
    Access, AccessLogMode, BackendPolicy, Endpoint, InboundLimit, InboundPort, Locality, ObjectName, PathMatch,
    Protocol, RouteMatch, RouteRule, Routing, Service, ServicePort, Target, TlsMode, WeightedBackend, WorkloadConfig,
};

use crate::{
    app::worker::{Clock, Listeners, Worker, WorkerContext},
    config::SidecarConfig,
    discovery::{self, Builder},
    drain::{Drain, Phase},
    http::{body::Body, serve},
    inbound, outbound,
    snapshot::Snapshot,
    telemetry::{
        Telemetry,
        access::AccessLog,
        export::{self, Whose},
    },
};

/// What is spoken between caller and sidecar; the app is spoken to likewise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spoken {
    Http1,
    Http2,
    Grpc,
}

pub const ALL: [Spoken; 3] = [Spoken::Http1, Spoken::Http2, Spoken::Grpc];

/// A request as an app got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub host: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An app that keeps what it gets and answers with its name, and with the headers that it was told.
#[derive(Clone)]
pub struct App {
    pub address: SocketAddr,
    pub seen: Rc<RefCell<Vec<Seen>>>,
}

/// An answer as the caller got it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A worker between a caller and apps.
pub struct Net {
    pub telemetry: Telemetry,
    pub address: SocketAddr,
    spoken: Spoken,
    /// Of an outbound side.
    log: Option<tempfile::NamedTempFile>,
}

pub fn target(name: &str) -> Target {
    Target { service: ObjectName::new("shop", name), port: 80 }
}

pub fn to(name: &str) -> WeightedBackend {
    WeightedBackend { target: Some(target(name)), weight: 1, filters: weft_policy::model::Filters::default() }
}

pub fn rule(backends: Vec<WeightedBackend>) -> RouteRule {
    let total_weight = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    RouteRule { name: "shop/route#0".into(), backends, total_weight, ..RouteRule::default() }
}

impl App {
    pub async fn start(name: &'static str, answer: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let app = Self { address: listener.local_addr().expect("bound"), seen: Rc::default() };
        let seen = Rc::clone(&app.seen);
        spawn_local(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let seen = Rc::clone(&seen);
                spawn_local(async move {
                    let detected = crate::detect::detect(&mut io, Duration::from_secs(5)).await.expect("bytes");
                    let io = crate::detect::Rewind::new(io, detected.prefix);
                    let handle = move |request: Request<Incoming>| {
                        let seen = Rc::clone(&seen);
                        async move { Ok(see(name, answer, &seen, request).await) }
                    };
                    let (drain, age) = (Drain::default(), Duration::from_secs(60));
                    let _ = if detected.protocol == crate::detect::Protocol::Http2 {
                        serve::http2(io, drain, Phase::Stopped, tokio::time::sleep(age), handle).await
                    } else {
                        serve::http1(io, drain, Phase::Stopped, age, handle).await
                    };
                });
            }
        });
        app
    }

    pub fn last(&self) -> Seen {
        self.seen.borrow().last().cloned().expect("a request")
    }

    pub fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

async fn see(
    name: &'static str,
    answer: &[(&'static str, &'static str)],
    seen: &RefCell<Vec<Seen>>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get("host").map(|host| host.to_str().expect("ASCII").to_owned());
    let host = host.or_else(|| parts.uri.authority().map(ToString::to_string)).unwrap_or_default();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let Ok(body) = body.collect().await else { return Response::new(Body::empty()) };
    let body = body.to_bytes();
    seen.borrow_mut().push(Seen { path, host, version: parts.version, headers: parts.headers, body });
    let mut response = Response::builder().header("content-type", "text/plain").header("x-app", name);
    for (name, value) in answer {
        response = response.header(*name, *value);
    }
    response.body(Body::full(name)).expect("a response")
}

impl Net {
    /// A sidecar that knows the services `shop/<name>` at these apps, each of which may have several; `shop/web` has one
    /// rule for what begins with `/api`.
    pub async fn start(spoken: Spoken, apps: &[(&str, SocketAddr)], api: RouteRule) -> Self {
        Self::under(BackendPolicy::default(), spoken, apps, api).await
    }

    /// [`Self::start`] with this policy for every service.
    pub async fn under(policy: BackendPolicy, spoken: Spoken, apps: &[(&str, SocketAddr)], api: RouteRule) -> Self {
        let policy = Arc::new(policy);
        let telemetry = Telemetry::default();
        let log = tempfile::NamedTempFile::new().expect("a file");
        let recorded = weft_policy::model::Telemetry { access_log: AccessLogMode::All, ..Default::default() };
        let workload = WorkloadConfig {
            id: ObjectName::new("shop", "client-1"),
            ports: vec![],
            telemetry: recorded,
            outbound: Default::default(),
        };
        let mut snapshot = Snapshot { workload: Some(Arc::new(workload)), ..Snapshot::default() };
        let mut builder = Builder::new(telemetry.clone(), Locality::default(), Clock::start());
        let mut services: BTreeMap<&str, Vec<SocketAddr>> = BTreeMap::new();
        apps.iter().for_each(|(name, address)| services.entry(name).or_default().push(*address));
        for (name, addresses) in services {
            let routing = (name == "web").then(|| Routing {
                rules: vec![Arc::new(api.clone())],
                matches: vec![RouteMatch {
                    rule: 0,
                    path: PathMatch::Prefix("/api".into()),
                    method: None,
                    headers: vec![],
                    query: vec![],
                }],
            });
            add(&mut snapshot, &mut builder, name, &addresses, (routing, Arc::clone(&policy)));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let worker = worker(snapshot, telemetry.clone(), address, Some(log.path()));
        spawn_local(async move {
            // As long as it lives its targets are in the metrics.
            let _builder = builder;
            while let Ok((io, _)) = listener.accept().await {
                spawn_local(outbound::by_host(Rc::clone(&worker), io));
            }
        });
        Self { telemetry, address, spoken, log: Some(log) }
    }

    /// The inbound side: a sidecar beside an app, whose port has these limits, and its plaintext front.
    pub async fn inbound(spoken: Spoken, app: SocketAddr, rate_limits: Vec<Arc<InboundLimit>>) -> Self {
        let telemetry = Telemetry::default();
        let protocol = if spoken == Spoken::Http1 { Protocol::Http } else { Protocol::Http2 };
        let access = Access::without_policies(TlsMode::Permissive);
        let port = InboundPort {
            port: app.port(),
            protocol,
            services: vec![target("web")],
            rate_limits,
            access,
            request_authentications: vec![],
        };
        let workload = WorkloadConfig {
            id: ObjectName::new("shop", "web-1"),
            ports: vec![port],
            telemetry: Default::default(),
            outbound: Default::default(),
        };
        let snapshot = Snapshot { workload: Some(Arc::new(workload)), ..Snapshot::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let worker = worker(snapshot, telemetry.clone(), address, None);
        spawn_local(async move {
            while let Ok((io, _)) = listener.accept().await {
                spawn_local(inbound::plaintext(Rc::clone(&worker), app.port(), io));
            }
        });
        Self { telemetry, address, spoken, log: None }
    }

    /// One request on a connection of its own; an error is what a caller sees whose connection or stream was reset.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: &'static [u8],
    ) -> Result<Answer, hyper::Error> {
        let io = TokioIo::new(TcpStream::connect(self.address).await.expect("listens"));
        let mut request = Request::builder().method(method).uri(format!("http://web.shop{path}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if self.spoken == Spoken::Grpc {
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        let body = Full::new(Bytes::from_static(body));
        let response = if self.spoken == Spoken::Http1 {
            let request = request.uri(path).header("host", "web.shop").body(body).expect("a request");
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            spawn_local(connection);
            sender.send_request(request).await?
        } else {
            let request = request.body(body).expect("a request");
            let (mut sender, connection) = hyper::client::conn::http2::handshake(serve::LocalExecutor, io).await?;
            spawn_local(connection);
            sender.send_request(request).await?
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    pub async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.send("GET", path, fields, b"").await.expect("an answer")
    }

    /// Waits for so many lines of the access log, and gives them.
    pub async fn lines(&self, count: usize) -> Vec<serde_json::Value> {
        let path = self.log.as_ref().expect("an outbound side").path();
        let read = || std::fs::read_to_string(path).expect("readable");
        eventually(&format!("{count} lines"), || read().lines().count() >= count).await;
        read().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// All metrics.
    pub fn text(&self) -> String {
        self.telemetry.render()
    }

    /// Whether the metrics have this line.
    pub fn shows(&self, line: &str) -> bool {
        self.text().lines().any(|candidate| candidate == line)
    }

    /// Waits until a series that begins so has this value.
    pub async fn counts(&self, start: &str, value: u64) {
        let end = format!(" {value}");
        let shows = || self.text().lines().any(|line| line.starts_with(start) && line.ends_with(&end));
        eventually(&format!("{start}{end}\nin\n{}", self.text()), shows).await;
    }

    /// Waits until the metrics have this line.
    pub async fn metric(&self, line: &str) {
        eventually(&format!("{line}\nin\n{}", self.text()), || self.shows(line)).await;
    }
}

/// Lets the other tasks of the thread run until `done`.
pub async fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::task::yield_now().await;
    }
}

/// Runs a test on one thread, as a worker does.
pub async fn local<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

/// The service `shop/<name>` with an endpoint at each of these addresses.
fn add(
    snapshot: &mut Snapshot,
    builder: &mut Builder,
    name: &str,
    addresses: &[SocketAddr],
    (routing, backend): (Option<Routing>, Arc<BackendPolicy>),
) {
    let target = target(name);
    let port = ServicePort {
        port: 80,
        name: "".into(),
        protocol: Protocol::Undeclared,
        routing,
        direct: Arc::new(rule(vec![to(name)])),
        backend,
    };
    let endpoint = |address: &SocketAddr| Endpoint {
        address: address.ip(),
        ports: [(80, address.port())].into_iter().collect(),
        mesh: None,
        weight: 1,
        locality: Arc::default(),
        healthy: true,
        draining: false,
        workload: None,
    };
    let endpoints = addresses.iter().map(endpoint).map(Arc::new).collect();
    snapshot.clusters.insert(target.clone(), builder.cluster(&target, &port, &endpoints));
    let id = target.service;
    let service = Service { id: id.clone(), hostnames: vec![], virtual_ips: vec![], ports: vec![port] };
    snapshot.services.insert(id, Arc::new(service));
}

fn worker(snapshot: Snapshot, telemetry: Telemetry, address: SocketAddr, log: Option<&Path>) -> Rc<Worker> {
    let whose = Whose { service: "client", namespace: "shop", instance: "client-1", version: None };
    let log = log.map(|path| AccessLog::start(&telemetry, Some(path)).expect("started").0);
    let context = WorkerContext {
        undeclared: tokio::sync::mpsc::channel(1).0,
        config: Arc::new(SidecarConfig { namespace: "shop".into() }),
        snapshot: watch::Sender::new(Arc::new(snapshot)).subscribe(),
        clock: Clock::start(),
        spans: export::queue(&telemetry, &whose, log, None).0,
        limiters: Arc::default(),
        seen: Arc::default(),
        propagation: Arc::default(),
        trust: weft_svid::TrustStore::default(),
        demand: discovery::demand().0,
        identity: watch::Sender::new(None).subscribe(),
        telemetry,
        drain: Drain::default(),
        virtual_ips: Default::default(),
        listeners: Listeners {
            outbound: address,
            mesh: address,
            upstreams: vec![],
            inbound: vec![],
            redirected: vec![],
        },
    };
    Rc::new(Worker::new(context))
}
