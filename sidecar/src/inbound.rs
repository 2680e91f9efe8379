//! From the mesh to the app. The mesh listener takes mutual TLS with HTTP/2 and nothing else; the plaintext fronts
//! take what an app port takes, while its mode is permissive. The app is reached on loopback, and only by a permit.

mod books;
mod connection;
mod jwt;
mod limit;
mod permit;
mod request;
mod seen;
mod tunnel;
mod undeclared;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use books::Books;
pub use connection::{Admitted, App};
use connection::{Connection, LeadsTo};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request};
use hyper::body::Incoming;
pub use jwt::{Authenticators, Reserved};
pub use limit::Limiters;
pub use permit::Permit;
pub use seen::{Seen, tell};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
pub use undeclared::{Undeclared, declare, undeclared};
use weft_policy::{
    SpiffeId,
    model::{InboundPort, ObjectName, Protocol, Target, WorkloadConfig},
};
use weft_svid::{PeerIdentity, Role};

use crate::{
    app::worker::{InboundMetrics, Worker},
    detect::{self, Rewind},
    drain::Phase,
    error::{ProxyError, Reason},
    first::{First, Speaks, first},
    http::serve,
    identity, listener,
    live::Session,
    opaque::{self, Primed},
    telemetry::{Direction, trace::OpenSpan},
    upstream,
};

const HANDSHAKE: Duration = Duration::from_secs(5);
const DETECT: Duration = Duration::from_secs(5);
/// Longer than load balancers and HTTP clients keep an idle connection (60 to 90 s), so that it is theirs to close.
const IDLE: Duration = Duration::from_secs(120);

/// A peer on the mesh listener.
struct Peer {
    identity: PeerIdentity,
    address: SocketAddr,
    /// Ends when its certificate does, or is not accepted any more.
    session: Session,
    /// How long it may open streams.
    life: Duration,
}

/// A connection on the mesh listener.
pub async fn mesh(worker: Rc<Worker>, io: TcpStream) {
    if let Err(error) = listener::tune(&io) {
        tracing::debug!(%error, "could not set socket options");
    }
    let Ok(address) = io.peer_addr() else { return };
    let trusted = worker.sessions.trusted();
    let (stream, identity, own) = match handshake(&worker, io).await {
        Ok(accepted) => accepted,
        Err((reason, detail)) => {
            let labels = [("side", "server"), ("reason", reason)];
            let telemetry = &worker.context.telemetry;
            telemetry.counter("weft_mesh_refused_total", "Mesh connections refused, by reason", &labels).increment(1);
            return tracing::warn!(reason, detail, peer = %address, "mesh connection refused");
        }
    };
    let tls = stream.get_ref().1;
    let (tunnels, target) = (tls.alpn_protocol() == Some(crate::tunnel::ALPN), tls.server_name().and_then(parse_sni));
    let chain = tls.peer_certificates().unwrap_or_default();
    let session = worker.sessions.enter(&trusted, Role::Client, chain, &identity);
    let life = identity::connection_life(&identity, worker.random());
    let peer = Peer { identity, address, session, life };
    if tunnels {
        return Box::pin(tunnel::serve(worker, stream, peer)).await;
    }
    // Boxed, as it is passed on a few times, and each step of a future keeps room for it.
    requests(worker, Box::new(stream), peer, target, &own).await;
}

/// Requests over mutual TLS.
async fn requests(
    worker: Rc<Worker>,
    mut stream: Box<TlsStream<TcpStream>>,
    peer: Peer,
    target: Option<Target>,
    own: &SpiffeId,
) {
    // hyper would wait for ever for the preface.
    let detected = match detect::detect(&mut stream, DETECT).await {
        Ok(detected) if detected.protocol == detect::Protocol::Http2 => detected,
        Ok(detected) => return tracing::info!(peer = %peer.address, found = ?detected.protocol, "no HTTP/2 preface"),
        Err(error) => return tracing::debug!(%error, "mesh connection ended before its preface"),
    };
    let Peer { identity, address, session, life } = peer;
    let told = HeaderValue::try_from(format!("By={own};URI={}", identity.id)).ok();
    let leads_to = LeadsTo::Service(target);
    let connection = Connection::new(&worker, Some(identity), address.ip(), leads_to, told);
    if let Ok(app) = connection.app(&worker) {
        connection.count(&worker, &app);
    }
    let (drain, ended) = (worker.context.drain.clone(), Rc::clone(&connection));
    let serving = serve::http2(
        Rewind::new(stream, detected.prefix),
        drain,
        Phase::Draining,
        session.left(life),
        move |request: Request<Incoming>| {
            let (worker, connection) = (Rc::clone(&worker), Rc::clone(&connection));
            request::run(worker, connection, request).map(Ok::<_, Infallible>)
        },
    );
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::debug!(error = upstream::chain(&error), "mesh connection ended");
        },
        // What was in flight is booked as what it was, and not as given up by the caller.
        _ = session.ended() => ended.cut(Reason::TlsCertificate),
    }
}

/// A plaintext connection to the front of an app port.
pub async fn plaintext(worker: Rc<Worker>, port: u16, mut io: TcpStream) {
    let Ok(from) = io.peer_addr() else { return };
    let connection = Connection::new(&worker, None, from.ip(), LeadsTo::Port(port), None);
    let refuse = |reason: Reason| {
        handles(&worker, &connection).tcp.refused(reason);
        tracing::info!(port, reason = reason.as_str(), peer = %from, "plaintext connection refused");
    };
    let app = match connection.app(&worker) {
        Ok(app) => app,
        Err(error) => return refuse(error.reason),
    };
    if let Err(refused) = permit::mode(app.config().map(|port| port.access.tls_mode), false) {
        return refuse(refused.reason());
    }
    connection.count(&worker, &app);
    if app.protocol.is_opaque() {
        return Box::pin(opaque_plaintext(&worker, &connection, io)).await;
    }
    let mut opened = None;
    // Where requests alone could be let in, there is nothing to open ahead.
    if app.protocol == Protocol::Undeclared && app.lets_bytes_in(&connection) {
        let first = Box::pin(first(&io, open(&worker, &connection)));
        opened = tokio::select! {
            first = first => match first {
                First::Called(opened) => return opened.copy(&worker, &connection, io).await,
                First::Caller(opened) => opened,
            },
            reason = connection.ended() => return refuse(reason),
        };
    }
    let detected = tokio::select! {
        detected = detect::detect(&mut io, DETECT) => detected,
        reason = connection.ended() => return refuse(reason),
    };
    let Ok(detected) = detected else { return };
    worker.count_detected(Direction::Inbound, port, detected.protocol);
    let io = Rewind::new(io, detected.prefix);
    // Where HTTP is declared, bytes that do not look like it are refused as bad HTTP: passed on unread, they could carry
    // a request with an identity or a framing of the caller's own making.
    let http = matches!(detected.protocol, detect::Protocol::Http1 | detect::Protocol::Http2);
    if !http && app.protocol == Protocol::Undeclared {
        return match opened {
            Some(opened) => Box::pin(opened.copy(&worker, &connection, io)).await,
            None => Box::pin(opaque_plaintext(&worker, &connection, io)).await,
        };
    }
    if let Some(opened) = opened {
        opened.forget();
    }
    let http2 = detected.protocol == detect::Protocol::Http2;
    let (drain, end, ended) = (worker.context.drain.clone(), Phase::Draining, Rc::clone(&connection));
    let handle = move |request: Request<Incoming>| {
        let (worker, connection) = (Rc::clone(&worker), Rc::clone(&connection));
        // Not in an `async` block, into which the whole future would be moved for each request.
        request::run(worker, connection, request).map(Ok::<_, Infallible>)
    };
    let serving = async {
        if http2 {
            serve::http2(io, drain, end, tokio::time::sleep(identity::MAX_AGE), handle).await
        } else {
            serve::http1(io, drain, end, IDLE, handle).await
        }
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::debug!(error = upstream::chain(&error), "plaintext connection ended");
        },
        reason = ended.ended() => tracing::info!(port, reason = reason.as_str(), "plaintext connection closed"),
    }
}

/// Where a plaintext connection is counted, also when its port leads nowhere.
fn handles(worker: &Worker, connection: &Connection) -> Rc<InboundMetrics> {
    let app = connection.app(worker);
    app.map_or_else(|_| worker.inbound(connection.front(), None, None), |app| Rc::clone(&app.metrics))
}

/// The app's end of an opaque connection, and leave to use it.
struct Opened {
    permit: Permit,
    app: Primed<TcpStream>,
    span: OpenSpan,
}

impl Speaks for Opened {
    async fn speaks(&mut self) {
        self.app.speaks().await;
    }
}

impl Opened {
    async fn copy(mut self, worker: &Worker, connection: &Connection, io: impl opaque::Stream) {
        let metrics = handles(worker, connection).tcp.clone();
        let open = metrics.opened();
        open.closed(self.permit.copy(io, self.app, &metrics, &mut self.span).await);
    }

    /// It was opened ahead, and not for this.
    fn forget(mut self) {
        self.span.forget();
    }
}

/// Asks what policies say of bytes, then dials.
async fn open(worker: &Worker, connection: &Rc<Connection>) -> Result<Opened, ProxyError> {
    let app = connection.app(worker)?;
    let mut span = connection.span_of_bytes(worker, &app, &HeaderMap::new());
    let opened = async {
        let permit = Permit::bytes(worker, connection, &app)?;
        let app = Primed::new(permit.dial().await?);
        Ok((permit, app))
    };
    match opened.await {
        Ok((permit, app)) => Ok(Opened { permit, app, span }),
        Err(error) => {
            let error: ProxyError = error;
            span.refused(error.reason);
            Err(error)
        }
    }
}

/// Opaque bytes, on a port that is declared so or that nobody declared.
async fn opaque_plaintext(worker: &Worker, connection: &Rc<Connection>, io: impl opaque::Stream) {
    match open(worker, connection).await {
        Ok(opened) => opened.copy(worker, connection, io).await,
        Err(error) => {
            tracing::debug!(%error, "plaintext connection refused");
            handles(worker, connection).tcp.refused(error.reason);
        }
    }
}

/// Judges what is open again whenever another inbound configuration has come, for as long as the worker lives.
pub async fn keep(worker: Rc<Worker>) {
    let mut reader = worker.snapshot();
    let mut seen = reader.load().workload.clone();
    while reader.changed().await {
        let workload = &reader.load().workload;
        let same = match (&seen, workload) {
            (Some(seen), Some(now)) => Arc::ptr_eq(seen, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            seen.clone_from(workload);
            worker.admitted.recheck(&worker, seen.as_ref()).await;
        }
    }
}

/// TLS with the peer's identity and our own, or the reason word and detail of the refusal.
async fn handshake(
    worker: &Worker,
    io: TcpStream,
) -> Result<(TlsStream<TcpStream>, PeerIdentity, SpiffeId), (&'static str, String)> {
    let own = worker.context.identity.borrow().clone();
    let own = identity::in_force(own, SystemTime::now()).map_err(|why| (Reason::NotReady.as_str(), why.to_owned()))?;
    let acceptor = TlsAcceptor::from(Arc::clone(&own.server));
    let accepted = tokio::time::timeout(HANDSHAKE, acceptor.accept(io)).await;
    let stream = match accepted {
        Err(_) => return Err(("handshake_timeout", format!("no TLS session within {HANDSHAKE:?}"))),
        Ok(Err(error)) => return Err((refusal(&error), error.to_string())),
        Ok(Ok(stream)) => stream,
    };
    // A wrong protocol is refused by rustls; none at all is no sidecar's either.
    if stream.get_ref().1.alpn_protocol().is_none() {
        return Err(("no_alpn", "the peer offers no application protocol (ALPN); a sidecar offers h2".into()));
    }
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match weft_svid::peer_identity(certificates) {
        Ok(peer) => Ok((stream, peer, own.id.clone())),
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

fn unknown_port(what: &str) -> ProxyError {
    ProxyError::unsent(Reason::UnknownPort, format!("{what} leads to no port of this workload"))
}

#[cfg(test)]
mod tests;
