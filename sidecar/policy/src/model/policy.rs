//! How requests are made and endpoints used, resolved: what users wrote is merged with the defaults already. The
//! `Default` of each type is the default of the mesh (DESIGN section 10).

use std::time::{Duration, SystemTime};

use http::{HeaderName, Method, StatusCode};

use super::{KeyMatch, RouteMatch, Target};

/// How the requests of one rule are made.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestPolicy {
    /// Whole request with all retries, to the response head. Default none.
    pub timeout: Option<Duration>,
    /// One try, to the response head. Default none.
    pub backend_timeout: Option<Duration>,
    /// Without a byte of a body, unless gRPC or upgraded. Default 5 min; `None`: no limit.
    pub stream_idle: Option<Duration>,
    /// What is tried again.
    pub retry: Retry,
    /// Failures on purpose.
    pub faults: Vec<Fault>,
}

impl Default for RequestPolicy {
    fn default() -> Self {
        Self {
            timeout: None,
            backend_timeout: None,
            stream_idle: Some(Duration::from_secs(300)),
            retry: Retry::default(),
            faults: Vec::new(),
        }
    }
}

/// What is tried again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Tries after the first. Default 2.
    pub attempts: u32,
    /// HTTP statuses. Default 502, 503, 504.
    pub codes: Vec<StatusCode>,
    /// gRPC codes. Default 14, UNAVAILABLE.
    pub grpc_codes: Vec<u8>,
    /// Methods that may be repeated once something was sent. `None`, the default: the idempotent ones of RFC 9110.
    pub methods: Option<Vec<Method>>,
    /// The least that is waited where something was sent. Default none.
    pub backoff_min: Duration,
    /// First wait beyond that, full jitter. Default 25 ms.
    pub backoff_base: Duration,
    /// Longest wait beyond the least. Default 250 ms.
    pub backoff_max: Duration,
    /// A second try is started beside the first after this time. Default none.
    pub hedge_after: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 2,
            codes: vec![StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT],
            grpc_codes: vec![14],
            methods: None,
            backoff_min: Duration::ZERO,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            hedge_after: None,
        }
    }
}

/// A failure on purpose.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// `namespace/name` of the FaultInjection.
    pub name: Box<str>,
    /// Only requests with all of these headers.
    pub headers: Vec<KeyMatch<HeaderName>>,
    /// Wait before the request is sent on, and the share of requests in parts per million.
    pub delay: Option<(Duration, u32)>,
    /// What is answered, and the share.
    pub abort: Option<(Abort, u32)>,
    /// Bytes of the response body per second, and the share.
    pub bandwidth: Option<(u64, u32)>,
    /// When it ends by itself.
    pub expires: Option<SystemTime>,
}

/// How a fault ends a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Abort {
    /// An answer with this status.
    Http(StatusCode),
    /// A gRPC answer with this code.
    Grpc(u8),
    /// The caller's connection or stream is reset.
    Reset,
}

/// How the endpoints behind one service port are used.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendPolicy {
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// What is over it fails fast.
    pub limits: Limits,
    /// When an endpoint is left out.
    pub outlier_detection: OutlierDetection,
    /// When the service as a whole is left alone.
    pub circuit_breaker: CircuitBreaker,
    /// How many retries there may be.
    pub retry_budget: RetryBudget,
    /// TLS included. Default 2 s.
    pub connect_timeout: Duration,
    /// Connections.
    pub connection: Connection,
}

impl Default for BackendPolicy {
    fn default() -> Self {
        Self {
            load_balancing: LoadBalancing::default(),
            limits: Limits::default(),
            outlier_detection: OutlierDetection::default(),
            circuit_breaker: CircuitBreaker::default(),
            retry_budget: RetryBudget::default(),
            connect_timeout: Duration::from_secs(2),
            connection: Connection::default(),
        }
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LoadBalancing {
    /// Default least latency.
    pub algorithm: Algorithm,
    /// New endpoints get their share by and by in this time. Default none.
    pub slow_start: Option<Duration>,
    /// Whose endpoints come first, nearest first. Default zone, then region.
    pub prefer: Vec<Place>,
}

impl Default for LoadBalancing {
    fn default() -> Self {
        Self { algorithm: Algorithm::LeastLatency, slow_start: None, prefer: vec![Place::Zone, Place::Region] }
    }
}

/// Ways to choose an endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Algorithm {
    /// Power of two choices over peak-EWMA latency times requests in flight.
    LeastLatency,
    /// One after the other.
    RoundRobin,
    /// Power of two choices over requests in flight.
    LeastRequest,
    /// At random.
    Random,
    /// A ring of hashes.
    RingHash(HashOn),
    /// Maglev's table.
    Maglev(HashOn),
}

/// What is hashed. A request without it goes to an endpoint at random.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HashOn {
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<str>),
    /// A query parameter.
    Query(Box<str>),
    /// The address of the caller.
    SourceIp,
}

/// A part of a locality.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// The same zone of the same region.
    Zone,
    /// The same region.
    Region,
}

/// How much may be in flight.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Open connections. Default 1024.
    pub connections: u32,
    /// Requests that wait for a connection. Default 1024.
    pub pending: u32,
    /// Requests. Default 4096.
    pub requests: u32,
    /// Retries. Default `None`: the budget alone.
    pub retries: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, pending: 1024, requests: 4096, retries: None }
    }
}

/// When an endpoint is left out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OutlierDetection {
    /// Gateway failures in a row; 0: off. Default 5. With a share of successes too, as many requests are enough when
    /// there are answers among the failures, if it can be no chance.
    pub consecutive_failures: u32,
    /// Ejected below this share of successes, in parts per million; 0: off. Default 80 %.
    pub success_ppm: u32,
    /// Requests in the window without which the share says nothing. Default 20.
    pub minimum_requests: u32,
    /// Sliding window. Default 10 s.
    pub window: Duration,
    /// First ejection; doubles. Default 5 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 5 min.
    pub max_ejection: Duration,
    /// Share of the endpoints that may be out, in parts per million. Of two or more one may always be, and never all.
    /// Default 50 %.
    pub max_ejected_ppm: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            success_ppm: 800_000,
            minimum_requests: 20,
            window: Duration::from_secs(10),
            base_ejection: Duration::from_secs(5),
            max_ejection: Duration::from_secs(300),
            max_ejected_ppm: 500_000,
        }
    }
}

/// When a service as a whole is left alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CircuitBreaker {
    /// What opens it. Default connect failures.
    pub break_on: BreakOn,
    /// In a row. Default 5.
    pub consecutive_failures: u32,
    /// Until the first probe; doubles. Default 1 s.
    pub base_open: Duration,
    /// Longest time until a probe. Default 5 s.
    pub max_open: Duration,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            break_on: BreakOn::ConnectFailures,
            consecutive_failures: 5,
            base_open: Duration::from_secs(1),
            max_open: Duration::from_secs(5),
        }
    }
}

/// What opens the breaker of a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BreakOn {
    /// Connections that cannot be made.
    ConnectFailures,
    /// Gateway failures of any kind.
    Failures,
    /// Nothing.
    Never,
}

/// How many retries there may be in all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetryBudget {
    /// For each million of requests seen. Default 20 %.
    pub ppm: u32,
    /// Of each second, that are always there. Default 10.
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ppm: 200_000, min_per_second: 10 }
    }
}

/// Connections to endpoints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Connection {
    /// Closed after this time without requests. Default `None`: 1 h in the mesh, 3 s in plaintext.
    pub idle: Option<Duration>,
    /// Takes no more requests after this. Default 1 h.
    pub max_age: Duration,
    /// Streams of one HTTP/2 connection. Default 250.
    pub max_streams: u32,
}

impl Default for Connection {
    fn default() -> Self {
        Self { idle: None, max_age: Duration::from_secs(3600), max_streams: 250 }
    }
}

/// How many requests are let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RateLimit {
    /// `namespace/name` of the RateLimitPolicy and the limit's index.
    pub name: Box<str>,
    /// In each `per`.
    pub requests: u32,
    /// The period, more than zero.
    pub per: Duration,
    /// At once beyond the steady rate, at least 1.
    pub burst: u32,
    /// What is counted by.
    pub key: RateKey,
}

/// What requests are counted by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RateKey {
    /// All together.
    Total,
    /// The caller's SPIFFE id; callers in plaintext share one count.
    Identity,
    /// The caller's address.
    SourceIp,
    /// The value of a header; requests without it share one count.
    Header(HeaderName),
    /// A claim of the caller's token (nested ones joined by dots); requests without it share one count.
    Claim(Box<str>),
}

/// A limit of one inbound port.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundLimit {
    /// The limit.
    pub limit: RateLimit,
    /// Only requests sent to one of these; empty: all.
    pub services: Vec<Target>,
    /// Only requests that match one of these, when their caller names no rule because it speaks plaintext; empty: all.
    pub matches: Vec<RouteMatch>,
    /// Only requests that follow one of these rules, `namespace/route#rule`, by the word of a sidecar; empty: all.
    pub rules: Vec<Box<str>>,
}
