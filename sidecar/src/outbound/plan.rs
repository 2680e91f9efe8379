//! What is to be done with a request: service, port, rule, backend and cluster (phases 3 to 6).

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Request};
use weft_policy::{
    balance::hash,
    circuit::Outcome,
    deadline,
    fields::Fields,
    model::{ObjectName, PathMatch, RouteMatch, RouteRule, Service, ServicePort, Target},
    routing::RequestView,
};

use super::{
    Caller, Destination,
    admission::Admission,
    filters::{self, Applied, Route},
    session::Bound,
    upstream_port,
};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::{body::Body, forward::Received},
    snapshot::{Cluster, Snapshot},
    telemetry::{HttpMetrics, trace::OpenSpan},
};

/// What is to be done with a request.
pub struct Plan {
    /// Who gets it.
    pub cluster: Arc<Cluster>,
    /// The rule that it follows.
    pub rule: Arc<RouteRule>,
    /// Its metrics among those of the cluster.
    pub route: usize,
    /// What the endpoint is chosen by, where it is by a hash.
    pub hash: u64,
    /// How long all of it may take.
    pub timeout: Option<Duration>,
    /// `None` for the many requests whose rule has no filters.
    pub filters: Option<Box<Applied>>,
    /// Which session the request is of, where the rule has sessions. Boxed: most rules have none.
    pub session: Option<Box<Bound>>,
    /// Who is tried now.
    pub trying: RefCell<Option<Admission>>,
}

/// Which service a request is for.
pub fn service_name(
    worker: &Worker,
    snapshot: &Snapshot,
    destination: &Destination,
    received: &Received,
) -> Result<ObjectName, ProxyError> {
    match destination {
        Destination::Upstream(upstream) => Ok(upstream.service.clone()),
        Destination::Endpoint(address) => Ok(alone(snapshot, *address)?.target.service.clone()),
        Destination::Host => by_host(worker, snapshot, &received.authority.host),
    }
}

/// Plans a request to `service`.
pub fn plan(
    worker: &Worker,
    snapshot: &Snapshot,
    service: &Service,
    Caller { destination, source }: &Caller,
    received: &mut Received,
    request: &mut Request<Body>,
) -> Result<Plan, ProxyError> {
    let port = port(snapshot, service, destination, received)?;
    let (found, rule) = match destination {
        // Routes are of the service: who dials an endpoint gets that one.
        Destination::Endpoint(_) => (None, &port.direct),
        _ => route(service, port, received, request.headers())?,
    };
    let told = received.grpc || received.fields.has(Fields::OWN);
    let theirs = if told { deadline::of(request.headers(), received.grpc) } else { None };
    let matched = found.map_or(&PathMatch::Any, |found| &found.path);
    let own = Target { service: service.id.clone(), port: port.port };
    let route = Route { rule, matched, own };
    let session = rule.session.as_deref();
    let session = session.map(|session| Bound::of_request(worker, session, request.headers(), matched));
    let bound = session.as_ref().and_then(|session| session.backend(rule));
    let (target, filters) = filters::to_backend(worker, snapshot, route, bound, received, request)?;
    let cluster = match destination {
        Destination::Endpoint(address) => Arc::clone(alone(snapshot, *address)?),
        _ => snapshot.clusters.get(&target).cloned().ok_or_else(|| {
            let detail = format!("backend {} port {} is not known", target.service, target.port);
            ProxyError::unsent(Reason::InvalidBackend, detail)
        })?,
    };
    let timeout = match (rule.requests.timeout, theirs) {
        (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
        (ours, theirs) => ours.or(theirs),
    };
    let hash = |on| {
        let query = received.path.query();
        hash::of_request(on, request.headers(), query, *source).unwrap_or_else(|| worker.random())
    };
    let hash = cluster.balancer.hash_on().map_or(0, hash);
    let (route, rule, trying) = (cluster.route(&rule.name), Arc::clone(rule), RefCell::default());
    Ok(Plan { cluster, rule, route, hash, timeout, filters, session, trying })
}

impl Plan {
    /// Where its requests are counted.
    pub fn metrics(&self, mtls: bool) -> &HttpMetrics {
        self.cluster.http(self.route, mtls)
    }

    /// The time is over while somebody is tried. When it is the policy's, and not only the caller's, it is held against
    /// the endpoint.
    ///
    /// True when the hop was mutual TLS.
    pub fn timed_out(&self, worker: &Worker) -> bool {
        let Some(admission) = self.trying.take() else { return false };
        let mtls = admission.endpoint().endpoint.mesh.is_some();
        if self.timeout == self.rule.requests.timeout {
            // The try that was waited for has its span; it is given up with it.
            admission.record(worker, &self.cluster, Outcome::Timeout, &mut OpenSpan::default());
        }
        mtls
    }

    /// When the caller stops waiting.
    pub fn deadline(&self, started: Instant) -> Option<tokio::time::Instant> {
        let end = started.checked_add(self.timeout?)?;
        Some(tokio::time::Instant::from_std(end))
    }
}

/// An endpoint that the app has dialled. It may leave while the app keeps its connection.
fn alone(snapshot: &Snapshot, address: SocketAddr) -> Result<&Arc<Cluster>, ProxyError> {
    snapshot.endpoints.get(&address).ok_or_else(|| {
        ProxyError::unsent(Reason::NoEndpoints, format!("{address} is no endpoint of a service any more"))
    })
}

fn port<'a>(
    snapshot: &Snapshot,
    service: &'a Service,
    destination: &Destination,
    received: &Received,
) -> Result<&'a ServicePort, ProxyError> {
    let named = match destination {
        Destination::Upstream(upstream) => return upstream_port(service, upstream),
        Destination::Endpoint(address) => Some(alone(snapshot, *address)?.target.port),
        Destination::Host => received.authority.port,
    };
    let port = service.port(named.unwrap_or(80)).or_else(|| named.is_none().then(|| service.ports.first())?);
    port.ok_or_else(|| {
        let detail = format!("service {} has no port {}", service.id, named.unwrap_or(80));
        ProxyError::unsent(Reason::UnknownPort, detail)
    })
}

/// The rule that a request follows, and the match that led there; none for a port without routes.
fn route<'a>(
    service: &Service,
    port: &'a ServicePort,
    received: &Received,
    headers: &HeaderMap,
) -> Result<(Option<&'a RouteMatch>, &'a Arc<RouteRule>), ProxyError> {
    let Some(routing) = &port.routing else { return Ok((None, &port.direct)) };
    let view =
        RequestView { method: &received.method, path: received.path.path(), query: received.path.query(), headers };
    match routing.find(&view) {
        Some((found, rule)) => Ok((Some(found), rule)),
        None => Err(ProxyError::unsent(Reason::NoRoute, format!("no route of {} matches", service.id))),
    }
}

/// The service that a Host names: one that is held, else one of the four forms of a service's name.
fn by_host(worker: &Worker, snapshot: &Snapshot, host: &str) -> Result<ObjectName, ProxyError> {
    if let Some(name) = snapshot.by_host(host) {
        return Ok(name.clone());
    }
    named(host, &worker.context.config.namespace).ok_or_else(|| {
        ProxyError::unsent(Reason::UnknownService, format!("host {host:?} names no service of the mesh"))
    })
}

/// The service that a host would be, by one of the four forms of a service's name.
pub fn named(host: &str, own: &str) -> Option<ObjectName> {
    let stem = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".mesh")).unwrap_or(host);
    let (name, namespace) = stem.split_once('.').unwrap_or((stem, own));
    ObjectName::parse(&format!("{namespace}/{name}"))
}
