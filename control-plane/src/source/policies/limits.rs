//! How many calls there may be, and which fail on purpose: `RateLimitPolicy`, `FaultInjection`.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Percent, Span, Spec, TargetRef, WorkloadSelector};
use crate::source::check::Check;

/// Longer periods are quotas, which need a count that outlives the process.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How many requests its targets take, counted by each workload at its inbound side.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitPolicySpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// The limits; a request must pass all of them.
    #[schemars(length(min = 1))]
    pub limits: Vec<RateLimit>,
}

/// What requests are counted by.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum RateKey {
    Claim,
    Header,
    Identity,
    SourceIp,
    Total,
}

/// One limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests in each period, at least 1.
    #[schemars(range(min = 1))]
    pub requests: u32,
    /// The period, at most 24h. Default 1s.
    pub per: Option<Span>,
    /// Requests at once beyond the steady rate. Default `requests`.
    #[schemars(range(min = 1))]
    pub burst: Option<u32>,
    /// What requests are counted by. Default Total.
    pub key: Option<RateKey>,
    /// The header, when `key` is Header.
    pub header: Option<String>,
    /// The claim of the token, when `key` is Claim: what a RequestAuthentication has verified. Members of objects are
    /// named outer.inner.
    pub claim: Option<String>,
}

impl Spec for RateLimitPolicySpec {
    const ADD_UP: bool = true;

    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.limits.is_empty() {
            check.wrong("spec.limits", "is empty", "a policy needs at least one limit");
        }
        for (index, limit) in self.limits.iter().enumerate() {
            let path = format!("spec.limits[{index}]");
            check.positive(&format!("{path}.requests"), Some(limit.requests));
            check.positive(&format!("{path}.burst"), limit.burst);
            if limit.per.is_some_and(|per| per.0.is_zero()) {
                check.wrong(&format!("{path}.per"), "a period of 0s has no rate", "such as 1s");
            }
            if limit.per.is_some_and(|per| per.0 > DAY) {
                check.wrong(&format!("{path}.per"), "is longer than a day", "at most 24h");
            }
            if let Some(header) = &limit.header {
                check.header(&format!("{path}.header"), header);
            }
            if (limit.key == Some(RateKey::Header)) != limit.header.is_some() {
                check.wrong(&format!("{path}.header"), "goes with key Header, and only with it", "");
            }
            if (limit.key == Some(RateKey::Claim)) != limit.claim.as_ref().is_some_and(|claim| !claim.is_empty()) {
                check.wrong(&format!("{path}.claim"), "goes with key Claim, and only with it", "");
            }
        }
    }
}

/// Failures on purpose, for tests of resilience. All that apply to a request take effect, the most specific first.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultInjectionSpec {
    /// What it applies to: Services, their ports, routes and their rules.
    #[schemars(length(min = 1))]
    pub target_refs: Vec<TargetRef>,
    /// Wait before the request is sent on.
    pub delay: Option<FaultDelay>,
    /// Answer in place of the service.
    pub abort: Option<FaultAbort>,
    /// Slow response bodies.
    pub bandwidth: Option<FaultBandwidth>,
    /// Only requests with these headers, name to value. Default all.
    pub headers: Option<BTreeMap<String, String>>,
    /// The faults end by themselves so long after metadata.creationTimestamp (of a file without one: after the file
    /// was last written). Default never.
    pub expires_after: Option<Span>,
}

/// Wait before the request is sent on.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultDelay {
    /// How long.
    pub fixed: Span,
    /// Share of requests. Default 100.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<Percent>,
}

/// Answer in place of the service: exactly one of the first three.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultAbort {
    /// HTTP status of the answer.
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<u16>,
    /// gRPC code of the answer, by name.
    #[schemars(transform = super::grpc_codes)]
    pub grpc_status: Option<String>,
    /// No answer: the caller's connection or stream is reset.
    pub reset: Option<bool>,
    /// Share of requests. Default 100.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<Percent>,
}

/// Slow response bodies.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultBandwidth {
    /// Of each response, at least 1.
    #[schemars(range(min = 1))]
    pub bytes_per_second: u64,
    /// Share of requests. Default 100.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<Percent>,
}

impl Spec for FaultInjectionSpec {
    const ADD_UP: bool = true;
    const TARGETS: &'static [&'static str] = &["Service", "HTTPRoute", "GRPCRoute"];

    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.delay.is_none() && self.abort.is_none() && self.bandwidth.is_none() {
            let hint = "a fault needs one of delay, abort and bandwidth";
            check.wrong("spec", "nothing would fail", hint);
        }
        if self.target_refs.is_empty() {
            check.wrong("spec.targetRefs", "is empty", "name what shall fail");
        }
        check.some_time("spec.expiresAfter", self.expires_after);
        if let Some(delay) = &self.delay {
            check.some_time("spec.delay.fixed", Some(delay.fixed));
            check.percent("spec.delay.percent", delay.percent);
        }
        if let Some(abort) = &self.abort {
            check.percent("spec.abort.percent", abort.percent);
            aborts(abort, check);
        }
        if let Some(bandwidth) = &self.bandwidth {
            check.percent("spec.bandwidth.percent", bandwidth.percent);
            if bandwidth.bytes_per_second == 0 {
                let hint = "at least 1; a response that never comes is an abort or a delay";
                check.wrong("spec.bandwidth.bytesPerSecond", "0 would never end", hint);
            }
        }
        for (name, value) in self.headers.iter().flatten() {
            let path = format!("spec.headers.{name}");
            check.header(&path, name);
            if http::HeaderValue::from_str(value).is_err() {
                check.wrong(&path, format!("{value:?} is not a header value"), "");
            }
        }
    }
}

fn aborts(abort: &FaultAbort, check: &mut Check<'_>) {
    match (abort.http_status, &abort.grpc_status, abort.reset) {
        (Some(status), None, None) if (200..=599).contains(&status) => {}
        (Some(status), None, None) => {
            check.wrong("spec.abort.httpStatus", format!("{status} is not the status of an answer"), "200 to 599");
        }
        (None, Some(code), None) => check.one_of("spec.abort.grpcStatus", "gRPC code", code, &weft_policy::grpc::CODES),
        (None, None, Some(true)) => {}
        (None, None, Some(false)) => check.wrong("spec.abort.reset", "false does nothing", "true, or leave it out"),
        _ => check.wrong("spec.abort", "needs exactly one of httpStatus, grpcStatus and reset", ""),
    }
}
