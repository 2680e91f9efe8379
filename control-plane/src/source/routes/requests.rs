//! What a route itself says of how its requests are made. That is more specific than every policy: a policy fills in
//! what is `None` here.

use std::time::Duration;

use weft_policy::model;
use weft_proto::v1;

use super::Rule;
use crate::source::duration;

/// How many times longer than the first wait the longest is.
const BACKOFF_GROWTH: u32 = 10;

/// The fields that a rule sets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Requests {
    /// Whole request; zero: none.
    pub timeout: Option<Duration>,
    /// One try; zero: none.
    pub backend_timeout: Option<Duration>,
    /// Tries after the first.
    pub attempts: Option<u32>,
    /// HTTP statuses that are tried again.
    pub codes: Option<Vec<u32>>,
    /// First wait.
    pub backoff: Option<Duration>,
}

impl Requests {
    /// Those of a rule.
    pub fn of(rule: &Rule) -> Self {
        let timeouts = rule.timeouts.as_ref();
        let retry = rule.retry.as_ref();
        let numbers = |codes: &Vec<i64>| codes.iter().filter_map(|&code| u32::try_from(code).ok()).collect();
        Self {
            timeout: timeouts.and_then(|timeouts| duration(timeouts.request.as_deref()?)),
            backend_timeout: timeouts.and_then(|timeouts| duration(timeouts.backend_request.as_deref()?)),
            attempts: retry.and_then(|retry| u32::try_from(retry.attempts?).ok()),
            codes: retry.and_then(|retry| retry.codes.as_ref().map(numbers)),
            backoff: retry.and_then(|retry| duration(retry.backoff.as_deref()?)),
        }
    }

    /// The message, with the defaults in place of what is not set.
    pub fn message(&self) -> v1::RequestPolicy {
        let default = model::Retry::default();
        let retries = self.attempts.is_some() || self.codes.is_some() || self.backoff.is_some();
        let retry = retries.then(|| v1::Retry {
            attempts: self.attempts.unwrap_or(default.attempts),
            codes: self
                .codes
                .clone()
                .unwrap_or_else(|| default.codes.iter().map(|code| code.as_u16().into()).collect()),
            grpc_codes: default.grpc_codes.iter().copied().map(u32::from).collect(),
            methods: Vec::new(),
            backoff_base: wire(self.backoff.or(Some(default.backoff_base))),
            backoff_max: wire(self.backoff.map_or(Some(default.backoff_max), |base| base.checked_mul(BACKOFF_GROWTH))),
            hedge_after: None,
        });
        v1::RequestPolicy {
            timeout: wire(self.timeout),
            backend_timeout: wire(self.backend_timeout),
            retry,
            ..v1::RequestPolicy::default()
        }
    }
}

fn wire(time: Option<Duration>) -> Option<prost_types::Duration> {
    time.filter(|time| !time.is_zero()).and_then(|time| time.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rule: serde_json::Value) -> Requests {
        Requests::of(&serde_json::from_value(rule).expect("a rule"))
    }

    #[test]
    fn a_timeout_of_zero_is_set_and_means_none() {
        let requests = of(serde_json::json!({ "timeouts": { "request": "0s", "backendRequest": "2s" } }));
        assert_eq!(requests.timeout, Some(Duration::ZERO), "a policy does not fill it in");
        let message = requests.message();
        assert_eq!((message.timeout, message.backend_timeout.map(|time| time.seconds)), (None, Some(2)));
    }

    #[test]
    fn what_a_retry_does_not_set_is_the_default() {
        assert_eq!(of(serde_json::json!({ "retry": {} })).message().retry, None);
        let retry = of(serde_json::json!({ "retry": { "attempts": 5 } })).message().retry.expect("a retry");
        assert_eq!((retry.attempts, retry.codes, retry.grpc_codes), (5, vec![502, 503, 504], vec![14]));
        let retry = of(serde_json::json!({ "retry": { "codes": [500], "backoff": "1s" } })).message().retry;
        let retry = retry.expect("a retry");
        assert_eq!((retry.attempts, retry.codes), (2, vec![500]));
        let seconds = |time: Option<prost_types::Duration>| time.map(|time| time.seconds);
        assert_eq!((seconds(retry.backoff_base), seconds(retry.backoff_max)), (Some(1), Some(10)));
    }
}
