//! Whether a request is sent again, and when: one decision over the failure, the request, the policy, the budget and
//! what the server asked for. Which endpoint takes it is the balancer's choice.

mod budget;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, Method, StatusCode, header};

pub use self::budget::Budget;
use crate::{
    balance::Nanos,
    circuit,
    limits::{Limits, Permit},
    model,
};

/// Longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Methods that may be sent twice without harm (RFC 9110 section 9.2.2).
pub const IDEMPOTENT: [Method; 6] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// How a try failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No byte of the request can have reached an app: no connection, a pooled one that had ended, a stream above
    /// the last one of a GOAWAY.
    Unsent,
    /// REFUSED_STREAM: the server says that it has done nothing with the request.
    Refused,
    /// The connection or the stream ended before the response head.
    Reset,
    /// No response head within the time of a try.
    TryTimeout,
    /// A response with this status.
    Status(StatusCode),
    /// A gRPC answer with this code, before any message.
    Grpc(u8),
}

/// A try that failed, and what is left for another one.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Of the request.
    pub method: &'a Method,
    /// Of the request.
    pub headers: &'a HeaderMap,
    /// Which try this was, from 1.
    pub number: u32,
    /// How it failed.
    pub failure: Failure,
    /// The body is there, whole, to be sent again. That nothing reached an app does not mean that nothing was sent: a
    /// sidecar in between may have taken some of it.
    pub replayable: bool,
    /// Of the response, if there was one: `Retry-After` and `grpc-retry-pushback-ms` are honoured.
    pub response: Option<&'a HeaderMap>,
    /// There is an endpoint that has not failed this request.
    pub elsewhere: bool,
    /// Until the deadline of the whole request.
    pub left: Option<Duration>,
}

/// What to do.
#[derive(Debug)]
pub enum Decision {
    /// Send it again.
    Retry {
        /// After this time.
        after: Duration,
        /// Its place among the retries in flight; to be held until it ends.
        permit: Permit,
    },
    /// Let the caller have the failure.
    Stop(Stop),
}

/// Why a request is not sent again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Stop {
    /// As many tries as the policy allows.
    Attempts,
    /// The budget of the service is empty.
    Budget,
    /// Too little time is left.
    Deadline,
    /// As many retries in flight as the limit allows.
    Limit,
    /// It may have had an effect, and could have another.
    NotIdempotent,
    /// The policy does not repeat this status.
    NotRetriable,
    /// The server asked not to be asked again.
    PushBack,
    /// The server asked for a longer wait than we make.
    RetryAfterTooLong,
    /// The body was too large to keep.
    TooLarge,
}

impl Stop {
    /// The word in `Proxy-Status`, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Limit => "retry_limit",
            Self::NotIdempotent => "not_idempotent",
            Self::NotRetriable => "not_retriable",
            Self::PushBack => "push_back",
            Self::RetryAfterTooLong => "retry_after_too_long",
            Self::TooLarge => "too_large",
        }
    }
}

impl Failure {
    /// The server has certainly not begun: safe for every method.
    #[must_use]
    pub const fn is_without_effect(self) -> bool {
        matches!(self, Self::Unsent | Self::Refused)
    }

    fn is_retriable(self, policy: &model::Retry) -> bool {
        match self {
            Self::Unsent | Self::Refused | Self::Reset | Self::TryTimeout => true,
            Self::Status(status) => policy.codes.contains(&status),
            Self::Grpc(code) => policy.grpc_codes.contains(&code),
        }
    }
}

/// Decides over a failed try. What the budget and the limit of retries give is taken only when the request is really
/// to be sent again. `clock` is what an HTTP date in `Retry-After` is compared with.
///
/// A request of which nothing was sent takes nothing from the budget: it costs no server anything. A refused stream
/// does, or an overloaded server that refuses would get every request three times.
#[must_use]
pub fn decide(
    policy: &model::Retry,
    attempt: &Attempt<'_>,
    budget: &Budget,
    limits: &Limits,
    now: Nanos,
    clock: SystemTime,
    random: u64,
) -> Decision {
    match after(policy, attempt, clock, random) {
        Err(stop) => Decision::Stop(stop),
        Ok(after) => {
            let Some(permit) = limits.retries.try_acquire() else { return Decision::Stop(Stop::Limit) };
            if attempt.failure != Failure::Unsent && !budget.try_retry(now) {
                return Decision::Stop(Stop::Budget);
            }
            Decision::Retry { after, permit }
        }
    }
}

/// How long to wait, as far as the request and its failure go.
fn after(policy: &model::Retry, attempt: &Attempt<'_>, clock: SystemTime, random: u64) -> Result<Duration, Stop> {
    let failure = attempt.failure;
    if !failure.is_retriable(policy) {
        return Err(Stop::NotRetriable);
    }
    if !failure.is_without_effect() && !repeatable(policy, attempt.method, attempt.headers) {
        return Err(Stop::NotIdempotent);
    }
    if attempt.number > policy.attempts {
        return Err(Stop::Attempts);
    }
    if !attempt.replayable {
        return Err(Stop::TooLarge);
    }
    let asked = attempt.response.map_or(Ok(None), |headers| wait_asked_for(headers, clock))?;
    let jitter = backoff(policy.backoff_base, policy.backoff_max, attempt.number, random);
    let after = match asked {
        Some(wait) if wait > LONGEST_WAIT => return Err(Stop::RetryAfterTooLong),
        // Never earlier than asked for, and not all callers at once.
        Some(wait) => wait.max(policy.backoff_min).saturating_add(jitter),
        // No backend has had the request yet: it is not one that is made again too early.
        None if failure == Failure::Unsent && attempt.elsewhere => Duration::ZERO,
        None => policy.backoff_min.saturating_add(jitter),
    };
    if attempt.left.is_some_and(|left| after >= left) {
        return Err(Stop::Deadline);
    }
    Ok(after)
}

/// The wait that a response asks for, longer ones as they are. An unreadable push-back means no retry (gRFC A6), an
/// unreadable `Retry-After` nothing.
fn wait_asked_for(response: &HeaderMap, clock: SystemTime) -> Result<Option<Duration>, Stop> {
    if let Some(value) = response.get(PUSHBACK) {
        let millis = value.to_str().ok().and_then(|text| text.trim().parse::<i64>().ok());
        let millis = millis.and_then(|millis| u64::try_from(millis).ok()).ok_or(Stop::PushBack)?;
        return Ok(Some(Duration::from_millis(millis)));
    }
    let Some(text) = response.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX))));
    }
    let date = httpdate::parse_http_date(text).ok();
    // A date that has passed asks for nothing more.
    Ok(date.map(|date| date.duration_since(clock).unwrap_or_default()))
}

/// The request may have an effect twice without harm, by policy or by its own word.
#[must_use]
pub fn repeatable(policy: &model::Retry, method: &Method, headers: &HeaderMap) -> bool {
    match &policy.methods {
        None => idempotent(method, headers),
        Some(methods) => methods.contains(method) || headers.contains_key(IDEMPOTENCY_KEY),
    }
}

/// The request may be sent twice without harm: an idempotent method (RFC 9110 section 9.2.2) or an
/// `Idempotency-Key`.
#[must_use]
pub fn idempotent(method: &Method, headers: &HeaderMap) -> bool {
    IDEMPOTENT.contains(method) || headers.contains_key(IDEMPOTENCY_KEY)
}

/// How long to wait before retry number `retry` (from 1): full jitter below `base`, doubling to `max`.
#[must_use]
pub fn backoff(base: Duration, max: Duration, retry: u32, random: u64) -> Duration {
    let ceiling = base.saturating_mul(1 << retry.saturating_sub(1).min(30)).min(max);
    Duration::from_nanos(random % circuit::nanos(ceiling).max(1))
}

#[cfg(test)]
mod tests;
