//! How a simulated endpoint answers.

use std::time::Duration;

use http::StatusCode;
use weft_policy::{circuit::Outcome, retry::Failure};

use crate::script::{Fault, Random, Script};

const TRY_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Clone, Copy)]
pub enum Answer {
    Good,
    Bad(Failure, Outcome),
    CallerGone,
}

/// How an endpoint answers now, and after what time.
pub fn answer(script: &Script, random: &mut Random, now: u64, endpoint: usize) -> (Duration, Answer) {
    let plan = &script.endpoints[endpoint];
    let unavailable = Answer::Bad(Failure::Status(StatusCode::SERVICE_UNAVAILABLE), Outcome::Unavailable);
    let error = Answer::Bad(Failure::Status(StatusCode::INTERNAL_SERVER_ERROR), Outcome::ServerError);
    // Half to one and a half times the usual.
    let usual = plan.latency.mul_f64(0.5 + random.below(1000) as f64 / 1000.0);
    let short = Duration::from_millis(1);
    let (latency, answer) = match plan.fault(now as f64 / 1e9) {
        None => (usual, Answer::Good),
        Some(Fault::Refuses) => (short, Answer::Bad(Failure::Unsent, Outcome::ConnectFailure)),
        Some(Fault::Unavailable) => (short, unavailable),
        Some(Fault::Flaky(ppm)) => (usual, if random.happens(ppm) { unavailable } else { Answer::Good }),
        Some(Fault::ServerError) => (usual, error),
        Some(Fault::Slow(latency)) => (latency, Answer::Good),
        Some(Fault::Hangs) => (TRY_TIMEOUT, Answer::Bad(Failure::TryTimeout, Outcome::Timeout)),
        Some(Fault::Resets) => (usual, Answer::Bad(Failure::Reset, Outcome::Reset)),
    };
    if random.happens(script.cancelled) { (latency / 2, Answer::CallerGone) } else { (latency, answer) }
}
