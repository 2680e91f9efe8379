//! Metrics of this sidecar: handles that are resolved when configuration is applied or a connection comes, and recording
//! that is an atomic add. The registry and its text are in `weft-metrics`.

pub mod access;
mod circuit;
pub mod export;
pub mod gauges;
pub mod http;
mod otel;
pub mod propagation;
pub mod span;
mod tcp;
#[cfg(test)]
mod tests;
pub mod trace;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use weft_metrics::{Registry, Snapshot};
use weft_policy::SpiffeId;

use self::gauges::ConfigAge;
pub use self::{
    circuit::CircuitMetrics,
    http::{Ended, HttpMetrics},
    tcp::{OpenConnection, TcpMetrics},
};
use crate::error::Reason;

/// False in the build that the bench compares with (`tests/bench/telemetry.py`), and in no other: there a request counts
/// nothing, reads no clock for it, and its trace context passes unread.
const COUNTED: bool = !cfg!(feature = "without-telemetry");
/// Callers with series of their own; all others share one. Callers that are idle for long make room.
const PEERS: usize = 64;
/// In place of a caller beyond the bound.
pub const OTHER: &str = "other";
/// In place of a service or a caller that is not known.
pub const UNKNOWN: &str = "unknown";

/// Which way a request or connection goes, seen from the app.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// To the app.
    Inbound,
    /// From the app.
    Outbound,
}

/// All metrics of a sidecar. Clones share them.
#[derive(Clone, Default)]
pub struct Telemetry(Arc<Shared>);

#[derive(Default)]
struct Shared {
    registry: Registry,
    /// `namespace/service account` of this workload.
    own: Box<str>,
    peers: Mutex<BTreeSet<Box<str>>>,
    age: ConfigAge,
}

/// What the series of a hop are about.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// Which way.
    pub direction: Direction,
    /// `namespace/name` of the service that is called.
    pub service: &'a str,
    /// Its port; 0 when it is not known.
    pub port: u16,
    /// Who calls: `namespace/service account`.
    pub peer: &'a str,
    /// Name of the rule that decides; empty where there is none, and inbound.
    pub route: &'a str,
}

impl Direction {
    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Telemetry {
    /// Metrics of the workload with this `namespace/service account`.
    #[must_use]
    pub fn new(own: &str) -> Self {
        Self(Arc::new(Shared { own: own.into(), ..Shared::default() }))
    }

    /// The registry, for sources and for what it renders.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Everything, now, with labels as fields.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.0.registry.snapshot()
    }

    /// Everything, now, as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.registry.render(weft_metrics::Format::Prometheus)
    }

    /// `namespace/service account` of this workload.
    #[must_use]
    pub fn own(&self) -> &str {
        &self.0.own
    }

    /// A counter, made on the first call. It stays: labels must be of a closed set.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Counter {
        self.0.registry.counter(name, help, labels)
    }

    /// A counter of something configured: to be held as long as that is.
    pub fn counter_of(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> metrics::Counter {
        self.0.registry.counter_of(name, help, labels)
    }

    /// A gauge, made on the first call. It stays: labels must be of a closed set.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Gauge {
        self.0.registry.gauge(name, help, labels)
    }

    /// A gauge of something configured: to be held as long as that is.
    pub fn gauge_of(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Gauge {
        self.0.registry.gauge_of(name, help, labels)
    }

    /// What a caller is called in labels: `namespace/service account`, with its trust domain before that when it is not
    /// `domain`. Beyond the bound all callers have one name.
    #[must_use]
    pub fn peer(&self, id: &SpiffeId, domain: Option<&str>) -> Box<str> {
        let name = match id.namespace_and_account() {
            Some((namespace, account)) if domain.is_none_or(|domain| domain == id.trust_domain()) => {
                format!("{namespace}/{account}")
            }
            Some((namespace, account)) => format!("{}/{namespace}/{account}", id.trust_domain()),
            None => id.as_str().to_owned(),
        };
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.contains(name.as_str()) {
            return name.into();
        }
        if peers.len() >= PEERS {
            return OTHER.into();
        }
        peers.insert(name.as_str().into());
        name.into()
    }

    /// How old the configuration is, to be told by discovery.
    #[must_use]
    pub fn config_age(&self) -> &ConfigAge {
        &self.0.age
    }

    /// Drops the series of what is gone for long. To be called now and then.
    pub fn expire(&self, now: Instant) {
        self.0.registry.expire(now);
        let left = self.0.registry.values_of(&["http", "tcp"], "peer_service");
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner).retain(|peer| left.contains(peer));
    }
}

const fn tls(mtls: bool) -> &'static str {
    if mtls { "mtls" } else { "none" }
}

/// A port as a label; empty when it is not known.
fn port_label(port: u16) -> String {
    if port == 0 { String::new() } else { port.to_string() }
}

/// One column per reason, after the one for "no reason".
const fn reason_column(reason: Option<Reason>) -> u8 {
    match reason {
        None => 0,
        Some(reason) => reason as u8 + 1,
    }
}

fn reason_word(column: u8) -> &'static str {
    column.checked_sub(1).and_then(|index| Reason::ALL.get(usize::from(index))).map_or("", |reason| reason.as_str())
}
