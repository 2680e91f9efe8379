//! The bounds that a budget keeps, whatever comes when.

use proptest::prelude::*;

use super::*;

const SHARE: RetryBudget = RetryBudget { ppm: 200_000, min_per_second: 10 };

fn at(seconds: f64) -> Nanos {
    Nanos(std::time::Duration::from_secs_f64(seconds).as_nanos().try_into().expect("of a test"))
}

fn granted(budget: &Budget, now: Nanos) -> usize {
    (0..10_000).filter(|_| budget.try_retry(now)).count()
}

#[test]
fn a_retry_stops_when_the_budget_is_empty() {
    assert_eq!(granted(&Budget::default(), Nanos(0)), 10);
    assert_eq!(granted(&Budget::default(), at(3600.0)), 10, "to be idle earns nothing");
}

#[test]
fn a_burst_takes_from_the_second_that_follows_it() {
    let budget = Budget::default();
    assert_eq!(granted(&budget, at(5.0)), 10);
    assert_eq!(granted(&budget, at(6.05)), 0);
    for (seconds, sum) in [(6.1, 1), (6.15, 0), (6.2, 1), (6.3, 1)] {
        assert_eq!(granted(&budget, at(seconds)), sum, "{seconds}");
    }
    assert_eq!(granted(&budget, at(7.0)), 1, "no rest: what was not asked for in time is gone");
    assert_eq!(granted(&budget, at(8.0)), 10, "after a second without");
}

#[test]
fn what_requests_earn_is_kept_to_a_cap_while_there_are_requests() {
    let budget = Budget::default();
    for _ in 0..50 {
        budget.request(at(1.0));
    }
    assert_eq!(granted(&budget, at(1.0)), 20, "a fifth of them, and the floor");
    for _ in 0..10_000 {
        budget.request(at(1.5));
    }
    assert_eq!(granted(&budget, at(1.5)), 100);
    for step in 0..500_u32 {
        budget.request(at(2.0 + f64::from(step) * 0.9));
    }
    assert_eq!(granted(&budget, at(452.0)), 110, "few requests keep it too");
    for _ in 0..500 {
        budget.request(at(460.0));
    }
    budget.request(at(461.0));
    assert_eq!(granted(&budget, at(461.0)), 10, "after a second without requests nothing is left");
}

#[test]
fn a_policy_that_changes_takes_effect_at_once() {
    let (budget, now) = (Budget::default(), at(1.0));
    for _ in 0..1000 {
        budget.request(now);
    }
    budget.set(&RetryBudget { ppm: 0, min_per_second: 1 });
    assert_eq!(granted(&budget, now), 11, "what was kept is cut to the new cap, and the floor is another");
    budget.set(&RetryBudget { ppm: 500_000, min_per_second: 0 });
    for _ in 0..1000 {
        budget.request(now);
    }
    assert_eq!(granted(&budget, now), 10, "ten can be kept at least");
    budget.set(&RetryBudget { ppm: 0, min_per_second: 0 });
    budget.request(at(2.0));
    assert!(!budget.try_retry(at(2.0)));
}

/// What comes: the time since the event before, in nanoseconds, how many requests, how many failures that ask for a retry.
fn events() -> impl Strategy<Value = Vec<(u64, u32, u32)>> {
    let pause = prop_oneof![
        6 => 0..5_000_000_u64,
        6 => 0..150_000_000_u64,
        2 => 900_000_000..1_200_000_000_u64,
        1 => 1_900_000_000..4_000_000_000_u64,
    ];
    proptest::collection::vec((pause, 0..40_u32, 0..40_u32), 1..120)
}

/// At a time: requests, then retries that were let go.
type Seen = Vec<(u64, u64, u64)>;

fn observe(budget: &Budget, events: Vec<(u64, u32, u32)>) -> Seen {
    let (mut now, mut seen) = (3 * SECOND, Seen::new());
    for (pause, requests, failures) in events {
        now += pause;
        (0..requests).for_each(|_| budget.request(Nanos(now)));
        let retries = (0..failures).filter(|_| budget.try_retry(Nanos(now))).count();
        seen.push((now, requests.into(), u64::try_from(retries).expect("few")));
    }
    seen
}

/// In millionths: what the share of these requests and the floor of this time allow.
fn allowed(policy: &RetryBudget, requests: u64, nanos: u64, spare: u64) -> u64 {
    let floor = u64::from(policy.min_per_second);
    requests * u64::from(policy.ppm) + (floor * 1_000_000).max(floor * (nanos / 1000) + spare * 1_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn in_no_window_are_there_more_retries_than_share_and_floor_allow(
        events in events(),
        ppm in prop_oneof![Just(200_000_u32), 0..1_000_000_u32],
        min_per_second in prop_oneof![Just(10_u32), 0..60_u32],
    ) {
        let policy = RetryBudget { ppm, min_per_second };
        let budget = Budget::new(&policy);
        let kept = u64::try_from(budget.cap()).expect("positive");
        let seen = observe(&budget, events);
        for (first, (start, ..)) in seen.iter().enumerate() {
            let rested = first == 0 || start - seen[first - 1].0 >= 2 * SECOND;
            let (mut requests, mut retries) = (0, 0);
            for (now, more, again) in &seen[first..] {
                requests += more;
                retries += again;
                let most = allowed(&policy, requests, now - start, u64::from(!rested)) + if rested { 0 } else { kept };
                let context = format!("{retries} of {requests} requests in {} ns, rested: {rested}", now - start);
                prop_assert!(retries * 1_000_000 <= most, "{}", context);
            }
        }
    }

    #[test]
    fn a_load_that_fails_whole_gets_what_it_may_have(gaps in proptest::collection::vec(0..20_000_000_u64, 200..400)) {
        let budget = Budget::new(&SHARE);
        let seen = observe(&budget, gaps.into_iter().map(|gap| (gap, 1, 1)).collect());
        let (requests, retries) = seen.iter().fold((0, 0), |sum, (_, more, again)| (sum.0 + more, sum.1 + again));
        let nanos = seen[seen.len() - 1].0 - seen[0].0;
        let most = allowed(&SHARE, requests, nanos, 0);
        prop_assert!(retries * 1_000_000 <= most);
        // But for the rests of a retry, and what comes between two requests.
        prop_assert!((retries + 3) * 1_000_000 + most / 10 >= most, "{} of {}", retries, most);
    }
}
