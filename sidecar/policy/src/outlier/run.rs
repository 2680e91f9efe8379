//! Gateway failures that come close together without being in a row: a sequential test over the latest requests.
//!
//! Five failures in a row see an endpoint that is dead, and a share over a window one that has been ill for a while.
//! One that answers every second request is neither for long. So the latest requests since failures began to exceed the
//! tolerated share are weighed against what the endpoint usually does (the rest of the window): the more unlikely they
//! are at its usual rate, the sooner it goes. A replica that begins to fail half of the time goes within ten requests; one
//! that fails in one of twenty at random stays, because that is its usual rate, and because the evidence that is asked
//! for grows with the number of requests in the window, each of which is an opportunity to be unlucky.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::window::{Mark, Window};
use crate::{balance::Nanos, model::OutlierDetection};

const COUNT_BITS: u32 = 10;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// Logarithm of the odds against chance, for one request in the window: of a hundred windows of an endpoint that is what
/// it usually is, about two have a run like that.
const EVIDENCE: f64 = 4.0;
/// Requests that what is expected of an endpoint is worth, beside what the window has seen of it.
const PRIOR: f64 = 20.0;
/// No endpoint is held to be better than this, or two failures after thousands of answers would be a sign.
const BEST: f64 = 0.01;

/// The latest requests since failures began to be too many. Written with a failure only.
#[derive(Debug, Default)]
pub struct Run(AtomicU64);

impl Run {
    /// A gateway failure more, which `window` has counted already. Whether the endpoint should go.
    pub fn failed(&self, policy: &OutlierDetection, window: &Window, now: Nanos) -> bool {
        let tolerated = f64::from(1_000_000_u32.saturating_sub(policy.success_ppm)) / 1e6;
        let (total, failed) = window.sum(policy.window, now);
        let (old, mark) = (self.0.load(Relaxed), window.mark(policy.window, now));
        let (requests, failures) = extended(old, window, policy.window, now, tolerated);
        // Two failures at once may write over each other: the run is one shorter then.
        self.0.store(mark.0 << (2 * COUNT_BITS) | requests << COUNT_BITS | failures, Relaxed);
        let (requests, failures) = (small(requests), small(failures));
        // A run in few requests may be longer than the window: it ends when nothing fails for as long as that.
        let (total, failed) = (total.max(requests), failed.max(failures));
        requests >= policy.consecutive_failures
            && f64::from(failures) > tolerated * f64::from(requests)
            && evidence((requests, failures), (total, failed), tolerated) >= EVIDENCE + f64::from(total).ln()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// The run with one failure more and the answers that came before it, or a new one when those outweigh what it had.
fn extended(old: u64, window: &Window, length: Duration, now: Nanos, tolerated: f64) -> (u64, u64) {
    let (requests, failures) = ((old >> COUNT_BITS) & COUNT_MAX, old & COUNT_MAX);
    let since = window.since(Mark(old >> (2 * COUNT_BITS)), length, now);
    let (1.., Some(since)) = (failures, since) else { return (1, 1) };
    let requests = requests.saturating_add(since.max(1)).min(COUNT_MAX);
    let before = f64::from(small(requests)) - 1.0;
    if f64::from(small(failures)) <= tolerated * before { (1, 1) } else { (requests, (failures + 1).min(requests)) }
}

/// Logarithm of how much more likely the run is at its own share of failures than at the usual one.
fn evidence((requests, failures): (u32, u32), (total, failed): (u32, u32), tolerated: f64) -> f64 {
    let (before, failed_before) = (f64::from(total - requests), f64::from(failed - failures));
    // Unknown endpoints are expected to fail a quarter as often as is tolerated.
    let usual = (failed_before + PRIOR * tolerated / 4.0) / (before + PRIOR);
    let usual = usual.max(BEST).min(tolerated.max(BEST));
    let (requests, failures) = (f64::from(requests), f64::from(failures));
    let (share, answers) = (failures / requests, requests - failures);
    let of_answers = if answers > 0.0 { answers * ((1.0 - share) / (1.0 - usual)).ln() } else { 0.0 };
    failures * (share / usual).ln() + of_answers
}

fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
