//! What the circuits say to a try, and what they hear of it: whether the service may be called at all, which endpoint
//! takes the try, and how it ended. For requests and for opaque connections.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use weft_policy::{
    balance::{self, Nanos},
    breaker::{self, Entry},
    circuit::{Outcome, Transition},
    model::BreakOn,
    outlier,
};

use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    snapshot::{Cluster, EndpointState},
    telemetry::trace::OpenSpan,
};

/// A try that may be made.
pub struct Admission {
    begun: Nanos,
    endpoint: Arc<EndpointState>,
    probe: Option<outlier::Probe>,
    breaker: Option<breaker::Probe>,
}

/// What is to be tried.
pub struct Asked<'a> {
    /// What the endpoint is chosen by, where it is by a hash.
    pub hash: Option<u64>,
    /// Who takes it while it can: the endpoint of its session.
    pub bound: Option<u64>,
    /// A failure can be hidden from the caller by another try.
    pub repeatable: bool,
    /// Endpoints that have failed already.
    pub failed: &'a [Arc<EndpointState>],
}

impl Admission {
    /// Asks both circuits and picks an endpoint: that of the session, else one that waits for its probe, else one that is
    /// in and has not failed, else an ejected one that has not, else the one that failed first.
    ///
    /// # Errors
    /// When the service is left alone, or has no endpoints.
    pub fn ask(worker: &Worker, cluster: &Cluster, asked: &Asked<'_>) -> Result<Self, ProxyError> {
        let (shared, begun) = (&cluster.shared, worker.clock.now());
        if cluster.endpoints.is_empty() {
            // Before the breaker: its one probe is for something that can answer.
            return Err(no_endpoints(cluster));
        }
        let breaker = match shared.breaker.enter(&cluster.policy.circuit_breaker, begun) {
            Entry::Pass => None,
            Entry::Probe(probe, change) => {
                shared.circuit.service_changed(change);
                Some(probe)
            }
            Entry::Refused(until) => return Err(refused(cluster, begun, until)),
        };
        if let Some(endpoint) = asked.bound.and_then(|bound| of_session(cluster, bound, asked.failed)) {
            return Ok(Self { begun, endpoint: Arc::clone(endpoint), probe: None, breaker });
        }
        if asked.failed.is_empty() {
            let healths = cluster.endpoints.iter().map(|endpoint| &endpoint.health);
            if let Some(taken) = shared.ejections.take_probe(begun, asked.repeatable, healths) {
                let endpoint = Arc::clone(&cluster.endpoints[taken.index]);
                shared.circuit.endpoint_changed(endpoint.address, taken.transition);
                return Ok(Self { begun, endpoint, probe: Some(taken.probe), breaker });
            }
        }
        let mut random = || worker.random();
        let request = balance::Request { hash: asked.hash, now: begun, random: &mut random };
        let available = |endpoint: &Arc<EndpointState>| is_available(endpoint, asked.failed);
        let picked = cluster.balancer.pick(&cluster.endpoints, request, available);
        // When all that are not ejected have failed this request, an ejected one may be well again.
        let ejected = || cluster.endpoints.iter().find(|endpoint| !has_failed(endpoint, asked.failed));
        let endpoint = picked.or_else(ejected).or(asked.failed.first()).cloned();
        let endpoint = endpoint.ok_or_else(|| no_endpoints(cluster))?;
        Ok(Self { begun, endpoint, probe: None, breaker })
    }

    /// Who takes the try.
    #[must_use]
    pub const fn endpoint(&self) -> &Arc<EndpointState> {
        &self.endpoint
    }

    /// Tells both circuits how the try ended, and its span what came of that.
    pub fn record(self, worker: &Worker, cluster: &Cluster, outcome: Outcome, span: &mut OpenSpan) {
        let (shared, policy) = (&cluster.shared, &cluster.policy);
        let (begun, now, random) = (self.begun, worker.clock.now(), worker.random());
        let outlier = &policy.outlier_detection;
        let change = match self.probe {
            Some(probe) => probe.record(outlier, outcome, now, random),
            None => self.endpoint.health.record(outlier, outcome, begun, now, random),
        };
        if let Some(change) = change {
            shared.circuit.endpoint_changed(self.endpoint.address, change);
            note(span, "weft.circuit.endpoint", change, || self.endpoint.address.to_string());
        }
        self.endpoint.reachable(outcome);
        let breaker = &policy.circuit_breaker;
        let change = match self.breaker {
            Some(probe) => probe.record(breaker, outcome, now, random),
            None => shared.breaker.record(breaker, of_service(cluster, outcome), begun, now, random),
        };
        if let Some(change) = change {
            shared.circuit.service_changed(change);
            note(span, "weft.circuit.service", change, || cluster.target.to_string());
        }
    }

    /// Another try beside this one was faster, and this one is given up. That counts against the share of successes, or
    /// an endpoint that hangs would be chosen as often as before; it is no failure of the way to it.
    pub fn overtaken(self, worker: &Worker, cluster: &Cluster) {
        let (policy, now, random) = (&cluster.policy.outlier_detection, worker.clock.now(), worker.random());
        let change = match self.probe {
            Some(probe) => probe.record(policy, Outcome::Timeout, now, random),
            None => self.endpoint.health.record(policy, Outcome::ServerError, self.begun, now, random),
        };
        if let Some(change) = change {
            cluster.shared.circuit.endpoint_changed(self.endpoint.address, change);
        }
    }
}

/// A circuit has changed with this try: an ejection, a recovery.
fn note(span: &mut OpenSpan, name: &'static str, change: Transition, of: impl FnOnce() -> String) {
    span.event(name, || {
        [
            ("weft.circuit.of", of()),
            ("weft.circuit.to", change.to.as_str().to_owned()),
            ("weft.reason", change.cause.as_str().to_owned()),
        ]
    });
}

/// What an outcome says of the service as a whole: a failure of one endpoint says nothing while another may answer.
fn of_service(cluster: &Cluster, outcome: Outcome) -> Outcome {
    if !outcome.is_gateway_failure() {
        return outcome;
    }
    let fails = |endpoint: &Arc<EndpointState>| match cluster.policy.circuit_breaker.break_on {
        BreakOn::ConnectFailures => endpoint.unreachable.load(Relaxed),
        BreakOn::Failures => endpoint.health.is_failing(),
        BreakOn::Never => false,
    };
    if cluster.endpoints.iter().all(fails) { outcome } else { Outcome::Neutral }
}

impl EndpointState {
    /// Remembers whether the last try could connect.
    fn reachable(&self, outcome: Outcome) {
        let unreachable = outcome == Outcome::ConnectFailure;
        // A load first: all workers record the outcomes of a healthy endpoint.
        if outcome != Outcome::Neutral && self.unreachable.load(Relaxed) != unreachable {
            self.unreachable.store(unreachable, Relaxed);
        }
    }
}

/// Not ejected, and has not failed this request.
#[must_use]
pub fn is_available(endpoint: &Arc<EndpointState>, failed: &[Arc<EndpointState>]) -> bool {
    !endpoint.health.is_out() && !has_failed(endpoint, failed)
}

/// The endpoint of a session, while it is there, in, and has not failed.
#[must_use]
pub fn of_session<'a>(
    cluster: &'a Cluster,
    bound: u64,
    failed: &[Arc<EndpointState>],
) -> Option<&'a Arc<EndpointState>> {
    let found = cluster.endpoints.iter().find(|endpoint| endpoint.session == bound)?;
    is_available(found, failed).then_some(found)
}

fn has_failed(endpoint: &Arc<EndpointState>, failed: &[Arc<EndpointState>]) -> bool {
    failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint))
}

fn no_endpoints(cluster: &Cluster) -> ProxyError {
    let detail = format!("service {} has no healthy endpoint", cluster.target.service);
    ProxyError::unsent(Reason::NoEndpoints, detail)
}

fn refused(cluster: &Cluster, now: Nanos, until: Nanos) -> ProxyError {
    let wait = Duration::from_nanos(until.0.saturating_sub(now.0)).as_millis();
    let service = &cluster.target.service;
    let detail = format!("service {service} could not be reached; it is tried again in {wait} ms");
    ProxyError::unsent(Reason::CircuitOpen, detail)
}

/// How a try ended that got no answer.
#[must_use]
pub fn outcome_of_error(error: &ProxyError) -> Outcome {
    // One dial is one failure, however many requests waited for it.
    if error.shared {
        return Outcome::Neutral;
    }
    match error.reason {
        Reason::ConnectTimeout
        | Reason::ConnectionRefused
        | Reason::ConnectFailed
        | Reason::TlsHandshake
        | Reason::TlsIdentityMismatch
        | Reason::TlsCertificate => Outcome::ConnectFailure,
        Reason::TryTimeout => Outcome::Timeout,
        // A pooled connection that had ended says nothing of the endpoint.
        Reason::ConnectionTerminated if error.unsent && !error.refused => Outcome::Neutral,
        Reason::ConnectionTerminated => Outcome::Reset,
        Reason::ProtocolError => Outcome::Unavailable,
        _ => Outcome::Neutral,
    }
}
