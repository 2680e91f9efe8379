//! The choice as a whole: every algorithm, weights, tiers, slow start.

use std::time::Duration;

use http::HeaderName;

use super::*;

mod keys;
mod shares;
mod tiers;

const SECOND: u64 = 1_000_000_000;

/// A small deterministic generator (splitmix64).
pub fn generator(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[derive(Clone)]
struct Endpoint {
    address: SocketAddr,
    load: Arc<EndpointLoad>,
    locality: Locality,
    weight: u32,
}

impl Candidate for Endpoint {
    fn load(&self) -> &EndpointLoad {
        &self.load
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn locality(&self) -> &Locality {
        &self.locality
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

fn locality(region: &str, zone: &str) -> Locality {
    Locality { region: region.into(), zone: zone.into() }
}

fn endpoint(number: u16, weight: u32, locality: Locality) -> Endpoint {
    let [high, low] = number.to_be_bytes();
    Endpoint { address: SocketAddr::from(([10, 0, high, low], 80)), load: Arc::default(), locality, weight }
}

fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
    (1..).zip(weights).map(|(number, &weight)| endpoint(number, weight, Locality::default())).collect()
}

fn on_header() -> HashOn {
    HashOn::Header(HeaderName::from_static("x-user"))
}

fn every_algorithm() -> [Algorithm; 6] {
    [
        Algorithm::LeastLatency,
        Algorithm::LeastRequest,
        Algorithm::Maglev(on_header()),
        Algorithm::Random,
        Algorithm::RingHash(on_header()),
        Algorithm::RoundRobin,
    ]
}

fn by(algorithm: Algorithm) -> LoadBalancing {
    LoadBalancing { algorithm, ..LoadBalancing::default() }
}

fn balancer(algorithm: Algorithm, all: &[Endpoint]) -> Balancer {
    Balancer::new(&by(algorithm), &Locality::default(), all, Nanos(0), None)
}

/// The index of the endpoint that is picked.
fn pick(
    balancer: &Balancer,
    all: &[Endpoint],
    (hash, now): (Option<u64>, u64),
    random: &mut impl FnMut() -> u64,
    available: impl Fn(usize) -> bool,
) -> Option<usize> {
    let index =
        |endpoint: &Endpoint| (std::ptr::from_ref(endpoint).addr() - all.as_ptr().addr()) / size_of::<Endpoint>();
    let request = Request { hash, now: Nanos(now), random };
    balancer.pick(all, request, |endpoint| available(index(endpoint))).map(index)
}

/// Shares of `count` requests, none of which stays in flight.
fn shares(balancer: &Balancer, all: &[Endpoint], now: u64, count: u32, available: impl Fn(usize) -> bool) -> Vec<f64> {
    let (mut random, mut keys) = (generator(7), generator(8));
    let mut counts = vec![0_u32; all.len()];
    for _ in 0..count {
        let picked = pick(balancer, all, (Some(keys()), now), &mut random, &available).expect("something is available");
        counts[picked] += 1;
    }
    counts.iter().map(|&picked| f64::from(picked) / f64::from(count)).collect()
}

fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() <= tolerance);
    assert!(near, "{what}: {found:.3?} against {expected:.3?}");
}

#[test]
fn nothing_is_picked_from_nothing() {
    for algorithm in every_algorithm() {
        for (all, hash) in [(endpoints(&[]), Some(1)), (endpoints(&[]), None), (endpoints(&[1, 1]), Some(1))] {
            let balancer = balancer(algorithm.clone(), &all);
            assert_eq!(pick(&balancer, &all, (hash, 1), &mut generator(1), |_| false), None, "{algorithm:?}");
        }
    }
}

#[test]
fn what_is_not_available_is_never_picked_and_what_is_always_found() {
    for algorithm in every_algorithm() {
        for size in [3, 200] {
            let weights: Vec<u32> = (0..size).map(|index| if index == 0 { 1000 } else { 1 }).collect();
            let all = endpoints(&weights);
            let balancer = balancer(algorithm.clone(), &all);
            let (mut random, mut keys) = (generator(3), generator(4));
            for round in 0..300 {
                let hash = (round % 4 != 0).then(&mut keys);
                let picked = pick(&balancer, &all, (hash, 0), &mut random, |index| index == 2);
                assert_eq!(picked, Some(2), "{algorithm:?} of {size}");
            }
        }
    }
}

#[test]
fn a_balancer_for_another_list_does_not_panic() {
    for algorithm in every_algorithm() {
        let balancer = balancer(algorithm, &endpoints(&[1, 2, 3]));
        let one = endpoints(&[1]);
        let mut random = generator(1);
        for round in 0..100 {
            let picked = pick(&balancer, &one, (Some(round), 0), &mut random, |_| true);
            assert_eq!(picked, Some(0));
        }
    }
}
