//! Consistent hashing: a key goes to the same endpoint in every sidecar, and few keys move when an endpoint comes or goes.
//! Tables are built when the endpoints change, and a look-up is one search or one index.

use super::hash::mix;

/// Points of the heaviest endpoint on a ring: shares of equal endpoints then differ by about 8 %.
const POINTS: u64 = 160;
/// Points of a ring in all, as a bound on memory (12 bytes each).
const RING: u64 = 1 << 20;
/// Entries of a Maglev table: the prime of the paper. Fixed, since another size would move nearly every key.
const TABLE: u64 = 65_537;

/// One member of a table.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Hash of its address.
    pub hash: u64,
    /// Its weight.
    pub weight: u32,
}

/// Points of a ring, each owned by one member (as ketama).
#[derive(Debug)]
pub struct Ring {
    /// Ascending.
    points: Box<[u64]>,
    owners: Box<[u32]>,
}

/// Maglev's table (Eisenbud et al., NSDI 2016, section 3.4).
#[derive(Debug)]
pub struct Maglev(Box<[u32]>);

impl Ring {
    /// The points of an endpoint depend on its own address and on its weight relative to the heaviest.
    #[must_use]
    pub fn new(nodes: &[Node]) -> Self {
        let most = (RING / (nodes.len() as u64).max(1)).clamp(1, POINTS);
        let heaviest = heaviest(nodes);
        let mut ring = Vec::new();
        for (owner, node) in (0_u32..).zip(nodes) {
            let count = (u64::from(node.weight.max(1)) * most).div_ceil(heaviest);
            ring.extend((0..count).map(|point| (point_of(node.hash, point), owner)));
        }
        ring.sort_unstable();
        Self { points: ring.iter().map(|&(point, _)| point).collect(), owners: ring.iter().map(|&(_, o)| o).collect() }
    }

    /// The owners of the points from this key on, round the ring.
    pub fn from(&self, key: u64) -> impl Iterator<Item = usize> + '_ {
        let (before, after) = self.owners.split_at(self.points.partition_point(|&point| point < key));
        after.iter().chain(before).map(|&owner| owner as usize)
    }
}

impl Maglev {
    /// Members take turns, in the order of their hashes, to claim the first free entry of their own permutation; one with
    /// less weight sits out turns in proportion.
    #[must_use]
    pub fn new(nodes: &[Node]) -> Self {
        const FREE: u32 = u32::MAX;
        let heaviest = heaviest(nodes);
        // The order decides who wins an entry that two want, so it must not depend on the order of discovery.
        let mut order: Vec<(u32, &Node)> = (0_u32..).zip(nodes).collect();
        order.sort_unstable_by_key(|(_, node)| node.hash);
        // The state of each member: next entry, step, weight saved up.
        let start = |node: &Node| (node.hash % TABLE, mix(node.hash) % (TABLE - 1) + 1, 0_u64);
        let mut states: Vec<_> = order.iter().map(|(_, node)| start(node)).collect();
        let size = usize::try_from(TABLE).unwrap_or(0);
        let mut table = vec![FREE; size].into_boxed_slice();
        let mut free = if nodes.is_empty() { 0 } else { size };
        while free > 0 {
            for ((owner, node), (next, step, saved)) in order.iter().zip(&mut states) {
                *saved += u64::from(node.weight.max(1));
                if *saved < heaviest {
                    continue;
                }
                *saved -= heaviest;
                loop {
                    let entry = usize::try_from(*next).unwrap_or(0);
                    *next = (*next + *step) % TABLE;
                    if table[entry] == FREE {
                        table[entry] = *owner;
                        break;
                    }
                }
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Self(table)
    }

    /// The owners of the entries from this key on, round the table.
    pub fn from(&self, key: u64) -> impl Iterator<Item = usize> + '_ {
        let entry = usize::try_from(key % TABLE).unwrap_or(0).min(self.0.len());
        let (before, after) = self.0.split_at(entry);
        // An entry of a table without members belongs to nobody: its owner is beyond every list.
        after.iter().chain(before).map(|&owner| owner as usize)
    }
}

fn heaviest(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| u64::from(node.weight)).max().unwrap_or(1).max(1)
}

fn point_of(hash: u64, point: u64) -> u64 {
    mix(hash ^ mix(point.wrapping_add(1)))
}
