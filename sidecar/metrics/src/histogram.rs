//! A histogram of durations with fixed buckets: atomics only, so that recording never waits and memory never grows.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::exemplar::{Exemplar, Slot, TraceId};

/// Upper bounds of the buckets, in microseconds and as seconds in text: those of OpenTelemetry's conventions for durations
/// of HTTP and RPC, and below them three more, since a hop of the mesh takes less than their first.
pub const BOUNDS: [(u64, &str); 17] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (75_000, "0.075"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (750_000, "0.75"),
    (1_000_000, "1.0"),
    (2_500_000, "2.5"),
    (5_000_000, "5.0"),
    (7_500_000, "7.5"),
    (10_000_000, "10.0"),
];

/// Buckets, the last of which is everything above the bounds.
const BUCKETS: usize = BOUNDS.len() + 1;

/// Durations by bucket.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
    /// From the first request whose trace is recorded on.
    exemplars: OnceLock<Box<[Slot; BUCKETS]>>,
}

/// What a histogram holds at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramValue {
    /// For each of [`BOUNDS`], and last for what is above: how many fell into this bucket alone.
    pub buckets: [u64; BUCKETS],
    /// Sum of all, in microseconds.
    pub micros: u64,
    /// For each bucket, where a trace was recorded.
    pub exemplars: [Option<Exemplar>; BUCKETS],
}

impl Histogram {
    /// Counts a duration; `trace` is that of a request whose spans are recorded.
    pub fn record(&self, duration: Duration, trace: Option<TraceId>) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        if let Some(trace) = trace {
            self.exemplars.get_or_init(Box::default)[bucket].set(trace, micros);
        }
    }

    /// What it holds now.
    #[must_use]
    pub fn value(&self) -> HistogramValue {
        let mut value = HistogramValue { micros: self.micros.load(Ordering::Relaxed), ..HistogramValue::default() };
        for (to, from) in value.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        if let Some(slots) = self.exemplars.get() {
            for (to, from) in value.exemplars.iter_mut().zip(slots.iter()) {
                *to = from.get();
            }
        }
        value
    }
}

impl HistogramValue {
    /// How many durations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        Duration::from_micros(self.micros).as_secs_f64()
    }

    /// Adds another one, bucket by bucket; exemplars stay.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
        self.micros = self.micros.saturating_add(other.micros);
    }
}
