//! A sliding window of ten buckets, each one word, so that workers count together without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{balance::Nanos, circuit};

const BUCKETS: usize = 10;
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const STAMP_MAX: u64 = (1 << 24) - 1;

/// Requests and failures of the last while. A bucket holds the number of its tenth of the window (24 bits, from the
/// clock's zero, never 0), requests and failures (20 bits each, stuck at their greatest).
#[derive(Debug, Default)]
pub struct Window([AtomicU64; BUCKETS]);

/// A place in a window: number of a bucket, and requests in it until then. 44 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark(pub u64);

impl Window {
    /// One request more.
    pub fn add(&self, length: Duration, now: Nanos, failed: bool) {
        let tenth = tenth(length, now);
        let stamp = stamp(tenth);
        let _ = self.bucket(tenth).fetch_update(Relaxed, Relaxed, |word| {
            let (old, total, failures) = unpack(word);
            let (total, failures) = if old == stamp { (total, failures) } else { (0, 0) };
            if total == COUNT_MAX {
                return None;
            }
            Some(stamp << (2 * COUNT_BITS) | (total + 1) << COUNT_BITS | (failures + u64::from(failed)))
        });
    }

    /// Requests and failures in the window.
    pub fn sum(&self, length: Duration, now: Nanos) -> (u32, u32) {
        let newest = tenth(length, now);
        let mut sum = (0, 0);
        for tenth in newest.saturating_sub(BUCKETS as u64 - 1)..=newest {
            let (old, total, failures) = unpack(self.bucket(tenth).load(Relaxed));
            if old == stamp(tenth) {
                sum = (sum.0 + total, sum.1 + failures);
            }
        }
        (u32::try_from(sum.0).unwrap_or(u32::MAX), u32::try_from(sum.1).unwrap_or(u32::MAX))
    }

    /// Where the window is now.
    pub fn mark(&self, length: Duration, now: Nanos) -> Mark {
        let tenth = tenth(length, now);
        let (old, total, _) = unpack(self.bucket(tenth).load(Relaxed));
        Mark(stamp(tenth) << COUNT_BITS | if old == stamp(tenth) { total } else { 0 })
    }

    /// Requests since then. `None`: that is longer ago than the window.
    pub fn since(&self, Mark(mark): Mark, length: Duration, now: Nanos) -> Option<u64> {
        let newest = tenth(length, now);
        let mut sum = 0_u64;
        for tenth in (newest.saturating_sub(BUCKETS as u64 - 1)..=newest).rev() {
            let (old, total, _) = unpack(self.bucket(tenth).load(Relaxed));
            let total = if old == stamp(tenth) { total } else { 0 };
            if mark >> COUNT_BITS == stamp(tenth) {
                return Some(sum + total.saturating_sub(mark & COUNT_MAX));
            }
            sum += total;
        }
        None
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Relaxed);
        }
    }

    fn bucket(&self, tenth: u64) -> &AtomicU64 {
        &self.0[usize::try_from(tenth % BUCKETS as u64).unwrap_or(0)]
    }
}

fn tenth(length: Duration, now: Nanos) -> u64 {
    now.0 / (circuit::nanos(length) / BUCKETS as u64).max(1)
}

/// Never 0, which is a bucket that was never used.
const fn stamp(tenth: u64) -> u64 {
    tenth % STAMP_MAX + 1
}

const fn unpack(word: u64) -> (u64, u64, u64) {
    (word >> (2 * COUNT_BITS), (word >> COUNT_BITS) & COUNT_MAX, word & COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ten_buckets_count() {
        let (window, length) = (Window::default(), Duration::from_secs(10));
        let at = |seconds: u64| Nanos(seconds * 1_000_000_000);
        for second in 0..10 {
            window.add(length, at(second), second % 2 == 0);
        }
        assert_eq!(window.sum(length, at(9)), (10, 5));
        assert_eq!(window.sum(length, at(12)), (7, 3), "no request since, and three seconds gone");
        assert_eq!(window.sum(length, at(19)), (0, 0));
        window.add(length, at(19), true);
        assert_eq!(window.sum(length, at(19)), (1, 1), "a bucket that is used again forgets");
        window.clear();
        assert_eq!(window.sum(length, at(19)), (0, 0));
    }

    #[test]
    fn what_came_since_a_mark_is_known_as_long_as_the_window() {
        let (window, length) = (Window::default(), Duration::from_secs(10));
        let at = |seconds: u64| Nanos(seconds * 1_000_000_000);
        window.add(length, at(3), false);
        let mark = window.mark(length, at(3));
        assert_eq!(window.since(mark, length, at(3)), Some(0));
        for second in [3, 3, 4, 8] {
            window.add(length, at(second), false);
        }
        assert_eq!(window.since(mark, length, at(8)), Some(4));
        assert_eq!(window.since(mark, length, at(12)), Some(4));
        assert_eq!(window.since(mark, length, at(13)), None);
        assert_eq!(window.since(Mark(0), length, at(8)), None, "a mark that was never made");
    }
}
