//! One request to the app.

use std::{rc::Rc, time::Instant};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use weft_policy::model::{InboundPort, Protocol};

use super::{Connection, app_address, declared, unknown_port};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{
        CALLER_VERSION,
        body::{Body, Finish},
        forward::Received,
        reply,
    },
    upstream::{Failed, Key},
};

/// Connections that one request may try while nothing of it was sent.
const LOOKS: u32 = 3;
const CLIENT_CERT: http::HeaderName = http::HeaderName::from_static("x-forwarded-client-cert");

/// Serves one request of an inbound connection.
pub async fn run(worker: &Rc<Worker>, connection: &Connection, request: Request<Incoming>) -> Response<Body> {
    let started = Instant::now();
    let (mut received, body) = match Received::new(request) {
        Ok(received) => received,
        Err(refused) => return reply::error(&refused.error, false, Some(refused.status)),
    };
    // Identity comes from TLS; a field that claims one never reaches the app.
    received.parts.headers.remove(CLIENT_CERT);
    let caller = received.parts.headers.remove(CALLER_VERSION);
    let caller_http2 = match (&connection.peer, caller) {
        (Some(_), Some(version)) => version == "2",
        _ => received.version == Version::HTTP_2,
    };
    let grpc = received.grpc;
    let result = match find_port(worker, connection) {
        Ok(port) => forward(worker, connection, &port, received, body, caller_http2, started).await,
        Err(error) => Err(error),
    };
    result.unwrap_or_else(|error| {
        let metrics = worker.inbound_http(connection.port.unwrap_or(0), connection.peer.is_some());
        metrics.record(error.reason.status(), Some(error.reason), started.elapsed());
        tracing::info!(%error, "inbound request failed");
        reply::error(&error, grpc, None)
    })
}

fn find_port(worker: &Worker, connection: &Connection) -> Result<InboundPort, ProxyError> {
    let number = connection.port.ok_or_else(|| unknown_port("the SNI"))?;
    let mut snapshot = worker.snapshot();
    let Some(workload) = snapshot.load().workload.as_ref() else {
        return Err(ProxyError::unsent(Reason::NotReady, "the inbound configuration has not arrived yet"));
    };
    declared(workload, number).cloned().ok_or_else(|| unknown_port(&format!("port {number}")))
}

async fn forward(
    worker: &Rc<Worker>,
    connection: &Connection,
    port: &InboundPort,
    mut received: Received,
    body: Incoming,
    caller_http2: bool,
    started: Instant,
) -> Result<Response<Body>, ProxyError> {
    let http2 = match port.protocol {
        Protocol::Grpc | Protocol::Http2 => true,
        // `http` takes callers of either version; the app is spoken to in the one that every HTTP server has.
        Protocol::Http | Protocol::Http1 => false,
        Protocol::Tcp | Protocol::Tls | Protocol::Undeclared => caller_http2,
    };
    let key = Key::Plain { address: app_address(port.port), http2 };
    let body = if received.is_bodyless() { Body::empty() } else { Body::incoming(body) };
    let parts = std::mem::replace(&mut received.parts, Request::new(()).into_parts().0);
    let mut request = received.leg(parts, http2, body)?;
    // A pooled connection that the app closed while idle costs nothing but another look, since no byte was sent; an
    // app that accepts and closes is looked at a few times only.
    let mut looks = 0;
    let (response, lease) = loop {
        looks += 1;
        let mut lease = worker.pools.lease(&key).await?;
        match lease.send(request).await {
            Ok(response) => break (response, lease),
            Err(Failed { request: Some(unsent), .. }) if looks < LOOKS => request = *unsent,
            Err(failed) => return Err(failed.error),
        }
    };
    let finish = Finish {
        metrics: Some(worker.inbound_http(port.port, connection.peer.is_some())),
        started,
        status: response.status().as_u16(),
        reason: None,
        load: None,
        lease: Some(lease),
        pools: Some(Rc::clone(&worker.pools)),
        permit: None,
        complete: false,
    };
    received.answer(response, finish)
}
