//! Latency and requests in flight of one endpoint: atomics that all workers share. `balance` reads them to choose.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Nanos;

/// Latency of an endpoint that has not answered yet, while its first request is under way.
const DEFAULT_RTT: f64 = 30e6;
/// Time after which an observation counts for 1/e.
const DECAY: f64 = 10e9;
/// Latency that a failure counts as, for a while.
const PENALTY: f64 = 5e9;
/// How long a failure keeps requests away: as long as this many took to come before it, within bounds. No longer than
/// that: whether an endpoint is left out is its circuit's decision, which needs requests to see; and one failure of a
/// healthy endpoint must not cost it its share for long.
const AVOIDED_GAPS: u64 = 2;
const AVOIDED_LEAST: u64 = 20_000_000;
const AVOIDED_MOST: u64 = 5_000_000_000;

/// Latency and requests in flight of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointLoad {
    /// Bits of an `f64`: nanoseconds, 0 while nothing was observed.
    ewma: AtomicU64,
    /// When `ewma` was last written.
    stamp: AtomicU64,
    in_flight: AtomicU32,
    /// How long the last failure counts, 0 after a success.
    avoided: AtomicU64,
    /// Until when it counts.
    avoided_until: AtomicU64,
}

impl EndpointLoad {
    /// A request begins.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A request ended. `latency` is the time to the response head; `None` when it was cancelled before.
    pub fn end(&self, now: Nanos, latency: Option<Duration>, failed: bool) {
        let _ = self.in_flight.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_sub(1)));
        if let Some(latency) = latency {
            // How long a failure took says nothing of answers: a time in which nothing answered would outweigh those of a
            // healthy endpoint for a minute.
            if failed {
                return self.avoid(now);
            }
            if self.avoided.load(Relaxed) != 0 {
                self.avoided.store(0, Relaxed);
            }
            self.observe(now, duration_nanos(latency));
        }
    }

    /// A failure. Only the first of a row knows how fast requests came before.
    fn avoid(&self, now: Nanos) {
        let mut time = self.avoided.load(Relaxed);
        if time == 0 {
            let gap = match self.stamp.load(Relaxed) {
                // It has never answered.
                0 => 0,
                last => now.0.saturating_sub(last),
            };
            time = gap.saturating_mul(AVOIDED_GAPS).clamp(AVOIDED_LEAST, AVOIDED_MOST);
            self.avoided.store(time, Relaxed);
        }
        self.avoided_until.store(now.0.saturating_add(time), Relaxed);
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// What the next request would cost here: decayed peak latency times requests in flight, itself included.
    /// Nothing for the first request to an endpoint, which would otherwise lose to every fast one for ever.
    #[must_use]
    pub fn cost(&self, now: Nanos) -> f64 {
        self.cost_by(now, 1.0)
    }

    /// [`Self::cost`] where `per_request` is what one request in flight weighs: less on an endpoint with more weight.
    pub(super) fn cost_by(&self, now: Nanos, per_request: f64) -> f64 {
        let (in_flight, ewma) = (self.in_flight(), f64::from_bits(self.ewma.load(Relaxed)));
        // An old peak decays by itself, so that an endpoint that was slow is tried again.
        let rtt = if ewma > 0.0 {
            ewma * self.weight_of_old(now)
        } else if in_flight > 0 {
            DEFAULT_RTT
        } else {
            0.0
        };
        let penalty = if now.0 < self.avoided_until.load(Relaxed) { PENALTY } else { 0.0 };
        (rtt + penalty) * (f64::from(in_flight) * per_request + 1.0)
    }

    /// Requests in flight by weight, the next one included.
    pub(super) fn queue(&self, per_request: f64) -> f64 {
        f64::from(self.in_flight()) * per_request + 1.0
    }

    fn weight_of_old(&self, now: Nanos) -> f64 {
        let age = now.0.saturating_sub(self.stamp.load(Relaxed));
        // Above 2^53 ns, a hundred days, the last digits do not matter.
        (-(age as f64) / DECAY).exp()
    }

    /// Peak EWMA: a rise counts at once, a fall by decay. Two racing writers lose one observation at most.
    fn observe(&self, now: Nanos, observed: f64) {
        let old = f64::from_bits(self.ewma.load(Relaxed));
        let keep = self.weight_of_old(now);
        let new = if observed > old { observed } else { old * keep + observed * (1.0 - keep) };
        self.ewma.store(new.max(1.0).to_bits(), Relaxed);
        self.stamp.store(now.0, Relaxed);
    }
}

fn duration_nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_counts_as_latency_for_a_moment() {
        let (fails, slow) = (EndpointLoad::default(), EndpointLoad::default());
        fails.end(Nanos(1), Some(Duration::from_millis(1)), false);
        fails.end(Nanos(1), Some(Duration::from_micros(10)), true);
        slow.end(Nanos(1), Some(Duration::from_millis(50)), false);
        assert!(fails.cost(Nanos(2)) > slow.cost(Nanos(2)), "a fast failure must not attract load");
        let after = Nanos(1_000_000_000);
        assert!(fails.cost(after) < slow.cost(after), "its circuit could never judge it without requests");
        assert!(fails.cost(after) > 0.8e6, "a fast failure is not a fast answer");
    }

    #[test]
    fn a_failure_keeps_requests_away_for_longer_where_few_come() {
        let avoided = |gap: u64| {
            let load = EndpointLoad::default();
            load.end(Nanos(1), Some(Duration::from_millis(1)), false);
            load.end(Nanos(1 + gap), Some(Duration::from_millis(1)), true);
            load.avoided_until.load(Relaxed) - gap - 1
        };
        assert_eq!([1_000, 1_000_000_000, 60_000_000_000].map(avoided), [AVOIDED_LEAST, 2_000_000_000, AVOIDED_MOST]);
    }

    #[test]
    fn failures_in_a_row_do_not_keep_requests_away_for_longer_each_time() {
        let load = EndpointLoad::default();
        for second in 1..5_u64 {
            let now = Nanos(second * 1_000_000_000);
            load.end(now, Some(Duration::from_millis(1)), true);
            assert_eq!(load.avoided_until.load(Relaxed), now.0 + AVOIDED_LEAST);
        }
    }

    #[test]
    fn requests_in_flight_raise_the_cost() {
        let load = EndpointLoad::default();
        let idle = load.cost(Nanos(0));
        load.begin();
        assert!(load.cost(Nanos(0)) > idle);
        load.end(Nanos(0), None, false);
        assert_eq!(load.in_flight(), 0);
        load.end(Nanos(0), None, false);
        assert_eq!(load.in_flight(), 0, "an end too many does not wrap");
    }

    #[test]
    fn a_request_in_flight_costs_less_where_the_weight_is_more() {
        let load = EndpointLoad::default();
        load.end(Nanos(0), Some(Duration::from_millis(1)), false);
        load.begin();
        assert!(load.cost_by(Nanos(0), 0.25) < load.cost_by(Nanos(0), 1.0));
        assert!(load.cost_by(Nanos(0), 0.25) > 1e6, "the latency itself is not divided");
    }
}
