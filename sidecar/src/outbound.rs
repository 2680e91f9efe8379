//! From the app to the mesh. A connection comes in by a declared upstream's local port or on the outbound listener,
//! where the Host names the service; each request is one straight line in [`exchange::run`].

mod exchange;
mod opaque;

use std::{convert::Infallible, rc::Rc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use weft_policy::model::{ObjectName, Protocol, Service, ServicePort, Target};

use crate::{
    app::worker::Worker,
    config::Upstream,
    detect::{self, Rewind},
    error::{ProxyError, Reason},
    http::{body::Body, serve},
    listener,
    snapshot::SnapshotReader,
};

/// How long the first call to a service may wait for discovery.
const DISCOVERY: Duration = Duration::from_secs(2);
/// How long the first bytes of a connection may take.
const DETECT: Duration = Duration::from_secs(5);
/// An app keeps its HTTP/2 connection as long as it likes.
const MAX_AGE: Duration = Duration::from_secs(365 * 86_400);

/// How the service of a request is found.
#[derive(Clone)]
pub(crate) enum Destination {
    /// The local port says it, whatever the Host.
    Upstream(Rc<Upstream>),
    /// The Host says it.
    Host,
}

/// A connection on the outbound listener.
pub async fn by_host(worker: Rc<Worker>, io: TcpStream) {
    serve_http(worker, io, Destination::Host).await;
}

/// A connection on the local port of a declared upstream.
pub async fn by_port(worker: Rc<Worker>, upstream: Rc<Upstream>, io: TcpStream) {
    let mut snapshot = worker.snapshot();
    let port =
        find(&worker, &mut snapshot, &upstream.service).await.and_then(|service| upstream_port(&service, &upstream));
    match port {
        Ok(port) if port.protocol.is_opaque() => {
            let target = Target { service: upstream.service.clone(), port: port.port };
            opaque::serve(&worker, &target, io).await;
        }
        // An unknown service is answered per request: it may appear while the app keeps its connection.
        _ => serve_http(worker, io, Destination::Upstream(upstream)).await,
    }
}

async fn serve_http(worker: Rc<Worker>, mut io: TcpStream, destination: Destination) {
    if let Err(error) = listener::tune(&io) {
        tracing::debug!(%error, "could not set socket options");
    }
    let detected = match detect::detect(&mut io, DETECT).await {
        Ok(detected) => detected,
        Err(error) => return tracing::debug!(%error, "the app closed before its first byte"),
    };
    let drain = worker.context.drain.clone();
    let http2 = detected.protocol == detect::Protocol::Http2;
    let http = http2 || detected.protocol == detect::Protocol::Http1;
    let io = Rewind::new(io, detected.prefix);
    // Bytes that are no HTTP have no Host: only a local port says where they go.
    if let (false, Destination::Upstream(upstream)) = (http, &destination) {
        return opaque_upstream(&worker, upstream, io).await;
    }
    let snapshot = std::cell::RefCell::new(worker.snapshot());
    let handle = move |request: Request<Incoming>| {
        let (worker, destination) = (Rc::clone(&worker), destination.clone());
        let mut snapshot = snapshot.borrow_mut();
        snapshot.load();
        let snapshot = snapshot.clone();
        async move { Ok::<Response<Body>, Infallible>(exchange::run(worker, snapshot, destination, request).await) }
    };
    let result =
        if http2 { serve::http2(io, drain, MAX_AGE, handle).await } else { serve::http1(io, drain, handle).await };
    if let Err(error) = result {
        tracing::debug!(error = crate::upstream::chain(&error), "connection from the app ended");
    }
}

/// An undeclared port that turned out to be opaque.
async fn opaque_upstream(worker: &Worker, upstream: &Upstream, io: Rewind<TcpStream>) {
    let mut snapshot = worker.snapshot();
    let found = find(worker, &mut snapshot, &upstream.service).await;
    match found.and_then(|service| upstream_port(&service, upstream)) {
        Ok(port) if port.protocol == Protocol::Undeclared => {
            let target = Target { service: upstream.service.clone(), port: port.port };
            opaque::serve(worker, &target, io).await;
        }
        Ok(port) => tracing::info!(
            service = %upstream.service, protocol = port.protocol.as_str(),
            "connection closed: its first bytes are not the declared protocol"
        ),
        Err(error) => tracing::info!(service = %upstream.service, %error, "connection closed"),
    }
}

/// The service, asking discovery for it when it is not held.
async fn find(
    worker: &Worker,
    snapshot: &mut SnapshotReader,
    name: &ObjectName,
) -> Result<std::sync::Arc<Service>, ProxyError> {
    if let Some(service) = snapshot.load().services.get(name) {
        return Ok(service.clone());
    }
    worker.context.demand.want(name);
    let wait = async {
        loop {
            let view = snapshot.load();
            if let Some(service) = view.services.get(name) {
                return Ok(service.clone());
            }
            if view.absent.contains(name) {
                return Err(ProxyError::unsent(Reason::UnknownService, format!("no service {name} in the mesh")));
            }
            if !snapshot.changed().await {
                return Err(ProxyError::unsent(Reason::Draining, "discovery has stopped"));
            }
        }
    };
    tokio::time::timeout(DISCOVERY, wait).await.unwrap_or_else(|_| {
        let detail = format!("discovery did not answer for {name} within {DISCOVERY:?}; is the control plane up?");
        Err(ProxyError::unsent(Reason::NotReady, detail))
    })
}

fn upstream_port(service: &Service, upstream: &Upstream) -> Result<ServicePort, ProxyError> {
    let port = match upstream.port {
        Some(number) => service.port(number),
        None => service.ports.first(),
    };
    port.cloned().ok_or_else(|| {
        let wanted = upstream.port.map_or_else(String::new, |port| format!(" {port}"));
        ProxyError::unsent(Reason::UnknownPort, format!("service {} has no port{wanted}", service.id))
    })
}
