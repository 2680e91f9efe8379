//! From the app to the mesh. A connection comes in by a declared upstream's local port or on the outbound listener,
//! where the Host names the service; each request is one straight line in [`exchange::run`].

mod admission;
mod exchange;
mod fault;
mod filters;
mod mirror;
mod opaque;
mod plan;
mod redirected;
mod session;
mod source;
#[cfg(test)]
pub(crate) mod tests;
mod tries;

use std::{
    cell::RefCell,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
pub use mirror::Mirrors;
use opaque::Opened;
pub use plan::named;
pub use redirected::{original, serve as redirected};
pub use session::Sealers;
use tokio::net::TcpStream;
use weft_policy::model::{ObjectName, Protocol, Service, ServicePort, Target};

use crate::{
    app::worker::Worker,
    config::Upstream,
    detect::{self, Rewind},
    drain::Phase,
    error::{ProxyError, Reason},
    first::{self, First},
    http::{body::Body, serve},
    listener,
    snapshot::{Cluster, Snapshot},
    telemetry::Direction,
};

/// How long the first call to a service may wait for discovery.
const DISCOVERY: Duration = Duration::from_secs(2);
/// How long the first bytes of a connection may take.
const DETECT: Duration = Duration::from_secs(5);
/// An app keeps an HTTP/1.1 connection for this time between two requests: closing it sooner races with its next one.
const IDLE: Duration = Duration::from_secs(3600);
/// An app keeps its HTTP/2 connection as long as it likes.
const MAX_AGE: Duration = Duration::from_secs(365 * 86_400);

/// How the service of a request is found.
#[derive(Clone)]
pub(crate) enum Destination {
    /// The local port, or a virtual address, says it, whatever the Host.
    Upstream(Rc<Upstream>),
    /// The app dialled this endpoint, and that one gets the request.
    Endpoint(SocketAddr),
    /// The Host says it.
    Host,
}

/// What is known of all requests on one connection.
pub(crate) struct Caller {
    /// What says where they go.
    destination: Destination,
    /// Where they come from.
    source: IpAddr,
}

/// A connection on the outbound listener.
pub async fn by_host(worker: Rc<Worker>, io: TcpStream) {
    serve_http(worker, io, Destination::Host, None).await;
}

/// A connection on the local port of a declared upstream.
pub async fn by_port(worker: Rc<Worker>, upstream: Rc<Upstream>, io: TcpStream) {
    let found = find(&worker, &upstream.service).await;
    let found = found.and_then(|(snapshot, service)| Ok(cluster(&snapshot, &upstream_target(&service, &upstream)?)));
    let cluster = found.ok().flatten();
    // An unknown service is answered per request: it may appear while the app keeps its connection.
    by_protocol(worker, Destination::Upstream(upstream), cluster, io).await;
}

/// A connection to what is called, `None` when that is not known: its protocol says what becomes of it.
async fn by_protocol(worker: Rc<Worker>, destination: Destination, cluster: Option<Arc<Cluster>>, io: TcpStream) {
    let source = peer(&io);
    match cluster {
        // Boxed, as what follows: a connection is one of them, and is as large as the largest.
        Some(cluster) if cluster.protocol.is_opaque() => {
            Box::pin(opaque::serve(&worker, &cluster, source, None, io)).await;
        }
        Some(cluster) if cluster.protocol == Protocol::Undeclared => {
            match Box::pin(first::first(&io, opaque::open(&worker, &cluster, source))).await {
                First::Called(opened) => {
                    Box::pin(opaque::serve(&worker, &cluster, source, Some(opened), io)).await;
                }
                First::Caller(opened) => serve_http(worker, io, destination, opened).await,
            }
        }
        _ => serve_http(worker, io, destination, None).await,
    }
}

/// The address of the app. A connection that has none any more will not bring a request either.
fn peer(io: &TcpStream) -> IpAddr {
    io.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip())
}

/// Requests, or what turns out to be none and goes to what was `opened` ahead.
async fn serve_http(worker: Rc<Worker>, mut io: TcpStream, destination: Destination, opened: Option<Opened>) {
    if let Err(error) = listener::tune(&io) {
        tracing::debug!(%error, "could not set socket options");
    }
    let source = peer(&io);
    let detected = match detect::detect(&mut io, DETECT).await {
        Ok(detected) => detected,
        Err(error) => return tracing::debug!(%error, "the app closed before its first byte"),
    };
    worker.count_detected(Direction::Outbound, io.local_addr().map_or(0, |own| own.port()), detected.protocol);
    let http2 = detected.protocol == detect::Protocol::Http2;
    let http = http2 || detected.protocol == detect::Protocol::Http1;
    let io = Rewind::new(io, detected.prefix);
    // Bytes that are no HTTP have no Host: only a local port or an address says where they go.
    if !http && !matches!(destination, Destination::Host) {
        return Box::pin(undeclared(&worker, &destination, source, opened, io)).await;
    }
    drop(opened);
    requests(worker, io, http2, destination, source).await;
}

/// Requests on a connection.
async fn requests(worker: Rc<Worker>, io: Rewind<TcpStream>, http2: bool, destination: Destination, source: IpAddr) {
    let drain = worker.context.drain.clone();
    let snapshot = RefCell::new(worker.snapshot());
    let caller = Rc::new(Caller { destination, source });
    let handle = move |request: Request<Incoming>| {
        let (worker, caller) = (Rc::clone(&worker), Rc::clone(&caller));
        let snapshot = Arc::clone(snapshot.borrow_mut().load());
        // Not in an `async` block, into which the whole future would be moved for each request.
        exchange::run(worker, snapshot, caller, request).map(Ok::<Response<Body>, Infallible>)
    };
    // The app may need us until it is gone itself: its connections do not end with the drain.
    let end = Phase::Stopped;
    let result = if http2 {
        serve::http2(io, drain, end, tokio::time::sleep(MAX_AGE), handle).await
    } else {
        serve::http1(io, drain, end, IDLE, handle).await
    };
    if let Err(error) = result {
        tracing::debug!(error = crate::upstream::chain(&error), "connection from the app ended");
    }
}

/// An undeclared port that turned out to be opaque.
async fn undeclared(
    worker: &Worker,
    destination: &Destination,
    source: IpAddr,
    opened: Option<Opened>,
    io: Rewind<TcpStream>,
) {
    let (found, what) = match destination {
        Destination::Upstream(upstream) => {
            let found = find(worker, &upstream.service).await;
            let found = found
                .and_then(|(snapshot, service)| Ok(cluster(&snapshot, &upstream_target(&service, upstream)?)))
                .map_err(|error| error.to_string());
            (found, upstream.service.to_string())
        }
        Destination::Endpoint(address) => {
            (Ok(worker.snapshot().load().endpoints.get(address).cloned()), address.to_string())
        }
        Destination::Host => return,
    };
    match found {
        Ok(Some(cluster)) if cluster.protocol == Protocol::Undeclared => {
            opaque::serve(worker, &cluster, source, opened, io).await;
        }
        Ok(Some(cluster)) => tracing::info!(
            service = what,
            protocol = cluster.protocol.as_str(),
            "connection closed: its first bytes are not the declared protocol"
        ),
        Ok(None) => tracing::info!(service = what, "connection closed: there is no such service port any more"),
        Err(error) => tracing::info!(service = what, error, "connection closed"),
    }
}

/// The service and the snapshot that holds it, asking discovery for it when none does yet.
async fn find(worker: &Worker, name: &ObjectName) -> Result<(Arc<Snapshot>, Arc<Service>), ProxyError> {
    let mut reader = worker.snapshot();
    let held = |snapshot: &Arc<Snapshot>| Some((Arc::clone(snapshot), Arc::clone(snapshot.services.get(name)?)));
    if let Some(held) = held(reader.load()) {
        return Ok(held);
    }
    worker.context.demand.want(name);
    let wait = async {
        loop {
            let snapshot = reader.load();
            if let Some(held) = held(snapshot) {
                return Ok(held);
            }
            if snapshot.absent.contains(name) {
                return Err(ProxyError::unsent(Reason::UnknownService, format!("no service {name} in the mesh")));
            }
            if !reader.changed().await {
                return Err(ProxyError::unsent(Reason::Draining, "discovery has stopped"));
            }
        }
    };
    tokio::time::timeout(DISCOVERY, wait).await.unwrap_or_else(|_| {
        let detail = format!("discovery did not answer for {name} within {DISCOVERY:?}; is the control plane up?");
        Err(ProxyError::unsent(Reason::NotReady, detail))
    })
}

/// The service port of a declared upstream: the one that it names, else the first.
fn upstream_port<'a>(service: &'a Service, upstream: &Upstream) -> Result<&'a ServicePort, ProxyError> {
    let port = match upstream.port {
        Some(number) => service.port(number),
        None => service.ports.first(),
    };
    port.ok_or_else(|| {
        let wanted = upstream.port.map_or_else(String::new, |port| format!(" {port}"));
        ProxyError::unsent(Reason::UnknownPort, format!("service {} has no port{wanted}", service.id))
    })
}

fn upstream_target(service: &Service, upstream: &Upstream) -> Result<Target, ProxyError> {
    let port = upstream_port(service, upstream)?;
    Ok(Target { service: service.id.clone(), port: port.port })
}

fn cluster(snapshot: &Snapshot, target: &Target) -> Option<Arc<Cluster>> {
    snapshot.clusters.get(target).cloned()
}
