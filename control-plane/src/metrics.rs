//! Metrics of the control plane: what the parts tell as it happens, in a registry of their own, and what is read from them
//! when somebody asks. The registry and its text are in `weft-metrics`, as those of the sidecar.

pub mod api;
mod convergence;
mod read;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use weft_metrics::{Registry, Timing, process};
use weft_proto::ResourceType;

pub use self::convergence::follow;
pub use self::read::snapshot;

/// What the parts tell. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    compile: Arc<dyn Timing>,
    convergence: Arc<dyn Timing>,
    push: Arc<dyn Timing>,
    queue: metrics::Gauge,
    refused: metrics::Counter,
}

/// A stream that waits for its turn to make a response, until this is dropped.
pub struct Waiting<'a>(&'a metrics::Gauge);

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::default();
        process::register(&registry);
        registry.gauge("weft_build_info", "Version of the control plane", &[("version", VERSION)]).set(1.0);
        // From the start, so that the first one is an increase.
        for kind in ResourceType::ALL {
            for (name, help) in [PUSHES, REJECTS] {
                let _ = registry.counter(name, help, &[("type", kind.name())]);
            }
        }
        let none = &[];
        let convergence = "Time from a change of what is pushed until every sidecar that was connected holds it";
        let push = "Time from a response to the answer of the sidecar";
        Self(Arc::new(Inner {
            compile: registry.timer("weft_compile_duration_seconds", "Time that a compile takes", none),
            convergence: registry.timer("weft_convergence_duration_seconds", convergence, none),
            push: registry.timer("weft_push_duration_seconds", push, none),
            queue: registry.gauge("weft_push_queue", "Streams that wait for their turn to make a response", none),
            refused: registry.counter("weft_streams_refused_total", "New streams that found the line full", none),
            registry,
        }))
    }
}

const PUSHES: (&str, &str) = ("weft_pushes_total", "Responses sent to sidecars");
const REJECTS: (&str, &str) = ("weft_config_rejects_total", "Responses of which a sidecar refused something (NACK)");
const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Metrics {
    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// A compile took this long.
    pub fn compiled(&self, took: Duration) {
        self.0.compile.record(took);
    }

    /// All sidecars that were connected hold a change, this long after it was made.
    pub fn converged(&self, took: Duration) {
        self.0.convergence.record(took);
    }

    /// A response was sent.
    pub fn pushed(&self, kind: ResourceType) {
        self.count(PUSHES, kind);
    }

    /// A sidecar has answered a response, this long after it was sent: accepted it, or refused something of it.
    pub fn answered(&self, kind: ResourceType, took: Option<Duration>, refused: bool) {
        if let Some(took) = took {
            self.0.push.record(took);
        }
        if refused {
            self.count(REJECTS, kind);
        }
    }

    /// A stream waits for its turn.
    #[must_use]
    pub fn waits(&self) -> Waiting<'_> {
        self.0.queue.increment(1.0);
        Waiting(&self.0.queue)
    }

    /// A new stream found the line full.
    pub fn stream_refused(&self) {
        self.0.refused.increment(1);
    }

    /// A batch was written to the store, or was not, for this reason.
    pub fn written(&self, took: Duration, result: &'static str) {
        let labels = [("result", result)];
        let help = "Time of a write to the store, the wait for the disk included";
        self.0.registry.timer("weft_store_write_duration_seconds", help, &labels).record(took);
    }

    fn count(&self, (name, help): (&'static str, &'static str), kind: ResourceType) {
        self.0.registry.counter(name, help, &[("type", kind.name())]).increment(1);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
