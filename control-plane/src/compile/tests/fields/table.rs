//! The fields of a TrafficPolicy: how each is written, and where it is sent.

use weft_proto::v1;

use crate::compile::policies::text;

/// What a field takes.
pub enum Takes {
    Number,
    Time,
    Percent,
    /// As it is written, and as it is told.
    Words(&'static [(&'static str, &'static str)]),
}

/// One field: its path, where it is written (`@` is the value), what it takes, and what is sent.
pub struct Field(pub &'static str, pub &'static str, pub Takes, pub fn(&Sent) -> Option<String>);

/// What the sidecar gets for the only rule, or the only port.
pub struct Sent {
    pub requests: Option<v1::RequestPolicy>,
    pub backend: Option<v1::BackendPolicy>,
}

impl Sent {
    fn retry(&self) -> Option<&v1::Retry> {
        self.requests.as_ref()?.retry.as_ref()
    }

    fn outlier(&self) -> Option<&v1::OutlierDetection> {
        self.backend.as_ref()?.outlier_detection.as_ref()
    }

    fn limits(&self) -> Option<&v1::Limits> {
        self.backend.as_ref()?.limits.as_ref()
    }

    fn breaker(&self) -> Option<&v1::CircuitBreaker> {
        self.backend.as_ref()?.circuit_breaker.as_ref()
    }

    fn balancing(&self) -> Option<&v1::LoadBalancing> {
        self.backend.as_ref()?.load_balancing.as_ref()
    }

    fn connection(&self) -> Option<&v1::Connection> {
        self.backend.as_ref()?.connection.as_ref()
    }
}

fn number(value: u32) -> Option<String> {
    Some(value.to_string())
}

fn time(value: Option<prost_types::Duration>) -> Option<String> {
    Some(text(&value?.try_into().expect("not negative")))
}

fn share(ppm: u32) -> Option<String> {
    Some(format!("{} %", f64::from(ppm) / 10_000.0))
}

const ALGORITHMS: Takes = Takes::Words(&[
    ("RoundRobin", "RoundRobin"),
    ("LeastRequest", "LeastRequest"),
    ("Random", "Random"),
    ("RingHash, hashOn: {header: X-User}", "RingHash on header x-user"),
    ("Maglev, hashOn: {sourceIp: true}", "Maglev on the caller's address"),
]);
const PLACES: Takes =
    Takes::Words(&[("[Region]", "Region"), ("[]", "none"), ("[Zone]", "Zone"), ("[Region, Zone]", "Region, Zone")]);
const BREAKS: Takes = Takes::Words(&[("Failures", "Failures"), ("Never", "Never")]);
const CODES: Takes = Takes::Words(&[("[500]", "500"), ("[]", "none"), ("[429, 503]", "429, 503")]);
const GRPC: Takes =
    Takes::Words(&[("[ABORTED]", "ABORTED"), ("[CANCELLED, UNAUTHENTICATED]", "CANCELLED, UNAUTHENTICATED")]);
const METHODS: Takes = Takes::Words(&[("[GET]", "GET"), ("[POST, PATCH]", "POST, PATCH")]);

/// Fields that go to the rule, with their defaults.
pub const OF_RULES: &[(Field, &str)] = &[
    (Field("timeouts.request", "timeouts: {request: @}", Takes::Time, |s| time(s.requests.as_ref()?.timeout)), "none"),
    (
        Field("timeouts.backendRequest", "timeouts: {backendRequest: @}", Takes::Time, |s| {
            time(s.requests.as_ref()?.backend_timeout)
        }),
        "none",
    ),
    (
        Field("timeouts.streamIdle", "timeouts: {streamIdle: @}", Takes::Time, |s| {
            time(s.requests.as_ref()?.stream_idle)
        }),
        "5m",
    ),
    (Field("retries.attempts", "retries: {attempts: @}", Takes::Number, |s| number(s.retry()?.attempts)), "2"),
    (Field("retries.codes", "retries: {codes: @}", CODES, |s| list(&s.retry()?.codes)), "502, 503, 504"),
    (
        Field("retries.grpcCodes", "retries: {grpcCodes: @}", GRPC, |s| match s.retry()?.grpc_codes.as_slice() {
            [10] => Some("ABORTED".to_owned()),
            [1, 16] => Some("CANCELLED, UNAUTHENTICATED".to_owned()),
            other => panic!("{other:?}"),
        }),
        "UNAVAILABLE",
    ),
    (Field("retries.methods", "retries: {methods: @}", METHODS, |s| Some(s.retry()?.methods.join(", "))), "idempotent"),
    (
        Field("retries.backoff.min", "retries: {backoff: {min: @}}", Takes::Time, |s| time(s.retry()?.backoff_min)),
        "none",
    ),
    (
        Field("retries.backoff.base", "retries: {backoff: {base: @}}", Takes::Time, |s| time(s.retry()?.backoff_base)),
        "25ms",
    ),
    (
        Field("retries.backoff.max", "retries: {backoff: {max: @}}", Takes::Time, |s| time(s.retry()?.backoff_max)),
        "250ms",
    ),
    (Field("retries.hedgeAfter", "retries: {hedgeAfter: @}", Takes::Time, |s| time(s.retry()?.hedge_after)), "none"),
];

/// Fields that go to the port, with their defaults.
pub const OF_PORTS: &[(Field, &str)] = &[
    (
        Field("timeouts.connect", "timeouts: {connect: @}", Takes::Time, |s| time(s.backend.as_ref()?.connect_timeout)),
        "2s",
    ),
    (
        Field("retries.budget.percent", "retries: {budget: {percent: @}}", Takes::Percent, |s| {
            share(s.backend.as_ref()?.retry_budget?.ppm)
        }),
        "20 %",
    ),
    (
        Field("retries.budget.minPerSecond", "retries: {budget: {minPerSecond: @}}", Takes::Number, |s| {
            number(s.backend.as_ref()?.retry_budget?.min_per_second)
        }),
        "10",
    ),
    (
        Field("loadBalancing.algorithm", "loadBalancing: {algorithm: @}", ALGORITHMS, |s| {
            let balancing = s.balancing()?;
            let on = balancing.hash_on.as_ref().and_then(|on| on.kind.clone()).map(|kind| match kind {
                v1::hash_on::Kind::Header(name) => format!(" on header {name}"),
                v1::hash_on::Kind::SourceIp(true) => " on the caller's address".to_owned(),
                other => panic!("{other:?}"),
            });
            let word = match balancing.algorithm() {
                v1::load_balancing::Algorithm::RoundRobin => "RoundRobin",
                v1::load_balancing::Algorithm::LeastRequest => "LeastRequest",
                v1::load_balancing::Algorithm::Random => "Random",
                v1::load_balancing::Algorithm::RingHash => "RingHash",
                v1::load_balancing::Algorithm::Maglev => "Maglev",
                v1::load_balancing::Algorithm::LeastLatency => "LeastLatency",
            };
            Some(format!("{word}{}", on.unwrap_or_default()))
        }),
        "LeastLatency",
    ),
    (
        Field("loadBalancing.slowStart", "loadBalancing: {slowStart: @}", Takes::Time, |s| {
            time(s.balancing()?.slow_start)
        }),
        "none",
    ),
    (
        Field("loadBalancing.locality", "loadBalancing: {locality: @}", PLACES, |s| {
            let words: Vec<_> =
                s.balancing()?.prefer().map(|place| if place == v1::Place::Zone { "Zone" } else { "Region" }).collect();
            Some(if words.is_empty() { "none".to_owned() } else { words.join(", ") })
        }),
        "Zone, Region",
    ),
    (
        Field("limits.connections", "limits: {connections: @}", Takes::Number, |s| number(s.limits()?.connections)),
        "1024",
    ),
    (Field("limits.pending", "limits: {pending: @}", Takes::Number, |s| number(s.limits()?.pending)), "1024"),
    (Field("limits.requests", "limits: {requests: @}", Takes::Number, |s| number(s.limits()?.requests)), "4096"),
    (
        Field("limits.retries", "limits: {retries: @}", Takes::Number, |s| number(s.limits()?.retries)),
        "the budget alone",
    ),
    (
        Field(
            "outlierDetection.consecutiveFailures",
            "outlierDetection: {consecutiveFailures: @}",
            Takes::Number,
            |s| number(s.outlier()?.consecutive_failures),
        ),
        "5",
    ),
    (
        Field("outlierDetection.successPercent", "outlierDetection: {successPercent: @}", Takes::Percent, |s| {
            share(s.outlier()?.success_ppm)
        }),
        "80 %",
    ),
    (
        Field("outlierDetection.minimumRequests", "outlierDetection: {minimumRequests: @}", Takes::Number, |s| {
            number(s.outlier()?.minimum_requests)
        }),
        "20",
    ),
    (
        Field("outlierDetection.window", "outlierDetection: {window: @}", Takes::Time, |s| time(s.outlier()?.window)),
        "10s",
    ),
    (
        Field("outlierDetection.baseEjection", "outlierDetection: {baseEjection: @}", Takes::Time, |s| {
            time(s.outlier()?.base_ejection)
        }),
        "5s",
    ),
    (
        Field("outlierDetection.maxEjection", "outlierDetection: {maxEjection: @}", Takes::Time, |s| {
            time(s.outlier()?.max_ejection)
        }),
        "5m",
    ),
    (
        Field("outlierDetection.maxEjectedPercent", "outlierDetection: {maxEjectedPercent: @}", Takes::Percent, |s| {
            share(s.outlier()?.max_ejected_ppm)
        }),
        "50 %",
    ),
    (
        Field("circuitBreaker.breakOn", "circuitBreaker: {breakOn: @}", BREAKS, |s| {
            Some(
                if s.breaker()?.break_on() == v1::circuit_breaker::BreakOn::Failures { "Failures" } else { "Never" }
                    .to_owned(),
            )
        }),
        "ConnectFailures",
    ),
    (
        Field("circuitBreaker.consecutiveFailures", "circuitBreaker: {consecutiveFailures: @}", Takes::Number, |s| {
            number(s.breaker()?.consecutive_failures)
        }),
        "5",
    ),
    (
        Field("circuitBreaker.baseOpen", "circuitBreaker: {baseOpen: @}", Takes::Time, |s| {
            time(s.breaker()?.base_open)
        }),
        "1s",
    ),
    (
        Field("circuitBreaker.maxOpen", "circuitBreaker: {maxOpen: @}", Takes::Time, |s| time(s.breaker()?.max_open)),
        "5s",
    ),
    (
        Field("connection.idle", "connection: {idle: @}", Takes::Time, |s| time(s.connection()?.idle)),
        "1h in the mesh, 3s in plaintext",
    ),
    (Field("connection.maxAge", "connection: {maxAge: @}", Takes::Time, |s| time(s.connection()?.max_age)), "1h"),
    (
        Field("connection.maxStreams", "connection: {maxStreams: @}", Takes::Number, |s| {
            number(s.connection()?.max_streams)
        }),
        "250",
    ),
];

fn list(codes: &[u32]) -> Option<String> {
    let words: Vec<String> = codes.iter().map(u32::to_string).collect();
    Some(if words.is_empty() { "none".to_owned() } else { words.join(", ") })
}

impl Field {
    /// What a level writes, and how the value is told. Neighbours write different values, none of them a default.
    pub fn value(&self, level: usize) -> (String, String) {
        let (written, told) = match self.2 {
            Takes::Number => {
                let number = [6, 7, 8, 9, 3, 4][level].to_string();
                (number.clone(), number)
            }
            Takes::Time => (format!("{}s", level + 11), format!("{}s", level + 11)),
            Takes::Percent => (format!("{}.5", level + 30), format!("{}.5 %", level + 30)),
            Takes::Words(words) => {
                let (written, told) = words[level % words.len()];
                (written.to_owned(), told.to_owned())
            }
        };
        (self.1.replace('@', &written), told)
    }
}
