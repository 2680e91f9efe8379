//! Rate limits of the app's ports: which apply to a request, what is let in, and what the caller is told of it. What
//! was let in is one count for all workers, and a new configuration keeps it as long as the limit is the same.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;
use weft_policy::{
    balance::Nanos,
    claims::Claims,
    model::{InboundLimit, InboundPort, Target},
    rate::{Caller, Decision, RateLimiter},
    routing::RequestView,
};
use weft_svid::PeerIdentity;

use crate::{
    error::{ProxyError, Reason},
    http::forward::Received,
    telemetry::Telemetry,
};

/// IETF draft-ietf-httpapi-ratelimit-headers-10.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Port of the app, and name of the limit.
type LimitKey = (u16, Box<str>);

/// The counts of all limits of this workload.
#[derive(Default)]
pub struct Limiters(Mutex<HashMap<LimitKey, Arc<RateLimiter>>>);

/// A limit that the requests of one connection may meet, by one way or another; it counts them once.
pub struct Limit {
    ways: SmallVec<[Arc<InboundLimit>; 1]>,
    limiter: Arc<RateLimiter>,
    policy: Option<HeaderValue>,
    allowed: metrics::Counter,
    limited: metrics::Counter,
}

/// What the caller is told.
pub struct Told {
    policy: Option<HeaderValue>,
    rate: Option<HeaderValue>,
    retry_after: Option<u64>,
}

impl Limiters {
    /// The limits of a port for requests to one of `services`, those that the connection may be for. `seed` is random.
    pub fn of(&self, port: &InboundPort, services: &[Target], telemetry: &Telemetry, seed: u64) -> Arc<[Limit]> {
        if port.rate_limits.is_empty() {
            return Arc::default();
        }
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What no connection uses and no configuration names is forgotten.
        held.retain(|(number, name), limiter| {
            let named = port.rate_limits.iter().any(|limit| limit.limit.name == *name);
            *number != port.port || named || Arc::strong_count(limiter) > 1
        });
        let own = port.rate_limits.iter().filter(|limit| {
            limit.services.is_empty() || limit.services.iter().any(|service| services.contains(service))
        });
        let mut limits: Vec<Limit> = Vec::new();
        for limit in own {
            if let Some(known) = limits.iter_mut().find(|known| known.limiter.limit() == &limit.limit) {
                known.ways.push(Arc::clone(limit));
                continue;
            }
            let key = (port.port, limit.limit.name.clone());
            let limiter = match held.get(&key) {
                Some(limiter) if *limiter.limit() == limit.limit => Arc::clone(limiter),
                _ => Arc::new(RateLimiter::new(&limit.limit, seed)),
            };
            held.insert(key, Arc::clone(&limiter));
            limits.push(Limit::new(limit, limiter, telemetry));
        }
        limits.into()
    }
}

impl Limit {
    fn new(limit: &Arc<InboundLimit>, limiter: Arc<RateLimiter>, telemetry: &Telemetry) -> Self {
        let rate = &limit.limit;
        let counter = |result| {
            let labels = [("limit", &*rate.name), ("result", result)];
            telemetry.counter_of("weft_rate_limit_requests_total", "Requests that met a rate limit", &labels)
        };
        let policy = format!("\"{}\";q={};w={}", rate.name, rate.requests, rate.per.as_secs().max(1));
        Self {
            policy: HeaderValue::from_maybe_shared(Bytes::from(policy)).ok(),
            allowed: counter("allowed"),
            limited: counter("limited"),
            ways: SmallVec::from_iter([Arc::clone(limit)]),
            limiter,
        }
    }

    fn name(&self) -> &str {
        &self.limiter.limit().name
    }

    /// Whether it is for this request. Who has a certificate says which rule the request follows, also when its path is
    /// another one now; of others it is known only what the request looks like.
    fn meets(&self, (mesh, rule): (bool, Option<&HeaderValue>), view: &RequestView<'_>) -> bool {
        self.ways.iter().any(|way| {
            if mesh && !way.rules.is_empty() {
                return rule.is_some_and(|rule| way.rules.iter().any(|known| known.as_bytes() == rule.as_bytes()));
            }
            way.matches.is_empty() || way.matches.iter().any(|candidate| candidate.matches(view))
        })
    }

    fn told(&self, remaining: u32, reset: Duration, retry_after: Option<Duration>) -> Told {
        let rate = format!("\"{}\";r={remaining};t={}", self.name(), seconds(reset));
        Told {
            policy: self.policy.clone(),
            rate: HeaderValue::from_maybe_shared(Bytes::from(rate)).ok(),
            retry_after: retry_after.map(|after| seconds(after).max(1)),
        }
    }
}

/// Counts a request in all limits that it meets, or in none when one of them refuses it. What to tell the caller of the limit
/// with the least left, or of the one that refused it with the error; `None`: it meets no limit. `rule` is what the caller
/// says that it follows.
pub fn check(
    limits: &[Limit],
    (peer, source): (Option<&PeerIdentity>, IpAddr),
    claims: Option<&Claims>,
    rule: Option<&HeaderValue>,
    received: &Received,
    headers: &HeaderMap,
    now: Nanos,
) -> Option<(Told, Option<ProxyError>)> {
    let (path, query) = (received.path.path(), received.path.query());
    let view = RequestView { method: &received.method, path, query, headers };
    let caller = Caller { identity: peer.map(|peer| &peer.id), source, headers, claims };
    let mut tightest: Option<(&Limit, u32, Duration)> = None;
    let meets = |limit: &&Limit| limit.meets((peer.is_some(), rule), &view);
    for (index, limit) in limits.iter().enumerate().filter(|(_, limit)| meets(limit)) {
        match limit.limiter.check(&caller, now) {
            Decision::Allowed { remaining, reset_after } => {
                if tightest.is_none_or(|(_, least, _)| remaining < least) {
                    tightest = Some((limit, remaining, reset_after));
                }
            }
            Decision::Limited { retry_after, reset_after } => {
                limit.limited.increment(1);
                // Who is refused by one limit must not use up the others.
                limits.iter().take(index).filter(meets).for_each(|before| before.limiter.undo(&caller));
                let detail = format!("over the limit {}", limit.name());
                let error = ProxyError::unsent(Reason::RateLimited, detail);
                return Some((limit.told(0, reset_after, Some(retry_after)), Some(error)));
            }
        }
    }
    limits.iter().filter(meets).for_each(|limit| limit.allowed.increment(1));
    tightest.map(|(limit, remaining, reset)| (limit.told(remaining, reset, None), None))
}

impl Told {
    /// Adds the fields to an answer, beside those of others on its way.
    pub fn write(self, headers: &mut HeaderMap) {
        for (name, value) in [(RATE_LIMIT_POLICY, self.policy), (RATE_LIMIT, self.rate)] {
            if let Some(value) = value {
                headers.append(name, value);
            }
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

/// Rounded up: a caller that comes back then is not too early.
const fn seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(if time.subsec_nanos() > 0 { 1 } else { 0 })
}

#[cfg(test)]
mod tests;
