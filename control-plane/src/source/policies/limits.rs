//! How many calls there may be, and which fail on purpose: `RateLimitPolicy`, `FaultInjection`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Percent, Span, Spec, TargetRef, WorkloadSelector, traffic::GRPC_CODES};
use crate::source::check::Check;

/// How many requests its targets take.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitPolicySpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// The limits; a request must pass all of them.
    pub limits: Vec<RateLimit>,
}

/// What requests are counted by.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum RateKey {
    Header,
    Identity,
    SourceIp,
    Total,
}

/// One limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests in each period.
    pub requests: u32,
    /// The period. Default 1s.
    pub per: Option<Span>,
    /// Requests at once beyond the steady rate. Default `requests`.
    pub burst: Option<u32>,
    /// What requests are counted by. Default Total.
    pub key: Option<RateKey>,
    /// The header, when `key` is Header.
    pub header: Option<String>,
}

impl Spec for RateLimitPolicySpec {
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
            check.positive(&format!("{path}.burst"), limit.burst);
            if limit.per.is_some_and(|per| per.0.is_zero()) {
                check.wrong(&format!("{path}.per"), "a period of 0s has no rate", "such as 1s");
            }
            if (limit.key == Some(RateKey::Header)) != limit.header.is_some() {
                check.wrong(&format!("{path}.header"), "goes with key Header, and only with it", "");
            }
        }
    }
}

/// Failures on purpose, for tests of resilience.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultInjectionSpec {
    /// What it applies to.
    pub target_refs: Vec<TargetRef>,
    /// Wait before the request is sent on.
    pub delay: Option<FaultDelay>,
    /// Answer in place of the service.
    pub abort: Option<FaultAbort>,
    /// Only requests with these headers, name to value. Default all.
    pub headers: Option<BTreeMap<String, String>>,
    /// The faults end by themselves after this. Default never.
    pub expires_after: Option<Span>,
}

/// Wait before the request is sent on.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultDelay {
    /// How long.
    pub fixed: Span,
    /// Share of requests. Default 100.
    pub percent: Option<Percent>,
}

/// Answer in place of the service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultAbort {
    /// HTTP status of the answer.
    pub http_status: Option<u16>,
    /// gRPC code of the answer, by name.
    pub grpc_status: Option<String>,
    /// Share of requests. Default 100.
    pub percent: Option<Percent>,
}

impl Spec for FaultInjectionSpec {
    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.delay.is_none() && self.abort.is_none() {
            check.wrong("spec", "neither delay nor abort is given", "a fault needs one of them");
        }
        if self.target_refs.is_empty() {
            check.wrong("spec.targetRefs", "is empty", "name what shall fail");
        }
        check.percent("spec.delay.percent", self.delay.as_ref().and_then(|delay| delay.percent));
        let Some(abort) = &self.abort else { return };
        check.percent("spec.abort.percent", abort.percent);
        match (abort.http_status, &abort.grpc_status) {
            (Some(status), None) if (200..=599).contains(&status) => {}
            (Some(status), None) => {
                check.wrong("spec.abort.httpStatus", format!("{status} is not the status of an answer"), "200 to 599");
            }
            (None, Some(code)) => check.one_of("spec.abort.grpcStatus", "gRPC code", code, &GRPC_CODES),
            _ => check.wrong("spec.abort", "needs exactly one of httpStatus and grpcStatus", ""),
        }
    }
}
