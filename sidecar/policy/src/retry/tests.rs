use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const CLOCK: SystemTime = SystemTime::UNIX_EPOCH;

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let fields = fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value")));
    fields.collect()
}

/// A first GET that failed like this, with another endpoint to go to.
fn get(failure: Failure, headers: &HeaderMap) -> Attempt<'_> {
    Attempt {
        method: &Method::GET,
        headers,
        number: 1,
        failure,
        replayable: true,
        response: None,
        elsewhere: true,
        left: None,
    }
}

fn outcome(attempt: &Attempt<'_>) -> Result<Duration, Stop> {
    with(&model::Retry::default(), attempt)
}

fn with(policy: &model::Retry, attempt: &Attempt<'_>) -> Result<Duration, Stop> {
    with_random(policy, attempt, 10_000_000)
}

fn with_random(policy: &model::Retry, attempt: &Attempt<'_>, random: u64) -> Result<Duration, Stop> {
    match decide(policy, attempt, &Budget::default(), &Limits::default(), Nanos(0), CLOCK, random) {
        Decision::Retry { after, .. } => Ok(after),
        Decision::Stop(stop) => Err(stop),
    }
}

const UNAVAILABLE: Failure = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
const FAILURES: [Failure; 6] =
    [Failure::Unsent, Failure::Refused, Failure::Reset, Failure::TryTimeout, UNAVAILABLE, Failure::Grpc(14)];
const JITTER: Duration = Duration::from_millis(10);

#[test]
fn a_get_is_sent_again_after_every_kind_of_failure() {
    let none = HeaderMap::new();
    for failure in FAILURES {
        let wait = if failure == Failure::Unsent { Duration::ZERO } else { JITTER };
        assert_eq!(outcome(&get(failure, &none)), Ok(wait), "{failure:?}");
    }
}

#[test]
fn a_post_is_sent_again_only_when_it_had_no_effect_or_carries_a_key_or_by_policy() {
    let (none, key) = (HeaderMap::new(), headers(&[("idempotency-key", "a")]));
    let by_policy = model::Retry { methods: Some(vec![Method::POST]), ..model::Retry::default() };
    for failure in FAILURES {
        let post = Attempt { method: &Method::POST, ..get(failure, &none) };
        let expected = matches!(failure, Failure::Unsent | Failure::Refused);
        assert_eq!(outcome(&post).is_ok(), expected, "{failure:?}");
        assert!(expected || outcome(&post) == Err(Stop::NotIdempotent));
        assert!(outcome(&Attempt { headers: &key, ..post }).is_ok());
        assert!(with(&by_policy, &post).is_ok());
    }
    assert_eq!(with(&by_policy, &get(Failure::Reset, &none)), Err(Stop::NotIdempotent), "the policy names POST only");
}

#[test]
fn what_the_policy_does_not_name_is_the_callers_to_see() {
    let none = HeaderMap::new();
    for failure in [Failure::Status(StatusCode::INTERNAL_SERVER_ERROR), Failure::Grpc(13), Failure::Grpc(4)] {
        assert_eq!(outcome(&get(failure, &none)), Err(Stop::NotRetriable));
    }
    let more = model::Retry {
        codes: vec![StatusCode::INTERNAL_SERVER_ERROR],
        grpc_codes: vec![13],
        ..model::Retry::default()
    };
    assert!(with(&more, &get(Failure::Status(StatusCode::INTERNAL_SERVER_ERROR), &none)).is_ok());
    assert!(with(&more, &get(Failure::Grpc(13), &none)).is_ok());
    assert_eq!(with(&more, &get(UNAVAILABLE, &none)), Err(Stop::NotRetriable));
}

#[test]
fn tries_end_also_for_requests_that_were_never_sent() {
    let none = HeaderMap::new();
    for (number, again) in [(1, true), (2, true), (3, false), (u32::MAX, false)] {
        let attempt = Attempt { number, ..get(Failure::Unsent, &none) };
        assert_eq!(outcome(&attempt).is_ok(), again, "try {number}");
    }
    let no_retries = model::Retry { attempts: 0, ..model::Retry::default() };
    assert_eq!(with(&no_retries, &get(Failure::Unsent, &none)), Err(Stop::Attempts));
}

#[test]
fn a_body_that_was_not_kept_is_not_sent_again_whatever_the_failure() {
    let none = HeaderMap::new();
    for failure in FAILURES {
        let told = outcome(&Attempt { replayable: false, ..get(failure, &none) });
        assert_eq!(told, Err(Stop::TooLarge), "{failure:?}");
    }
}

#[test]
fn what_was_not_sent_goes_elsewhere_at_once_and_waits_when_there_is_nowhere_else() {
    let none = HeaderMap::new();
    assert_eq!(outcome(&Attempt { elsewhere: false, ..get(Failure::Unsent, &none) }), Ok(JITTER));
}

#[test]
fn retry_after_is_honoured_up_to_a_second() {
    let none = HeaderMap::new();
    for (value, expected) in [
        ("0", Ok(JITTER)),
        ("1", Ok(Duration::from_secs(1) + JITTER)),
        ("2", Err(Stop::RetryAfterTooLong)),
        ("99999999999999999999999", Err(Stop::RetryAfterTooLong)),
        ("Thu, 01 Jan 1970 00:00:01 GMT", Ok(Duration::from_secs(1) + JITTER)),
        ("Thu, 01 Jan 1970 00:00:02 GMT", Err(Stop::RetryAfterTooLong)),
        ("soon", Ok(JITTER)),
        ("-1", Ok(JITTER)),
        ("", Ok(JITTER)),
    ] {
        let response = headers(&[("retry-after", value)]);
        let attempt = Attempt { response: Some(&response), ..get(UNAVAILABLE, &none) };
        assert_eq!(outcome(&attempt), expected, "Retry-After: {value}");
    }
}

#[test]
fn a_date_that_has_passed_asks_for_nothing() {
    let (none, response) = (HeaderMap::new(), headers(&[("retry-after", "Thu, 01 Jan 1970 00:00:01 GMT")]));
    let attempt = Attempt { response: Some(&response), ..get(UNAVAILABLE, &none) };
    let clock = CLOCK + Duration::from_secs(60);
    assert_eq!(after(&model::Retry::default(), &attempt, clock, 10_000_000), Ok(JITTER));
}

#[test]
fn push_back_of_a_grpc_server_is_honoured_and_goes_before_retry_after() {
    let none = HeaderMap::new();
    for (value, expected) in [
        ("0", Ok(JITTER)),
        ("500", Ok(Duration::from_millis(500) + JITTER)),
        ("1000", Ok(Duration::from_secs(1) + JITTER)),
        ("1001", Err(Stop::RetryAfterTooLong)),
        ("-1", Err(Stop::PushBack)),
        ("later", Err(Stop::PushBack)),
    ] {
        let response = headers(&[("grpc-retry-pushback-ms", value), ("retry-after", "9")]);
        let attempt = Attempt { response: Some(&response), ..get(Failure::Grpc(14), &none) };
        assert_eq!(outcome(&attempt), expected, "push-back {value}");
    }
}

#[test]
fn a_wait_beyond_the_deadline_is_not_begun() {
    let none = HeaderMap::new();
    let left = |left| outcome(&Attempt { left: Some(left), ..get(UNAVAILABLE, &none) });
    assert_eq!(left(JITTER), Err(Stop::Deadline));
    assert_eq!(left(JITTER + Duration::from_millis(1)), Ok(JITTER));
    let nothing_left = Attempt { left: Some(Duration::ZERO), ..get(Failure::Unsent, &none) };
    assert_eq!(outcome(&nothing_left), Err(Stop::Deadline));
}

#[test]
fn only_what_was_sent_takes_from_the_budget() {
    let (none, policy, limits) = (HeaderMap::new(), model::Retry::default(), Limits::default());
    for failure in FAILURES {
        let budget = Budget::default();
        let granted = (0..100)
            .filter(|_| {
                let decision = decide(&policy, &get(failure, &none), &budget, &limits, Nanos(0), CLOCK, 0);
                assert!(!matches!(decision, Decision::Stop(stop) if stop != Stop::Budget));
                matches!(decision, Decision::Retry { .. })
            })
            .count();
        assert_eq!(granted, if failure == Failure::Unsent { 100 } else { 10 }, "{failure:?}");
    }
}

#[test]
fn a_retry_that_is_not_sent_takes_nothing() {
    let (none, policy, limits, budget) =
        (HeaderMap::new(), model::Retry::default(), Limits::default(), Budget::default());
    let refused = [
        Attempt { number: 3, ..get(Failure::Reset, &none) },
        Attempt { method: &Method::POST, ..get(Failure::Reset, &none) },
        Attempt { replayable: false, ..get(Failure::Reset, &none) },
        Attempt { left: Some(Duration::ZERO), ..get(Failure::Reset, &none) },
    ];
    for attempt in refused.iter().cycle().take(100) {
        let decision = decide(&policy, attempt, &budget, &limits, Nanos(0), CLOCK, 0);
        assert!(matches!(decision, Decision::Stop(_)));
    }
    assert_eq!(limits.retries.current(), 0);
    assert!(budget.try_retry(Nanos(0)));
}

#[test]
fn retries_in_flight_are_limited_and_a_place_comes_back() {
    let (none, policy, budget) = (HeaderMap::new(), model::Retry::default(), Budget::default());
    let limits = Limits::new(&model::Limits { retries: Some(1), ..model::Limits::default() });
    let attempt = get(Failure::Reset, &none);
    let decide = || decide(&policy, &attempt, &budget, &limits, Nanos(0), CLOCK, 0);
    let first = decide();
    assert!(matches!(first, Decision::Retry { .. }));
    assert!(matches!(decide(), Decision::Stop(Stop::Limit)));
    drop(first);
    assert!(matches!(decide(), Decision::Retry { .. }));
}

#[test]
fn a_post_is_idempotent_only_with_a_key() {
    let none = HeaderMap::new();
    assert!(!idempotent(&Method::POST, &none));
    assert!(!idempotent(&Method::PATCH, &none));
    assert!(idempotent(&Method::GET, &none));
    assert!(idempotent(&Method::POST, &headers(&[("idempotency-key", "1")])));
}

#[test]
fn back_off_is_full_jitter_with_a_cap() {
    let wait = |retry, random| backoff(Duration::from_millis(25), Duration::from_millis(250), retry, random);
    for random in [0, 1, u64::MAX / 2, u64::MAX] {
        assert!(wait(1, random) < Duration::from_millis(25));
        assert!(wait(2, random) < Duration::from_millis(50));
        assert!(wait(40, random) < Duration::from_millis(250));
    }
    assert!(wait(3, 99_999_999) == Duration::from_nanos(99_999_999), "the third is below 100 ms");
}

#[test]
fn the_least_wait_of_a_policy_is_kept_whatever_the_dice_say() {
    let (none, least) = (HeaderMap::new(), Duration::from_millis(100));
    let policy = model::Retry { backoff_min: least, ..model::Retry::default() };
    let soon = headers(&[("retry-after", "0")]);
    for random in [0, 1, 24_999_999, u64::MAX] {
        for failure in [Failure::Refused, Failure::Reset, Failure::TryTimeout, UNAVAILABLE, Failure::Grpc(14)] {
            for response in [None, Some(&soon)] {
                let wait = with_random(&policy, &Attempt { response, ..get(failure, &none) }, random).expect("again");
                assert!(wait >= least && wait < least + Duration::from_millis(25), "{failure:?} {wait:?}");
            }
        }
    }
    let wait = |attempt: &Attempt<'_>| with_random(&policy, attempt, 0);
    assert_eq!(wait(&get(Failure::Unsent, &none)), Ok(Duration::ZERO), "no backend has seen it");
    assert_eq!(wait(&Attempt { elsewhere: false, ..get(Failure::Unsent, &none) }), Ok(least));
    let short = Attempt { left: Some(least), ..get(UNAVAILABLE, &none) };
    assert_eq!(wait(&short), Err(Stop::Deadline), "the request as a whole has no time for it");
}

fn any_failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::Unsent),
        Just(Failure::Refused),
        Just(Failure::Reset),
        Just(Failure::TryTimeout),
        (100_u16..600).prop_map(|code| Failure::Status(StatusCode::from_u16(code).expect("a status"))),
        (0_u8..17).prop_map(Failure::Grpc),
    ]
}

fn any_method() -> impl Strategy<Value = Method> {
    let all = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::POST, Method::PATCH, Method::CONNECT];
    proptest::sample::select(all.to_vec())
}

proptest! {
    #[test]
    fn no_decision_breaks_a_rule(
        failure in any_failure(),
        method in any_method(),
        (number, attempts) in (1_u32..6, 0_u32..4),
        (replayable, elsewhere, keyed) in any::<(bool, bool, bool)>(),
        methods in proptest::option::of(proptest::collection::vec(any_method(), 0..3)),
        field in proptest::option::of(("(retry-after|grpc-retry-pushback-ms)", "-?[0-9]{0,4}")),
        left in proptest::option::of(0_u64..2000),
        random in any::<u64>(),
    ) {
        let request = if keyed { headers(&[("idempotency-key", "k")]) } else { HeaderMap::new() };
        let response: HeaderMap = field
            .iter()
            .map(|(name, value)| {
                (HeaderName::try_from(name.as_str()).expect("a name"), HeaderValue::from_str(value).expect("a value"))
            })
            .collect();
        let policy = model::Retry { attempts, methods: methods.clone(), ..model::Retry::default() };
        let left = left.map(Duration::from_millis);
        let attempt = Attempt {
            method: &method,
            headers: &request,
            number,
            failure,
            replayable,
            response: Some(&response),
            elsewhere,
            left,
        };
        if let Ok(after) = with_random(&policy, &attempt, random) {
            prop_assert!(number <= attempts);
            prop_assert!(after < Duration::from_millis(1250));
            prop_assert!(left.is_none_or(|left| after < left));
            prop_assert!(replayable);
            let without_effect = matches!(failure, Failure::Unsent | Failure::Refused);
            let named = methods.as_ref().is_some_and(|methods| methods.contains(&method));
            if matches!(method, Method::POST | Method::PATCH | Method::CONNECT) {
                prop_assert!(without_effect || keyed || named, "{method} may have been sent");
            }
            if let Failure::Status(status) = failure {
                prop_assert!((502..=504).contains(&status.as_u16()));
            }
            let asked = response.values().next().and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
            if let Some(asked) = asked.and_then(|asked| u64::try_from(asked).ok()) {
                let seconds = response.contains_key("retry-after");
                let asked = if seconds { Duration::from_secs(asked) } else { Duration::from_millis(asked) };
                prop_assert!(asked <= Duration::from_secs(1) && after >= asked);
            }
        }
    }
}
