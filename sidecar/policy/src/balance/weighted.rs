//! Draws by weight in constant time: an alias table (Vose 1991), built when the endpoints change.

/// One random number gives one member.
#[derive(Debug)]
pub struct Weighted {
    /// Empty when all weights are equal: every draw is kept.
    columns: Box<[Column]>,
    length: usize,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    /// Below this, of 2^32, the draw is kept.
    keep: u64,
    /// Otherwise it is this one.
    alias: u32,
}

impl Weighted {
    /// For these weights; one of 0 counts as 1.
    #[must_use]
    pub fn new(weights: &[u32]) -> Self {
        let length = weights.len();
        let uniform = weights.windows(2).all(|pair| pair[0].max(1) == pair[1].max(1));
        Self { columns: if uniform { Box::default() } else { columns(weights) }, length }
    }

    /// All weights are equal.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        self.columns.is_empty()
    }

    /// A position below the number of weights, from 64 random bits.
    #[must_use]
    pub fn draw(&self, random: u64) -> usize {
        let index = below(random, self.length);
        match self.columns.get(index) {
            // The upper bits chose the column, the lower ones are independent of them.
            Some(column) if random & u64::from(u32::MAX) >= column.keep => column.alias as usize,
            _ => index,
        }
    }
}

/// Exact: in units of `total / length`, each column is filled by its own weight and one other.
fn columns(weights: &[u32]) -> Box<[Column]> {
    let length = weights.len() as u64;
    let total: u64 = weights.iter().map(|&weight| u64::from(weight.max(1))).sum();
    let mut left: Vec<u128> = weights.iter().map(|&weight| u128::from(weight.max(1)) * u128::from(length)).collect();
    let full = u128::from(total);
    let mut columns = vec![Column { keep: 1 << 32, alias: 0 }; weights.len()];
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|&index| left[index] < full);
    while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
        let keep = u64::try_from((left[less] << 32) / full).unwrap_or(1 << 32);
        columns[less] = Column { keep, alias: u32::try_from(more).unwrap_or(u32::MAX) };
        left[more] -= full - left[less];
        if left[more] < full {
            large.pop();
            small.push(more);
        }
    }
    columns.into()
}

/// A uniform index below `length` from 64 random bits (multiply-shift).
#[must_use]
pub fn below(random: u64, length: usize) -> usize {
    let scaled = (u128::from(random) * length as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::generator, *};

    #[test]
    fn draws_follow_weights() {
        let heavy = [1, 1_000_000];
        for weights in [vec![1, 1, 1, 1], vec![1, 3], vec![10, 20, 70], vec![5], heavy.to_vec(), vec![0, 1]] {
            let weighted = Weighted::new(&weights);
            let mut random = generator(7);
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..40_000 {
                counts[weighted.draw(random())] += 1;
            }
            let total: u32 = weights.iter().map(|&weight| weight.max(1)).sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let (share, expected) = (f64::from(*count) / 40_000.0, f64::from(*weight.max(&1)) / f64::from(total));
                assert!((share - expected).abs() < 0.01, "{weights:?}: {share} against {expected}");
            }
        }
    }
}
