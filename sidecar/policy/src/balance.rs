//! Which endpoint takes the next request. A [`Balancer`] is built when the endpoints or their policy change and holds all
//! that can be known then: the nearness of endpoints, and the table of the algorithm. A request reads it, without locks
//! or allocations; the only state is atomics that all workers share.
//!
//! Nearness: endpoints of the caller's own zone first, then of its region, then all others (`LoadBalancing::prefer`). A
//! tier takes all requests while 5/7 of its endpoints are available (over-provisioning 1.4, as Envoy), below that
//! 1.4 x its available share, and what is left goes to the next tier. So no endpoint gets more than 1.4 times its share, and
//! the change is smooth. When all tiers together are too small, each gets in proportion to what it could take.
//!
//! Slow start: an endpoint that has just joined takes its turn only by chance, max(10 %, time since / window).

pub mod hash;

mod consistent;
mod load;
mod schedule;
mod tier;
mod weighted;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

pub use self::load::EndpointLoad;
use self::{
    tier::{Choice, Member, Tier, WHOLE},
    weighted::below,
};
use crate::model::{Algorithm, HashOn, LoadBalancing, Locality, Place};

/// Monotonic time in nanoseconds since any fixed moment.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Nanos(pub u64);

/// Something that can be chosen.
pub trait Candidate {
    /// Its load.
    fn load(&self) -> &EndpointLoad;
    /// Its relative weight; 0 counts as 1.
    fn weight(&self) -> u32;
    /// Where it is.
    fn locality(&self) -> &Locality;
    /// Its name for hashing and for knowing it again: the same in all sidecars, unique in the set.
    fn address(&self) -> SocketAddr;
}

impl<T: Candidate> Candidate for Arc<T> {
    fn load(&self) -> &EndpointLoad {
        (**self).load()
    }

    fn weight(&self) -> u32 {
        (**self).weight()
    }

    fn locality(&self) -> &Locality {
        (**self).locality()
    }

    fn address(&self) -> SocketAddr {
        (**self).address()
    }
}

/// What of a request matters for the choice.
pub struct Request<'r, R> {
    /// Of what [`Balancer::hash_on`] names; `None`, also for algorithms that hash: at random.
    pub hash: Option<u64>,
    /// Now.
    pub now: Nanos,
    /// 64 random bits with each call.
    pub random: &'r mut R,
}

/// Chooses among one set of endpoints.
#[derive(Debug)]
pub struct Balancer {
    policy: LoadBalancing,
    /// Nearest first, none empty.
    tiers: Box<[Tier]>,
    newcomers: Newcomers,
}

/// When an endpoint came; `None`: with the first set that was seen, so it is not new.
type Joined = Option<Nanos>;

/// The endpoints that do not have their full share yet.
#[derive(Debug, Default)]
struct Newcomers {
    /// How long it takes, in nanoseconds; not 0 where there are any.
    window: u64,
    /// When the last of them is done; 0 when there are none.
    until: Nanos,
    /// By index of the endpoint. Empty without slow start: one that joins before that is turned on is not new.
    joined: Box<[Joined]>,
}

impl Balancer {
    /// For these endpoints, of which each pick must be given the same list in the same order. `previous` is the balancer of
    /// the same target before, with its endpoints, from which the ages of endpoints and the place of a round robin are
    /// taken.
    #[must_use]
    pub fn new<C: Candidate>(
        policy: &LoadBalancing,
        own: &Locality,
        endpoints: &[C],
        now: Nanos,
        previous: Option<(&Self, &[C])>,
    ) -> Self {
        let mut tiers: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
        for (index, endpoint) in (0_u32..).zip(endpoints) {
            let (hash, weight) = (hash::of_address(endpoint.address()), endpoint.weight().max(1));
            let rank = rank(&policy.prefer, own, endpoint.locality());
            tiers.entry(rank).or_default().push(Member { index, hash, weight });
        }
        let place = |rank: usize| {
            let before = previous.and_then(|(previous, _)| previous.tiers.get(rank)).and_then(Tier::place);
            before.unwrap_or_else(|| hash::mix(now.0))
        };
        let tiers = tiers.into_values().enumerate();
        let joined = || joined(endpoints, now, previous);
        Self {
            tiers: tiers.map(|(rank, members)| Tier::new(&policy.algorithm, &members, place(rank))).collect(),
            newcomers: policy.slow_start.map_or_else(Newcomers::default, |window| Newcomers::new(window, joined())),
            policy: policy.clone(),
        }
    }

    /// What it was built by.
    #[must_use]
    pub const fn policy(&self) -> &LoadBalancing {
        &self.policy
    }

    /// What requests are hashed by (see [`hash::of_request`]); `None`: they need no hash.
    #[must_use]
    pub const fn hash_on(&self) -> Option<&HashOn> {
        match &self.policy.algorithm {
            Algorithm::RingHash(on) | Algorithm::Maglev(on) => Some(on),
            Algorithm::LeastLatency | Algorithm::LeastRequest | Algorithm::Random | Algorithm::RoundRobin => None,
        }
    }

    /// One of `endpoints`, which are those that the balancer was built for. Not available are endpoints that are ejected or
    /// have failed this request. `None` when nothing is available: what to do then is the caller's choice.
    pub fn pick<'e, C: Candidate, R: FnMut() -> u64>(
        &self,
        endpoints: &'e [C],
        request: Request<'_, R>,
        available: impl Fn(&C) -> bool,
    ) -> Option<&'e C> {
        let Request { hash, now, random } = request;
        let hash = hash.filter(|_| self.hash_on().is_some());
        let mut choice = Choice { endpoints, available, newcomers: &self.newcomers, hash, now, random };
        match &*self.tiers {
            [only] => only.pick(&mut choice),
            tiers => {
                let tier = nearest(tiers, &mut choice)?;
                // Availability may have changed between the two looks.
                tier.pick(&mut choice).or_else(|| tiers.iter().find_map(|tier| tier.pick(&mut choice)))
            }
        }
    }
}

/// The tier that takes a request.
fn nearest<'t, C: Candidate, R: FnMut() -> u64, A: Fn(&C) -> bool>(
    tiers: &'t [Tier],
    choice: &mut Choice<'_, '_, C, R, A>,
) -> Option<&'t Tier> {
    let first = tiers.first()?;
    if first.takes(choice) == WHOLE {
        return Some(first);
    }
    let total: usize = tiers.iter().map(|tier| tier.takes(choice)).sum();
    // A hashed request draws by its hash, so that the same key stays in the same tier.
    let random = match choice.hash {
        Some(hash) => hash::mix(!hash),
        None => (choice.random)(),
    };
    let mut point = below(random, total.min(WHOLE));
    let mut last = None;
    for tier in tiers {
        let share = tier.takes(choice);
        if point < share {
            return Some(tier);
        }
        point -= share;
        last = if share > 0 { Some(tier) } else { last };
    }
    last
}

/// How near an endpoint is: the first of the preferred places that it shares with us.
fn rank(prefer: &[Place], own: &Locality, endpoint: &Locality) -> usize {
    let same = |own: &str, other: &str| !own.is_empty() && own == other;
    // Kubernetes names the zone of an endpoint alone: an unknown region contradicts nothing.
    let region = own.region.is_empty() || endpoint.region.is_empty() || own.region == endpoint.region;
    let near = |place: &Place| match place {
        Place::Zone => same(&own.zone, &endpoint.zone) && region,
        Place::Region => same(&own.region, &endpoint.region),
    };
    prefer.iter().position(near).unwrap_or(prefer.len())
}

/// When each endpoint came.
fn joined<C: Candidate>(endpoints: &[C], now: Nanos, previous: Option<(&Balancer, &[C])>) -> Box<[Joined]> {
    let Some((balancer, known)) = previous.filter(|(_, known)| !known.is_empty()) else {
        return vec![None; endpoints.len()].into();
    };
    let before = |index: usize| balancer.newcomers.joined.get(index).copied().flatten();
    let known: HashMap<_, _> =
        known.iter().enumerate().map(|(index, endpoint)| (endpoint.address(), before(index))).collect();
    endpoints.iter().map(|endpoint| known.get(&endpoint.address()).copied().unwrap_or(Some(now))).collect()
}

impl Newcomers {
    fn new(window: Duration, joined: Box<[Joined]>) -> Self {
        let window = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let last = joined.iter().flatten().max();
        let until = last.map_or(Nanos(0), |last| Nanos(last.0.saturating_add(window)));
        Self { window, until, joined }
    }

    /// There are some.
    fn any(&self, now: Nanos) -> bool {
        now < self.until
    }

    /// The endpoint takes this turn: always, unless it is new.
    fn takes(&self, index: u32, now: Nanos, chance: u64) -> bool {
        let Some(Some(joined)) = self.joined.get(index as usize) else { return true };
        let age = now.0.saturating_sub(joined.0);
        let draw = (u128::from(chance) * u128::from(self.window)) >> 64;
        draw < u128::from(age.max(self.window / 10))
    }
}

#[cfg(test)]
pub(crate) mod tests;
