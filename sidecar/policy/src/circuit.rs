//! What the two kinds of circuit have in common, that of one endpoint (`outlier`) and that of a whole service
//! (`breaker`): the three states, the event of a change, how a try ended, and how long a circuit stays open.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::StatusCode;

use crate::balance::Nanos;

/// Whether requests pass.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum State {
    /// They do.
    Closed,
    /// They do not.
    Open,
    /// One does, to see whether the others may.
    HalfOpen,
}

/// Why a circuit changed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Cause {
    /// As many failures in a row as the policy names.
    ConsecutiveFailures,
    /// Among the latest requests so many failures that it can be no chance, though not in a row.
    SuddenFailures,
    /// The share of successes in the window is below the policy's.
    SuccessShare,
    /// A request is on its way to see whether it works again.
    Probe,
    /// That request failed.
    ProbeFailed,
    /// That request succeeded.
    ProbeSucceeded,
    /// A request from before the circuit opened was answered after all.
    LateSuccess,
    /// More were out than may be, because others left or the policy changed.
    Limit,
}

/// A change of a circuit, for logs and counters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "a change of a circuit is logged and counted"]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// How one try ended, as far as the health of its endpoint goes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// The app answered. What it answered may be an error that is the caller's to see.
    Success,
    /// The app answered, and says itself that something is wrong with it: counts against the share of successes, but
    /// ends a row of gateway failures, because the endpoint is there.
    ServerError,
    /// No connection: refused, timed out, TLS or its identity failed.
    ConnectFailure,
    /// 502, 503, 504 or gRPC UNAVAILABLE.
    Unavailable,
    /// The connection or the stream ended before the response head.
    Reset,
    /// No response head in the time that policy gives. Not for a deadline that the caller set.
    Timeout,
    /// Says nothing of the endpoint: the caller went away, a pooled connection had ended, we refused the request.
    Neutral,
}

impl State {
    /// The word in metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl Cause {
    /// The word in metrics and events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::SuddenFailures => "sudden_failures",
            Self::SuccessShare => "success_share",
            Self::Probe => "probe",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeSucceeded => "probe_succeeded",
            Self::LateSuccess => "late_success",
            Self::Limit => "limit",
        }
    }
}

impl Outcome {
    /// Of an HTTP response. 501 and 505 are answers to what was asked, not signs of health; 429 and other 4xx are too:
    /// an endpoint that sheds load would only give its load to the others.
    #[must_use]
    pub fn http(status: StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::Unavailable,
            501 | 505 => Self::Success,
            500.. => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// Of a gRPC status (numbers of google.rpc.Code). UNAVAILABLE is what 503 is. UNKNOWN, INTERNAL and DATA_LOSS are
    /// the app's own failures. DEADLINE_EXCEEDED answers a deadline that the *caller* chose, so a few in a row from an
    /// impatient one must not eject an endpoint for all; an endpoint that hangs shows in the share of successes.
    /// RESOURCE_EXHAUSTED is 429.
    #[must_use]
    pub const fn grpc(code: u8) -> Self {
        match code {
            14 => Self::Unavailable,
            2 | 4 | 13 | 15 => Self::ServerError,
            1 => Self::Neutral,
            _ => Self::Success,
        }
    }

    /// A failure of the way to the app, not of the app.
    #[must_use]
    pub const fn is_gateway_failure(self) -> bool {
        matches!(self, Self::ConnectFailure | Self::Unavailable | Self::Reset | Self::Timeout)
    }
}

/// How long a circuit stays open: `base` doubled `level` times, `max` at most, and up to a tenth shorter, so that
/// circuits that opened together do not probe together.
#[must_use]
pub fn open_time(base: Duration, max: Duration, level: u32, random: u64) -> Duration {
    let time = nanos(base).saturating_mul(1_u64.checked_shl(level).unwrap_or(u64::MAX)).min(nanos(max));
    Duration::from_nanos(time - random % (time / 10 + 1))
}

/// Saturating.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn after(now: Nanos, wait: Duration) -> u64 {
    now.0.saturating_add(nanos(wait))
}

/// A state and the number of changes so far, in one word, so that a probe that ends late cannot be taken for a later one.
#[derive(Debug, Default)]
pub(crate) struct Word(AtomicU64);

/// What a [`Word`] held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Seen(u64);

impl Word {
    pub(crate) fn load(&self) -> Seen {
        Seen(self.0.load(Ordering::Acquire))
    }

    /// For a look that decides nothing for good.
    pub(crate) fn is_closed(&self) -> bool {
        Seen(self.0.load(Ordering::Relaxed)).state() == State::Closed
    }

    /// Changes to `to`, unless something else changed since `seen`.
    pub(crate) fn change(&self, seen: Seen, to: State) -> Option<Seen> {
        let code = match to {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        let next = ((seen.0 >> 2).wrapping_add(1) << 2) | code;
        self.0.compare_exchange(seen.0, next, Ordering::AcqRel, Ordering::Relaxed).ok().map(|_| Seen(next))
    }
}

impl Seen {
    pub(crate) const fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_for_the_way_to_the_app_is_a_gateway_failure() {
        let http = |status: u16| Outcome::http(StatusCode::from_u16(status).expect("a status"));
        for (status, expected) in [
            (200, Outcome::Success),
            (404, Outcome::Success),
            (429, Outcome::Success),
            (500, Outcome::ServerError),
            (501, Outcome::Success),
            (502, Outcome::Unavailable),
            (503, Outcome::Unavailable),
            (504, Outcome::Unavailable),
            (599, Outcome::ServerError),
        ] {
            assert_eq!(http(status), expected, "{status}");
        }
        for (code, expected) in [
            (0, Outcome::Success),
            (1, Outcome::Neutral),
            (2, Outcome::ServerError),
            (4, Outcome::ServerError),
            (5, Outcome::Success),
            (8, Outcome::Success),
            (13, Outcome::ServerError),
            (14, Outcome::Unavailable),
        ] {
            assert_eq!(Outcome::grpc(code), expected, "gRPC {code}");
        }
    }

    #[test]
    fn open_time_doubles_to_its_cap_with_jitter() {
        let (base, max) = (Duration::from_secs(5), Duration::from_secs(300));
        for level in 0..80 {
            let full = Duration::from_secs(5 * (1 << level.min(10))).min(max);
            for random in [0, 1, u64::MAX / 3, u64::MAX] {
                let time = open_time(base, max, level, random);
                assert!(time <= full && time >= full * 9 / 10, "level {level}: {time:?}");
            }
        }
        assert_eq!(open_time(Duration::ZERO, max, 3, 7), Duration::ZERO);
        assert_eq!(open_time(Duration::MAX, Duration::MAX, 3, 0), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn a_change_is_refused_after_another_one_even_back_to_the_same_state() {
        let word = Word::default();
        let closed = word.load();
        let open = word.change(closed, State::Open).expect("the first change");
        assert_eq!(open.state(), State::Open);
        let again = word.change(open, State::Closed).expect("back");
        assert_eq!(again.state(), State::Closed);
        assert!(word.change(closed, State::Open).is_none(), "what was seen is two changes old");
    }
}
