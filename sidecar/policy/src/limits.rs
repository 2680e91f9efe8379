//! Limits per service: counters shared by all workers, with permits that give back when they are dropped. Ceilings
//! follow the policy while permits are out.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use crate::model;

/// A counter with a ceiling.
#[derive(Debug)]
pub struct Gauge {
    current: AtomicU32,
    max: AtomicU32,
}

/// One unit of a [`Gauge`], given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Gauge>);

/// The limits of one service port.
#[derive(Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: Arc<Gauge>,
    /// Requests that wait for a connection.
    pub pending: Arc<Gauge>,
    /// Requests in flight.
    pub requests: Arc<Gauge>,
    /// Retries in flight, those that wait for their time too.
    pub retries: Arc<Gauge>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(&model::Limits::default())
    }
}

impl Limits {
    /// At zero, with the ceilings of a policy.
    #[must_use]
    pub fn new(policy: &model::Limits) -> Self {
        let gauge = |max| Arc::new(Gauge::new(max));
        Self {
            connections: gauge(policy.connections),
            pending: gauge(policy.pending),
            requests: gauge(policy.requests),
            retries: gauge(policy.retries.unwrap_or(u32::MAX)),
        }
    }

    /// Takes on the ceilings of another policy. What is out stays out.
    pub fn set(&self, policy: &model::Limits) {
        self.connections.set_max(policy.connections);
        self.pending.set_max(policy.pending);
        self.requests.set_max(policy.requests);
        self.retries.set_max(policy.retries.unwrap_or(u32::MAX));
    }
}

impl Gauge {
    /// At zero, with this ceiling.
    #[must_use]
    pub const fn new(max: u32) -> Self {
        Self { current: AtomicU32::new(0), max: AtomicU32::new(max) }
    }

    /// Another ceiling. Below what is out it refuses until enough has come back.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Relaxed);
    }

    /// One more, unless the ceiling is reached.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let max = self.max.load(Relaxed);
        let more = |current: u32| (current < max).then_some(current + 1);
        self.current.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Permit(Arc::clone(self)))
    }

    /// How many are out.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.current.load(Relaxed)
    }

    /// The ceiling.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.current.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gauge_refuses_until_a_permit_is_dropped() {
        let gauge = Arc::new(Gauge::new(2));
        let first = gauge.try_acquire().expect("below the ceiling");
        let _second = gauge.try_acquire().expect("below the ceiling");
        assert!(gauge.try_acquire().is_none());
        drop(first);
        assert!(gauge.try_acquire().is_some());
    }

    #[test]
    fn racing_threads_never_pass_the_ceiling() {
        let gauge = Arc::new(Gauge::new(3));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let permit = gauge.try_acquire();
                        assert!(gauge.current() <= 3);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(gauge.current(), 0);
    }

    #[test]
    fn a_ceiling_that_moves_loses_no_permit() {
        let limits = Limits::default();
        let out: Vec<_> = (0..3).map(|_| limits.requests.try_acquire().expect("below the ceiling")).collect();
        limits.set(&model::Limits { requests: 2, ..model::Limits::default() });
        assert!(limits.requests.try_acquire().is_none());
        assert_eq!((limits.requests.current(), limits.requests.max()), (3, 2));
        drop(out);
        let _first = limits.requests.try_acquire().expect("all came back");
        limits.set(&model::Limits { requests: 1, ..model::Limits::default() });
        assert!(limits.requests.try_acquire().is_none());
        limits.set(&model::Limits { requests: 2, ..model::Limits::default() });
        assert!(limits.requests.try_acquire().is_some());
    }

    #[test]
    fn retries_are_limited_only_by_policy() {
        let limits = Limits::default();
        assert_eq!(limits.retries.max(), u32::MAX);
        limits.set(&model::Limits { retries: Some(0), ..model::Limits::default() });
        assert!(limits.retries.try_acquire().is_none());
    }
}
