//! The choice among endpoints that are equally near, by each algorithm.

use super::{
    Candidate, Nanos, Newcomers,
    consistent::{Maglev, Node, Ring},
    hash::mix,
    schedule::Schedule,
    weighted::{Weighted, below},
};
use crate::model::Algorithm;

/// All requests, in thousandths.
pub const WHOLE: usize = 1000;
/// What a tier may take of its available share, in the same unit: over-provisioning of 1.4.
const OVERPROVISION: usize = 1400;
/// Attempts before the choice falls back to a scan, when what was drawn is not available.
const ATTEMPTS: usize = 8;
/// Steps along a ring or table before the scan.
const STEPS: usize = 32;
/// With unequal weights, how many times cheaper the second draw must be to win. Draws alone give shares by weight; taking
/// each small difference of latency for a reason would undo them.
const CLEARLY: f64 = 2.0;

/// Endpoints that are equally near.
#[derive(Debug)]
pub struct Tier {
    /// Index of the endpoint and its weight, by position.
    members: Box<[(u32, u32)]>,
    by_weight: Weighted,
    plan: Plan,
}

/// An endpoint when a tier is built.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// In the list of endpoints.
    pub index: u32,
    /// Of its address.
    pub hash: u64,
    /// At least 1.
    pub weight: u32,
}

#[derive(Debug)]
enum Plan {
    /// Of two, the one with the smaller cost; what a request in flight weighs, by position.
    LeastLatency(Box<[f64]>),
    LeastRequest(Box<[f64]>),
    Maglev(Maglev),
    Random,
    Ring(Ring),
    RoundRobin(Schedule),
}

/// One choice: the request and what may be chosen.
pub struct Choice<'r, 'e, C, R, A> {
    pub endpoints: &'e [C],
    pub available: A,
    pub newcomers: &'r Newcomers,
    pub hash: Option<u64>,
    pub now: Nanos,
    pub random: &'r mut R,
}

impl<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool> Choice<'_, 'e, C, R, A> {
    fn usable(&self, index: u32) -> Option<&'e C> {
        self.endpoints.get(index as usize).filter(|endpoint| (self.available)(endpoint))
    }

    /// An endpoint that is new takes only some of its turns.
    fn takes_turn(&mut self, index: u32) -> bool {
        !self.newcomers.any(self.now) || {
            let chance = (self.random)();
            self.newcomers.takes(index, self.now, chance)
        }
    }

    /// The same for a key: what an endpoint takes of the keys only grows.
    fn takes_key(&self, index: u32, hash: u64) -> bool {
        !self.newcomers.any(self.now) || self.newcomers.takes(index, self.now, mix(hash ^ u64::from(u32::MAX)))
    }
}

impl Tier {
    /// Of at least one member; `place` is where a round robin goes on.
    pub fn new(algorithm: &Algorithm, members: &[Member], place: u64) -> Self {
        let weights: Vec<u32> = members.iter().map(|member| member.weight).collect();
        let nodes =
            || members.iter().map(|member| Node { hash: member.hash, weight: member.weight }).collect::<Vec<_>>();
        Self {
            members: members.iter().map(|member| (member.index, member.weight)).collect(),
            by_weight: Weighted::new(&weights),
            plan: match algorithm {
                Algorithm::LeastLatency => Plan::LeastLatency(per_request(&weights)),
                Algorithm::LeastRequest => Plan::LeastRequest(per_request(&weights)),
                Algorithm::Maglev(_) => Plan::Maglev(Maglev::new(&nodes())),
                Algorithm::Random => Plan::Random,
                Algorithm::RingHash(_) => Plan::Ring(Ring::new(&nodes())),
                Algorithm::RoundRobin => Plan::RoundRobin(Schedule::new(&weights, place)),
            },
        }
    }

    /// How much of all requests its available members may take, in thousandths.
    pub fn takes<C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(&self, choice: &Choice<'_, '_, C, R, A>) -> usize {
        let all = self.members.len();
        // As soon as they suffice the count ends.
        let enough = (all * WHOLE).div_ceil(OVERPROVISION);
        let available = self.available(choice).take(enough).count();
        if available == enough { WHOLE } else { available * OVERPROVISION / all.max(1) }
    }

    /// Where its round robin stands.
    pub fn place(&self) -> Option<u64> {
        match &self.plan {
            Plan::RoundRobin(schedule) => Some(schedule.place()),
            _ => None,
        }
    }

    /// The members that are available.
    fn available<C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &Choice<'_, '_, C, R, A>,
    ) -> impl Iterator<Item = &(u32, u32)> {
        self.members.iter().filter(|(index, _)| choice.usable(*index).is_some())
    }

    /// The member for a request.
    pub fn pick<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &mut Choice<'_, 'e, C, R, A>,
    ) -> Option<&'e C> {
        let now = choice.now;
        match (&self.plan, choice.hash) {
            (Plan::LeastLatency(weighs), _) => {
                self.better_of_two(choice, |endpoint, at| endpoint.load().cost_by(now, weighs[at]))
            }
            (Plan::LeastRequest(weighs), _) => {
                self.better_of_two(choice, |endpoint, at| endpoint.load().queue(weighs[at]))
            }
            (Plan::Maglev(table), Some(hash)) => self.by_key(choice, hash, table.from(hash)),
            (Plan::Ring(ring), Some(hash)) => self.by_key(choice, hash, ring.from(hash)),
            (Plan::Maglev(_) | Plan::Random | Plan::Ring(_), _) => self.draw(choice).map(|(_, endpoint)| endpoint),
            (Plan::RoundRobin(schedule), _) => self.in_turn(choice, schedule),
        }
    }

    /// Power of two choices. Equal weights: two different members, and any difference decides. Unequal weights: two draws by
    /// weight, which may be the same, and only a clear difference decides.
    fn better_of_two<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &mut Choice<'_, 'e, C, R, A>,
        cost: impl Fn(&C, usize) -> f64,
    ) -> Option<&'e C> {
        let (at, first) = self.draw(choice)?;
        let Some((other, second)) = self.second(choice, at) else { return Some(first) };
        let clearly = if self.by_weight.is_uniform() { 1.0 } else { CLEARLY };
        Some(if cost(second, other) * clearly < cost(first, at) { second } else { first })
    }

    /// A member to compare with the one at `first`.
    fn second<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &mut Choice<'_, 'e, C, R, A>,
        first: usize,
    ) -> Option<(usize, &'e C)> {
        if self.members.len() < 2 {
            return None;
        }
        for _ in 0..ATTEMPTS {
            let random = (choice.random)();
            let at = if self.by_weight.is_uniform() {
                let at = below(random, self.members.len() - 1);
                if at < first { at } else { at + 1 }
            } else {
                self.by_weight.draw(random)
            };
            let index = self.members[at].0;
            if let Some(endpoint) = choice.usable(index) {
                return (at != first && choice.takes_turn(index)).then_some((at, endpoint));
            }
        }
        None
    }

    /// One member at random by weight.
    fn draw<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &mut Choice<'_, 'e, C, R, A>,
    ) -> Option<(usize, &'e C)> {
        for _ in 0..ATTEMPTS {
            let at = self.by_weight.draw((choice.random)());
            let index = self.members[at].0;
            if let Some(endpoint) = choice.usable(index)
                && choice.takes_turn(index)
            {
                return Some((at, endpoint));
            }
        }
        self.scan(choice)
    }

    /// The same in two passes, which miss nothing that is available, new or not.
    fn scan<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &mut Choice<'_, 'e, C, R, A>,
    ) -> Option<(usize, &'e C)> {
        let total: u64 = self.available(choice).map(|&(_, weight)| u64::from(weight)).sum();
        let mut left = (choice.random)().checked_rem(total)?;
        let mut last = None;
        for (at, &(index, weight)) in self.members.iter().enumerate() {
            let Some(endpoint) = choice.usable(index) else { continue };
            last = Some((at, endpoint));
            if left < u64::from(weight) {
                break;
            }
            left -= u64::from(weight);
        }
        last
    }

    fn in_turn<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &mut Choice<'_, 'e, C, R, A>,
        schedule: &Schedule,
    ) -> Option<&'e C> {
        for _ in 0..STEPS {
            let index = self.members[schedule.turn()?].0;
            if let Some(endpoint) = choice.usable(index)
                && choice.takes_turn(index)
            {
                return Some(endpoint);
            }
        }
        self.scan(choice).map(|(_, endpoint)| endpoint)
    }

    /// The first of `owners` that is available; when none of the next ones is, the first member from a place that the
    /// key gives. The same key finds the same way.
    fn by_key<'e, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
        &self,
        choice: &Choice<'_, 'e, C, R, A>,
        hash: u64,
        owners: impl Iterator<Item = usize>,
    ) -> Option<&'e C> {
        let mut near = owners.take(STEPS).filter_map(|at| self.members.get(at)).filter_map(|&(index, _)| {
            let endpoint = choice.usable(index)?;
            choice.takes_key(index, hash).then_some(endpoint)
        });
        near.next().or_else(|| {
            let (before, after) = self.members.split_at(below(mix(hash), self.members.len()));
            after.iter().chain(before).find_map(|&(index, _)| choice.usable(index))
        })
    }
}

/// What a request in flight weighs on each member: 1 at the mean weight.
fn per_request(weights: &[u32]) -> Box<[f64]> {
    let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let count = weights.iter().fold(0.0, |count, _| count + 1.0);
    weights.iter().map(|&weight| total / count / f64::from(weight.max(1))).collect()
}
