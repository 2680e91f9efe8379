//! Durations of requests by bucket, merged from many sidecars, and percentiles of them. Sidecars of other versions may
//! have other bounds: each bucket is kept with both of its ends.

use std::collections::BTreeMap;

/// Requests by bucket.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Histogram {
    /// By upper and lower bound in microseconds; the upper one of the last bucket is `u64::MAX`.
    buckets: BTreeMap<(u64, u64), u64>,
}

impl Histogram {
    /// Adds counts of the buckets that these upper bounds make; the last one is above them all.
    pub fn add(&mut self, bounds: &[u64], counts: impl IntoIterator<Item = u64>) {
        let lower = std::iter::once(0).chain(bounds.iter().copied());
        let upper = bounds.iter().copied().chain(std::iter::once(u64::MAX));
        for ((upper, lower), count) in upper.zip(lower).zip(counts) {
            if count > 0 {
                let sum = self.buckets.entry((upper, lower)).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            let sum = self.buckets.entry(*bucket).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// The duration in milliseconds that this part (0 to 1) of the requests stays below, as if those of a bucket lay
    /// evenly in it. Of what is above the highest bound nothing is known: it counts as that bound.
    #[must_use]
    pub fn quantile_ms(&self, part: f64) -> Option<f64> {
        let total: f64 = self.buckets.values().map(|count| float(*count)).sum();
        if total <= 0.0 {
            return None;
        }
        let rank = part.clamp(0.0, 1.0) * total;
        let mut below = 0.0;
        let mut highest = 0.0;
        for (&(upper, lower), &count) in &self.buckets {
            let (lower, count) = (float(lower), float(count));
            if below + count >= rank {
                if upper == u64::MAX {
                    return Some(lower.max(highest) / 1000.0);
                }
                let within = if count > 0.0 { ((rank - below) / count).clamp(0.0, 1.0) } else { 0.0 };
                return Some((lower + (float(upper) - lower) * within) / 1000.0);
            }
            below += count;
            highest = if upper == u64::MAX { lower } else { float(upper) };
        }
        Some(highest / 1000.0)
    }
}

/// Counts beyond 2^53 lose digits that nobody reads.
#[expect(clippy::cast_precision_loss, reason = "for people")]
#[must_use]
pub const fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bounds: &[u64], counts: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(bounds, counts.iter().copied());
        histogram
    }

    #[test]
    fn a_percentile_lies_within_its_bucket_where_its_share_of_the_requests_ends() {
        let histogram = of(&[1000, 2000, 4000], &[50, 40, 10, 0]);
        for (part, expected) in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.7, 1.5), (0.9, 2.0), (0.95, 3.0), (1.0, 4.0)] {
            let found = histogram.quantile_ms(part).expect("requests");
            assert!((found - expected).abs() < 1e-9, "{part}: {found} for {expected}");
        }
        assert_eq!(Histogram::default().quantile_ms(0.5), None);
    }

    #[test]
    fn what_is_above_the_highest_bound_counts_as_that_bound() {
        let histogram = of(&[1000, 2000], &[1, 0, 9]);
        assert_eq!(histogram.quantile_ms(0.99), Some(2.0));
        assert_eq!(of(&[], &[5]).quantile_ms(0.5), Some(0.0), "without bounds nothing is known");
    }

    #[test]
    fn histograms_of_several_sidecars_are_one() {
        let mut all = of(&[1000, 2000], &[10, 0, 0]);
        all.merge(&of(&[1000, 2000], &[0, 10, 0]));
        assert_eq!(all, of(&[1000, 2000], &[10, 10, 0]));
        assert_eq!(all.quantile_ms(0.75), Some(1.5));
        all.merge(&of(&[1000, 4000], &[0, 20, 0]));
        let high = all.quantile_ms(1.0).expect("requests");
        assert!((high - 4.0).abs() < 1e-9, "another version's buckets keep their own ends: {high}");
    }
}
