//! One request from the app: the straight line from head to answer, with its retries.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, header, request};
use hyper::body::Incoming;
use weft_policy::{
    balance,
    limits::Permit,
    model::{ObjectName, Protocol, RouteRule, Target},
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
    snapshot::{Cluster, EndpointState, SnapshotReader},
    upstream::{Failed, Key},
};

/// Tries of one request: the first and two retries.
const TRIES: u32 = 3;

/// Serves one request.
pub async fn run(
    worker: Rc<Worker>,
    mut snapshot: SnapshotReader,
    destination: Destination,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    // 1, 2: canonicalise or reject before anything else looks at the request.
    let (mut received, body) = match Received::new(request) {
        Ok(received) => received,
        Err(refused) => {
            let mut response = reply::error(&refused.error, false, Some(refused.status));
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return response;
        }
    };
    received.parts.headers.remove(CALLER_VERSION);
    // 3 to 6: service, route, backend, cluster.
    let plan = match plan(&worker, &mut snapshot, &destination, &received).await {
        Ok(plan) => plan,
        Err(error) => return reply::error(&error, received.grpc, None),
    };
    let Some(permit) = plan.cluster.shared.limits.requests.try_acquire() else {
        let detail = format!("service {} has as many requests as its limit allows", plan.cluster.target.service);
        let error = ProxyError::unsent(Reason::RequestLimit, detail);
        plan.cluster.shared.http[0].record(error.reason.status(), Some(error.reason), started.elapsed());
        return reply::error(&error, received.grpc, None);
    };
    // 7 to 12: endpoint, connection, send, observe, retry, answer.
    let tries = Tries { worker: &worker, plan: &plan, started, failed: Vec::new(), mtls: false };
    let grpc = received.grpc;
    let work = tries.run(&mut received, body, permit);
    let result = match plan.timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
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

async fn plan(
    worker: &Worker,
    snapshot: &mut SnapshotReader,
    destination: &Destination,
    received: &Received,
) -> Result<Plan, ProxyError> {
    let (service, port) = match destination {
        Destination::Upstream(upstream) => {
            let service = find(worker, snapshot, &upstream.service).await?;
            let port = upstream_port(&service, upstream)?;
            (service, port)
        }
        Destination::Host => {
            let name = by_host(worker, snapshot, &received.authority.host)?;
            let service = find(worker, snapshot, &name).await?;
            let number = received.authority.port.unwrap_or(80);
            let port =
                service.port(number).or_else(|| received.authority.port.is_none().then(|| service.ports.first())?);
            let port = port.cloned().ok_or_else(|| {
                ProxyError::unsent(Reason::UnknownPort, format!("service {name} has no port {number}"))
            })?;
            (service, port)
        }
    };
    let own = Target { service: service.id.clone(), port: port.port };
    let (target, rule) = match &port.routing {
        None => (own, None),
        Some(routing) => {
            let view = RequestView {
                method: &received.method,
                path: received.path.path(),
                query: received.path.query(),
                headers: &received.parts.headers,
            };
            let rule = routing
                .find(&view)
                .ok_or_else(|| ProxyError::unsent(Reason::NoRoute, format!("no route of {} matches", service.id)))?;
            (backend(worker, rule)?, Some(rule))
        }
    };
    let cluster = snapshot.load().clusters.get(&target).cloned().ok_or_else(|| {
        ProxyError::unsent(
            Reason::InvalidBackend,
            format!("backend {} port {} is not known", target.service, target.port),
        )
    })?;
    Ok(Plan {
        cluster,
        protocol: port.protocol,
        timeout: rule.and_then(|rule| rule.timeout),
        try_timeout: rule.and_then(|rule| rule.backend_timeout),
    })
}

fn backend(worker: &Worker, rule: &RouteRule) -> Result<Target, ProxyError> {
    rule.pick_backend(worker.random())
        .and_then(|backend| backend.target.clone())
        .ok_or_else(|| ProxyError::unsent(Reason::InvalidBackend, format!("route {} has no valid backend", rule.name)))
}

/// The service that a Host names: one that is held, else one of the four forms of a service's name.
fn by_host(worker: &Worker, snapshot: &mut SnapshotReader, host: &str) -> Result<ObjectName, ProxyError> {
    if let Some(name) = snapshot.load().hosts.get(host) {
        return Ok(name.clone());
    }
    let stem = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".mesh")).unwrap_or(host);
    let (name, namespace) = stem.split_once('.').unwrap_or((stem, &worker.context.config.namespace));
    ObjectName::parse(&format!("{namespace}/{name}")).ok_or_else(|| {
        ProxyError::unsent(Reason::UnknownService, format!("host {host:?} names no service of the mesh"))
    })
}

/// The tries of one request.
struct Tries<'a> {
    worker: &'a Rc<Worker>,
    plan: &'a Plan,
    started: Instant,
    failed: Vec<Arc<EndpointState>>,
    mtls: bool,
}

impl Tries<'_> {
    async fn run(
        mut self,
        received: &mut Received,
        body: Incoming,
        permit: Permit,
    ) -> Result<Response<Body>, ProxyError> {
        let shared = &self.plan.cluster.shared;
        shared.budget.request(self.worker.clock.now());
        let again = received.is_bodyless() && retry::idempotent(&received.method, &received.parts.headers);
        let mut body = if received.is_bodyless() { Some(Body::empty()) } else { Some(Body::incoming(body)) };
        let mut head = Some(std::mem::replace(&mut received.parts, Request::new(()).into_parts().0));
        let mut permit = Some(permit);
        let mut number = 0;
        loop {
            number += 1;
            let parts = if again { head.clone() } else { head.take() };
            let (Some(parts), Some(sent)) = (parts, body.take()) else {
                return Err(self.fail(ProxyError::new(Reason::Internal, "the request was already sent")));
            };
            let error = match self.attempt(received, parts, sent).await {
                Ok((response, mut finish)) => {
                    let retriable = matches!(response.status().as_u16(), 502..=504);
                    if !(retriable && again && number < TRIES && shared.budget.try_retry(self.worker.clock.now())) {
                        finish.permit = permit.take();
                        return received.answer(response, finish).map_err(|error| self.fail(error));
                    }
                    finish.metrics = None;
                    body = Some(Body::empty());
                    ProxyError::new(Reason::ConnectionTerminated, format!("answered {}", response.status()))
                }
                Err(Failed { error, request }) => {
                    if let (true, Some(request)) = (error.unsent, request) {
                        let (parts, unsent) = request.into_parts();
                        head = Some(parts);
                        body = Some(unsent);
                    } else if again {
                        body = Some(Body::empty());
                    }
                    let possible = body.is_some() && (error.unsent || again) && error.reason != Reason::NoEndpoints;
                    if number == TRIES || !possible || !shared.budget.try_retry(self.worker.clock.now()) {
                        return Err(self.fail(error));
                    }
                    error
                }
            };
            self.pause(number, &error).await;
        }
    }

    /// Counts the retry and backs off; a request of which nothing was sent goes elsewhere at once.
    async fn pause(&self, number: u32, error: &ProxyError) {
        let target = self.plan.cluster.target.service.as_str();
        let labels = [("target", target), ("reason", error.reason.as_str())];
        let telemetry = &self.worker.context.telemetry;
        telemetry.counter("weft_upstream_retries_total", "Retries sent", &labels).increment(1);
        if !error.unsent {
            tokio::time::sleep(retry::backoff(number, self.worker.random())).await;
        }
    }

    fn fail(&self, error: ProxyError) -> ProxyError {
        let metrics = &self.plan.cluster.shared.http[usize::from(self.mtls)];
        metrics.record(error.reason.status(), Some(error.reason), self.started.elapsed());
        error
    }

    /// One try: endpoint, connection, request, response head.
    async fn attempt(
        &mut self,
        received: &Received,
        mut parts: request::Parts,
        body: Body,
    ) -> Result<(Response<Incoming>, Finish), Failed> {
        let cluster = &self.plan.cluster;
        let picked = {
            let excluded =
                |endpoint: &Arc<EndpointState>| self.failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint));
            balance::pick(&cluster.endpoints, excluded, self.worker.clock.now(), || self.worker.random()).cloned()
        };
        let Some(endpoint) = picked.or_else(|| self.failed.first().cloned()) else {
            let detail = format!("service {} has no healthy endpoint", cluster.target.service);
            return Err(Failed { error: ProxyError::unsent(Reason::NoEndpoints, detail), request: None });
        };
        let key = match &endpoint.endpoint.mesh {
            Some(mesh) => Key::mesh(mesh, &cluster.target),
            None => {
                let http2 = self.plan.protocol.is_http2()
                    || !matches!(self.plan.protocol, Protocol::Http | Protocol::Http1)
                        && received.version == http::Version::HTTP_2;
                Key::Plain { address: endpoint.address, http2 }
            }
        };
        self.mtls = key.is_mesh();
        if self.mtls {
            mark_caller_version(&mut parts, received.version);
        }
        let mut load = LoadGuard::new(Arc::clone(&endpoint), self.worker.clock);
        let begun = Instant::now();
        let result = self.exchange(received, parts, body, &key).await;
        match result {
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
                    pools: Some(Rc::clone(&self.worker.pools)),
                    permit: None,
                    complete: false,
                };
                Ok((response, finish))
            }
            Err(failed) => {
                load.observe(begun.elapsed(), true);
                self.failed.push(endpoint);
                Err(failed)
            }
        }
    }

    async fn exchange(
        &self,
        received: &Received,
        parts: request::Parts,
        body: Body,
        key: &Key,
    ) -> Result<(Response<Incoming>, crate::upstream::Lease), Failed> {
        let http2 = key.is_http2();
        let request = received.leg(parts, http2, body).map_err(|error| Failed { error, request: None })?;
        let mut lease = match self.worker.pools.lease(key).await {
            Ok(lease) => lease,
            Err(error) => return Err(Failed { error, request: Some(Box::new(request)) }),
        };
        let sending = lease.send(request);
        let response = match self.plan.try_timeout {
            None => sending.await?,
            Some(limit) => tokio::time::timeout(limit, sending).await.unwrap_or_else(|_| {
                let error = ProxyError::new(Reason::TryTimeout, format!("no response head within {limit:?}"));
                Err(Failed { error, request: None })
            })?,
        };
        Ok((response, lease))
    }
}
