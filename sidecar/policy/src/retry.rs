//! Whether a request may be sent again: the budget, what is idempotent, and how long to wait.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderName, Method};

use crate::balance::Nanos;

/// Thousandths of a retry that each request adds: 20 %.
const PER_REQUEST: i64 = 200;
/// Thousandths of a retry that each second adds: 10.
const PER_SECOND: u64 = 10_000;
/// Thousandths of a retry at most: what ten seconds without traffic give.
const CAP: i64 = 100_000;
const ONE: i64 = 1000;

const BASE: Duration = Duration::from_millis(25);
const MAX: Duration = Duration::from_millis(250);

/// A token bucket fed by requests seen and by time, so that retries stay a fraction of the load. Never off.
#[derive(Debug)]
pub struct Budget {
    tokens: AtomicI64,
    fed: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: AtomicI64::new(10 * ONE), fed: AtomicU64::new(0) }
    }
}

impl Budget {
    /// A request was seen.
    pub fn request(&self, now: Nanos) {
        self.feed(now);
        self.add(PER_REQUEST);
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
            self.add(i64::try_from(millis.saturating_mul(PER_SECOND) / 1000).unwrap_or(CAP));
        }
    }

    fn add(&self, amount: i64) {
        let _ = self.tokens.fetch_update(Relaxed, Relaxed, |tokens| Some(tokens.saturating_add(amount).min(CAP)));
    }
}

/// The request may be sent twice without harm: an idempotent method (RFC 9110 section 9.2.2) or an
/// `Idempotency-Key`.
#[must_use]
pub fn idempotent(method: &Method, headers: &HeaderMap) -> bool {
    const KEY: HeaderName = HeaderName::from_static("idempotency-key");
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
        || headers.contains_key(KEY)
}

/// How long to wait before retry number `retry` (from 1): full jitter below 25 ms doubling to 250 ms.
#[must_use]
pub fn backoff(retry: u32, random: u64) -> Duration {
    let ceiling = BASE.saturating_mul(1 << retry.saturating_sub(1).min(8)).min(MAX);
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random % nanos.max(1))
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
    fn a_post_is_idempotent_only_with_a_key() {
        let mut headers = HeaderMap::new();
        assert!(!idempotent(&Method::POST, &headers));
        assert!(!idempotent(&Method::PATCH, &headers));
        assert!(idempotent(&Method::GET, &headers));
        headers.insert("idempotency-key", http::HeaderValue::from_static("1"));
        assert!(idempotent(&Method::POST, &headers));
    }

    #[test]
    fn back_off_is_full_jitter_with_a_cap() {
        for random in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(backoff(1, random) < Duration::from_millis(25));
            assert!(backoff(2, random) < Duration::from_millis(50));
            assert!(backoff(40, random) < Duration::from_millis(250));
        }
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
