//! The budget of retries of one service port: what keeps a failing service from getting several times its load.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{balance::Nanos, model::RetryBudget};

/// One retry, in the parts that tokens are counted in.
const ONE: i64 = 1_000_000;
/// Seconds without traffic that fill the bucket.
const SECONDS: i64 = 10;
/// Retries that the bucket holds at least, while requests feed it at all.
const LEAST: i64 = 10;

/// A token bucket fed by requests seen and by time, so that retries stay a fraction of the load. Never off.
#[derive(Debug)]
pub struct Budget {
    tokens: AtomicI64,
    /// When time last fed it, in whole milliseconds.
    fed: AtomicU64,
    ppm: AtomicU32,
    min_per_second: AtomicU32,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(&RetryBudget::default())
    }
}

impl Budget {
    /// With the retries of one second in it.
    #[must_use]
    pub fn new(policy: &RetryBudget) -> Self {
        Self {
            tokens: AtomicI64::new(i64::from(policy.min_per_second) * ONE),
            fed: AtomicU64::new(0),
            ppm: AtomicU32::new(policy.ppm),
            min_per_second: AtomicU32::new(policy.min_per_second),
        }
    }

    /// Takes on another policy; what is in the bucket stays, as far as the new policy has room for it.
    pub fn set(&self, policy: &RetryBudget) {
        self.ppm.store(policy.ppm, Relaxed);
        self.min_per_second.store(policy.min_per_second, Relaxed);
        self.add(0);
    }

    /// A request was seen.
    pub fn request(&self, now: Nanos) {
        self.feed(now);
        self.add(i64::from(self.ppm.load(Relaxed)));
    }

    /// Takes one retry, if the budget has one.
    pub fn try_retry(&self, now: Nanos) -> bool {
        self.feed(now);
        self.tokens.fetch_update(Relaxed, Relaxed, |tokens| (tokens >= ONE).then_some(tokens - ONE)).is_ok()
    }

    fn feed(&self, now: Nanos) {
        let last = self.fed.load(Relaxed);
        // Whole milliseconds only, so that nothing is lost between calls.
        let millis = now.0.saturating_sub(last) / 1_000_000;
        let next = last + millis * 1_000_000;
        if millis > 0 && self.fed.compare_exchange(last, next, Relaxed, Relaxed).is_ok() {
            let per_millisecond = i64::from(self.min_per_second.load(Relaxed)) * (ONE / 1000);
            self.add(per_millisecond.saturating_mul(i64::try_from(millis).unwrap_or(i64::MAX)));
        }
    }

    fn add(&self, amount: i64) {
        let cap = self.cap();
        let _ = self.tokens.fetch_update(Relaxed, Relaxed, |tokens| {
            let next = tokens.saturating_add(amount).min(cap);
            // A full bucket is the rule, and a write would move its line between the workers.
            (next != tokens).then_some(next)
        });
    }

    fn cap(&self) -> i64 {
        let least = if self.ppm.load(Relaxed) == 0 { 0 } else { LEAST };
        (i64::from(self.min_per_second.load(Relaxed)) * SECONDS).max(least) * ONE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retry_stops_when_the_budget_is_empty() {
        let budget = Budget::default();
        let granted = (0..100).filter(|_| budget.try_retry(Nanos(0))).count();
        assert_eq!(granted, 10);
    }

    #[test]
    fn an_idle_budget_fills_to_its_cap_and_no_further() {
        let budget = Budget::default();
        let later = Nanos(3_600_000_000_000);
        assert_eq!((0..1000).filter(|_| budget.try_retry(later)).count(), 100);
    }

    #[test]
    fn a_policy_that_changes_takes_effect_at_once() {
        let budget = Budget::default();
        let later = Nanos(3_600_000_000_000);
        budget.request(later);
        budget.set(&RetryBudget { ppm: 0, min_per_second: 1 });
        assert_eq!((0..1000).filter(|_| budget.try_retry(later)).count(), 10, "what was saved is cut to the new cap");
        budget.set(&RetryBudget { ppm: 500_000, min_per_second: 0 });
        for _ in 0..1000 {
            budget.request(later);
        }
        assert_eq!((0..1000).filter(|_| budget.try_retry(later)).count(), 10, "the bucket holds ten at least");
        budget.set(&RetryBudget { ppm: 0, min_per_second: 0 });
        budget.request(Nanos(later.0 * 2));
        assert!(!budget.try_retry(Nanos(later.0 * 2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn retries_never_exceed_a_fifth_of_requests_plus_ten_a_second(
            steps in proptest::collection::vec((0_u64..50_000_000, any::<bool>()), 1..400),
        ) {
            let budget = Budget::default();
            let (mut now, mut requests, mut retries) = (0_u64, 0_u64, 0_u64);
            for (step, request) in steps {
                now += step;
                if request {
                    budget.request(Nanos(now));
                    requests += 1;
                } else if budget.try_retry(Nanos(now)) {
                    retries += 1;
                }
            }
            prop_assert!(retries * 1000 <= 10_000 + requests * 200 + now / 100_000);
        }
    }
}
