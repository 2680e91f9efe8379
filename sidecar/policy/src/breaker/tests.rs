use std::time::Duration;

use super::*;

const POLICY: CircuitBreaker = CircuitBreaker {
    break_on: BreakOn::ConnectFailures,
    consecutive_failures: 5,
    base_open: Duration::from_secs(1),
    max_open: Duration::from_secs(30),
};
const FAILURES: CircuitBreaker = CircuitBreaker { break_on: BreakOn::Failures, ..POLICY };

fn at(seconds: f64) -> Nanos {
    Nanos(circuit::nanos(Duration::from_secs_f64(seconds)))
}

fn opened(policy: &CircuitBreaker, outcome: Outcome, now: Nanos) -> Arc<Breaker> {
    let breaker = Arc::new(Breaker::default());
    for _ in 0..4 {
        assert_eq!(breaker.record(policy, outcome, now, now, 0), None);
        assert!(matches!(breaker.enter(policy, now), Entry::Pass));
    }
    let transition = Transition { from: State::Closed, to: State::Open, cause: Cause::ConsecutiveFailures };
    assert_eq!(breaker.record(policy, outcome, now, now, 0), Some(transition));
    breaker
}

fn refused_until(breaker: &Arc<Breaker>, now: Nanos) -> Option<Nanos> {
    match breaker.enter(&POLICY, now) {
        Entry::Refused(until) => Some(until),
        Entry::Pass | Entry::Probe(..) => None,
    }
}

fn probe(breaker: &Arc<Breaker>, now: Nanos) -> Option<Probe> {
    match breaker.enter(&POLICY, now) {
        Entry::Probe(probe, transition) => {
            assert_eq!(transition, Transition { from: State::Open, to: State::HalfOpen, cause: Cause::Probe });
            Some(probe)
        }
        Entry::Pass | Entry::Refused(_) => None,
    }
}

#[test]
fn a_service_that_cannot_be_reached_fails_fast_until_a_probe_succeeds() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    assert_eq!(refused_until(&breaker, at(0.5)), Some(at(1.0)));
    let first = probe(&breaker, at(1.0)).expect("due");
    assert!(refused_until(&breaker, at(1.0)).is_some(), "one probe at a time");
    let closed = first.record(&POLICY, Outcome::Success, at(1.1), 0);
    assert_eq!(closed, Some(Transition { from: State::HalfOpen, to: State::Closed, cause: Cause::ProbeSucceeded }));
    assert!(matches!(breaker.enter(&POLICY, at(1.1)), Entry::Pass));
}

#[test]
fn by_default_no_more_than_five_seconds_pass_between_two_probes_however_long_it_is_away() {
    let policy = CircuitBreaker::default();
    for random in [0, u64::MAX / 3, u64::MAX] {
        let breaker = opened(&policy, Outcome::ConnectFailure, at(0.0));
        let mut now = at(0.0);
        for _ in 0..20 {
            let Entry::Refused(until) = breaker.enter(&policy, now) else { panic!("not open at {now:?}") };
            assert!(until.0 - now.0 <= 5_000_000_000, "{now:?} to {until:?}");
            let Entry::Probe(probe, _) = breaker.enter(&policy, until) else { panic!("no probe at {until:?}") };
            assert!(probe.record(&policy, Outcome::ConnectFailure, until, random).is_some());
            now = until;
        }
    }
}

#[test]
fn each_failed_probe_doubles_the_time_and_a_success_starts_anew() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    let mut now = 1.0;
    for time in [2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
        let failed = probe(&breaker, at(now)).expect("due").record(&POLICY, Outcome::ConnectFailure, at(now), 0);
        assert_eq!(failed, Some(Transition { from: State::HalfOpen, to: State::Open, cause: Cause::ProbeFailed }));
        assert_eq!(refused_until(&breaker, at(now)), Some(at(now + time)));
        now += time;
    }
    assert!(probe(&breaker, at(now)).expect("due").record(&POLICY, Outcome::Success, at(now), 0).is_some());
    for _ in 0..5 {
        let _ = breaker.record(&POLICY, Outcome::ConnectFailure, at(now), at(now), 0);
    }
    assert_eq!(refused_until(&breaker, at(now)), Some(at(now + 1.0)));
}

#[test]
fn only_what_the_policy_names_opens_it() {
    let never = CircuitBreaker { break_on: BreakOn::Never, ..POLICY };
    for (policy, outcome, opens) in [
        (POLICY, Outcome::Unavailable, false),
        (POLICY, Outcome::Reset, false),
        (FAILURES, Outcome::ConnectFailure, true),
        (FAILURES, Outcome::Unavailable, true),
        (FAILURES, Outcome::Timeout, true),
        (FAILURES, Outcome::ServerError, false),
        (never, Outcome::ConnectFailure, false),
    ] {
        let breaker = Breaker::default();
        let opened = (0..20).any(|_| breaker.record(&policy, outcome, at(0.0), at(0.0), 0).is_some());
        assert_eq!(opened, opens, "{:?} {outcome:?}", policy.break_on);
    }
}

#[test]
fn any_endpoint_that_is_reached_ends_the_row() {
    let answers: [fn(&Breaker); 3] = [
        |breaker| breaker.reached(&POLICY),
        |breaker| assert_eq!(breaker.record(&POLICY, Outcome::Success, at(0.0), at(0.0), 0), None),
        |breaker| assert_eq!(breaker.record(&POLICY, Outcome::Unavailable, at(0.0), at(0.0), 0), None),
    ];
    for answer in answers {
        let breaker = Breaker::default();
        for _ in 0..4 {
            let _ = breaker.record(&POLICY, Outcome::ConnectFailure, at(0.0), at(0.0), 0);
        }
        answer(&breaker);
        assert_eq!(breaker.record(&POLICY, Outcome::ConnectFailure, at(0.0), at(0.0), 0), None);
    }
    let breaker = Breaker::default();
    for _ in 0..4 {
        let _ = breaker.record(&FAILURES, Outcome::Reset, at(0.0), at(0.0), 0);
        breaker.reached(&FAILURES);
    }
    assert!(breaker.record(&FAILURES, Outcome::Reset, at(0.0), at(0.0), 0).is_some(), "a connection is no answer");
}

#[test]
fn a_probe_that_is_dropped_or_says_nothing_gives_its_place_back() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    drop(probe(&breaker, at(1.0)).expect("due"));
    let second = probe(&breaker, at(1.0)).expect("due again");
    assert_eq!(second.record(&POLICY, Outcome::Neutral, at(1.0), 0), None);
    assert!(probe(&breaker, at(1.0)).is_some());
}

#[test]
fn a_probe_that_reaches_the_service_closes_it_whatever_it_answers() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    let closed = probe(&breaker, at(1.0)).expect("due").record(&POLICY, Outcome::Unavailable, at(1.0), 0);
    assert_eq!(closed.map(|transition| transition.to), Some(State::Closed));
}

#[test]
fn an_answer_to_a_request_from_before_closes_it() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    assert_eq!(breaker.record(&POLICY, Outcome::Reset, at(0.1), at(0.1), 0), None, "no answer");
    let closed = breaker.record(&POLICY, Outcome::Success, at(0.2), at(0.2), 0);
    assert_eq!(closed, Some(Transition { from: State::Open, to: State::Closed, cause: Cause::LateSuccess }));
}

#[test]
fn a_late_probe_does_not_change_what_came_after() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    let late = probe(&breaker, at(1.0)).expect("due");
    assert!(breaker.record(&POLICY, Outcome::Success, at(1.1), at(1.1), 0).is_some());
    assert_eq!(late.record(&POLICY, Outcome::ConnectFailure, at(1.2), 0), None);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn an_endpoint_that_comes_makes_a_probe_due() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    assert!(probe(&breaker, at(1.0)).expect("due").record(&POLICY, Outcome::ConnectFailure, at(1.0), 0).is_some());
    assert!(probe(&breaker, at(2.0)).is_none());
    breaker.endpoint_came(at(2.0));
    assert!(probe(&breaker, at(2.0)).is_some());
}

#[test]
fn a_policy_that_never_breaks_lets_all_through_even_what_is_open() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    let never = CircuitBreaker { break_on: BreakOn::Never, ..POLICY };
    assert!(matches!(breaker.enter(&never, at(0.1)), Entry::Pass));
}

#[test]
fn racing_workers_send_one_probe() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    let probes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| probe(&breaker, at(1.0)))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(probes.iter().flatten().count(), 1);
}

#[test]
fn failures_from_before_it_closed_do_not_open_it_again() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    assert!(probe(&breaker, at(1.0)).expect("due").record(&POLICY, Outcome::Success, at(1.1), 0).is_some());
    assert!((0..20).all(|_| breaker.record(&POLICY, Outcome::ConnectFailure, at(0.0), at(2.0), 0).is_none()));
    assert!((0..5).any(|_| breaker.record(&POLICY, Outcome::ConnectFailure, at(1.1), at(2.0), 0).is_some()));
}

#[test]
fn a_probe_that_takes_long_keeps_nobody_away_and_its_end_says_nothing_any_more() {
    let breaker = opened(&POLICY, Outcome::ConnectFailure, at(0.0));
    let slow = probe(&breaker, at(1.0)).expect("due");
    assert_eq!(refused_until(&breaker, at(1.5)), Some(at(2.0)), "one at a time");
    let Entry::Probe(second, change) = breaker.enter(&POLICY, at(2.0)) else { panic!("another one takes its place") };
    assert_eq!((change.from, change.to), (State::HalfOpen, State::HalfOpen));
    assert_eq!(slow.record(&POLICY, Outcome::ConnectFailure, at(2.1), 0), None);
    assert!(second.record(&POLICY, Outcome::Success, at(2.2), 0).is_some());
    assert!(matches!(breaker.enter(&POLICY, at(2.3)), Entry::Pass));
}
