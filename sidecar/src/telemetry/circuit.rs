//! What happens to the circuits of a target and to its retries: counted, and told once in the log. Rare, so labels are
//! joined when it happens.

use std::{net::SocketAddr, sync::Arc};

use weft_policy::{
    circuit::{State, Transition},
    outlier::Ejections,
    retry::Stop,
};

use super::Telemetry;

/// Handles for the circuits and retries of one target.
pub struct CircuitMetrics {
    telemetry: Telemetry,
    target: String,
    ejections: Arc<Ejections>,
    ejected: metrics::Gauge,
    state: metrics::Gauge,
}

impl CircuitMetrics {
    /// Handles for `target`, of which these endpoints are left out.
    #[must_use]
    pub fn new(telemetry: &Telemetry, target: &str, ejections: &Arc<Ejections>) -> Self {
        let labels = [("target", target)];
        let ejected = telemetry.gauge("weft_upstream_ejected_endpoints", "Endpoints that are left out", &labels);
        let state =
            telemetry.gauge("weft_circuit_state", "Circuit of the service: 0 closed, 1 open, 2 half-open", &labels);
        // A target of this name may have been here before.
        ejected.set(0.0);
        state.set(0.0);
        Self {
            telemetry: telemetry.clone(),
            target: target.to_owned(),
            ejections: Arc::clone(ejections),
            ejected,
            state,
        }
    }

    /// Endpoints came or went.
    pub fn endpoints_changed(&self) {
        self.ejected.set(f64::from(self.ejections.out()));
    }

    /// The circuit of an endpoint changed.
    pub fn endpoint_changed(&self, endpoint: SocketAddr, change: Transition) {
        self.ejected.set(f64::from(self.ejections.out()));
        self.count("endpoint", change);
        let (to, cause) = (change.to.as_str(), change.cause.as_str());
        tracing::info!(target = self.target, %endpoint, to, cause, "circuit of an endpoint changed");
    }

    /// The circuit of the service changed.
    pub fn service_changed(&self, change: Transition) {
        self.state.set(match change.to {
            State::Closed => 0.0,
            State::Open => 1.0,
            State::HalfOpen => 2.0,
        });
        self.count("service", change);
        let (to, cause) = (change.to.as_str(), change.cause.as_str());
        tracing::info!(target = self.target, to, cause, "circuit of a service changed");
    }

    fn count(&self, scope: &str, change: Transition) {
        let labels = [
            ("target", self.target.as_str()),
            ("scope", scope),
            ("to", change.to.as_str()),
            ("cause", change.cause.as_str()),
        ];
        self.telemetry.counter("weft_circuit_transitions_total", "Changes of circuits", &labels).increment(1);
    }

    /// A request is sent again.
    pub fn retried(&self, reason: &str) {
        let labels = [("target", self.target.as_str()), ("reason", reason)];
        self.telemetry.counter("weft_upstream_retries_total", "Retries sent", &labels).increment(1);
    }

    /// A failed request is not sent again.
    pub fn not_retried(&self, stop: Stop) {
        let labels = [("target", self.target.as_str()), ("reason", stop.as_str())];
        let help = "Failed requests that were not sent again";
        self.telemetry.counter("weft_upstream_retries_denied_total", help, &labels).increment(1);
    }
}
