//! How long to wait before the next try to reach the control plane (rule 10): decorrelated jitter, so that sidecars that
//! lost it together do not come back together. Randomness is an argument.

use std::time::Duration;

/// The shortest wait.
const MIN: Duration = Duration::from_millis(100);
/// The longest.
const MAX: Duration = Duration::from_secs(15);

/// Remembers the last wait.
#[derive(Debug)]
pub struct Backoff {
    last: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { last: MIN }
    }
}

impl Backoff {
    /// The next wait, between 0.1 s and three times the last one, 15 s at most. `random` is at least 0 and below 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let range = (self.last * 3).min(MAX) - MIN;
        self.last = MIN + range.mul_f64(random.clamp(0.0, 1.0));
        self.last
    }

    /// The control plane has answered: the next failure is the first.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn rule_10_waits_grow_to_15_seconds_and_start_again_after_an_answer() {
        let mut backoff = Backoff::default();
        let waits = |backoff: &mut Backoff| -> Vec<u128> { (0..7).map(|_| backoff.next(1.0).as_millis()).collect() };
        let longest = [300, 900, 2700, 8100, 15_000, 15_000, 15_000];
        assert_eq!(waits(&mut backoff), longest);
        backoff.reset();
        assert_eq!(waits(&mut backoff), longest);
    }

    #[test]
    fn rule_10_a_wait_is_anywhere_between_a_tenth_of_a_second_and_three_times_the_last() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), MIN);
        let mut last = MIN;
        for step in 0_u32..1000 {
            let random = f64::from(step * 7919 % 1000) / 1000.0;
            let wait = backoff.next(random);
            assert!(wait >= MIN && wait <= (last * 3).min(MAX), "{wait:?} after {last:?}");
            last = wait;
        }
    }

    #[test]
    fn rule_10_sidecars_that_fail_together_do_not_come_back_together() {
        let mut random = rand::rngs::SmallRng::seed_from_u64(1);
        let mut sidecars: Vec<_> = (0_u32..100).map(|_| Backoff::default()).collect();
        for _ in 0..6 {
            sidecars.iter_mut().for_each(|backoff| _ = backoff.next(random.random()));
        }
        let mut waits: Vec<_> =
            sidecars.iter_mut().map(|backoff| backoff.next(random.random()).as_millis() / 100).collect();
        waits.sort_unstable();
        waits.dedup();
        assert!(waits.len() > 20, "{waits:?}");
    }
}
