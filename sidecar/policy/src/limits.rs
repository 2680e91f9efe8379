//! Limits per service: counters shared by all workers, with permits that give back when they are dropped.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// A counter with a ceiling.
#[derive(Debug)]
pub struct Gauge {
    current: AtomicU32,
    max: u32,
}

/// One unit of a [`Gauge`], given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Gauge>);

/// The limits of one service (by default 1024 connections, 4096 requests).
#[derive(Debug)]
pub struct Limits {
    /// Opaque connections.
    pub connections: Arc<Gauge>,
    /// Requests in flight.
    pub requests: Arc<Gauge>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: Arc::new(Gauge::new(1024)), requests: Arc::new(Gauge::new(4096)) }
    }
}

impl Gauge {
    /// At zero, with this ceiling.
    #[must_use]
    pub const fn new(max: u32) -> Self {
        Self { current: AtomicU32::new(0), max }
    }

    /// One more, unless the ceiling is reached.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let more = |current: u32| (current < self.max).then_some(current + 1);
        self.current.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Permit(Arc::clone(self)))
    }

    /// How many are out.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.current.load(Relaxed)
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
}
