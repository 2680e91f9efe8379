//! Copies of requests for those whom a filter names: sent beside the request, their answers thrown away. Nothing here
//! makes the caller wait or fail: a copy that does not fit a bound is dropped and counted.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use weft_policy::{
    balance,
    limits::{Gauge, Permit},
    model::Target,
    trace::SpanId,
};

use super::{
    admission::is_available,
    source::{head, key},
};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{
        body::{Body, Copied, Incoming, LoadGuard, Tee},
        forward::{Received, mark_caller_version},
    },
    snapshot::{Cluster, EndpointState},
    telemetry::{
        Telemetry,
        span::Kind,
        trace::{OpenSpan, Traced},
    },
    upstream::Rules,
};

/// Copies of one worker that wait for their body or are on their way. With the bound of a body this bounds memory.
const IN_FLIGHT: u32 = 64;
/// Longest body that is copied.
const BODY: usize = 64 * 1024;
/// From the start to the end of a copy: one that takes longer would keep its place from others.
const TIME: Duration = Duration::from_secs(30);
/// What of an answer is read, so that its connection can be used again.
const ANSWER: usize = 64 * 1024;
/// Connections that one copy may try while nothing of it was sent.
const LOOKS: u32 = 3;

/// The books of a worker's copies.
pub struct Mirrors {
    in_flight: Arc<Gauge>,
    counters: RefCell<HashMap<(Target, &'static str), metrics::Counter>>,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self { in_flight: Arc::new(Gauge::new(IN_FLIGHT)), counters: RefCell::default() }
    }
}

impl Mirrors {
    fn count(&self, telemetry: &Telemetry, target: &Target, result: &'static str) {
        // Only targets that a route names come here, and results are words of a closed set: the map is bounded.
        let mut counters = self.counters.borrow_mut();
        let counter = counters.entry((target.clone(), result)).or_insert_with(|| {
            let labels = [("service", target.service.as_str()), ("result", result)];
            telemetry.counter_of("weft_mirror_requests_total", "Copies of requests, by what became of them", &labels)
        });
        counter.increment(1);
    }
}

/// One copy on its way.
struct Copy {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    received: Received,
    request: Request<Body>,
    span: OpenSpan,
    _permit: Permit,
}

/// Sends copies of `request` to `clusters`, at once or when its body is complete. An upgrade is not copied: what comes
/// after it cannot be.
pub fn start(
    worker: &Rc<Worker>,
    clusters: &[Arc<Cluster>],
    received: &Received,
    request: &mut Request<Body>,
    traced: Option<&Traced>,
) {
    if received.upgrade.is_some() {
        return;
    }
    let mut waiting: SmallVec<[oneshot::Sender<Copied>; 1]> = SmallVec::new();
    for cluster in clusters {
        let Some(permit) = worker.mirrors.in_flight.try_acquire() else {
            worker.mirrors.count(&worker.context.telemetry, &cluster.target, "too_many");
            continue;
        };
        let mut copy = Copy {
            worker: Rc::clone(worker),
            cluster: Arc::clone(cluster),
            received: received.copy(),
            request: head(request),
            span: OpenSpan::default(),
            _permit: permit,
        };
        if let Some(traced) = traced {
            copy.trace(traced);
        }
        let body = (!received.is_bodyless()).then(|| {
            let (sender, receiver) = oneshot::channel();
            waiting.push(sender);
            receiver
        });
        tokio::task::spawn_local(copy.run(body));
    }
    if !waiting.is_empty() {
        request.body_mut().tee(Tee::new(BODY, waiting));
    }
}

impl Copy {
    /// A span of its own beside those of the tries. The access log has only what callers have asked for.
    fn trace(&mut self, traced: &Traced) {
        let id = SpanId::random(self.worker.random());
        let (received, headers) = (&self.received, self.request.headers_mut());
        self.span = traced.begin(Kind::Client, id, (received, received.version), headers, &self.worker.spans);
        self.span.not_logged();
        self.span.add(|span| {
            span.service = Some(self.cluster.target.clone());
            span.event("weft.mirror", []);
        });
        traced.tell(headers, id);
    }

    async fn run(mut self, body: Option<oneshot::Receiver<Copied>>) {
        let result = match tokio::time::timeout(TIME, self.exchange(body)).await {
            Err(_) => "timeout",
            Ok(Err(result)) => result,
            Ok(Ok(())) => "answered",
        };
        self.worker.mirrors.count(&self.worker.context.telemetry, &self.cluster.target, result);
    }

    /// Waits for the body, sends, throws the answer away; or the word for why not.
    async fn exchange(&mut self, body: Option<oneshot::Receiver<Copied>>) -> Result<(), &'static str> {
        if let Some(body) = body {
            match body.await {
                Ok(Copied::Whole(bytes)) => self.take_body(bytes),
                Ok(Copied::TooLong) => return Err("body_too_large"),
                Err(_) => return Err("body_incomplete"),
            }
        }
        self.send().await.map_err(|error| {
            self.span.failed(&error, self.received.grpc);
            tracing::debug!(service = %self.cluster.target.service, %error, "a copy was not answered");
            error.reason.as_str()
        })
    }

    fn take_body(&mut self, bytes: Bytes) {
        self.received.replace_body(bytes.len());
        *self.request.body_mut() = Body::full(bytes);
    }

    async fn send(&mut self) -> Result<(), ProxyError> {
        let shared = &self.cluster.shared;
        let limit = || ProxyError::unsent(Reason::RequestLimit, "the service has as many requests as its limit allows");
        let _permit = shared.limits.requests.try_acquire().ok_or_else(limit)?;
        let mut random = || self.worker.random();
        let request = balance::Request { hash: None, now: self.worker.clock.now(), random: &mut random };
        let available = |endpoint: &Arc<EndpointState>| is_available(endpoint, &[]);
        let endpoint = self.cluster.balancer.pick(&self.cluster.endpoints, request, available);
        let endpoint = endpoint.cloned();
        let endpoint =
            endpoint.ok_or_else(|| ProxyError::unsent(Reason::NoEndpoints, "the service has no healthy endpoint"))?;
        let key = key(&endpoint, &self.cluster, &self.received);
        let mut leg = std::mem::replace(&mut self.request, Request::new(Body::empty()));
        if key.is_mesh() {
            mark_caller_version(&mut leg, self.received.version, false);
        }
        self.received.leg(&mut leg, key.is_http2())?;
        let mut request = Some(leg);
        self.span.to(&endpoint, key.address(), key.is_http2());
        let mut load = LoadGuard::new(endpoint, self.worker.clock);
        let begun = Instant::now();
        let rules = Rules::of(&self.cluster.policy, &shared.limits);
        let mut looks = 0;
        let response = loop {
            looks += 1;
            let sent = match self.worker.pools.lease(&key, &rules).await {
                Ok(lease) => lease.send(&mut request).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok(sent) => break sent,
                // A pooled connection that had ended says nothing of the endpoint.
                Err(error) if request.is_some() && error.reason == Reason::ConnectionTerminated && looks < LOOKS => {}
                Err(error) => {
                    load.observe(begun.elapsed(), true);
                    return Err(error);
                }
            }
        };
        load.observe(begun.elapsed(), response.status().is_server_error());
        self.span.add(|span| span.answered(response.status().as_u16(), response.headers()));
        // An answer that is too long to be read is as good as a whole one here.
        self.span.ended(None, true);
        drain(response).await;
        Ok(())
    }
}

/// Reads an answer up to a bound: to its end in most cases, so that its connection is free.
async fn drain(response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut left = ANSWER;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
