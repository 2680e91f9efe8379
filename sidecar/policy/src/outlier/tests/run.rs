//! Failures that come close together, with answers between them.

use super::*;

/// Requests, ten a second, of which these fail with 503, after so many that were answered; how many until the ejection.
fn until_ejected(answered: u32, most: u32, fails: impl Fn(u32) -> bool) -> Option<(u32, Cause)> {
    let (_all, healths) = service(3);
    (0..answered + most).find_map(|n| {
        let now = at(f64::from(n) * 0.1);
        let bad = n >= answered && fails(n - answered);
        let outcome = if bad { Outcome::Unavailable } else { Outcome::Success };
        Some(((n + 1).saturating_sub(answered), healths[0].record(&POLICY, outcome, now, now, 0)?.cause))
    })
}

#[test]
fn one_that_fails_every_second_request_goes_within_ten_whatever_it_did_before() {
    for answered in [0, 1, 5, 20, 100, 1000] {
        for phase in 0..2 {
            let (requests, cause) = until_ejected(answered, 100, |n| n % 2 == phase).expect("an ejection");
            assert!((5..=10).contains(&requests), "{requests} after {answered} answers");
            assert_eq!(cause, Cause::SuddenFailures);
        }
    }
}

#[test]
fn a_few_failures_close_together_are_no_reason() {
    for (what, fails) in [
        ("four in a row", (|n| n < 4) as fn(u32) -> bool),
        ("two of five, once", |n| n < 5 && n % 2 == 0 && n > 0),
        ("three of ten, once", |n| [0, 4, 9].contains(&n)),
        ("one in ten", |n| n % 10 == 9),
        ("two in twenty, together", |n| n % 20 > 17),
    ] {
        for answered in [0, 20, 100] {
            assert_eq!(until_ejected(answered, 1000, fails), None, "{what} after {answered} answers");
        }
    }
}

#[test]
fn a_run_ends_when_nothing_fails_for_a_whole_window() {
    let (_all, healths) = service(3);
    for n in 0..40 {
        let (outcome, now) = (if n % 2 == 0 { Outcome::Reset } else { Outcome::Success }, at(f64::from(n) * 5.5));
        assert_eq!(healths[0].record(&POLICY, outcome, now, now, 0), None, "a failure each 11 seconds");
    }
}

#[test]
fn errors_of_the_app_itself_make_no_run() {
    let (_all, healths) = service(3);
    for n in 0..19 {
        let outcome = if n % 2 == 0 { Outcome::ServerError } else { Outcome::Success };
        assert_eq!(healths[0].record(&POLICY, outcome, at(1.0), at(1.0), 0), None, "they may be the request's fault");
    }
}

#[test]
fn a_run_ends_with_an_ejection() {
    let (all, healths) = service(3);
    let alternating = |from: f64| {
        (0..20_u32).find(|&n| {
            let outcome = if n % 2 == 0 { Outcome::Reset } else { Outcome::Success };
            let now = at(from + f64::from(n) * 0.01);
            healths[0].record(&POLICY, outcome, now, now, 0).is_some()
        })
    };
    let first = alternating(0.0).expect("an ejection");
    assert!(probe(&all, &healths, at(6.0), Outcome::Success).is_some());
    assert_eq!(alternating(6.0), Some(first), "it begins anew");
}
