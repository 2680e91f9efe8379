//! Which endpoint takes the next request: power of two choices over peak-EWMA latency times requests in flight,
//! weights honoured, a failure counted as latency. State is atomics shared by all workers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Latency of an endpoint that has not answered yet, while its first request is under way.
const DEFAULT_RTT: f64 = 30e6;
/// Time after which an observation counts for 1/e.
const DECAY: f64 = 10e9;
/// Latency that a failure counts as.
const PENALTY: f64 = 5e9;
/// Draws before the choice falls back to a scan, when exclusions or weights reject them.
const DRAWS: usize = 8;

/// Monotonic time in nanoseconds since any fixed moment.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Nanos(pub u64);

/// Latency and requests in flight of one endpoint.
#[derive(Debug, Default)]
pub struct EndpointLoad {
    /// Bits of an `f64`: nanoseconds, 0 while nothing was observed.
    ewma: AtomicU64,
    /// When `ewma` was last written.
    stamp: AtomicU64,
    in_flight: AtomicU32,
}

/// Something that can be chosen.
pub trait Candidate {
    /// Its load.
    fn load(&self) -> &EndpointLoad;
    /// Its relative weight, at least 1.
    fn weight(&self) -> u32;
}

impl<T: Candidate> Candidate for Arc<T> {
    fn load(&self) -> &EndpointLoad {
        (**self).load()
    }

    fn weight(&self) -> u32 {
        (**self).weight()
    }
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
            let observed = duration_nanos(latency);
            self.observe(now, if failed { observed.max(PENALTY) } else { observed });
        }
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
        let in_flight = self.in_flight();
        if in_flight == 0 && self.ewma.load(Relaxed) == 0 {
            return 0.0;
        }
        self.rtt(now) * (f64::from(in_flight) + 1.0)
    }

    fn rtt(&self, now: Nanos) -> f64 {
        let ewma = f64::from_bits(self.ewma.load(Relaxed));
        if ewma == 0.0 {
            return DEFAULT_RTT;
        }
        // An old peak decays by itself, so that a penalised endpoint is tried again.
        ewma * self.weight_of_old(now)
    }

    fn weight_of_old(&self, now: Nanos) -> f64 {
        let age = now.0.saturating_sub(self.stamp.load(Relaxed));
        (-duration_nanos(Duration::from_nanos(age)) / DECAY).exp()
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

/// Picks one of `candidates`, none of the excluded; `None` when nothing is left.
pub fn pick<C: Candidate>(
    candidates: &[C],
    excluded: impl Fn(&C) -> bool,
    now: Nanos,
    mut random: impl FnMut() -> u64,
) -> Option<&C> {
    let first = draw(candidates, &excluded, &mut random)?;
    let other = |candidate: &C| std::ptr::eq(candidate, first) || excluded(candidate);
    let Some(second) = draw(candidates, &other, &mut random) else { return Some(first) };
    Some(if second.load().cost(now) < first.load().cost(now) { second } else { first })
}

/// One candidate at random by weight: rejection sampling, then a scan that cannot miss.
fn draw<'a, C: Candidate>(
    candidates: &'a [C],
    excluded: &impl Fn(&C) -> bool,
    random: &mut impl FnMut() -> u64,
) -> Option<&'a C> {
    if candidates.is_empty() {
        return None;
    }
    let heaviest = candidates.first().map_or(1, Candidate::weight).max(1);
    let uniform = candidates.iter().all(|candidate| candidate.weight() == heaviest);
    if uniform {
        for _ in 0..DRAWS {
            let candidate = &candidates[below(random(), candidates.len())];
            if !excluded(candidate) {
                return Some(candidate);
            }
        }
    }
    let total: u64 = candidates.iter().filter(|c| !excluded(c)).map(|c| u64::from(c.weight().max(1))).sum();
    if total == 0 {
        return None;
    }
    let mut left = random() % total;
    candidates.iter().filter(|c| !excluded(c)).find(|candidate| {
        let weight = u64::from(candidate.weight().max(1));
        if left < weight {
            return true;
        }
        left -= weight;
        false
    })
}

/// A uniform index below `length` from 64 random bits (multiply-shift).
fn below(random: u64, length: usize) -> usize {
    let scaled = (u128::from(random) * length as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    struct Endpoint {
        load: EndpointLoad,
        weight: u32,
    }

    impl Candidate for Endpoint {
        fn load(&self) -> &EndpointLoad {
            &self.load
        }

        fn weight(&self) -> u32 {
            self.weight
        }
    }

    fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
        weights.iter().map(|&weight| Endpoint { load: EndpointLoad::default(), weight }).collect()
    }

    /// A small deterministic generator (splitmix64).
    pub fn generator(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    fn shares(endpoints: &[Endpoint], draws: u32) -> Vec<f64> {
        let mut random = generator(7);
        let mut counts = vec![0_u32; endpoints.len()];
        for _ in 0..draws {
            let picked = draw(endpoints, &|_: &Endpoint| false, &mut random).expect("a candidate");
            let index = endpoints.iter().position(|endpoint| std::ptr::eq(endpoint, picked)).expect("one of them");
            counts[index] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / f64::from(draws)).collect()
    }

    #[test]
    fn nothing_is_picked_from_nothing() {
        assert!(pick(&endpoints(&[]), |_| false, Nanos(0), generator(1)).is_none());
        assert!(pick(&endpoints(&[1, 1]), |_| true, Nanos(0), generator(1)).is_none());
    }

    #[test]
    fn an_excluded_endpoint_is_never_picked() {
        let all = endpoints(&[1, 1, 5]);
        let mut random = generator(3);
        for _ in 0..1000 {
            let picked = pick(&all, |candidate| std::ptr::eq(candidate, &all[2]), Nanos(0), &mut random);
            assert!(!std::ptr::eq(picked.expect("two are left"), &all[2]));
        }
    }

    #[test]
    fn draws_follow_weights() {
        for weights in [vec![1, 1, 1, 1], vec![1, 3], vec![10, 20, 70]] {
            let total: u32 = weights.iter().sum();
            for (share, weight) in shares(&endpoints(&weights), 40_000).iter().zip(&weights) {
                let expected = f64::from(*weight) / f64::from(total);
                assert!((share - expected).abs() < 0.02, "{weights:?}: {share} against {expected}");
            }
        }
    }

    #[test]
    fn the_faster_of_two_is_preferred() {
        let all = endpoints(&[1, 1]);
        all[0].load.end(Nanos(1), Some(Duration::from_millis(100)), false);
        all[1].load.end(Nanos(1), Some(Duration::from_millis(1)), false);
        let picked = pick(&all, |_| false, Nanos(2), generator(5)).expect("one of two");
        assert!(std::ptr::eq(picked, &all[1]));
    }

    #[test]
    fn a_failure_counts_as_latency_and_decays() {
        let all = endpoints(&[1, 1]);
        all[0].load.end(Nanos(1), Some(Duration::from_micros(10)), true);
        all[1].load.end(Nanos(1), Some(Duration::from_millis(50)), false);
        let soon = pick(&all, |_| false, Nanos(2), generator(5)).expect("one of two");
        assert!(std::ptr::eq(soon, &all[1]), "a fast failure must not attract load");
        let after = all[0].load.cost(Nanos(120_000_000_000));
        assert!(after < all[0].load.cost(Nanos(2)) / 1000.0, "the penalty must decay, or it would be for ever");
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

    /// Picks one after the other, each answered after `latency` before the next begins; how many went to each.
    fn in_turn(all: &[Endpoint], latency: Duration, count: u64) -> Vec<u64> {
        let mut random = generator(11);
        let mut counts = vec![0; all.len()];
        for n in 0..count {
            let now = Nanos(n * 2_000_000);
            let picked = pick(all, |_| false, now, &mut random).expect("a candidate");
            let index = all.iter().position(|endpoint| std::ptr::eq(endpoint, picked)).expect("one of them");
            counts[index] += 1;
            picked.load.begin();
            picked.load.end(Nanos(now.0 + 1_000_000), Some(latency), false);
        }
        counts
    }

    #[test]
    fn an_endpoint_that_has_not_answered_yet_gets_a_request() {
        let all = endpoints(&[1, 1]);
        let counts = in_turn(&all, Duration::from_millis(1), 10_000);
        assert!(counts.iter().all(|&count| count > 1000), "equally fast, so both: {counts:?}");
    }
}
