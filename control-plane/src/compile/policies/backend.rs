//! How the endpoints behind a service port are used, merged.

use std::time::Duration;

use weft_policy::model::{self, BackendPolicy};
use weft_proto::v1::{self, circuit_breaker, hash_on, load_balancing};

use super::{Given, Layers, Row, ordered, ppm, text, text_or_none, wire};
use crate::source::policies::{
    Percent, Span,
    traffic::{
        Algorithm, BreakOn, Budget, CircuitBreaker, Connection, HashOn, Limits, LoadBalancing, OutlierDetection, Place,
    },
};

/// What is in force for the endpoints behind one port.
#[derive(Debug)]
pub struct Backend<'a> {
    connect: Given<'a, Duration>,
    budget_ppm: Given<'a, u32>,
    budget_min: Given<'a, u32>,
    /// What is hashed goes with the algorithm: of two objects that set it only one counts.
    algorithm: Given<'a, (Algorithm, Option<&'a HashOn>)>,
    slow_start: Given<'a, Option<Duration>>,
    locality: Given<'a, Vec<Place>>,
    connections: Given<'a, u32>,
    pending: Given<'a, u32>,
    requests: Given<'a, u32>,
    /// 0: the budget alone.
    retries: Given<'a, u32>,
    ejection_failures: Given<'a, u32>,
    success_ppm: Given<'a, u32>,
    minimum_requests: Given<'a, u32>,
    window: Given<'a, Duration>,
    base_ejection: Given<'a, Duration>,
    max_ejection: Given<'a, Duration>,
    max_ejected_ppm: Given<'a, u32>,
    break_on: Given<'a, BreakOn>,
    break_failures: Given<'a, u32>,
    base_open: Given<'a, Duration>,
    max_open: Given<'a, Duration>,
    idle: Given<'a, Option<Duration>>,
    max_age: Given<'a, Duration>,
    max_streams: Given<'a, u32>,
}

impl<'a> Backend<'a> {
    pub(super) fn merge(layers: &Layers<'a>) -> Self {
        let default = BackendPolicy::default();
        let (outliers, breaker) = (default.outlier_detection, default.circuit_breaker);
        let budget = |get: fn(&Budget) -> Option<u32>, default| {
            layers.pick(default, |spec| get(spec.retries.as_ref()?.budget.as_ref()?))
        };
        let limits =
            |get: fn(&Limits) -> Option<u32>, default| layers.pick(default, |spec| spec.limits.as_ref().and_then(get));
        let outlier = |get: fn(&OutlierDetection) -> Option<u32>, default| {
            layers.pick(default, |spec| spec.outlier_detection.as_ref().and_then(get))
        };
        let ejection = |get: fn(&OutlierDetection) -> Option<Span>, default| {
            layers.pick(default, |spec| Some(get(spec.outlier_detection.as_ref()?)?.0))
        };
        let open = |get: fn(&CircuitBreaker) -> Option<Span>, default| {
            layers.pick(default, |spec| Some(get(spec.circuit_breaker.as_ref()?)?.0))
        };
        let balancing = |spec: &'a crate::source::policies::traffic::TrafficPolicySpec| spec.load_balancing.as_ref();
        let connection = |get: fn(&Connection) -> Option<Span>, default| {
            layers.pick(default, |spec| Some(Some(get(spec.connection.as_ref()?)?.0)))
        };
        let max_age = connection(|connection| connection.max_age, Some(default.connection.max_age));
        let mut merged = Self {
            connect: layers.pick(default.connect_timeout, |spec| Some(spec.timeouts.as_ref()?.connect?.0)),
            budget_ppm: budget(|budget| budget.percent.map(ppm), default.retry_budget.ppm),
            budget_min: budget(|budget| budget.min_per_second, default.retry_budget.min_per_second),
            algorithm: layers.pick((Algorithm::LeastLatency, None), |spec| {
                let LoadBalancing { algorithm, hash_on, .. } = balancing(spec)?;
                Some(((*algorithm)?, hash_on.as_ref()))
            }),
            slow_start: layers.pick(default.load_balancing.slow_start, |spec| {
                let Span(time) = balancing(spec)?.slow_start?;
                Some((!time.is_zero()).then_some(time))
            }),
            locality: layers.pick(default.load_balancing.prefer.iter().map(place).collect(), |spec| {
                balancing(spec)?.locality.clone()
            }),
            connections: limits(|limits| limits.connections, default.limits.connections),
            pending: limits(|limits| limits.pending, default.limits.pending),
            requests: limits(|limits| limits.requests, default.limits.requests),
            retries: limits(|limits| limits.retries, default.limits.retries.unwrap_or_default()),
            ejection_failures: outlier(|outlier| outlier.consecutive_failures, outliers.consecutive_failures),
            success_ppm: outlier(|outlier| outlier.success_percent.map(ppm), outliers.success_ppm),
            minimum_requests: outlier(|outlier| outlier.minimum_requests, outliers.minimum_requests),
            window: ejection(|outlier| outlier.window, outliers.window),
            base_ejection: ejection(|outlier| outlier.base_ejection, outliers.base_ejection),
            max_ejection: ejection(|outlier| outlier.max_ejection, outliers.max_ejection),
            max_ejected_ppm: outlier(|outlier| outlier.max_ejected_percent.map(ppm), outliers.max_ejected_ppm),
            break_on: layers.pick(BreakOn::ConnectFailures, |spec| spec.circuit_breaker.as_ref()?.break_on),
            break_failures: layers
                .pick(breaker.consecutive_failures, |spec| spec.circuit_breaker.as_ref()?.consecutive_failures),
            base_open: open(|breaker| breaker.base_open, breaker.base_open),
            max_open: open(|breaker| breaker.max_open, breaker.max_open),
            idle: connection(|connection| connection.idle, default.connection.idle),
            max_age: Given { value: max_age.value.unwrap_or_default(), origin: max_age.origin, rank: max_age.rank },
            max_streams: layers.pick(default.connection.max_streams, |spec| spec.connection.as_ref()?.max_streams),
        };
        ordered(&mut merged.base_ejection, &mut merged.max_ejection);
        ordered(&mut merged.base_open, &mut merged.max_open);
        merged
    }

    /// Every part complete.
    fn whole(&self) -> Parts {
        Parts {
            load_balancing: v1::LoadBalancing {
                algorithm: algorithm(self.algorithm.value.0).into(),
                hash_on: self.algorithm.value.1.map(hash_on),
                slow_start: self.slow_start.value.and_then(wire),
                prefer: self.locality.value.iter().map(|place| prefer(*place).into()).collect(),
            },
            limits: v1::Limits {
                connections: self.connections.value,
                pending: self.pending.value,
                requests: self.requests.value,
                retries: self.retries.value,
            },
            outlier_detection: v1::OutlierDetection {
                consecutive_failures: self.ejection_failures.value,
                success_ppm: self.success_ppm.value,
                minimum_requests: self.minimum_requests.value,
                window: wire(self.window.value),
                base_ejection: wire(self.base_ejection.value),
                max_ejection: wire(self.max_ejection.value),
                max_ejected_ppm: self.max_ejected_ppm.value,
            },
            circuit_breaker: v1::CircuitBreaker {
                break_on: match self.break_on.value {
                    BreakOn::ConnectFailures => circuit_breaker::BreakOn::ConnectFailures,
                    BreakOn::Failures => circuit_breaker::BreakOn::Failures,
                    BreakOn::Never => circuit_breaker::BreakOn::Never,
                }
                .into(),
                consecutive_failures: self.break_failures.value,
                base_open: wire(self.base_open.value),
                max_open: wire(self.max_open.value),
            },
            retry_budget: v1::RetryBudget { ppm: self.budget_ppm.value, min_per_second: self.budget_min.value },
            connection: v1::Connection {
                idle: self.idle.value.and_then(wire),
                max_age: wire(self.max_age.value),
                max_streams: self.max_streams.value,
            },
        }
    }

    /// Each part is left out when it is as it always is.
    pub(super) fn message(&self) -> v1::BackendPolicy {
        let default = Self::merge(&Layers(Vec::new())).whole();
        let parts = self.whole();
        v1::BackendPolicy {
            load_balancing: unless(parts.load_balancing, &default.load_balancing),
            limits: unless(parts.limits, &default.limits),
            outlier_detection: unless(parts.outlier_detection, &default.outlier_detection),
            circuit_breaker: unless(parts.circuit_breaker, &default.circuit_breaker),
            retry_budget: unless(parts.retry_budget, &default.retry_budget),
            connect_timeout: wire(self.connect.value),
            connection: unless(parts.connection, &default.connection),
        }
    }

    /// Every field for people.
    #[must_use]
    pub fn rows(&self) -> Vec<Row<'a>> {
        let idle = |time: &Option<Duration>| time.as_ref().map_or("1h in the mesh, 3s in plaintext".to_owned(), text);
        let budget_alone = |limit: &u32| if *limit == 0 { "the budget alone".to_owned() } else { limit.to_string() };
        let off = |number: &u32| if *number == 0 { "off".to_owned() } else { number.to_string() };
        let off_percent = |share: &u32| if *share == 0 { "off".to_owned() } else { percent(share) };
        vec![
            self.connect.row("timeouts.connect", text),
            self.budget_ppm.row("retries.budget.percent", percent),
            self.budget_min.row("retries.budget.minPerSecond", u32::to_string),
            self.algorithm.row("loadBalancing.algorithm", balancer),
            self.slow_start.row("loadBalancing.slowStart", text_or_none),
            self.locality.row("loadBalancing.locality", |list| places(list)),
            self.connections.row("limits.connections", u32::to_string),
            self.pending.row("limits.pending", u32::to_string),
            self.requests.row("limits.requests", u32::to_string),
            self.retries.row("limits.retries", budget_alone),
            self.ejection_failures.row("outlierDetection.consecutiveFailures", off),
            self.success_ppm.row("outlierDetection.successPercent", off_percent),
            self.minimum_requests.row("outlierDetection.minimumRequests", u32::to_string),
            self.window.row("outlierDetection.window", text),
            self.base_ejection.row("outlierDetection.baseEjection", text),
            self.max_ejection.row("outlierDetection.maxEjection", text),
            self.max_ejected_ppm.row("outlierDetection.maxEjectedPercent", percent),
            self.break_on.row("circuitBreaker.breakOn", |on| format!("{on:?}")),
            self.break_failures.row("circuitBreaker.consecutiveFailures", u32::to_string),
            self.base_open.row("circuitBreaker.baseOpen", text),
            self.max_open.row("circuitBreaker.maxOpen", text),
            self.idle.row("connection.idle", idle),
            self.max_age.row("connection.maxAge", text),
            self.max_streams.row("connection.maxStreams", u32::to_string),
        ]
    }
}

struct Parts {
    load_balancing: v1::LoadBalancing,
    limits: v1::Limits,
    outlier_detection: v1::OutlierDetection,
    circuit_breaker: v1::CircuitBreaker,
    retry_budget: v1::RetryBudget,
    connection: v1::Connection,
}

fn unless<M: PartialEq>(message: M, default: &M) -> Option<M> {
    (message != *default).then_some(message)
}

fn place(place: &model::Place) -> Place {
    match place {
        model::Place::Zone => Place::Zone,
        model::Place::Region => Place::Region,
    }
}

const fn prefer(place: Place) -> v1::Place {
    match place {
        Place::Zone => v1::Place::Zone,
        Place::Region => v1::Place::Region,
    }
}

const fn algorithm(algorithm: Algorithm) -> load_balancing::Algorithm {
    match algorithm {
        Algorithm::LeastLatency => load_balancing::Algorithm::LeastLatency,
        Algorithm::LeastRequest => load_balancing::Algorithm::LeastRequest,
        Algorithm::Maglev => load_balancing::Algorithm::Maglev,
        Algorithm::Random => load_balancing::Algorithm::Random,
        Algorithm::RingHash => load_balancing::Algorithm::RingHash,
        Algorithm::RoundRobin => load_balancing::Algorithm::RoundRobin,
    }
}

fn hash_on(on: &HashOn) -> v1::HashOn {
    let header = on.header.as_ref().map(|name| hash_on::Kind::Header(name.to_ascii_lowercase()));
    let cookie = || on.cookie.clone().map(hash_on::Kind::Cookie);
    let query = || on.query_param.clone().map(hash_on::Kind::Query);
    let kind = header.or_else(cookie).or_else(query).unwrap_or(hash_on::Kind::SourceIp(true));
    v1::HashOn { kind: Some(kind) }
}

fn balancer((algorithm, on): &(Algorithm, Option<&HashOn>)) -> String {
    let on = on.and_then(|on| hash_on(on).kind).map(|kind| match kind {
        hash_on::Kind::Header(name) => format!(" on header {name}"),
        hash_on::Kind::Cookie(name) => format!(" on cookie {name}"),
        hash_on::Kind::Query(name) => format!(" on query parameter {name}"),
        hash_on::Kind::SourceIp(_) => " on the caller's address".to_owned(),
    });
    format!("{algorithm:?}{}", on.unwrap_or_default())
}

fn places(places: &[Place]) -> String {
    let words: Vec<String> = places.iter().map(|place| format!("{place:?}")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// Parts per million as per cent.
fn percent(share: &u32) -> String {
    let percent: Percent = f64::from(*share) / 10_000.0;
    format!("{percent} %")
}
