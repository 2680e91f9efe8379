//! How calls are made: `TrafficPolicy`.

mod checks;

pub use self::checks::traffic;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Percent, Span, Spec, TargetRef};
use crate::source::check::Check;

/// Timeouts, retries, load balancing, limits and outlier detection of calls to its targets. What is left out comes
/// from the next less specific policy and at last from MeshConfig.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// What it applies to. Default: every Service of the namespace. At a route only timeouts (but for connect) and
    /// retries (but for the budget) can be set: the rest belongs to the Service that is called.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// How long calls may take.
    pub timeouts: Option<Timeouts>,
    /// Which calls are made again.
    pub retries: Option<Retries>,
    /// How an endpoint is chosen.
    pub load_balancing: Option<LoadBalancing>,
    /// How much may be in flight.
    pub limits: Option<Limits>,
    /// When an endpoint is left out.
    pub outlier_detection: Option<OutlierDetection>,
    /// When the service as a whole is left alone.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Connections to the endpoints.
    pub connection: Option<Connection>,
}

/// How long calls may take.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// From the request to the end of the response, retries included. 0s is none. Default none.
    pub request: Option<Span>,
    /// The same for one attempt. Default none.
    pub backend_request: Option<Span>,
    /// To connect, TLS included. Default 2s.
    pub connect: Option<Span>,
    /// Without a byte on a stream. Default 5m.
    pub stream_idle: Option<Span>,
}

/// Which calls are made again.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Attempts after the first. Default 2; 0 turns retries off.
    #[schemars(range(max = 10))]
    pub attempts: Option<u32>,
    /// HTTP status codes that are tried again. Default 502, 503, 504.
    #[schemars(inner(range(min = 400, max = 599)))]
    pub codes: Option<Vec<u16>>,
    /// gRPC codes that are tried again. Default UNAVAILABLE.
    #[schemars(transform = super::grpc_codes)]
    pub grpc_codes: Option<Vec<String>>,
    /// Methods that are safe to repeat. Default the idempotent ones of RFC 9110.
    pub methods: Option<Vec<String>>,
    /// Waits between attempts, full jitter.
    pub backoff: Option<Backoff>,
    /// How many retries there may be in all.
    pub budget: Option<Budget>,
    /// Another attempt is started when the first has not answered by then. Default: no hedging.
    pub hedge_after: Option<Span>,
}

/// Waits between attempts.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// The least that is waited where something was sent, before the jitter. Default none.
    pub min: Option<Span>,
    /// Default 25ms.
    pub base: Option<Span>,
    /// Default 250ms.
    pub max: Option<Span>,
}

/// How many retries there may be in all.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Retries as a share of requests seen. Default 20.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<Percent>,
    /// Retries per second that are always there. Default 10.
    pub min_per_second: Option<u32>,
}

/// Ways to choose an endpoint.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum Algorithm {
    LeastLatency,
    LeastRequest,
    Maglev,
    Random,
    RingHash,
    RoundRobin,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// With hashOn one setting: a policy gives both or neither. Default LeastLatency: two random choices, the better by peak-EWMA latency and requests in flight.
    pub algorithm: Option<Algorithm>,
    /// What RingHash and Maglev hash.
    pub hash_on: Option<HashOn>,
    /// New endpoints get their share by and by in this time. Default none.
    pub slow_start: Option<Span>,
    /// Whose endpoints come first while enough of them are healthy, nearest first; an empty list is no preference.
    /// Default Zone, Region.
    pub locality: Option<Vec<Place>>,
}

/// What endpoints may have in common with the caller.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum Place {
    Region,
    Zone,
}

/// One of the fields.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HashOn {
    /// Name of a header.
    pub header: Option<String>,
    /// Name of a cookie.
    pub cookie: Option<String>,
    /// Name of a query parameter.
    pub query_param: Option<String>,
    /// The address of the caller.
    pub source_ip: Option<bool>,
}

/// How much may be in flight.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Open connections. Default 1024.
    #[schemars(range(min = 1))]
    pub connections: Option<u32>,
    /// Requests that wait for a connection. Default 1024.
    #[schemars(range(min = 1))]
    pub pending: Option<u32>,
    /// Requests in flight. Default 4096.
    #[schemars(range(min = 1))]
    pub requests: Option<u32>,
    /// Retries in flight. Default: the budget alone.
    #[schemars(range(min = 1))]
    pub retries: Option<u32>,
}

/// When an endpoint is left out.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Gateway failures in a row; 0 turns this off. With a share of successes too, as many requests can be enough when
    /// some of them were answered, if so many failures can be no chance. Default 5.
    pub consecutive_failures: Option<u32>,
    /// Below this share of successes an endpoint is ejected; 0 turns this off. Default 80.
    #[schemars(range(min = 0, max = 100))]
    pub success_percent: Option<Percent>,
    /// Requests in the window without which the share says nothing. Default 20.
    #[schemars(range(min = 1))]
    pub minimum_requests: Option<u32>,
    /// Length of the sliding window. Default 10s.
    pub window: Option<Span>,
    /// Length of the first ejection; doubles. Default 5s.
    pub base_ejection: Option<Span>,
    /// Longest ejection. Default 5m.
    pub max_ejection: Option<Span>,
    /// Share of the endpoints that may be out. Default 50.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: Option<Percent>,
}

/// What opens the breaker of a service.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum BreakOn {
    ConnectFailures,
    Failures,
    Never,
}

/// When the service as a whole is left alone.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// Default ConnectFailures.
    pub break_on: Option<BreakOn>,
    /// Failures in a row. Default 5.
    #[schemars(range(min = 1))]
    pub consecutive_failures: Option<u32>,
    /// Time until the first probe; doubles. Default 1s.
    pub base_open: Option<Span>,
    /// Longest time until a probe. Default 5s.
    pub max_open: Option<Span>,
}

/// Connections to the endpoints.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// A connection without requests is closed after this. Default 1h in the mesh, 3s to an app.
    pub idle: Option<Span>,
    /// A connection is replaced after this. Default 1h.
    pub max_age: Option<Span>,
    /// Streams of one HTTP/2 connection. Default 250.
    #[schemars(range(min = 1))]
    pub max_streams: Option<u32>,
}

impl Spec for TrafficPolicySpec {
    const ADD_UP: bool = true;

    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn check(&self, check: &mut Check<'_>) {
        checks::traffic(self, "spec", check);
        if self.target_refs.iter().any(|target| target.kind.ends_with("Route")) {
            checks::of_a_route(self, check);
        }
    }
}
