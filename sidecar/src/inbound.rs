//! From the mesh to the app. The mesh listener takes mutual TLS with HTTP/2 and nothing else; the plaintext fronts
//! take what an app port takes, while the mode is permissive. The app is reached on loopback.

mod limit;
mod request;
mod tunnel;

use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::Request;
use hyper::body::Incoming;
pub use limit::Limiters;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use weft_policy::model::{InboundPort, ObjectName, Protocol, Target, TlsMode, WorkloadConfig};
use weft_svid::PeerIdentity;

use crate::{
    app::worker::Worker,
    detect::{self, Rewind},
    drain::Phase,
    error::{ProxyError, Reason},
    http::serve,
    identity, listener, opaque,
    snapshot::SnapshotReader,
    telemetry::HttpMetrics,
    upstream::{CONNECT, chain, connect_tcp},
};

const HANDSHAKE: Duration = Duration::from_secs(5);
const DETECT: Duration = Duration::from_secs(5);
/// Longer than load balancers and HTTP clients keep an idle connection (60 to 90 s), so that it is theirs to close.
const IDLE: Duration = Duration::from_secs(120);

/// What is known of an inbound connection.
pub struct Connection {
    /// The peer's identity; `None` in plaintext.
    peer: Option<PeerIdentity>,
    /// The peer's address.
    source: IpAddr,
    leads_to: LeadsTo,
    snapshot: RefCell<SnapshotReader>,
    /// The app port as of one inbound configuration; looked up anew when another one has come.
    app: RefCell<Option<(Arc<WorkloadConfig>, App)>>,
}

/// What a connection says of where it leads.
enum LeadsTo {
    /// A plaintext front: this port of the app.
    Port(u16),
    /// The mesh listener: the service port that the SNI names.
    Service(Option<Target>),
}

/// A port of the app.
#[derive(Clone)]
struct App {
    port: u16,
    protocol: Protocol,
    metrics: HttpMetrics,
    limits: Arc<[limit::Limit]>,
}

impl Connection {
    fn new(worker: &Worker, peer: Option<PeerIdentity>, source: IpAddr, leads_to: LeadsTo) -> Self {
        Self { peer, source, leads_to, snapshot: RefCell::new(worker.snapshot()), app: RefCell::default() }
    }

    /// Where a request on this connection goes now.
    fn app(&self, worker: &Worker) -> Result<App, ProxyError> {
        let mut snapshot = self.snapshot.borrow_mut();
        let Some(workload) = snapshot.load().workload.as_ref() else {
            return Err(ProxyError::unsent(Reason::NotReady, "the inbound configuration has not arrived yet"));
        };
        let mut cached = self.app.borrow_mut();
        if let Some((of, app)) = &*cached
            && Arc::ptr_eq(of, workload)
        {
            return Ok(app.clone());
        }
        let port = match &self.leads_to {
            LeadsTo::Port(number) => {
                declared(workload, *number).ok_or_else(|| unknown_port(&format!("port {number}")))?
            }
            LeadsTo::Service(target) => {
                let port = target.as_ref().and_then(|target| app_port(workload, target));
                port.ok_or_else(|| unknown_port("the SNI"))?
            }
        };
        // The mode may have become strict since the connection was accepted.
        if self.peer.is_none() && port.access.tls_mode == TlsMode::Strict {
            return Err(ProxyError::unsent(Reason::PlaintextDenied, "this port takes mutual TLS only"));
        }
        let metrics = worker.inbound_http(port.port, self.peer.is_some());
        // In plaintext nobody says which service was called: all that lead to the port count.
        let services = match &self.leads_to {
            LeadsTo::Port(_) => &port.services[..],
            LeadsTo::Service(target) => target.as_slice(),
        };
        let context = &worker.context;
        let limits = context.limiters.of(port, services, &context.telemetry, worker.random());
        let app = App { port: port.port, protocol: port.protocol, metrics, limits };
        *cached = Some((Arc::clone(workload), app.clone()));
        Ok(app)
    }
}

/// A connection on the mesh listener.
pub async fn mesh(worker: Rc<Worker>, io: TcpStream) {
    if let Err(error) = listener::tune(&io) {
        tracing::debug!(%error, "could not set socket options");
    }
    let Ok(from) = io.peer_addr() else { return };
    let (stream, peer) = match handshake(&worker, io).await {
        Ok(accepted) => accepted,
        Err((reason, detail)) => {
            let labels = [("side", "server"), ("reason", reason)];
            let telemetry = &worker.context.telemetry;
            telemetry.counter("weft_mesh_refused_total", "Mesh connections refused, by reason", &labels).increment(1);
            return tracing::warn!(reason, detail, peer = %from, "mesh connection refused");
        }
    };
    let session = stream.get_ref().1;
    let (tunnels, target) =
        (session.alpn_protocol() == Some(crate::tunnel::ALPN), session.server_name().and_then(parse_sni));
    let age = identity::connection_life(&peer, worker.random());
    if tunnels {
        return Box::pin(tunnel::serve(worker, stream, age)).await;
    }
    let connection = Rc::new(Connection::new(&worker, Some(peer), from.ip(), LeadsTo::Service(target)));
    let drain = worker.context.drain.clone();
    let handle = move |request: Request<Incoming>| {
        let (worker, connection) = (Rc::clone(&worker), Rc::clone(&connection));
        async move { Ok::<_, Infallible>(request::run(&worker, &connection, request).await) }
    };
    if let Err(error) = serve::http2(stream, drain, Phase::Draining, age, handle).await {
        tracing::debug!(error = chain(&error), "mesh connection ended");
    }
}

/// A plaintext connection to the front of an app port.
pub async fn plaintext(worker: Rc<Worker>, port: u16, mut io: TcpStream) {
    let workload = worker.snapshot().load().workload.clone();
    let protocol = match workload.as_ref().map(|workload| declared(workload, port)) {
        Some(Some(declared)) if declared.access.tls_mode == TlsMode::Permissive => declared.protocol,
        found => {
            let reason = match found {
                None => Reason::NotReady,
                Some(None) => Reason::UnknownPort,
                Some(Some(_)) => Reason::PlaintextDenied,
            };
            worker.inbound_tcp(port, false).refused(reason);
            return tracing::info!(port, reason = reason.as_str(), "plaintext connection refused");
        }
    };
    if protocol.is_opaque() {
        return Box::pin(opaque_plaintext(&worker, port, io)).await;
    }
    let Ok(from) = io.peer_addr() else { return };
    let Ok(detected) = detect::detect(&mut io, DETECT).await else { return };
    let io = Rewind::new(io, detected.prefix);
    let drain = worker.context.drain.clone();
    let connection = Rc::new(Connection::new(&worker, None, from.ip(), LeadsTo::Port(port)));
    // Where HTTP is declared, bytes that do not look like it are refused as bad HTTP: passed on unread, they could carry
    // a request with an identity or a framing of the caller's own making.
    let http = matches!(detected.protocol, detect::Protocol::Http1 | detect::Protocol::Http2);
    if !http && protocol == Protocol::Undeclared {
        return Box::pin(opaque_plaintext(&worker, port, io)).await;
    }
    let http2 = detected.protocol == detect::Protocol::Http2;
    let handle = move |request: Request<Incoming>| {
        let (worker, connection) = (Rc::clone(&worker), Rc::clone(&connection));
        async move { Ok::<_, Infallible>(request::run(&worker, &connection, request).await) }
    };
    let end = Phase::Draining;
    let result = if http2 {
        serve::http2(io, drain, end, identity::MAX_AGE, handle).await
    } else {
        serve::http1(io, drain, end, IDLE, handle).await
    };
    if let Err(error) = result {
        tracing::debug!(error = chain(&error), "plaintext connection ended");
    }
}

async fn opaque_plaintext(worker: &Worker, port: u16, io: impl opaque::Stream) {
    let metrics = worker.inbound_tcp(port, false);
    let app = match connect_tcp(app_address(port), CONNECT).await {
        Ok(app) => app,
        Err(error) => {
            tracing::info!(port, %error, "the app did not accept a connection");
            return metrics.refused(error.reason);
        }
    };
    let open = metrics.opened();
    let result = opaque::copy(io, app, |bytes| metrics.received(bytes), |bytes| metrics.sent(bytes)).await;
    open.closed(result.err().map(|_| Reason::ConnectionTerminated));
}

/// TLS with the peer's identity, or the reason word and detail of the refusal.
async fn handshake(
    worker: &Worker,
    io: TcpStream,
) -> Result<(TlsStream<TcpStream>, PeerIdentity), (&'static str, String)> {
    let config = worker.context.identity.borrow().as_ref().map(|identity| Arc::clone(&identity.server));
    let Some(config) = config else {
        return Err((Reason::NotReady.as_str(), "this sidecar has no certificate yet".into()));
    };
    let accepted = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(io)).await;
    let stream = match accepted {
        Err(_) => return Err(("handshake_timeout", format!("no TLS session within {HANDSHAKE:?}"))),
        Ok(Err(error)) => return Err((refusal(&error), error.to_string())),
        Ok(Ok(stream)) => stream,
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match weft_svid::peer_identity(certificates) {
        Ok(peer) => Ok((stream, peer)),
        Err(reason) => Err((reason.as_str(), "peer certificate".into())),
    }
}

/// Why a handshake failed: the certificate, not TLS at all, or the handshake as such.
fn refusal(error: &io::Error) -> &'static str {
    if let Some(reason) = weft_svid::reason_of_io(error) {
        return reason.as_str();
    }
    let plaintext = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>())
        .is_some_and(|error| matches!(error, rustls::Error::InvalidMessage(_)));
    if plaintext { Reason::TlsPlaintext.as_str() } else { Reason::TlsHandshake.as_str() }
}

/// `p<port>.<service>.<namespace>.weft`.
fn parse_sni(name: &str) -> Option<Target> {
    let (port, rest) = name.strip_prefix('p')?.split_once('.')?;
    let (service, namespace) = rest.strip_suffix(".weft")?.rsplit_once('.')?;
    Some(Target { service: ObjectName::parse(&format!("{namespace}/{service}"))?, port: port.parse().ok()? })
}

/// `<service>.<namespace>:<port>`, the authority of a tunnel.
fn parse_authority(authority: &str) -> Option<Target> {
    let (host, port) = authority.rsplit_once(':')?;
    let (service, namespace) = host.rsplit_once('.')?;
    Some(Target { service: ObjectName::parse(&format!("{namespace}/{service}"))?, port: port.parse().ok()? })
}

/// The port of the app to which a service port leads.
fn app_port<'a>(workload: &'a WorkloadConfig, target: &Target) -> Option<&'a InboundPort> {
    workload.ports.iter().find(|port| port.services.contains(target))
}

fn declared(workload: &WorkloadConfig, port: u16) -> Option<&InboundPort> {
    workload.ports.iter().find(|candidate| candidate.port == port)
}

const fn app_address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn unknown_port(what: &str) -> ProxyError {
    ProxyError::unsent(Reason::UnknownPort, format!("{what} leads to no port of this workload"))
}

#[cfg(test)]
mod tests {
    use weft_policy::model::Access;

    use super::*;

    fn target(name: &str, port: u16) -> Target {
        Target { service: ObjectName::parse(name).expect("a valid name"), port }
    }

    #[test]
    fn an_sni_names_a_service_port() {
        assert_eq!(parse_sni("p8080.catalog.shop.weft"), Some(target("shop/catalog", 8080)));
    }

    #[test]
    fn an_sni_that_is_not_ours_selects_nothing() {
        for name in
            ["", "catalog.shop.weft", "p0x.catalog.shop.weft", "p80.shop.weft", "p80.a.b.example", "p70000.a.b.weft"]
        {
            assert_eq!(parse_sni(name), None, "{name}");
        }
    }

    #[test]
    fn a_tunnel_authority_names_a_service_port() {
        assert_eq!(parse_authority("ledger.shop:5432"), Some(target("shop/ledger", 5432)));
        assert_eq!(parse_authority("ledger:5432"), None);
        assert_eq!(parse_authority("ledger.shop"), None);
    }

    #[test]
    fn an_app_port_is_found_by_service_port_only() {
        let workload = WorkloadConfig {
            id: ObjectName::new("shop", "ledger-1"),
            ports: vec![InboundPort {
                port: 9000,
                protocol: Protocol::Tcp,
                services: vec![target("shop/ledger", 5432)],
                rate_limits: vec![],
                access: Access::without_policies(TlsMode::Permissive),
            }],
            telemetry: Default::default(),
        };
        assert_eq!(app_port(&workload, &target("shop/ledger", 5432)).map(|port| port.port), Some(9000));
        assert_eq!(app_port(&workload, &target("shop/ledger", 9000)), None);
    }
}
