//! Whether the app passes on the trace contexts that it receives: counted by each worker in a place of its own, so that a
//! request touches nothing shared; summed once a second for metrics, and told to the control plane when it does not
//! (`weft_policy::trace::propagation` decides).

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use weft_policy::trace::propagation::Counts;
use weft_proto::v1::{Registration, TracePropagation};

use super::{COUNTED, Telemetry};

/// More workers share places.
const PLACES: usize = 64;
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// While nothing else changes, numbers are told anew after this time.
const ANEW: Duration = Duration::from_secs(30);

/// Counts of all workers.
pub struct Propagation {
    places: [Place; PLACES],
    taken: AtomicUsize,
}

/// Those of one worker, on a cache line of their own.
#[derive(Default)]
#[repr(align(64))]
struct Place {
    /// Requests with a context that the app serves now.
    serving: AtomicU32,
    served: AtomicU64,
    served_without: AtomicU64,
    passed_on: AtomicU64,
    orphans: AtomicU64,
    meanwhile: AtomicU64,
}

/// A worker's place.
pub struct Contexts {
    all: Arc<Propagation>,
    place: usize,
}

/// While the app serves a request with a context.
pub struct Serving<'a>(&'a Place);

impl Default for Propagation {
    fn default() -> Self {
        Self { places: array::from_fn(|_| Place::default()), taken: AtomicUsize::new(0) }
    }
}

impl Propagation {
    /// The next worker's place.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Contexts {
        Contexts { all: Arc::clone(self), place: self.taken.fetch_add(1, Relaxed) % PLACES }
    }

    fn in_use(&self) -> &[Place] {
        &self.places[..self.taken.load(Relaxed).min(PLACES)]
    }

    /// All requests so far, and those to the app without a context.
    fn counts(&self) -> (Counts, u64) {
        let sum = |count: fn(&Place) -> &AtomicU64| self.in_use().iter().map(|place| count(place).load(Relaxed)).sum();
        // What is a part of something is read before it.
        let meanwhile = sum(|place| &place.meanwhile);
        let orphans = sum(|place| &place.orphans);
        let passed_on = sum(|place| &place.passed_on);
        let served = sum(|place| &place.served);
        (Counts { served, passed_on, orphans, meanwhile }, sum(|place| &place.served_without))
    }
}

impl Contexts {
    /// A request to the app; what is given lives while the app serves it.
    pub fn served(&self, has_context: bool) -> Option<Serving<'_>> {
        if !COUNTED {
            return None;
        }
        let place = &self.all.places[self.place];
        if !has_context {
            place.served_without.fetch_add(1, Relaxed);
            return None;
        }
        place.served.fetch_add(1, Relaxed);
        place.serving.fetch_add(1, Relaxed);
        Some(Serving(place))
    }

    /// A request from the app.
    pub fn sent(&self, has_context: bool) {
        if !COUNTED {
            return;
        }
        let place = &self.all.places[self.place];
        if has_context {
            place.passed_on.fetch_add(1, Relaxed);
            return;
        }
        place.orphans.fetch_add(1, Relaxed);
        if self.all.in_use().iter().any(|place| place.serving.load(Relaxed) > 0) {
            place.meanwhile.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Relaxed);
    }
}

/// Keeps the metrics, and what the control plane is told, as they are.
pub async fn tell(all: Arc<Propagation>, telemetry: Telemetry, registration: watch::Sender<Registration>) {
    let contexts = |direction, parent| {
        let help = "Requests by whether they came with a trace context";
        telemetry.counter("weft_trace_contexts_total", help, &[("direction", direction), ("parent", parent)])
    };
    let served = ["true", "false"].map(|parent| contexts("inbound", parent));
    let sent = ["true", "false"].map(|parent| contexts("outbound", parent));
    let help = "Requests that the app sent without a trace context while it served one that had one";
    let orphans = telemetry.counter("weft_trace_orphans_total", help, &[]);
    let help = "1 while it looks as if the app does not pass on the trace contexts that it receives";
    let broken = telemetry.gauge("weft_trace_propagation_broken", help, &[]);
    let mut tick = tokio::time::interval(LOOK);
    let mut told: Option<Instant> = None;
    loop {
        tick.tick().await;
        let (counts, served_without) = all.counts();
        served[0].absolute(counts.served);
        served[1].absolute(served_without);
        sent[0].absolute(counts.passed_on);
        sent[1].absolute(counts.orphans);
        orphans.absolute(counts.meanwhile);
        broken.set(if counts.is_broken() { 1.0 } else { 0.0 });
        let report = counts.is_broken().then(|| report(&counts));
        let due = told.is_none_or(|told| told.elapsed() >= ANEW);
        registration.send_if_modified(|registration| {
            let other = registration.trace_propagation.is_some() != report.is_some();
            let tell = other || due && registration.trace_propagation != report;
            if tell {
                registration.trace_propagation = report;
                told = Some(Instant::now());
            }
            tell
        });
    }
}

const fn report(counts: &Counts) -> TracePropagation {
    let Counts { served, passed_on, orphans, meanwhile } = *counts;
    TracePropagation { served, passed_on, orphans, orphans_meanwhile: meanwhile }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets the teller look once.
    async fn look() {
        tokio::time::sleep(LOOK).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_breaks_traces_is_told_of_and_one_that_stops_doing_so_is_not_any_more() {
        let (all, telemetry) = (Arc::new(Propagation::default()), Telemetry::default());
        let registration = watch::Sender::new(Registration::default());
        let task = tokio::spawn(tell(Arc::clone(&all), telemetry.clone(), registration.clone()));
        // The request comes to one worker, and what the app sends for it to another.
        let (one, other) = (all.enter(), all.enter());
        for _ in 0..30 {
            let serving = one.served(true);
            other.sent(false);
            drop(serving);
            assert!(one.served(false).is_none());
        }
        look().await;
        let told = TracePropagation { served: 30, passed_on: 0, orphans: 30, orphans_meanwhile: 30 };
        assert_eq!(registration.borrow().trace_propagation, Some(told));
        let text = telemetry.render();
        for line in [
            "weft_trace_contexts_total{direction=\"inbound\",parent=\"true\"} 30\n",
            "weft_trace_contexts_total{direction=\"inbound\",parent=\"false\"} 30\n",
            "weft_trace_contexts_total{direction=\"outbound\",parent=\"false\"} 30\n",
            "weft_trace_orphans_total 30\n",
            "weft_trace_propagation_broken 1\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        for _ in 0..30 {
            let _serving = other.served(true);
            one.sent(true);
        }
        look().await;
        assert_eq!(registration.borrow().trace_propagation, None);
        assert!(telemetry.render().contains("weft_trace_propagation_broken 0\n"));
        task.abort();
    }

    #[test]
    fn what_is_sent_while_nothing_is_served_is_the_apps_own() {
        let all = Arc::new(Propagation::default());
        let worker = all.enter();
        drop(worker.served(true));
        worker.sent(false);
        assert_eq!(all.counts().0, Counts { served: 1, passed_on: 0, orphans: 1, meanwhile: 0 });
    }
}
