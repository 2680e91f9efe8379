//! One request to the app.

use std::{
    rc::Rc,
    time::{Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use weft_policy::{canonical, fields::Fields, model::Protocol, trace::SpanId};

use super::{
    Permit,
    connection::{App, Connection},
    jwt, limit,
};
use crate::{
    app::worker::Worker,
    error::{Blame, ProxyError, Reason},
    http::{
        CALLER_VERSION, RULE, UNSENT,
        body::{Body, Finish, IDLE, Leg, grpc_status},
        forward::Received,
        refused::Refused,
        reply,
    },
    telemetry::{
        Direction, Ended, HttpMetrics,
        propagation::Serving,
        span::Kind,
        trace::{OpenSpan, Traced},
    },
    upstream::Rules,
};

/// Connections that one request may try while nothing of it was sent.
const LOOKS: u32 = 3;
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Serves one request of an inbound connection.
pub async fn run(worker: Rc<Worker>, connection: Rc<Connection>, request: Request<Incoming>) -> Response<Body> {
    let (worker, connection, started) = (&worker, &connection, Instant::now());
    let (mut received, mut request) = match Received::new(request) {
        Ok(received) => received,
        Err(refused) => return at_once(worker, connection, &refused, started),
    };
    let version = received.version;
    let (caller, rule) = own(&received, request.headers_mut());
    // Identity comes from TLS; a field that claims one never reaches the app. Ours comes after what a `Connection` of the
    // caller's could have nominated is gone.
    canonical::strip_identity(request.headers_mut());
    if let Some(told) = &connection.told {
        request.headers_mut().insert(CLIENT_CERT, told.clone());
    }
    let caller_http2 = match (&connection.peer, &caller) {
        (Some(_), Some(version)) => version.as_bytes().starts_with(b"2"),
        _ => received.version == Version::HTTP_2,
    };
    let again = connection.peer.is_some() && caller.is_some_and(|version| version.as_bytes().ends_with(b"r"));
    let failed = |error: &ProxyError, metrics: &HttpMetrics, grpc| {
        metrics.record(&Ended::failed(error, (version, grpc), started));
        // Who is refused may come often; what policies refuse has a log of its own.
        if !matches!(
            error.reason,
            Reason::RateLimited | Reason::RbacDenied | Reason::TokenMissing | Reason::TokenInvalid
        ) {
            tracing::info!(%error, "inbound request failed");
        }
        let mut response = reply::error(error, grpc, None);
        // The caller's sidecar may send anything elsewhere of which nothing has reached the app.
        if connection.peer.is_some() && error.unsent && error.reason.blame() == Blame::Upstream {
            response.headers_mut().insert(UNSENT, HeaderValue::from_static("1"));
        }
        response
    };
    let app = match connection.app(worker) {
        Ok(app) => app,
        Err(error) => {
            let end = |span: &mut OpenSpan| span.failed(&error, received.grpc);
            unserved(worker, connection, (&received, request.headers()), started, end);
            return failed(&error, worker.unrouted(Direction::Inbound), received.grpc);
        }
    };
    let (mut span, serving) = traced(worker, connection, &app, (&received, rule.as_ref()), request.headers_mut());
    let now = (!app.authenticators.is_empty())
        .then(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let shown = jwt::Shown::new(&app.authenticators, request.headers(), now);
    request.body_mut().for_app(&app);
    let mut claims = None;
    if let Some(reserved) = &app.reserved {
        match jwt::check(&app.authenticators, reserved, request.headers_mut(), now.unwrap_or_default()) {
            Ok(found) => claims = found,
            Err(refusal) => {
                span.failed(&refusal.error, received.grpc);
                let mut response = failed(&refusal.error, &app.metrics.http, received.grpc);
                refusal.write(response.headers_mut());
                return response;
            }
        }
    }
    let permit = Permit::request(worker, connection, &app, (&received, request.headers()), (claims.clone(), shown));
    let permit = match permit {
        Ok(permit) => permit,
        Err(error) => {
            span.failed(&error, received.grpc);
            return failed(&error, &app.metrics.http, received.grpc);
        }
    };
    let mut told = None;
    if !app.limits.is_empty() {
        let who = (connection.peer.as_ref(), connection.source);
        let (claims, now) = (claims.as_deref(), worker.clock.now());
        match limit::check(&app.limits, who, claims, rule.as_ref(), &received, request.headers(), now) {
            Some((fields, Some(error))) => {
                let reason = error.reason.as_str();
                span.event("weft.rate_limited", || {
                    [("weft.reason", reason.to_owned()), ("weft.detail", error.detail.clone())]
                });
                span.failed(&error, received.grpc);
                let mut response = failed(&error, &app.metrics.http, received.grpc);
                fields.write(response.headers_mut());
                return response;
            }
            Some((fields, None)) => told = Some(fields),
            None => {}
        }
    }
    let seen = (started, &mut span);
    let forwarded = forward(worker, (&app, permit), &mut received, request, (caller_http2, again), seen);
    let mut response = match forwarded.await {
        Ok(response) => response,
        Err(error) => {
            span.failed(&error, received.grpc);
            failed(&error, &app.metrics.http, received.grpc)
        }
    };
    drop(serving);
    if let Some(told) = told {
        told.write(response.headers_mut());
    }
    response
}

/// Takes what another sidecar tells: the version of its app's request, and the rule that the request follows.
fn own(received: &Received, headers: &mut HeaderMap) -> (Option<HeaderValue>, Option<HeaderValue>) {
    if !received.fields.has(Fields::OWN) {
        return (None, None);
    }
    (headers.remove(CALLER_VERSION), headers.remove(RULE))
}

/// The trace of a request: the app is told of it, and our part begins where it is recorded. What is given beside lives
/// until the app has answered.
fn traced<'a>(
    worker: &'a Worker,
    connection: &Connection,
    app: &App,
    (received, rule): (&Received, Option<&HeaderValue>),
    headers: &mut HeaderMap,
) -> (OpenSpan, Option<Serving<'a>>) {
    let trace = Traced::of(app.telemetry(), headers, false, || worker.random());
    let serving = worker.contexts.served(trace.has_parent());
    let id = SpanId::random(worker.random());
    trace.tell(headers, id);
    let mut span = trace.begin(Kind::Server, id, (received, received.version), headers, &worker.spans);
    span.from_ip(connection.source);
    span.add(|span| {
        let wanted = app.telemetry().headers.iter();
        span.headers = wanted.filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect();
        span.peer_id = connection.peer.as_ref().map(|peer| peer.id.clone());
        span.service = connection.service();
        // Believed of callers in the mesh only.
        span.route = rule.filter(|_| connection.peer.is_some()).cloned();
    });
    (span, serving)
}

/// The answer to a request that is refused before anything else looks at it.
fn at_once(worker: &Worker, connection: &Connection, refused: &Refused, started: Instant) -> Response<Body> {
    worker.unrouted(Direction::Inbound).record(&refused.ended(started));
    let (told, nothing) = ((&refused.received(), refused.headers()), HeaderMap::new());
    unserved(worker, connection, told, started, |span| {
        span.answered_here((refused.status, &nothing), Some(refused.error.reason));
    });
    let mut response = reply::error(&refused.error, false, Some(refused.status));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The span, and the line of the access log, of a request that leads to no port of the app: it was refused before anybody
/// looked where it goes. Nobody's telemetry is in force before there is a configuration.
fn unserved(
    worker: &Worker,
    connection: &Connection,
    (received, headers): (&Received, &HeaderMap),
    started: Instant,
    end: impl FnOnce(&mut OpenSpan),
) {
    let mut snapshot = worker.snapshot();
    let Some(workload) = &snapshot.load().workload else { return };
    let trace = Traced::of(&workload.telemetry, headers, false, || worker.random());
    let id = SpanId::random(worker.random());
    let mut span = trace.begin(Kind::Server, id, (received, received.version), headers, &worker.spans);
    span.of_all(started);
    span.from_ip(connection.source);
    span.add(|span| {
        span.peer_id = connection.peer.as_ref().map(|peer| peer.id.clone());
        span.service = connection.service();
    });
    end(&mut span);
}

async fn forward(
    worker: &Rc<Worker>,
    (app, permit): (&App, Permit),
    received: &mut Received,
    mut request: Request<Body>,
    (caller_http2, again): (bool, bool),
    (started, span): (Instant, &mut OpenSpan),
) -> Result<Response<Body>, ProxyError> {
    let http2 = match app.protocol {
        Protocol::Grpc | Protocol::Http2 => true,
        // `http` takes callers of either version; the app is spoken to in the one that every HTTP server has.
        Protocol::Http | Protocol::Http1 => false,
        Protocol::Tcp | Protocol::Tls | Protocol::Undeclared => caller_http2,
    };
    let key = permit.key(http2);
    received.leg(&mut request, http2)?;
    let mut request = Some(request);
    // A pooled connection that the app closed while idle costs nothing but another look, since no byte was sent; an
    // app that accepts and closes is looked at a few times only.
    let mut looks = 0;
    let response = loop {
        looks += 1;
        let lease = worker.pools.lease(&key, &Rules::app().fresh(again)).await?;
        let sent = tokio::select! {
            biased;
            sent = lease.send(&mut request) => sent,
            reason = permit.revoked() => return Err(ProxyError::new(reason, "the caller is not allowed to do this any more")),
        };
        match sent {
            Ok(mut response) => {
                // Ours alone: the app does not say what may be sent again.
                response.headers_mut().remove(UNSENT);
                break response;
            }
            Err(_) if request.is_some() && looks < LOOKS => {}
            Err(error) => return Err(error),
        }
    };
    span.add(|span| span.answered(response.status().as_u16(), response.headers()));
    let finish = Finish {
        metrics: Some(app.metrics.http.clone()),
        started,
        status: response.status().as_u16(),
        version: received.version,
        grpc: received.grpc.then(|| grpc_status(response.headers())).flatten(),
        reason: None,
        leg: Leg::App(permit),
        permit: None,
        place: None,
        complete: false,
        span: std::mem::take(span),
    };
    let times = received.times(Some(IDLE), None);
    received.answer(response, finish, times, || worker.context.drain.guard())
}
