//! What happens to the circuits of a target and to its retries: counted, and told once in the log. Rare, so a counter is
//! made when it first counts; it is held from then on, as long as the target is configured.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use weft_policy::{
    circuit::{State, Transition},
    model::Target,
    outlier::Ejections,
    retry::Stop,
};

use super::Telemetry;

/// Handles for the circuits and retries of one target.
pub struct CircuitMetrics {
    telemetry: Telemetry,
    target: Target,
    port: String,
    ejections: Arc<Ejections>,
    ejected: metrics::Gauge,
    endpoints: metrics::Gauge,
    state: metrics::Gauge,
    counters: Mutex<BTreeMap<Key, metrics::Counter>>,
}

/// Name and the values of the labels after those of the target; all are words of ours.
type Key = (&'static str, [&'static str; 3]);

/// Name, help and the names of the labels after those of the target.
type Counted = (&'static str, &'static str, &'static [&'static str]);

const TRANSITIONS: Counted = ("weft_circuit_transitions_total", "Changes of circuits", &["scope", "to", "cause"]);
const EJECTIONS: Counted = ("weft_upstream_ejections_total", "Endpoints that were ejected", &["cause"]);
const RETRIES: Counted = ("weft_upstream_retries_total", "Retries sent, by what they answer", &["reason"]);
const DENIED: Counted = ("weft_upstream_retries_denied_total", "Failed requests that were not sent again", &["reason"]);
const RETRIED: Counted =
    ("weft_upstream_retried_requests_total", "Requests that were sent again, by how they ended", &["outcome"]);

impl CircuitMetrics {
    /// Handles for `target`, of which these endpoints are left out.
    #[must_use]
    pub fn new(telemetry: &Telemetry, target: &Target, ejections: &Arc<Ejections>) -> Self {
        let port = target.port.to_string();
        let labels = [("service", target.service.as_str()), ("port", &*port)];
        let gauge = |name, help| telemetry.gauge_of(name, help, &labels);
        let ejected = gauge("weft_upstream_ejected_endpoints", "Endpoints that are left out");
        let endpoints = gauge("weft_upstream_endpoints", "Endpoints that may take requests, those left out included");
        let state = gauge("weft_circuit_state", "Circuit of the service: 0 closed, 1 open, 2 half-open");
        // A target of this name may have been here before.
        ejected.set(0.0);
        state.set(0.0);
        Self {
            telemetry: telemetry.clone(),
            target: target.clone(),
            port,
            ejections: Arc::clone(ejections),
            ejected,
            endpoints,
            state,
            counters: Mutex::default(),
        }
    }

    /// Endpoints came or went; there are this many now.
    pub fn endpoints_changed(&self, all: usize) {
        self.ejected.set(f64::from(self.ejections.out()));
        self.endpoints.set(u32::try_from(all).map_or(f64::MAX, f64::from));
    }

    /// The circuit of an endpoint changed.
    pub fn endpoint_changed(&self, endpoint: SocketAddr, change: Transition) {
        self.ejected.set(f64::from(self.ejections.out()));
        let (to, cause) = (change.to.as_str(), change.cause.as_str());
        self.count(TRANSITIONS, ["endpoint", to, cause]);
        if change.to == State::Open {
            self.count(EJECTIONS, [cause, "", ""]);
        }
        tracing::info!(target = self.name(), %endpoint, to, cause, "circuit of an endpoint changed");
    }

    /// The circuit of the service changed.
    pub fn service_changed(&self, change: Transition) {
        self.state.set(match change.to {
            State::Closed => 0.0,
            State::Open => 1.0,
            State::HalfOpen => 2.0,
        });
        let (to, cause) = (change.to.as_str(), change.cause.as_str());
        self.count(TRANSITIONS, ["service", to, cause]);
        tracing::info!(target = self.name(), to, cause, "circuit of a service changed");
    }

    /// A request is sent again.
    pub fn retried(&self, reason: &'static str) {
        self.count(RETRIES, [reason, "", ""]);
    }

    /// A request that was sent again has got its last answer.
    pub fn retries_ended(&self, well: bool) {
        self.count(RETRIED, [if well { "success" } else { "failure" }, "", ""]);
    }

    /// A failed request is not sent again.
    pub fn not_retried(&self, stop: Stop) {
        self.count(DENIED, [stop.as_str(), "", ""]);
    }

    fn name(&self) -> String {
        format!("{}:{}", self.target.service, self.target.port)
    }

    fn count(&self, (name, help, more): Counted, values: [&'static str; 3]) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = counters.entry((name, values)).or_insert_with(|| {
            let own = [("service", self.target.service.as_str()), ("port", &*self.port)];
            let labels: Vec<_> = own.into_iter().chain(more.iter().copied().zip(values)).collect();
            self.telemetry.counter_of(name, help, &labels)
        });
        counter.increment(1);
    }
}
