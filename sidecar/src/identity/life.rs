//! The life of a certificate by this machine's clocks. The wall clock jumps and the monotonic one stops while a laptop
//! sleeps: a certificate is due, or over, as soon as either of them says so.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// An early renewal is spread over a tenth of the life, and over this at most.
const SPREAD: Duration = Duration::from_secs(60);
/// The wall clock is looked at this often.
pub const CHECK: Duration = Duration::from_secs(1);

/// The wall clock; tests bring their own.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Jumps.
    pub wall: SystemTime,
    /// Stops during suspend.
    pub steady: Instant,
}

/// When a certificate is to be renewed, and when it ends.
#[derive(Debug)]
pub struct Life {
    length: Duration,
    end: (SystemTime, Option<Instant>),
    due: (SystemTime, Option<Instant>),
    early: Option<Instant>,
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl WallClock {
    /// Another clock than the system's.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment { wall: (self.0)(), steady: Instant::now() }
    }
}

impl Life {
    /// Of a certificate that was obtained at `obtained` by the wall clock and is looked at `now`. It is due at a random
    /// point in 50 to 70 % of its life, which begins when it was obtained: notBefore is back-dated, by minutes.
    /// `random` is at least 0 and below 1.
    #[must_use]
    pub fn new(validity: (SystemTime, SystemTime), obtained: SystemTime, now: Moment, random: f64) -> Self {
        let (not_before, not_after) = validity;
        // Whoever has just got a certificate whose life is not now has a wrong clock.
        let right = (not_before..not_after).contains(&obtained);
        let begin = if right { obtained } else { not_before };
        let length = not_after.duration_since(begin).unwrap_or_default();
        let before_due = length.mul_f64(0.5 + 0.2 * random.clamp(0.0, 1.0));
        let due = begin.checked_add(before_due).unwrap_or(not_after);
        // A wall clock that is behind would make the steady one wait for longer than the whole life.
        let steady = |wall: SystemTime, most: Duration| {
            let wait = if right { wall.duration_since(now.wall).unwrap_or_default().min(most) } else { most };
            now.steady.checked_add(wait)
        };
        Self { length, end: (not_after, steady(not_after, length)), due: (due, steady(due, before_due)), early: None }
    }

    /// It must not be used any more.
    #[must_use]
    pub fn is_over(&self, now: Moment) -> bool {
        reached(self.end, now)
    }

    /// It is to be renewed.
    #[must_use]
    pub fn is_due(&self, now: Moment) -> bool {
        reached(self.due, now) || self.early.is_some_and(|early| now.steady >= early)
    }

    /// Renews it soon, at a random moment so that a mesh does not renew at once. Asked again, nothing changes.
    pub fn renew_early(&mut self, now: Moment, random: f64) {
        let wait = self.spread().mul_f64(random.clamp(0.0, 1.0));
        self.early = self.early.or_else(|| now.steady.checked_add(wait));
    }

    /// Over how long early renewals are spread.
    #[must_use]
    pub fn spread(&self) -> Duration {
        (self.length / 10).min(SPREAD)
    }

    /// What is left of it; zero when it is over.
    #[must_use]
    pub fn left(&self, now: Moment) -> Duration {
        let wall = self.end.0.duration_since(now.wall).unwrap_or_default();
        self.end.1.map_or(wall, |end| wall.min(end.saturating_duration_since(now.steady)))
    }

    /// The share of its life that is left, 0 to 1.
    #[must_use]
    pub fn share_left(&self, now: Moment) -> f64 {
        if self.length.is_zero() { 0.0 } else { (self.left(now).as_secs_f64() / self.length.as_secs_f64()).min(1.0) }
    }

    /// How long nothing can change but by a jump of the wall clock.
    #[must_use]
    pub fn quiet(&self, now: Moment) -> Duration {
        let until = |(wall, steady): (SystemTime, Option<Instant>)| {
            let wall = wall.duration_since(now.wall).unwrap_or_default();
            steady.map_or(wall, |steady| wall.min(steady.saturating_duration_since(now.steady)))
        };
        let early = self.early.map_or(CHECK, |early| early.saturating_duration_since(now.steady));
        // What has passed already is no reason to hurry.
        let ahead = |wait: Duration| if wait.is_zero() { CHECK } else { wait };
        CHECK.min(ahead(until(self.end))).min(ahead(until(self.due))).min(ahead(early))
    }
}

fn reached((wall, steady): (SystemTime, Option<Instant>), now: Moment) -> bool {
    now.wall >= wall || steady.is_some_and(|steady| now.steady >= steady)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        UNIX_EPOCH + HOUR * 500_000
    }

    /// A day, seen when it begins.
    fn day(random: f64) -> (Life, Moment) {
        let now = Moment { wall: start(), steady: Instant::now() };
        (Life::new((start() - HOUR / 12, start() + HOUR * 24), start(), now, random), now)
    }

    fn later(now: Moment, wall: Duration, steady: Duration) -> Moment {
        Moment { wall: now.wall + wall, steady: now.steady + steady }
    }

    #[test]
    fn a_certificate_is_due_between_50_and_70_percent_of_the_time_since_it_was_obtained() {
        for (random, hours) in [(0.0, 12.0), (0.5, 14.4), (1.0, 16.8)] {
            let (life, now) = day(random);
            let due = HOUR.mul_f64(hours);
            assert!(!life.is_due(later(now, due - HOUR / 60, due - HOUR / 60)), "{random}");
            assert!(life.is_due(later(now, due + HOUR / 60, due + HOUR / 60)), "{random}");
        }
    }

    #[test]
    fn either_clock_is_enough_for_a_certificate_to_be_due_or_over() {
        let (life, now) = day(0.0);
        assert!(life.is_due(later(now, HOUR * 13, Duration::ZERO)), "suspended: only the wall clock went on");
        assert!(life.is_due(later(now, Duration::ZERO, HOUR * 13)), "the wall clock was set back");
        assert!(life.is_over(later(now, HOUR * 24, Duration::ZERO)));
        assert!(life.is_over(later(now, Duration::ZERO, HOUR * 24)));
        assert!(!life.is_over(later(now, HOUR * 23, HOUR * 23)));
        let back = Moment { wall: now.wall - HOUR, steady: now.steady + HOUR };
        assert!(!life.is_due(back) && !life.is_over(back));
    }

    #[test]
    fn clocks_that_are_ten_years_off_neither_panic_nor_lengthen_a_life() {
        let years = HOUR * 24 * 3652;
        for wall in [start() - years, start() + years, UNIX_EPOCH] {
            let now = Moment { wall, steady: Instant::now() };
            let life = Life::new((start(), start() + HOUR), wall, now, 0.5);
            assert!(life.is_over(Moment { steady: now.steady + HOUR, ..now }), "{wall:?}");
            assert!(life.left(now) <= HOUR && life.quiet(now) <= CHECK && !life.quiet(now).is_zero());
            assert!((0.0..=1.0).contains(&life.share_left(now)));
        }
    }

    #[test]
    fn an_early_renewal_comes_within_a_tenth_of_the_life_and_a_minute_and_is_not_put_off() {
        let (mut life, now) = day(0.0);
        life.renew_early(now, 1.0);
        life.renew_early(later(now, HOUR, HOUR), 1.0);
        let at = |seconds| later(now, Duration::from_secs(seconds), Duration::from_secs(seconds));
        assert!(!life.is_due(at(59)) && life.is_due(at(60)));
        let mut short = Life::new((start(), start() + HOUR / 360), start(), now, 0.0);
        short.renew_early(now, 1.0);
        assert!(!short.is_due(now) && short.is_due(at(1)));
    }
}
