//! What is recorded of the traffic of a workload.

use std::sync::Arc;

use http::HeaderName;

use crate::trace::Sampling;

/// Traces and access log.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// Share of the traces that begin here.
    pub sampling: Sampling,
    /// OTLP over gRPC, `http://host:port`; `None`: spans go nowhere, so none are made.
    pub endpoint: Option<Arc<str>>,
    /// Request headers that become attributes of spans.
    pub headers: Vec<HeaderName>,
    /// Which requests are logged.
    pub access_log: AccessLogMode,
    /// How a request is written.
    pub format: AccessLogFormat,
}

/// Which requests and connections are logged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AccessLogMode {
    /// All.
    All,
    /// Those that failed.
    #[default]
    Errors,
    /// None.
    Off,
    /// Those whose trace is recorded, and those that failed.
    Sampled,
}

/// How a line of the access log is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AccessLogFormat {
    /// The Common Log Format.
    Common,
    /// Envoy's default text.
    Envoy,
    /// One JSON object a line.
    #[default]
    Json,
}

impl Default for Telemetry {
    /// Nothing is traced, failures are logged.
    fn default() -> Self {
        Self {
            sampling: Sampling::NONE,
            endpoint: None,
            headers: Vec::new(),
            access_log: AccessLogMode::default(),
            format: AccessLogFormat::default(),
        }
    }
}
