//! What happens to the circuits of a target and to its retries: counted, and told once in the log. Rare, so a counter is
//! made when it first counts; it is held from then on, as long as the target is configured.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use weft_metrics::{Collector, Labels};
use weft_policy::{
    circuit::{State, Transition},
    model::Target,
    retry::Stop,
};

use super::{Direction, Hop, HttpMetrics, TcpMetrics, Telemetry};

/// Handles for the circuits and retries of one target.
pub struct CircuitMetrics {
    telemetry: Telemetry,
    target: Target,
    endpoints: AtomicU32,
    /// As the gauge has it.
    state: AtomicU8,
    /// Those that have counted. There are a few; most targets have none.
    counters: Mutex<Vec<(Key, metrics::Counter)>>,
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
    /// Handles for `target`.
    #[must_use]
    pub fn new(telemetry: &Telemetry, target: &Target) -> Self {
        let (endpoints, state, counters) = Default::default();
        Self { telemetry: telemetry.clone(), target: target.clone(), endpoints, state, counters }
    }

    /// Handles for the requests that a rule of this name sends to the target.
    #[must_use]
    pub fn http(&self, rule: &str, mtls: bool) -> HttpMetrics {
        self.telemetry.http(&self.hop(rule), mtls)
    }

    /// Handles for opaque connections to the target.
    #[must_use]
    pub fn tcp(&self, mtls: bool) -> TcpMetrics {
        self.telemetry.tcp(&self.hop(""), mtls)
    }

    fn hop<'a>(&'a self, route: &'a str) -> Hop<'a> {
        let (service, port) = (self.target.service.as_str(), self.target.port);
        Hop { direction: Direction::Outbound, service, port, peer: self.telemetry.own(), route }
    }

    /// Endpoints came or went; there are this many now.
    pub fn endpoints_changed(&self, all: usize) {
        self.endpoints.store(u32::try_from(all).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Says how many endpoints there are and how many are left out, and the circuit of the service.
    pub(super) fn collect(&self, ejected: u32, labels: &Labels, out: &mut Collector) {
        out.gauge("weft_upstream_ejected_endpoints", "Endpoints that are left out", labels, ejected.into());
        let help = "Endpoints that may take requests, those left out included";
        out.gauge("weft_upstream_endpoints", help, labels, self.endpoints.load(Ordering::Relaxed).into());
        let help = "Circuit of the service: 0 closed, 1 open, 2 half-open";
        out.gauge("weft_circuit_state", help, labels, self.state.load(Ordering::Relaxed).into());
    }

    /// The circuit of an endpoint changed.
    pub fn endpoint_changed(&self, endpoint: SocketAddr, change: Transition) {
        let (to, cause) = (change.to.as_str(), change.cause.as_str());
        self.count(TRANSITIONS, ["endpoint", to, cause]);
        if change.to == State::Open {
            self.count(EJECTIONS, [cause, "", ""]);
        }
        tracing::info!(target = self.name(), %endpoint, to, cause, "circuit of an endpoint changed");
    }

    /// The circuit of the service changed.
    pub fn service_changed(&self, change: Transition) {
        let state = match change.to {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        self.state.store(state, Ordering::Relaxed);
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
        if let Some((_, counter)) = counters.iter().find(|(key, _)| *key == (name, values)) {
            return counter.increment(1);
        }
        let port = self.target.port.to_string();
        let own = [("service", self.target.service.as_str()), ("port", &*port)];
        let labels: Vec<_> = own.into_iter().chain(more.iter().copied().zip(values)).collect();
        let counter = self.telemetry.counter_of(name, help, &labels);
        counter.increment(1);
        counters.reserve_exact(1);
        counters.push(((name, values), counter));
    }
}
