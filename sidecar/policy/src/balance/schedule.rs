//! Round robin: an order in which the turns of each endpoint are as far apart as its weight allows, and the place in it
//! that all workers share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Turns of a schedule at most, when it is longer than its members: weights beyond that are rounded.
const TURNS: u64 = 4096;

/// Whose turn it is.
#[derive(Debug)]
pub struct Schedule {
    turns: Box<[u32]>,
    next: AtomicU64,
}

impl Schedule {
    /// For these weights, beginning anywhere: the place of the schedule before, or a number that differs between sidecars,
    /// which would otherwise all begin at the same endpoint.
    #[must_use]
    pub fn new(weights: &[u32], next: u64) -> Self {
        let divisor = weights.iter().fold(0, |divisor, &weight| greatest_common_divisor(divisor, weight.max(1))).max(1);
        let reduced: Vec<u64> = weights.iter().map(|&weight| u64::from(weight.max(1) / divisor)).collect();
        let total: u64 = reduced.iter().sum();
        let most = TURNS.max(weights.len() as u64);
        let turns = reduced.iter().map(|&weight| if total > most { (weight * most / total).max(1) } else { weight });
        // Turn k of n lies at (k + 1/2) / n of the round; compared exactly, as fractions over a fixed base.
        let mut places = Vec::new();
        for (member, count) in (0_u32..).zip(turns) {
            places.extend((0..count).map(|turn| (((2 * turn + 1) << 40) / (2 * count), member)));
        }
        places.sort_unstable();
        Self { turns: places.into_iter().map(|(_, member)| member).collect(), next: AtomicU64::new(next) }
    }

    /// The next turn: a member's position. Each call takes one, so that the turns of an endpoint that is out are shared by
    /// all others and do not all fall to its neighbour.
    #[must_use]
    pub fn turn(&self) -> Option<usize> {
        let length = self.turns.len() as u64;
        let turn = self.next.fetch_add(1, Relaxed).checked_rem(length)?;
        self.turns.get(usize::try_from(turn).unwrap_or(0)).map(|&member| member as usize)
    }

    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> u64 {
        self.next.load(Relaxed)
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(weights: &[u32], count: usize) -> Vec<usize> {
        let schedule = Schedule::new(weights, 0);
        (0..count).filter_map(|_| schedule.turn()).collect()
    }

    #[test]
    fn turns_of_a_heavy_endpoint_are_spread_over_the_round() {
        assert_eq!(round(&[1, 1, 1], 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(round(&[200, 100], 3), [0, 1, 0]);
        assert_eq!(round(&[5, 1, 1], 7), [0, 0, 0, 1, 2, 0, 0]);
    }

    #[test]
    fn shares_are_exact_over_a_round_and_nearly_so_when_the_weights_are_huge() {
        let counts = |weights: &[u32], rounds: usize| {
            let mut counts = vec![0; weights.len()];
            round(weights, rounds).into_iter().for_each(|member| counts[member] += 1);
            counts
        };
        assert_eq!(counts(&[3, 5, 2], 100), [30, 50, 20]);
        let huge = counts(&[1_000_003, 3_000_001], 4095 * 10);
        let share = f64::from(huge[0]) / f64::from(huge[0] + huge[1]);
        assert!((share - 0.25).abs() < 0.001, "{share}");
        assert!(counts(&[1, 4_000_000_000], 4096)[0] >= 1, "nobody is left out");
    }

    #[test]
    fn a_schedule_of_nobody_has_no_turn() {
        assert_eq!(Schedule::new(&[], 3).turn(), None);
    }

    #[test]
    fn workers_share_one_cursor() {
        let schedule = Schedule::new(&[1, 1, 1, 1], u64::MAX - 1000);
        let mut counts = [0_u32; 4];
        std::thread::scope(|scope| {
            let handles: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..1000).filter_map(|_| schedule.turn()).collect::<Vec<_>>())).collect();
            for handle in handles {
                handle.join().expect("no panic").into_iter().for_each(|member| counts[member] += 1);
            }
        });
        assert!(counts.iter().all(|&count| count == 1000), "{counts:?}");
    }
}
