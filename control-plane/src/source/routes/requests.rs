//! What a route itself says of how its requests are made. That is more specific than every policy: a policy fills in
//! what is `None` here.

use std::time::Duration;

use super::Rule;
use crate::source::duration;

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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rule: serde_json::Value) -> Requests {
        Requests::of(&serde_json::from_value(rule).expect("a rule"))
    }

    #[test]
    fn what_is_set_is_told_apart_from_what_is_not() {
        let requests = of(serde_json::json!({ "timeouts": { "request": "0s" }, "retry": { "codes": [500] } }));
        let expected = Requests { timeout: Some(Duration::ZERO), codes: Some(vec![500]), ..Requests::default() };
        assert_eq!(requests, expected, "a timeout of zero is set: a policy does not fill it in");
        assert_eq!(of(serde_json::json!({ "retry": {} })), Requests::default());
    }
}
