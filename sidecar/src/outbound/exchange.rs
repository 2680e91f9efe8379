//! One request from the app: the straight line from head to answer, with its retries.

use std::{
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use smallvec::SmallVec;
use weft_policy::{
    balance,
    limits::Permit,
    model::{ObjectName, Protocol, RouteRule, Service, Target},
    retry,
    routing::RequestView,
};

use super::{Destination, find, upstream_port};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{
        CALLER_VERSION,
        body::{Body, Finish, LoadGuard},
        forward::{Received, mark_caller_version},
        reply,
    },
    snapshot::{Cluster, EndpointState, Snapshot},
    telemetry::Direction,
    upstream::{Key, Lease},
};

/// Tries of one request: the first and two retries.
const TRIES: u32 = 3;

/// Serves one request; `snapshot` is the newest one.
pub async fn run(
    worker: Rc<Worker>,
    snapshot: Arc<Snapshot>,
    destination: Destination,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    // 1, 2: canonicalise or reject before anything else looks at the request.
    let (mut received, mut request) = match Received::new(request) {
        Ok(received) => received,
        Err(refused) => {
            worker.unrouted(Direction::Outbound).record(refused.status, Some(refused.error.reason), started.elapsed());
            let mut response = reply::error(&refused.error, false, Some(refused.status));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
    };
    request.headers_mut().remove(CALLER_VERSION);
    // 3 to 6: service, route, backend, cluster.
    let planned = match service_name(&worker, &snapshot, &destination, &received) {
        Ok(name) => match snapshot.services.get(&name) {
            Some(service) => plan(&worker, &snapshot, service, &destination, &received, request.headers()),
            // Only the first call to a service: boxed, so that the future of every request is not as large.
            None => Box::pin(find(&worker, &name)).await.and_then(|(snapshot, service)| {
                plan(&worker, &snapshot, &service, &destination, &received, request.headers())
            }),
        },
        Err(error) => Err(error),
    };
    drop(snapshot);
    let plan = match planned {
        Ok(plan) => plan,
        Err(error) => {
            let metrics = worker.unrouted(Direction::Outbound);
            metrics.record(error.reason.status(), Some(error.reason), started.elapsed());
            return reply::error(&error, received.grpc, None);
        }
    };
    let Some(permit) = plan.cluster.shared.limits.requests.try_acquire() else {
        let detail = format!("service {} has as many requests as its limit allows", plan.cluster.target.service);
        let error = ProxyError::unsent(Reason::RequestLimit, detail);
        plan.cluster.shared.http[0].record(error.reason.status(), Some(error.reason), started.elapsed());
        return reply::error(&error, received.grpc, None);
    };
    // 7 to 12: endpoint, connection, send, observe, retry, answer.
    let grpc = received.grpc;
    let tries = Tries { worker: &worker, plan: &plan, started, failed: SmallVec::new(), mtls: false };
    let mut work = pin!(tries.run(&mut received, request, permit));
    let result = match plan.timeout {
        None => work.await,
        Some(limit) => within(limit, work.as_mut()).await.unwrap_or_else(|| {
            let error = ProxyError::new(Reason::RequestTimeout, format!("no response head within {limit:?}"));
            plan.cluster.shared.http[0].record(error.reason.status(), Some(error.reason), started.elapsed());
            Err(error)
        }),
    };
    result.unwrap_or_else(|error| {
        tracing::info!(service = %plan.cluster.target.service, %error, "request failed");
        reply::error(&error, grpc, None)
    })
}

/// What is to be done with a request.
struct Plan {
    cluster: Arc<Cluster>,
    protocol: Protocol,
    timeout: Option<Duration>,
    try_timeout: Option<Duration>,
}

/// Which service a request is for.
fn service_name(
    worker: &Worker,
    snapshot: &Snapshot,
    destination: &Destination,
    received: &Received,
) -> Result<ObjectName, ProxyError> {
    match destination {
        Destination::Upstream(upstream) => Ok(upstream.service.clone()),
        Destination::Host => by_host(worker, snapshot, &received.authority.host),
    }
}

fn plan(
    worker: &Worker,
    snapshot: &Snapshot,
    service: &Service,
    destination: &Destination,
    received: &Received,
    headers: &HeaderMap,
) -> Result<Plan, ProxyError> {
    let port = match destination {
        Destination::Upstream(upstream) => upstream_port(service, upstream)?,
        Destination::Host => {
            let named = received.authority.port;
            let port = service.port(named.unwrap_or(80)).or_else(|| named.is_none().then(|| service.ports.first())?);
            port.ok_or_else(|| {
                let detail = format!("service {} has no port {}", service.id, named.unwrap_or(80));
                ProxyError::unsent(Reason::UnknownPort, detail)
            })?
        }
    };
    let rule = match &port.routing {
        None => &port.direct,
        Some(routing) => {
            let view = RequestView {
                method: &received.method,
                path: received.path.path(),
                query: received.path.query(),
                headers,
            };
            let found = routing.find(&view);
            let no_route = || ProxyError::unsent(Reason::NoRoute, format!("no route of {} matches", service.id));
            found.map(|(_, rule)| rule).ok_or_else(no_route)?
        }
    };
    let target = backend(worker, rule)?;
    let cluster = snapshot.clusters.get(&target).cloned().ok_or_else(|| {
        ProxyError::unsent(
            Reason::InvalidBackend,
            format!("backend {} port {} is not known", target.service, target.port),
        )
    })?;
    Ok(Plan {
        cluster,
        protocol: port.protocol,
        timeout: rule.requests.timeout,
        try_timeout: rule.requests.backend_timeout,
    })
}

fn backend(worker: &Worker, rule: &RouteRule) -> Result<Target, ProxyError> {
    rule.pick_backend(worker.random())
        .and_then(|backend| backend.target.clone())
        .ok_or_else(|| ProxyError::unsent(Reason::InvalidBackend, format!("route {} has no valid backend", rule.name)))
}

/// The service that a Host names: one that is held, else one of the four forms of a service's name.
fn by_host(worker: &Worker, snapshot: &Snapshot, host: &str) -> Result<ObjectName, ProxyError> {
    if let Some(name) = snapshot.hosts.get(host) {
        return Ok(name.clone());
    }
    let stem = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".mesh")).unwrap_or(host);
    let (name, namespace) = stem.split_once('.').unwrap_or((stem, &worker.context.config.namespace));
    ObjectName::parse(&format!("{namespace}/{name}")).ok_or_else(|| {
        ProxyError::unsent(Reason::UnknownService, format!("host {host:?} names no service of the mesh"))
    })
}

/// The result of `work`, or `None` when the time is over. The timer is boxed: most requests have none.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut timer = Box::pin(tokio::time::sleep(limit));
    tokio::select! {
        biased;
        result = work => Some(result),
        () = &mut timer => None,
    }
}

/// Why a request is sent again.
struct Retry {
    reason: &'static str,
    unsent: bool,
}

/// The tries of one request.
struct Tries<'a> {
    worker: &'a Rc<Worker>,
    plan: &'a Plan,
    started: Instant,
    failed: SmallVec<[Arc<EndpointState>; 1]>,
    mtls: bool,
}

impl Tries<'_> {
    async fn run(
        mut self,
        received: &mut Received,
        request: Request<Body>,
        permit: Permit,
    ) -> Result<Response<Body>, ProxyError> {
        let shared = &self.plan.cluster.shared;
        shared.budget.request(self.worker.clock.now());
        let again = received.is_bodyless() && retry::idempotent(&received.method, request.headers());
        let spare = again.then(|| head(&request));
        let mut request = Some(request);
        let mut number = 0;
        loop {
            number += 1;
            let retry = match self.attempt(received, &mut request).await {
                Ok((response, mut finish)) => {
                    let retriable = matches!(response.status().as_u16(), 502..=504);
                    if !(retriable && again && number < TRIES && shared.budget.try_retry(self.worker.clock.now())) {
                        finish.permit = Some(permit);
                        let guard = || self.worker.context.drain.guard();
                        return received.answer(response, finish, guard).map_err(|error| self.fail(error));
                    }
                    finish.metrics = None;
                    Retry { reason: "gateway_error", unsent: false }
                }
                Err(error) => {
                    let possible = request.is_some() && error.unsent || again;
                    // A try of which nothing was sent costs no server anything, so it takes nothing from the budget.
                    if number == TRIES
                        || !possible
                        || error.reason == Reason::NoEndpoints
                        || !error.unsent && !shared.budget.try_retry(self.worker.clock.now())
                    {
                        return Err(self.fail(error));
                    }
                    Retry { reason: error.reason.as_str(), unsent: error.unsent }
                }
            };
            // Rare: boxed, so that the future of every request does not hold a timer.
            Box::pin(self.pause(number, retry)).await;
            if request.is_none() {
                request = spare.as_ref().map(head);
            }
        }
    }

    /// Counts the retry and backs off; a request of which nothing was sent goes elsewhere at once.
    async fn pause(&self, number: u32, retry: Retry) {
        let target = self.plan.cluster.target.service.as_str();
        let labels = [("target", target), ("reason", retry.reason)];
        let telemetry = &self.worker.context.telemetry;
        telemetry.counter("weft_upstream_retries_total", "Retries sent", &labels).increment(1);
        if !retry.unsent {
            tokio::time::sleep(retry::backoff(number, self.worker.random())).await;
        }
    }

    fn fail(&self, error: ProxyError) -> ProxyError {
        let metrics = &self.plan.cluster.shared.http[usize::from(self.mtls)];
        metrics.record(error.reason.status(), Some(error.reason), self.started.elapsed());
        error
    }

    /// One try: endpoint, connection, request, response head. After an error `request` holds the request again when
    /// not a byte of it was sent.
    async fn attempt(
        &mut self,
        received: &Received,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Incoming>, Finish), ProxyError> {
        let cluster = &self.plan.cluster;
        let endpoint = self.pick()?;
        let key = self.key(&endpoint, received);
        self.mtls = key.is_mesh();
        let Some(mut leg) = request.take() else {
            return Err(ProxyError::new(Reason::Internal, "the request was already sent"));
        };
        if self.mtls {
            mark_caller_version(&mut leg, received.version);
        }
        *request = Some(received.leg(leg, key.is_http2())?);
        let mut load = LoadGuard::new(Arc::clone(&endpoint), self.worker.clock);
        let begun = Instant::now();
        match self.exchange(&key, request).await {
            Ok((response, lease)) => {
                load.observe(begun.elapsed(), response.status().is_server_error());
                if response.status().is_server_error() {
                    self.failed.push(endpoint);
                }
                let finish = Finish {
                    metrics: Some(cluster.shared.http[usize::from(self.mtls)].clone()),
                    started: self.started,
                    status: response.status().as_u16(),
                    reason: None,
                    load: Some(load),
                    lease: Some(lease),
                    permit: None,
                    complete: false,
                };
                Ok((response, finish))
            }
            // A pooled connection that had ended says nothing of the endpoint.
            Err(error) if request.is_some() && error.reason == Reason::ConnectionTerminated => Err(error),
            Err(error) => {
                load.observe(begun.elapsed(), true);
                self.failed.push(endpoint);
                Err(error)
            }
        }
    }

    /// An endpoint that has not failed this request, else the one that failed first.
    fn pick(&self) -> Result<Arc<EndpointState>, ProxyError> {
        let cluster = &self.plan.cluster;
        let excluded = |endpoint: &Arc<EndpointState>| self.failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint));
        let picked = balance::pick(&cluster.endpoints, excluded, self.worker.clock.now(), || self.worker.random());
        picked.or(self.failed.first()).cloned().ok_or_else(|| {
            let detail = format!("service {} has no healthy endpoint", cluster.target.service);
            ProxyError::unsent(Reason::NoEndpoints, detail)
        })
    }

    fn key(&self, endpoint: &EndpointState, received: &Received) -> Key {
        if let Some(mesh) = &endpoint.endpoint.mesh {
            return Key::mesh(mesh, &self.plan.cluster.target);
        }
        let protocol = self.plan.protocol;
        let http2 = protocol.is_http2()
            || !matches!(protocol, Protocol::Http | Protocol::Http1) && received.version == http::Version::HTTP_2;
        Key::Plain { address: endpoint.address, http2 }
    }

    async fn exchange(
        &self,
        key: &Key,
        request: &mut Option<Request<Body>>,
    ) -> Result<(Response<Incoming>, Lease), ProxyError> {
        let mut lease = self.worker.pools.lease(key).await?;
        let response = {
            let mut sending = pin!(lease.send(request));
            match self.plan.try_timeout {
                None => sending.await,
                Some(limit) => within(limit, sending.as_mut()).await.unwrap_or_else(|| {
                    Err(ProxyError::new(Reason::TryTimeout, format!("no response head within {limit:?}")))
                }),
            }
        };
        Ok((response?, lease))
    }
}

/// A request with the same head and no body.
fn head(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// A future is moved and allocated whole for every request. The bounds are only ever lowered.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size_of_future(run);
        assert!(size <= 4200, "{size} bytes");
        assert!(size_of::<Body>() <= 176 && size_of::<Received>() <= 200);
    }
}
