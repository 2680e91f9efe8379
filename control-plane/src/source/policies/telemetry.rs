//! What is recorded: `TelemetryPolicy`.

use schemars::JsonSchema;
use serde::Deserialize;
use weft_policy::convert;

use super::{Percent, Spec, TargetRef, WorkloadSelector};
use crate::source::check::Check;

/// Traces and access logs of its targets.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryPolicySpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// Spans.
    pub tracing: Option<Tracing>,
    /// Access log.
    pub access_log: Option<AccessLog>,
}

/// Spans.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Share of traces started here that are kept. Default 1.
    #[schemars(range(min = 0, max = 100))]
    pub sampling_percent: Option<Percent>,
    /// Request headers that become attributes of the inbound side's spans, at most 16. Default none.
    #[schemars(length(max = convert::MAX_HEADERS))]
    pub headers: Option<Vec<String>>,
    /// Where the sidecars send spans, OTLP over gRPC. Default http://127.0.0.1:4317.
    pub endpoint: Option<String>,
}

/// The access log.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// Default Errors.
    pub mode: Option<AccessLogMode>,
    /// Default Json.
    pub format: Option<AccessLogFormat>,
}

/// Which requests are logged.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum AccessLogMode {
    All,
    Errors,
    Off,
    /// What is traced, and what failed.
    Sampled,
}

/// How a request is written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum AccessLogFormat {
    Common,
    Envoy,
    Json,
}

impl Spec for TelemetryPolicySpec {
    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn check(&self, check: &mut Check<'_>) {
        tracing(self.tracing.as_ref(), "spec.tracing", check);
    }
}

/// Checks the settings at `path`; the defaults of the mesh have the same.
pub fn tracing(tracing: Option<&Tracing>, path: &str, check: &mut Check<'_>) {
    let Some(tracing) = tracing else { return };
    check.percent(&format!("{path}.samplingPercent"), tracing.sampling_percent);
    if let Some(endpoint) = &tracing.endpoint
        && !matches!(convert::otlp_endpoint("", endpoint), Ok(Some(_)))
    {
        let message = format!("\"{endpoint}\" is not http://host:port");
        check.wrong(
            &format!("{path}.endpoint"),
            message,
            "such as http://127.0.0.1:4317; samplingPercent: 0 records none",
        );
    }
    let count = tracing.headers.as_ref().map_or(0, Vec::len);
    if count > convert::MAX_HEADERS {
        let message = format!("has {count} entries");
        check.wrong(&format!("{path}.headers"), message, format!("at most {}", convert::MAX_HEADERS));
    }
    for (index, header) in tracing.headers.iter().flatten().enumerate() {
        check.header(&format!("{path}.headers[{index}]"), header);
    }
}
