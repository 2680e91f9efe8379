//! Consistent hashing: the same key goes to the same endpoint, and few keys move.

use super::*;

const KEYS: u32 = 8000;

fn hashing() -> [Algorithm; 2] {
    [Algorithm::Maglev(on_header()), Algorithm::RingHash(on_header())]
}

/// Where each of many keys goes, by address.
fn homes(balancer: &Balancer, all: &[Endpoint], now: u64, available: impl Fn(usize) -> bool) -> Vec<SocketAddr> {
    let (mut keys, mut random) = (generator(5), generator(6));
    let mut home =
        || pick(balancer, all, (Some(keys()), now), &mut random, &available).expect("something is available");
    (0..KEYS).map(|_| all[home()].address).collect()
}

fn moved(before: &[SocketAddr], after: &[SocketAddr]) -> f64 {
    let moved = before.iter().zip(after).filter(|(before, after)| before != after);
    moved.fold(0.0, |count, _| count + 1.0) / f64::from(KEYS)
}

#[test]
fn a_key_goes_to_the_same_endpoint_whatever_the_order_of_discovery() {
    for algorithm in hashing() {
        let all = endpoints(&[1, 2, 1, 3, 1]);
        let mut other = all.clone();
        other.reverse();
        let first = homes(&balancer(algorithm.clone(), &all), &all, 0, |_| true);
        assert_eq!(first, homes(&balancer(algorithm, &other), &other, 9, |_| true));
    }
}

#[test]
fn only_the_keys_of_an_endpoint_that_leaves_or_comes_move() {
    for algorithm in hashing() {
        for count in [2_u32, 5, 20, 100] {
            let all = endpoints(&vec![1; usize::try_from(count).expect("small")]);
            let fewer = all[1..].to_vec();
            let before = homes(&balancer(algorithm.clone(), &all), &all, 0, |_| true);
            let after = homes(&balancer(algorithm.clone(), &fewer), &fewer, 0, |_| true);
            let share = moved(&before, &after);
            assert!(share < 1.0 / f64::from(count) + 0.04, "{algorithm:?}: {share} of {count} moved");
        }
    }
}

#[test]
fn when_an_endpoint_is_out_only_its_keys_move_and_come_back() {
    for algorithm in hashing() {
        let all = endpoints(&[1, 1, 1, 1, 1]);
        let balancer = balancer(algorithm.clone(), &all);
        let before = homes(&balancer, &all, 0, |_| true);
        let during = homes(&balancer, &all, 0, |index| index != 2);
        for (before, during) in before.iter().zip(&during) {
            assert!(before == during || *before == all[2].address, "{algorithm:?}");
        }
        assert_eq!(before, homes(&balancer, &all, 0, |_| true));
        let again = homes(&balancer, &all, 0, |index| index != 2);
        assert_eq!(during, again, "the second home of a key is always the same");
    }
}

#[test]
fn a_request_without_a_key_goes_anywhere() {
    for algorithm in hashing() {
        let all = endpoints(&[1, 1, 1]);
        let balancer = balancer(algorithm, &all);
        let mut random = generator(2);
        let mut seen = [false; 3];
        for _ in 0..100 {
            seen[pick(&balancer, &all, (None, 0), &mut random, |_| true).expect("all are available")] = true;
        }
        assert_eq!(seen, [true; 3]);
    }
}

#[test]
fn keys_move_to_a_new_endpoint_by_and_by_and_never_back() {
    let policy = |algorithm| LoadBalancing { slow_start: Some(Duration::from_secs(100)), ..by(algorithm) };
    for algorithm in hashing() {
        let all = endpoints(&[1, 1, 1, 1]);
        let own = Locality::default();
        let first = Balancer::new(&policy(algorithm.clone()), &own, &all[..3], Nanos(0), None);
        let grown = Balancer::new(&policy(algorithm.clone()), &own, &all, Nanos(SECOND), Some((&first, &all[..3])));
        let mut before = homes(&first, &all[..3], 0, |_| true);
        let mut shares = Vec::new();
        for age in [0, 30, 60, 100] {
            let after = homes(&grown, &all, (1 + age) * SECOND, |_| true);
            for (before, after) in before.iter().zip(&after) {
                assert!(before == after || *after == all[3].address || age == 0, "{algorithm:?} after {age} s");
            }
            let own = after.iter().filter(|home| **home == all[3].address);
            shares.push(own.fold(0.0, |count, _| count + 1.0) / f64::from(KEYS));
            before = after;
        }
        assert_near(&shares, &[0.025, 0.075, 0.15, 0.25], 0.03, &format!("{algorithm:?}"));
    }
}
