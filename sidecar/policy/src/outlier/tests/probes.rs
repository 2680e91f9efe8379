//! What is sent to an endpoint that is out, and what its answers change.

use super::*;

#[test]
fn an_ejected_endpoint_gets_one_probe_at_a_time_and_only_when_it_is_due() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(1.0)).is_some());
    assert!(all.take_probe(at(5.9), GET, &healths).is_none());
    let taken = all.take_probe(at(6.0), GET, &healths).expect("due");
    assert_eq!((taken.index, healths[0].state()), (0, State::HalfOpen));
    assert!(all.take_probe(at(7.0), GET, &healths).is_none(), "one at a time");
    let closed = taken.probe.record(&POLICY, Outcome::Success, at(7.0), 0);
    assert_eq!(closed, Some(Transition { from: State::HalfOpen, to: State::Closed, cause: Cause::ProbeSucceeded }));
    assert_eq!((healths[0].is_out(), all.out()), (false, 0));
}

#[test]
fn a_probe_that_fails_doubles_the_time() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    let mut now = 5.0;
    for time in [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0] {
        let failed = probe(&all, &healths, at(now), Outcome::ConnectFailure);
        assert_eq!(failed, Some(Transition { from: State::HalfOpen, to: State::Open, cause: Cause::ProbeFailed }));
        assert!(all.take_probe(at(now + time - 0.001), GET, &healths).is_none(), "{time} s");
        now += time;
    }
    assert_eq!(all.out(), 1);
}

#[test]
fn a_probe_that_is_dropped_gives_its_place_back() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    drop(all.take_probe(at(5.0), GET, &healths).expect("due"));
    assert_eq!(healths[0].state(), State::Open);
    let second = all.take_probe(at(5.0), GET, &healths).expect("due again at once");
    assert_eq!(second.probe.record(&POLICY, Outcome::Neutral, at(5.0), 0), None);
    assert!(all.take_probe(at(5.0), GET, &healths).is_some(), "a result that says nothing gives it back too");
}

#[test]
fn a_request_that_cannot_be_repeated_is_a_probe_only_when_no_other_comes() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    assert!(all.take_probe(at(5.9), POST, &healths).is_none());
    assert!(all.take_probe(at(6.0), POST, &healths).is_some());
}

#[test]
fn a_probe_of_an_endpoint_that_was_let_in_meanwhile_counts_as_a_request() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    let taken = all.take_probe(at(5.0), GET, &healths).expect("due");
    assert_eq!(all.sync(&POLICY, &healths[..1]).len(), 1);
    assert_eq!(taken.probe.record(&POLICY, Outcome::Reset, at(5.0), 0), None);
    assert_eq!((healths[0].state(), all.out()), (State::Closed, 0));
}

#[test]
fn a_late_probe_does_not_give_back_the_place_of_the_next() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    let late = all.take_probe(at(5.0), GET, &healths).expect("due");
    let _ = all.sync(&POLICY, &healths[..1]);
    assert!(all.sync(&POLICY, &healths).is_empty());
    assert!(fail(&healths[0], at(6.0)).is_some());
    let next = all.take_probe(at(16.0), GET, &healths).expect("due");
    drop(late);
    assert_eq!(healths[0].state(), State::HalfOpen);
    assert!(next.probe.record(&POLICY, Outcome::Success, at(16.0), 0).is_some());
}

#[test]
fn one_success_brings_two_probes_forward_and_an_early_failure_costs_nothing() {
    let (all, healths) = service(12);
    for (n, health) in healths.iter().take(6).enumerate() {
        assert!(fail(health, at(if n == 0 { 0.0 } else { 2.0 })).is_some());
    }
    assert!(probe(&all, &healths, at(5.0), Outcome::Success).is_some(), "the only one that is due");
    let first = all.take_probe(at(5.1), GET, &healths).expect("brought forward");
    let second = all.take_probe(at(5.1), GET, &healths).expect("brought forward");
    assert!(all.take_probe(at(5.1), GET, &healths).is_none(), "two and no more");
    let (failed, healed) = (first.index, second.index);
    assert!(first.probe.record(&POLICY, Outcome::Reset, at(5.2), 0).is_some());
    assert_eq!(healths[failed].out_until(), Some(at(7.0)), "it is due when it was");
    assert!(all.take_probe(at(5.2), GET, &healths).is_none());
    assert!(second.probe.record(&POLICY, Outcome::Success, at(5.3), 0).is_some());
    assert!(!healths[healed].is_out());
    assert!(all.take_probe(at(5.3), POST, &healths).is_none(), "not at the cost of a request that cannot be repeated");
    assert!(all.take_probe(at(5.3), GET, &healths).is_some());
}

#[test]
fn an_answer_from_one_that_the_limit_kept_in_is_a_sign_of_healing() {
    let (all, healths) = service(2);
    assert!(fail(&healths[0], at(0.0)).is_some());
    assert_eq!(fail(&healths[1], at(0.0)), None);
    assert!(all.take_probe(at(1.0), GET, &healths).is_none());
    assert_eq!(healths[1].record(&POLICY, Outcome::Success, at(1.0), at(1.0), 0), None);
    assert!(probe(&all, &healths, at(1.0), Outcome::Success).is_some());
    assert_eq!(all.out(), 0);
}

#[test]
fn a_request_with_an_older_snapshot_hides_no_probe_for_long() {
    let (all, healths) = service(4);
    assert!(fail(&healths[3], at(0.0)).is_some());
    assert!(all.take_probe(at(5.0), GET, &healths[..3]).is_none(), "it knows nothing of the fourth");
    assert_eq!(all.take_probe(at(6.0), GET, &healths).map(|taken| taken.index), Some(3));
    // Nor when it knows of another one, that is due much later.
    assert!(fail(&healths[2], at(6.0)).is_some());
    assert!(all.take_probe(at(6.0), GET, &healths[..3]).is_none());
    assert_eq!(all.take_probe(at(7.0), GET, &healths).map(|taken| taken.index), Some(3));
}
