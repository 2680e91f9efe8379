use super::*;

mod probes;
mod run;

const POLICY: OutlierDetection = OutlierDetection {
    consecutive_failures: 5,
    success_ppm: 800_000,
    minimum_requests: 20,
    window: Duration::from_secs(10),
    base_ejection: Duration::from_secs(5),
    max_ejection: Duration::from_secs(300),
    max_ejected_ppm: 500_000,
};
const GET: bool = true;
const POST: bool = false;

fn at(seconds: f64) -> Nanos {
    Nanos(circuit::nanos(Duration::from_secs_f64(seconds)))
}

fn service(members: usize) -> (Arc<Ejections>, Vec<Arc<Health>>) {
    let all = Arc::new(Ejections::default());
    let healths: Vec<_> = (0..members).map(|_| Arc::new(Health::new(&all))).collect();
    assert!(all.sync(&POLICY, &healths).is_empty());
    (all, healths)
}

/// Five failures in a row at this time; what came of the last.
fn fail(health: &Health, now: Nanos) -> Option<Transition> {
    let mut results = (0..5).map(|_| health.record(&POLICY, Outcome::Unavailable, now, now, 0));
    results.find_map(|result| result)
}

fn open(cause: Cause) -> Option<Transition> {
    Some(Transition { from: State::Closed, to: State::Open, cause })
}

/// Sends the probe that is due, which ends like this.
fn probe(all: &Ejections, healths: &[Arc<Health>], now: Nanos, outcome: Outcome) -> Option<Transition> {
    let taken = all.take_probe(now, GET, healths)?;
    assert_eq!(taken.transition, Transition { from: State::Open, to: State::HalfOpen, cause: Cause::Probe });
    taken.probe.record(&POLICY, outcome, now, 0)
}

#[test]
fn an_endpoint_is_ejected_by_the_fifth_gateway_failure_in_a_row() {
    for outcome in [Outcome::ConnectFailure, Outcome::Unavailable, Outcome::Reset, Outcome::Timeout] {
        let (all, healths) = service(2);
        for _ in 0..4 {
            assert_eq!(healths[0].record(&POLICY, outcome, at(1.0), at(1.0), 0), None);
        }
        assert!(!healths[0].is_out());
        assert_eq!(healths[0].record(&POLICY, outcome, at(1.0), at(1.0), 0), open(Cause::ConsecutiveFailures));
        assert!(healths[0].is_out() && !healths[1].is_out());
        assert_eq!((all.out(), healths[0].out_until()), (1, Some(at(6.0))));
    }
}

#[test]
fn an_answer_ends_a_row_of_failures_and_what_says_nothing_does_not() {
    let policy = OutlierDetection { success_ppm: 0, ..POLICY };
    for (between, ejected) in [(Outcome::Success, false), (Outcome::ServerError, false), (Outcome::Neutral, true)] {
        let (_all, healths) = service(2);
        for _ in 0..4 {
            let _ = healths[0].record(&policy, Outcome::Reset, at(1.0), at(1.0), 0);
        }
        assert_eq!(healths[0].record(&policy, between, at(1.0), at(1.0), 0), None);
        assert_eq!(healths[0].record(&policy, Outcome::Reset, at(1.0), at(1.0), 0).is_some(), ejected, "{between:?}");
    }
}

#[test]
fn an_endpoint_is_ejected_by_a_low_share_of_successes_of_enough_requests() {
    let (_all, healths) = service(2);
    let mut results = Vec::new();
    // Every third answer is an error: 67 % successes.
    for n in 0..21 {
        let outcome = if n % 3 == 2 { Outcome::ServerError } else { Outcome::Success };
        results.push(healths[0].record(&POLICY, outcome, at(f64::from(n) * 0.4), at(f64::from(n) * 0.4), 0));
    }
    assert!(results[..20].iter().all(Option::is_none), "fewer than twenty say nothing");
    assert_eq!(results[20], open(Cause::SuccessShare));
}

#[test]
fn failures_leave_the_window_with_time() {
    let (_all, healths) = service(2);
    for n in 0..19 {
        assert_eq!(
            healths[0].record(&POLICY, Outcome::ServerError, at(f64::from(n) * 0.01), at(f64::from(n) * 0.01), 0),
            None
        );
    }
    assert_eq!(
        healths[0].record(&POLICY, Outcome::ServerError, at(10.5), at(10.5), 0),
        None,
        "the nineteen are too old"
    );
    assert!(!healths[0].is_out());
}

#[test]
fn each_detector_can_be_off() {
    let share_only = OutlierDetection { consecutive_failures: 0, ..POLICY };
    let row_only = OutlierDetection { success_ppm: 0, ..POLICY };
    let off = OutlierDetection { consecutive_failures: 0, success_ppm: 0, ..POLICY };
    for (policy, outcome, expected) in [
        (share_only, Outcome::Reset, Some(20)),
        (row_only, Outcome::Reset, Some(5)),
        (row_only, Outcome::ServerError, None),
        (off, Outcome::Reset, None),
    ] {
        let (_all, healths) = service(2);
        let ejected = (1..100).find(|_| healths[0].record(&policy, outcome, at(1.0), at(1.0), 0).is_some());
        assert_eq!(ejected, expected, "{policy:?} {outcome:?}");
    }
}

#[test]
fn at_least_one_of_several_may_be_out_and_never_all() {
    for (members, ppm, expected) in [
        (0, 500_000, 0),
        (1, 1_000_000, 0),
        (2, 500_000, 1),
        (2, 0, 1),
        (2, 1_000_000, 1),
        (3, 500_000, 1),
        (4, 500_000, 2),
        (5, 500_000, 2),
        (10, 100_000, 1),
        (1000, 1_000_000, 999),
    ] {
        let policy = OutlierDetection { max_ejected_ppm: ppm, ..POLICY };
        assert_eq!(may_be_out(&policy, members), expected, "{members} endpoints, {ppm} ppm");
    }
}

#[test]
fn the_only_endpoint_is_never_ejected() {
    let (all, healths) = service(1);
    assert!((0..10).all(|_| fail(&healths[0], at(1.0)).is_none()));
    assert_eq!(all.out(), 0);
}

#[test]
fn the_limit_keeps_the_rest_in() {
    let (all, healths) = service(4);
    let ejected = healths.iter().filter(|health| fail(health, at(1.0)).is_some()).count();
    assert_eq!((ejected, all.out()), (2, 2));
    // A place that becomes free is for the next that fails.
    assert!(probe(&all, &healths, at(6.0), Outcome::Success).is_some());
    assert_eq!(healths[2].record(&POLICY, Outcome::Reset, at(6.0), at(6.0), 0), open(Cause::ConsecutiveFailures));
}

#[test]
fn ejections_of_an_endpoint_that_flaps_grow_and_healthy_time_takes_them_back() {
    let (all, healths) = service(2);
    let eject = |now: f64| {
        assert!(fail(&healths[0], at(now)).is_some());
        let until = healths[0].out_until().expect("out");
        let time = Duration::from_nanos(until.0 - at(now).0);
        assert!(probe(&all, &healths, until, Outcome::Success).is_some());
        (time.as_secs(), Duration::from_nanos(until.0).as_secs_f64())
    };
    let (first, now) = eject(0.0);
    let (second, now) = eject(now + 1.0);
    let (third, now) = eject(now + 1.0);
    // Three levels up, two windows of ten seconds healthy.
    let (fourth, now) = eject(now + 21.0);
    let (fifth, _) = eject(now + 1000.0);
    assert_eq!([first, second, third, fourth, fifth], [5, 10, 20, 10, 5]);
}

#[test]
fn results_of_requests_from_before_an_ejection_change_nothing() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    for outcome in [Outcome::Success, Outcome::Reset] {
        assert_eq!(healths[0].record(&POLICY, outcome, at(1.0), at(1.0), 0), None);
    }
    assert_eq!((healths[0].out_until(), all.out()), (Some(at(5.0)), 1));
}

#[test]
fn an_endpoint_that_returns_starts_anew() {
    // Errors fill the window, resets make a row.
    for outcome in [Outcome::ServerError, Outcome::Reset] {
        let (all, healths) = service(2);
        for _ in 0..20 {
            let _ = healths[0].record(&POLICY, outcome, at(0.0), at(0.0), 0);
        }
        assert!(healths[0].is_out());
        assert!(probe(&all, &healths, at(5.0), Outcome::Success).is_some());
        assert_eq!(healths[0].record(&POLICY, Outcome::Reset, at(5.0), at(5.0), 0), None);
    }
}

#[test]
fn one_that_the_limit_kept_in_starts_with_an_empty_window_when_it_answers() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    for _ in 0..20 {
        assert_eq!(healths[1].record(&POLICY, Outcome::Reset, at(1.0), at(1.0), 0), None);
    }
    assert_eq!(healths[1].record(&POLICY, Outcome::Success, at(1.5), at(1.5), 0), None);
    assert!(probe(&all, &healths, at(1.5), Outcome::Success).is_some());
    assert_eq!(healths[1].record(&POLICY, Outcome::Reset, at(2.0), at(2.0), 0), None);
}

#[test]
fn an_endpoint_that_leaves_gives_its_place_to_another() {
    let (all, healths) = service(4);
    assert!(fail(&healths[0], at(0.0)).is_some() && fail(&healths[1], at(0.0)).is_some());
    assert!(fail(&healths[2], at(0.0)).is_none(), "two of four are out");
    // The first leaves and another one comes: one of four is out.
    let newcomer = Arc::new(Health::new(&all));
    let members = [Arc::clone(&healths[1]), Arc::clone(&healths[2]), Arc::clone(&healths[3]), newcomer];
    assert!(all.sync(&POLICY, &members).is_empty());
    assert_eq!(all.out(), 1);
    assert!(fail(&healths[2], at(1.0)).is_some());
    // What becomes of the one that left does not count.
    let left = all.take_probe(at(5.0), GET, &healths[..1]).expect("a request with the old snapshot");
    assert!(left.probe.record(&POLICY, Outcome::Success, at(5.0), 0).is_some());
    assert_eq!(all.out(), 2);
    assert!(probe(&all, &members, at(6.0), Outcome::Success).is_some(), "a place is free");
    assert!(fail(&healths[0], at(6.0)).is_none(), "nor can it be ejected");
}

#[test]
fn those_that_would_return_first_are_let_in_when_others_leave() {
    let (all, healths) = service(4);
    assert!(fail(&healths[1], at(0.0)).is_some() && fail(&healths[0], at(1.0)).is_some());
    let released = all.sync(&POLICY, &healths[..2]);
    let transition = Transition { from: State::Open, to: State::Closed, cause: Cause::Limit };
    assert_eq!(released, [(1, transition)]);
    assert_eq!((healths[0].is_out(), healths[1].is_out(), all.out()), (true, false, 1));
    // The last one is never out.
    assert_eq!(all.sync(&POLICY, &healths[..1]), [(0, transition)]);
    assert_eq!(all.out(), 0);
}

#[test]
fn detection_that_is_switched_off_lets_all_in() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    let off = OutlierDetection { consecutive_failures: 0, success_ppm: 0, ..POLICY };
    assert_eq!(all.sync(&off, &healths).len(), 1);
    assert!(!healths[0].is_out());
}

#[test]
fn workers_together_never_eject_more_than_may_be_out() {
    let (all, healths) = service(8);
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let (all, healths) = (&all, &healths);
            scope.spawn(move || {
                for n in 0..4000_u64 {
                    let now = at(n as f64 * 0.01);
                    let health = &healths[usize::try_from((n / 5 + worker) % 8).unwrap()];
                    let _ = health.record(&POLICY, Outcome::Reset, now, now, n);
                    assert!(all.out() <= 4);
                    if let Some(taken) = all.take_probe(now, GET, healths) {
                        let outcome = if n % 3 == 0 { Outcome::Success } else { Outcome::Reset };
                        let _ = taken.probe.record(&POLICY, outcome, now, n);
                    }
                }
            });
        }
    });
    let out = healths.iter().filter(|health| health.is_out()).count();
    assert_eq!(u32::try_from(out).unwrap(), all.out(), "the count is exact when all is quiet");
    assert!(healths.iter().all(|health| health.state() != State::HalfOpen));
}

#[test]
fn what_was_sent_before_an_ejection_is_not_held_against_an_endpoint_that_is_well_again() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    assert!(probe(&all, &healths, at(5.0), Outcome::Success).is_some());
    for _ in 0..20 {
        assert_eq!(healths[0].record(&POLICY, Outcome::Timeout, at(0.0), at(6.0), 0), None);
    }
    // Nor against one that only the limit kept in.
    assert!(fail(&healths[1], at(7.0)).is_some() && fail(&healths[0], at(7.0)).is_none());
    assert_eq!(healths[0].record(&POLICY, Outcome::Success, at(7.5), at(7.6), 0), None);
    assert!(probe(&all, &healths, at(7.6), Outcome::Success).is_some());
    for _ in 0..20 {
        assert_eq!(healths[0].record(&POLICY, Outcome::Timeout, at(7.4), at(8.0), 0), None);
    }
    assert!(fail(&healths[0], at(8.0)).is_some());
}
