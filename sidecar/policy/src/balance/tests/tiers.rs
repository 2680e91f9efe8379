//! Nearness and slow start.

use super::*;

/// Ten endpoints in our zone, ten in another zone of our region, ten elsewhere.
fn places() -> (Locality, Vec<Endpoint>) {
    let at = |first: u16, zone: &'static str, region: &'static str| {
        (first..first + 10).map(move |number| endpoint(number, 1, locality(region, zone)))
    };
    let all = at(0, "a", "here").chain(at(10, "b", "here")).chain(at(20, "a", "there")).collect();
    (locality("here", "a"), all)
}

/// The share of each tier when this many of its endpoints are available.
fn by_tier(algorithm: Algorithm, up: [usize; 3]) -> Vec<f64> {
    let (own, all) = places();
    let balancer = Balancer::new(&by(algorithm), &own, &all, Nanos(0), None);
    let found = shares(&balancer, &all, 0, 10_000, |index| index % 10 < up[index / 10]);
    found.chunks(10).map(|tier| tier.iter().sum()).collect()
}

#[test]
fn requests_stay_in_the_zone_and_spill_as_it_loses_endpoints() {
    let cases = [
        ([10, 10, 10], [1.0, 0.0, 0.0]),
        ([8, 10, 10], [1.0, 0.0, 0.0]),
        ([5, 10, 10], [0.7, 0.3, 0.0]),
        ([1, 10, 10], [0.14, 0.86, 0.0]),
        ([0, 10, 10], [0.0, 1.0, 0.0]),
        ([0, 0, 10], [0.0, 0.0, 1.0]),
        ([1, 1, 10], [0.14, 0.14, 0.72]),
        // Not enough anywhere: in proportion.
        ([1, 1, 2], [0.25, 0.25, 0.5]),
        ([0, 0, 1], [0.0, 0.0, 1.0]),
        ([1, 0, 0], [1.0, 0.0, 0.0]),
    ];
    for algorithm in every_algorithm() {
        for (up, expected) in &cases {
            assert_near(&by_tier(algorithm.clone(), *up), expected, 0.02, &format!("{algorithm:?} {up:?}"));
        }
    }
}

#[test]
fn a_key_that_stays_in_its_zone_does_so_each_time() {
    let (own, all) = places();
    let balancer = Balancer::new(&by(Algorithm::Maglev(on_header())), &own, &all, Nanos(0), None);
    let mut random = generator(1);
    for key in 0..200 {
        let mut home =
            || pick(&balancer, &all, (Some(hash::mix(key)), 0), &mut random, |index| !(5..10).contains(&index));
        let first = home();
        assert!((0..10).all(|_| home() == first));
    }
}

#[test]
fn without_a_place_of_our_own_or_a_preference_all_are_equally_near() {
    let (own, all) = places();
    let anywhere = LoadBalancing { prefer: Vec::new(), ..by(Algorithm::Random) };
    let cases = [(by(Algorithm::Random), Locality::default()), (anywhere, own)];
    for (policy, own) in cases {
        let balancer = Balancer::new(&policy, &own, &all, Nanos(0), None);
        let found = shares(&balancer, &all, 0, 10_000, |_| true);
        assert_near(&found, &[1.0 / 30.0; 30], 0.01, "all alike");
    }
}

#[test]
fn an_endpoint_that_names_its_zone_alone_is_near() {
    let place = |region, zone| locality(region, zone);
    let prefer = [Place::Zone, Place::Region];
    assert_eq!(rank(&prefer, &place("r", "a"), &place("", "a")), 0);
    assert_eq!(rank(&prefer, &place("", "a"), &place("r", "a")), 0);
    assert_eq!(rank(&prefer, &place("r", "a"), &place("s", "a")), 2, "zones of two regions may share a name");
    assert_eq!(rank(&prefer, &place("r", "a"), &place("r", "")), 1);
    assert_eq!(rank(&[Place::Region], &place("r", "a"), &place("r", "b")), 0);
}

#[test]
fn a_new_endpoint_gets_its_share_by_and_by() {
    for algorithm in every_algorithm() {
        let policy = LoadBalancing { slow_start: Some(Duration::from_secs(10)), ..by(algorithm.clone()) };
        let all = endpoints(&[1, 1, 1, 1]);
        let own = Locality::default();
        let first = Balancer::new(&policy, &own, &all[..3], Nanos(5 * SECOND), None);
        let grown = Balancer::new(&policy, &own, &all, Nanos(6 * SECOND), Some((&first, &all[..3])));
        // A change of something else does not make it new again.
        let later = Balancer::new(&policy, &own, &all, Nanos(7 * SECOND), Some((&grown, &all[..])));
        let share = |seconds: u64| shares(&later, &all, seconds * SECOND, 10_000, |_| true)[3];
        let mut last = 0.0;
        for (at, least, most) in [(7, 0.01, 0.06), (11, 0.10, 0.20), (16, 0.20, 0.30)] {
            let share = share(at);
            assert!(share > last && (least..most).contains(&share), "{algorithm:?} at {at} s: {share}");
            last = share;
        }
    }
}

#[test]
fn endpoints_of_the_first_set_are_not_new() {
    let policy = LoadBalancing { slow_start: Some(Duration::from_secs(10)), ..by(Algorithm::Random) };
    let all = endpoints(&[1, 1]);
    let own = Locality::default();
    let empty = Balancer::new::<Endpoint>(&policy, &own, &[], Nanos(SECOND), None);
    // Also not those that come to a service without endpoints: there is nobody else to take their share.
    let first = Balancer::new(&policy, &own, &all, Nanos(2 * SECOND), Some((&empty, &all[..0])));
    assert!(!first.newcomers.any(Nanos(2 * SECOND)));
}

#[test]
fn a_round_robin_goes_on_where_it_was() {
    let all = endpoints(&[1, 1, 1]);
    let first = balancer(Algorithm::RoundRobin, &all);
    let mut random = generator(1);
    let mut next = |balancer: &Balancer| pick(balancer, &all, (None, 0), &mut random, |_| true).expect("available");
    let one = next(&first);
    let second =
        Balancer::new(&by(Algorithm::RoundRobin), &Locality::default(), &all, Nanos(9), Some((&first, &all[..])));
    assert_eq!(next(&second), (one + 1) % 3);
}
