//! Values that are known elsewhere and asked for when somebody reads: what is in flight to a service, what the runtimes
//! do, which version runs.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::SystemTime,
};

use tokio::runtime::{Handle, RuntimeMetrics};
use weft_metrics::{Collector, Labels, float, process};
use weft_policy::model::Target;
use weft_proto::ResourceType;

use super::{Direction, Telemetry, http::ACTIVE};
use crate::snapshot::ClusterShared;

/// Name and help of what discovery counts by type.
pub const NACKS: (&str, &str) =
    ("weft_config_nack_total", "Configuration updates of which something was refused (NACK)");

/// Metrics of the process, the runtime of the caller, and the version.
pub fn register(telemetry: &Telemetry) {
    process::register(telemetry.registry());
    runtime(telemetry, "control");
    let age = telemetry.config_age().clone();
    telemetry.registry().source(move |out| {
        if let Some(seconds) = age.seconds(SystemTime::now()) {
            let help =
                "Time since the configuration was last known to be the newest; 0 while the control plane is there";
            out.gauge("weft_config_age_seconds", help, &Labels::new(&[]), seconds);
        }
        true
    });
    // From the start, so that the first refusal is an increase.
    for kind in ResourceType::ALL {
        let _ = telemetry.counter(NACKS.0, NACKS.1, &[("type", kind.name())]);
    }
    let labels = [("version", env!("CARGO_PKG_VERSION"))];
    telemetry.gauge("weft_build_info", "Version of the sidecar", &labels).set(1.0);
}

/// When the configuration was last known to be the control plane's newest.
#[derive(Clone, Default)]
pub struct ConfigAge(Arc<Mutex<Known>>);

#[derive(Clone, Copy, Default)]
enum Known {
    /// There is none yet.
    #[default]
    Never,
    /// The control plane is there: what it does not send has not changed.
    Now,
    /// It was away from then on.
    Until(SystemTime),
}

impl ConfigAge {
    /// The control plane is there.
    pub fn current(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Known::Now;
    }

    /// The control plane is away; the configuration was right until then, if it was until now.
    pub fn away(&self, until: SystemTime) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*known, Known::Now | Known::Never) {
            *known = Known::Until(until);
        }
    }

    /// Seconds since it was known to be the newest; `None`: there is none.
    #[must_use]
    pub fn seconds(&self, now: SystemTime) -> Option<f64> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Known::Never => None,
            Known::Now => Some(0.0),
            Known::Until(then) => Some(now.duration_since(then).unwrap_or_default().as_secs_f64()),
        }
    }
}

/// Metrics of the runtime that calls this, under a name.
pub fn runtime(telemetry: &Telemetry, name: &str) {
    let (metrics, labels) = (Handle::current().metrics(), Labels::new(&[("runtime", name)]));
    telemetry.registry().source(move |out| {
        collect(&metrics, &labels, out);
        true
    });
}

fn collect(metrics: &RuntimeMetrics, labels: &Labels, out: &mut Collector) {
    let count = |count: usize| float(u64::try_from(count).unwrap_or(u64::MAX));
    out.gauge("weft_runtime_tasks", "Tasks that are alive", labels, count(metrics.num_alive_tasks()));
    let help = "Tasks that were scheduled from elsewhere and wait for their turn";
    out.gauge("weft_runtime_queued_tasks", help, labels, count(metrics.global_queue_depth()));
    let workers = 0..metrics.num_workers();
    let busy = workers.clone().map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64()).sum();
    out.counter_seconds("weft_runtime_busy_seconds_total", "Time that was not spent waiting", labels, busy);
    let parks = workers.map(|worker| metrics.worker_park_count(worker)).sum();
    out.counter("weft_runtime_parks_total", "Times that there was nothing to do", labels, parks);
}

/// What is in flight to a target, for as long as it is configured.
pub fn upstream(telemetry: &Telemetry, target: &Target, shared: &Arc<ClusterShared>) {
    let shared: Weak<ClusterShared> = Arc::downgrade(shared);
    let (service, port) = (target.service.clone(), target.port.to_string());
    let own = Labels::new(&[("service", service.as_str()), ("port", &port)]);
    let direction = Direction::Outbound.as_str();
    let hop = Labels::new(&[("direction", direction), ("service", service.as_str()), ("port", &port)]);
    // A target that went and came back has one that is new; what is in flight to the old one ends uncounted.
    telemetry.registry().source_of("upstream", &own.clone(), move |out| {
        let Some(shared) = shared.upgrade() else { return false };
        let limits = &shared.limits;
        out.gauge(ACTIVE.0, ACTIVE.1, &hop, limits.requests.current().into());
        let help = "Requests that wait for a connection";
        out.gauge("weft_upstream_pending_requests", help, &own, limits.pending.current().into());
        out.gauge("weft_upstream_connections", "Connections that are open", &own, limits.connections.current().into());
        let help = "Retries in flight, those that wait for their time included";
        out.gauge("weft_upstream_active_retries", help, &own, limits.retries.current().into());
        true
    });
}
