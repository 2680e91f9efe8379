//! The limiter against a naive model, under threads, and with more keys than it has room for.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, AtomicU64},
};

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn limit(requests: u32, per: Duration, burst: u32, key: RateKey) -> RateLimit {
    RateLimit { name: "a/x".into(), requests, per, burst, key }
}

fn ten_a_second(burst: u32, key: RateKey) -> RateLimiter {
    RateLimiter::new(&limit(10, Duration::from_secs(1), burst, key), 42)
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(number))
}

fn from(limiter: &RateLimiter, source: IpAddr, now: u64) -> Decision {
    limiter.check(&Caller { identity: None, source, headers: &HeaderMap::new(), claims: None }, Nanos(now))
}

fn admitted(limiter: &RateLimiter, source: IpAddr, now: u64, count: u32) -> u32 {
    (0..count).map(|_| u32::from(from(limiter, source, now).is_allowed())).sum()
}

#[test]
fn a_burst_is_let_in_at_once_and_then_the_steady_rate() {
    let limiter = ten_a_second(5, RateKey::Total);
    assert_eq!(admitted(&limiter, address(1), SECOND, 20), 5);
    assert_eq!(admitted(&limiter, address(1), SECOND + SECOND / 10 - 1, 20), 0);
    assert_eq!(admitted(&limiter, address(1), SECOND + SECOND / 10, 20), 1);
    assert_eq!(admitted(&limiter, address(1), 100 * SECOND, 20), 5, "what was not used does not pile up");
}

#[test]
fn the_answer_says_what_is_left_and_when_to_come_again() {
    let limiter = ten_a_second(2, RateKey::Total);
    let (tenth, fifth) = (Duration::from_millis(100), Duration::from_millis(200));
    let expected = [
        Decision::Allowed { remaining: 1, reset_after: tenth },
        Decision::Allowed { remaining: 0, reset_after: fifth },
        Decision::Limited { retry_after: tenth, reset_after: fifth },
        Decision::Limited { retry_after: tenth, reset_after: fifth },
    ];
    for expected in expected {
        assert_eq!(from(&limiter, address(1), 7), expected);
    }
}

#[test]
fn who_waits_as_long_as_told_is_let_in() {
    let limiter = RateLimiter::new(&limit(7, Duration::from_secs(3), 3, RateKey::SourceIp), 1);
    let mut now = 5;
    for _ in 0..50 {
        if let Decision::Limited { retry_after, .. } = from(&limiter, address(1), now) {
            now += u64::try_from(retry_after.as_nanos()).expect("short");
            assert!(from(&limiter, address(1), now).is_allowed());
        }
    }
}

#[test]
fn each_kind_of_key_has_its_own_count() {
    let one = SpiffeId::parse("spiffe://mesh.local/ns/a/sa/one").expect("valid");
    let two = SpiffeId::parse("spiffe://mesh.local/ns/a/sa/two").expect("valid");
    let name = HeaderName::from_static("x-user");
    let mut alice = HeaderMap::new();
    alice.insert(&name, HeaderValue::from_static("alice"));
    let none = HeaderMap::new();
    let caller = |identity, source, headers| Caller { identity, source: address(source), headers, claims: None };
    let claims = |pairs: &[(&'static str, &'static str)]| Claims::new(pairs.iter().copied()).expect("few");
    let (ann, bob) = (claims(&[("sub", "ann"), ("role", "a")]), claims(&[("sub", "bob"), ("role", "a")]));
    // The same letters in other values.
    let (joined, apart) = (claims(&[("role", "ab")]), claims(&[("role", "a"), ("role", "b")]));
    let with = |claims| Caller { claims: Some(claims), ..caller(None, 1, &none) };
    let cases = [
        (RateKey::Identity, caller(Some(&one), 1, &none), caller(Some(&two), 1, &none)),
        (RateKey::Identity, caller(Some(&one), 1, &none), caller(None, 1, &none)),
        (RateKey::SourceIp, caller(Some(&one), 1, &none), caller(Some(&one), 2, &none)),
        (RateKey::Header(name.clone()), caller(None, 1, &alice), caller(None, 1, &none)),
        (RateKey::Claim("sub".into()), with(&ann), with(&bob)),
        (RateKey::Claim("sub".into()), with(&ann), caller(None, 1, &none)),
        (RateKey::Claim("role".into()), with(&joined), with(&apart)),
    ];
    for (key, first, second) in cases {
        let limiter = ten_a_second(1, key.clone());
        assert!(limiter.check(&first, Nanos(1)).is_allowed(), "{key:?}");
        assert!(!limiter.check(&first, Nanos(1)).is_allowed(), "{key:?}");
        assert!(limiter.check(&second, Nanos(1)).is_allowed(), "{key:?}");
        assert!(!limiter.check(&second, Nanos(1)).is_allowed(), "{key:?}");
    }
    let total = ten_a_second(1, RateKey::Total);
    assert!(total.check(&caller(Some(&one), 1, &none), Nanos(1)).is_allowed());
    let same = ten_a_second(1, RateKey::Claim("role".into()));
    assert!(same.check(&with(&ann), Nanos(1)).is_allowed());
    assert!(!same.check(&with(&bob), Nanos(1)).is_allowed(), "both have the same role");
    assert!(!total.check(&caller(Some(&two), 2, &alice), Nanos(1)).is_allowed());
}

#[test]
fn what_is_taken_back_was_never_counted() {
    for key in [RateKey::Total, RateKey::SourceIp] {
        let limiter = ten_a_second(3, key.clone());
        let headers = HeaderMap::new();
        let caller = |source| Caller { identity: None, source, headers: &headers, claims: None };
        for now in [0, 50_000_000, 900_000_000] {
            let before = from(&limiter, address(1), now);
            for _ in 0..10 {
                assert!(from(&limiter, address(1), now).is_allowed(), "{key:?} {now}");
                limiter.undo(&caller(address(1)));
            }
            limiter.undo(&caller(address(1)));
            assert_eq!(from(&limiter, address(1), now), before, "{key:?} {now}");
            limiter.undo(&caller(address(1)));
        }
        limiter.undo(&caller(address(2)));
        assert_eq!(admitted(&limiter, address(1), 900_000_000, 9), 3, "{key:?}: no more than a burst");
    }
}

#[test]
fn more_keys_than_there_is_room_for_only_make_it_more_lenient() {
    let limiter = ten_a_second(1, RateKey::SourceIp);
    for number in 0..100_000 {
        assert!(from(&limiter, address(number), SECOND).is_allowed(), "each is new");
    }
    let State::Keyed(table) = &limiter.state else { panic!("by address") };
    assert_eq!(table.sets.len(), SETS);
    // Keys that come less often than they may push out nobody that is over its limit.
    let busy = ten_a_second(3, RateKey::SourceIp);
    assert_eq!(admitted(&busy, address(0), SECOND, 10), 3);
    assert_eq!((1..2000).map(|number| admitted(&busy, address(number), SECOND, 1)).sum::<u32>(), 1999);
    assert_eq!(admitted(&busy, address(0), SECOND, 10), 0);
}

#[test]
fn the_longest_limits_do_not_overflow() {
    for requests in [1, u32::MAX] {
        let limiter = RateLimiter::new(&limit(requests, Duration::MAX, u32::MAX, RateKey::Total), 1);
        for now in [0, 1, u64::MAX / 4] {
            assert!(from(&limiter, address(1), now).is_allowed() || now == 0);
        }
        let fast = RateLimiter::new(&limit(requests, Duration::from_nanos(1), 1, RateKey::Total), 1);
        assert!(from(&fast, address(1), 1).is_allowed());
    }
}

#[test]
fn racing_threads_never_get_more_than_the_burst_and_the_rate() {
    for key in [RateKey::Total, RateKey::SourceIp] {
        let limiter = RateLimiter::new(&limit(1000, Duration::from_secs(1), 50, key), 3);
        let (clock, let_in) = (AtomicU64::new(1), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let now = clock.fetch_add(10_000, Relaxed);
                        let_in.fetch_add(u32::from(from(&limiter, address(1), now).is_allowed()), Relaxed);
                    }
                });
            }
        });
        // 80,000 steps of 10 us are 0.8 s: 50 and 800.
        let let_in = let_in.into_inner();
        assert!((800..=850).contains(&let_in), "{let_in}");
    }
}

/// A bucket of fractions of a request in units of 1 / `interval`: filled by time, emptied by requests.
struct Bucket {
    level: u64,
    seen: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn it_decides_as_a_token_bucket_for_each_key(
        requests in 1_u32..50,
        burst in 1_u32..20,
        steps in proptest::collection::vec((0_u64..200_000_000, 0_u32..5), 1..300),
    ) {
        let limiter = RateLimiter::new(&limit(requests, Duration::from_secs(1), burst, RateKey::SourceIp), 9);
        let interval = SECOND.div_ceil(u64::from(requests));
        let full = interval * u64::from(burst);
        let mut model: HashMap<u32, Bucket> = HashMap::new();
        let mut now = 1;
        for (step, key) in steps {
            now += step;
            let bucket = model.entry(key).or_insert(Bucket { level: full, seen: now });
            bucket.level = (bucket.level + now - bucket.seen).min(full);
            bucket.seen = now;
            let expected = bucket.level >= interval;
            if expected {
                bucket.level -= interval;
            }
            match from(&limiter, address(key), now) {
                Decision::Allowed { remaining, reset_after } => {
                    prop_assert!(expected);
                    prop_assert_eq!(u64::from(remaining), bucket.level / interval);
                    prop_assert_eq!(reset_after, Duration::from_nanos(full - bucket.level));
                }
                Decision::Limited { retry_after, .. } => {
                    prop_assert!(!expected);
                    prop_assert_eq!(retry_after, Duration::from_nanos(interval - bucket.level));
                }
            }
        }
    }
}
