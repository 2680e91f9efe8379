//! Rate limits of one sidecar: GCRA (ITU-T I.371, a token bucket that stores one time), for all requests together or by
//! key. Memory is bounded whatever keys there are: a key that is pushed out begins anew, so a full table is only more
//! lenient.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::HeaderMap;

use crate::{
    SpiffeId,
    balance::Nanos,
    claims::Claims,
    model::{RateKey, RateLimit},
};

/// Keys that share a lock. The one that has waited longest makes room.
const WAYS: usize = 8;
/// Groups of keys: 8192 keys in 140 KB for each limit that has a key.
const SETS: usize = 1024;

/// One limit and what was let in by it. Shared by all workers.
#[derive(Debug)]
pub struct RateLimiter {
    limit: RateLimit,
    pace: Pace,
    state: State,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// What its certificate proves; `None`: plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// Its address.
    pub source: IpAddr,
    /// Of its request.
    pub headers: &'a HeaderMap,
    /// Of its token, verified; `None`: it has none.
    pub claims: Option<&'a Claims>,
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Let in and counted.
    Allowed {
        /// Requests that would be let in now.
        remaining: u32,
        /// Until as many as ever would be.
        reset_after: Duration,
    },
    /// Refused and not counted.
    Limited {
        /// Until the next one would be let in, more than zero.
        retry_after: Duration,
        /// Until as many as ever would be.
        reset_after: Duration,
    },
}

/// The limit in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Between two requests at the steady rate, at least 1; rounded up, so that never more are let in than asked for.
    interval: u64,
    /// How far ahead of time a request may be: burst - 1 intervals.
    tolerance: u64,
}

#[derive(Debug)]
enum State {
    /// When the next request would be on time.
    Total(AtomicU64),
    Keyed(Table),
}

/// Times by the hash of the key, in groups of [`WAYS`].
#[derive(Debug)]
struct Table {
    sets: Box<[Mutex<[Entry; WAYS]>]>,
    seed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: u64,
    /// When the next request would be on time; 0: free.
    due: u64,
}

impl RateLimiter {
    /// Nothing was let in yet. `seed` is random, so that nobody can choose keys that meet in one place.
    #[must_use]
    pub fn new(limit: &RateLimit, seed: u64) -> Self {
        Self {
            pace: Pace::new(limit),
            state: match limit.key {
                RateKey::Total => State::Total(AtomicU64::new(0)),
                RateKey::Claim(_) | RateKey::Header(_) | RateKey::Identity | RateKey::SourceIp => {
                    State::Keyed(Table::new(SETS, seed))
                }
            },
            limit: limit.clone(),
        }
    }

    /// What it was built by.
    #[must_use]
    pub const fn limit(&self) -> &RateLimit {
        &self.limit
    }

    /// Counts a request, or refuses it.
    pub fn check(&self, caller: &Caller, now: Nanos) -> Decision {
        match &self.state {
            State::Total(due) => self.pace.check_shared(due, now.0),
            State::Keyed(table) => table.check(self.pace, table.hash(&self.limit.key, caller), now.0),
        }
    }

    /// Takes back the count of a request that was let in here and then refused by another limit.
    pub fn undo(&self, caller: &Caller) {
        let back = self.pace.interval;
        match &self.state {
            State::Total(due) => _ = due.fetch_update(Relaxed, Relaxed, |due| Some(due.saturating_sub(back))),
            State::Keyed(table) => table.undo(back, table.hash(&self.limit.key, caller)),
        }
    }
}

impl Decision {
    /// The request is let in.
    #[must_use]
    pub const fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Pace {
    fn new(limit: &RateLimit) -> Self {
        let interval = limit.per.as_nanos().div_ceil(u128::from(limit.requests.max(1))).max(1);
        // Half of the range at most, so that no sum of a time and this overflows in the life of a process.
        let bounded = |nanos: u128| u64::try_from(nanos).unwrap_or(u64::MAX).min(u64::MAX / 4);
        Self { interval: bounded(interval), tolerance: bounded(interval * u128::from(limit.burst.max(1) - 1)) }
    }

    /// The decision, and the time of the next request if this one is let in.
    fn check(self, due: u64, now: u64) -> (Decision, Option<u64>) {
        let ahead = due.saturating_sub(now);
        if ahead > self.tolerance {
            let retry_after = Duration::from_nanos(ahead - self.tolerance);
            return (Decision::Limited { retry_after, reset_after: Duration::from_nanos(ahead) }, None);
        }
        let ahead = ahead + self.interval;
        let remaining = (self.tolerance + self.interval - ahead) / self.interval;
        let remaining = u32::try_from(remaining).unwrap_or(u32::MAX);
        let reset_after = Duration::from_nanos(ahead);
        (Decision::Allowed { remaining, reset_after }, Some(now.saturating_add(ahead)))
    }

    fn check_shared(self, due: &AtomicU64, now: u64) -> Decision {
        let mut seen = due.load(Relaxed);
        loop {
            let (decision, next) = self.check(seen, now);
            let Some(next) = next else { return decision };
            match due.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return decision,
                Err(newer) => seen = newer,
            }
        }
    }
}

impl Table {
    fn new(sets: usize, seed: u64) -> Self {
        Self { sets: (0..sets).map(|_| Mutex::default()).collect(), seed }
    }

    /// `SipHash` 1-3 of the standard library behind the seed: it lives in this process only and need not be stable.
    fn hash(&self, key: &RateKey, caller: &Caller) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        match key {
            RateKey::Total => {}
            RateKey::Identity => caller.identity.hash(&mut hasher),
            RateKey::SourceIp => caller.source.to_canonical().hash(&mut hasher),
            // Each value has an end mark, so that two lists are never one.
            RateKey::Claim(name) => {
                caller.claims.into_iter().flat_map(|all| all.get(name)).for_each(|v| v.hash(&mut hasher))
            }
            RateKey::Header(name) => caller.headers.get(name).map(http::HeaderValue::as_bytes).hash(&mut hasher),
        }
        hasher.finish()
    }

    /// The lock is held for the few comparisons of one group and never across anything that can wait.
    fn set(&self, key: u64) -> Option<MutexGuard<'_, [Entry; WAYS]>> {
        let set = usize::try_from(key % (self.sets.len() as u64).max(1)).unwrap_or(0);
        Some(self.sets.get(set)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn undo(&self, back: u64, key: u64) {
        let Some(mut entries) = self.set(key) else { return };
        // One that had to make room meanwhile has no count any more.
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key) {
            entry.due = entry.due.saturating_sub(back);
        }
    }

    fn check(&self, pace: Pace, key: u64, now: u64) -> Decision {
        let Some(mut entries) = self.set(key) else { return pace.check(0, now).0 };
        let held = entries.iter().position(|entry| entry.key == key && entry.due > 0);
        // The oldest time is that of a free place, or of the key that has its whole burst again or is nearest to it.
        let oldest = || (0..WAYS).min_by_key(|&way| entries[way].due).unwrap_or(0);
        let way = held.unwrap_or_else(oldest);
        let due = if held.is_some() { entries[way].due } else { 0 };
        let (decision, next) = pace.check(due, now);
        if let Some(due) = next {
            entries[way] = Entry { key, due };
        }
        decision
    }
}

#[cfg(test)]
mod tests;
