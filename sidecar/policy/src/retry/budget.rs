//! The budget of retries of one service port: what keeps a failing service from getting several times its load.
//!
//! It has two parts. Each request earns a share of a retry, and what was earned is kept, up to a cap, until the next second
//! without a request. Beside that there are so many retries in each second (the floor) that a service with little traffic
//! can have its failures hidden: as many at once after a rest, and then as many as the time has room for, so that a burst
//! is taken from the second that follows it.
//!
//! So, with `R` requests and a window of `T` seconds:
//! - begun after two seconds without requests and retries, at most `share * R + max(floor, floor * T)` retries;
//! - begun at any time, one more than that and what was kept then: at most the retries of ten seconds' floor.

use std::sync::{
    Mutex, PoisonError,
    atomic::{
        AtomicI64, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use crate::{balance::Nanos, model::RetryBudget};

/// One retry, in the parts that a request earns.
const ONE: i64 = 1_000_000;
/// Seconds of the floor that can be kept of what requests have earned: an endpoint that goes takes many requests with it.
const SECONDS: i64 = 10;
/// Retries that can be kept at least.
const LEAST: i64 = 10;
const SECOND: u64 = 1_000_000_000;
/// How exactly it is known when a request was last seen: a write for each would move its line between the workers.
const GRAIN: u64 = SECOND / 10;

/// What requests have earned, and the floor of each second. Never off.
#[derive(Debug)]
pub struct Budget {
    earned: AtomicI64,
    /// When a request was last seen, a grain or less too early.
    seen: AtomicU64,
    /// Only asked when nothing earned is left, which is rare.
    floor: Mutex<Floor>,
    ppm: AtomicU32,
    per_second: AtomicU32,
}

/// Retries that need no requests.
#[derive(Debug, Default)]
struct Floor {
    /// Up to when the retries take the time, in nanoseconds: each takes its part of a second.
    taken: u64,
    /// Retries since the last rest that did not wait for their time.
    ahead: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(&RetryBudget::default())
    }
}

impl Budget {
    /// With nothing earned yet.
    #[must_use]
    pub fn new(policy: &RetryBudget) -> Self {
        Self {
            earned: AtomicI64::new(0),
            seen: AtomicU64::new(0),
            floor: Mutex::default(),
            ppm: AtomicU32::new(policy.ppm),
            per_second: AtomicU32::new(policy.min_per_second),
        }
    }

    /// Takes on another policy; what was earned stays, as far as the new policy has room for it.
    pub fn set(&self, policy: &RetryBudget) {
        self.ppm.store(policy.ppm, Relaxed);
        self.per_second.store(policy.min_per_second, Relaxed);
        self.earn(0);
    }

    /// A request was seen.
    pub fn request(&self, now: Nanos) {
        let seen = self.seen.load(Acquire);
        let since = now.0.saturating_sub(seen);
        if since >= GRAIN {
            if since >= SECOND {
                self.earned.store(0, Relaxed);
            }
            // After that: who sees the time sees that nothing is left of what was kept.
            self.seen.fetch_max(now.0, Release);
        }
        self.earn(i64::from(self.ppm.load(Relaxed)));
    }

    /// Takes one retry, if the budget has one.
    pub fn try_retry(&self, now: Nanos) -> bool {
        let kept = now.0.saturating_sub(self.seen.load(Acquire)) < SECOND;
        let earned = |parts| (parts >= ONE).then_some(parts - ONE);
        (kept && self.earned.fetch_update(Relaxed, Relaxed, earned).is_ok())
            || self.floor.lock().unwrap_or_else(PoisonError::into_inner).take(now.0, self.per_second.load(Relaxed))
    }

    fn earn(&self, amount: i64) {
        let cap = self.cap();
        let _ = self.earned.fetch_update(Relaxed, Relaxed, |parts| {
            let next = parts.saturating_add(amount).min(cap);
            // To be full is the rule, and a write would move its line between the workers.
            (next != parts).then_some(next)
        });
    }

    fn cap(&self) -> i64 {
        let least = if self.ppm.load(Relaxed) == 0 { 0 } else { LEAST };
        (i64::from(self.per_second.load(Relaxed)) * SECONDS).max(least) * ONE
    }
}

impl Floor {
    /// Takes one of so many in each second.
    fn take(&mut self, now: u64, per_second: u32) -> bool {
        if per_second == 0 {
            return false;
        }
        let each = SECOND.div_ceil(u64::from(per_second));
        // A whole second that no retry has taken.
        if now >= self.taken.saturating_add(SECOND) {
            self.ahead = 0;
        }
        if self.ahead < per_second {
            self.ahead += 1;
            self.taken = self.taken.max(now).saturating_add(each);
            return true;
        }
        let due = self.taken.saturating_add(each);
        if now < due {
            return false;
        }
        self.taken = now;
        true
    }
}

#[cfg(test)]
mod tests;
