//! Policies from the wire.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderName, Method, StatusCode};
use weft_proto::v1;

use super::{Invalid, at, duration, header_name, invalid, keys, name, port, route_match};
use crate::model::{
    Abort, Algorithm, BackendPolicy, BreakOn, CircuitBreaker, Connection, Fault, HashOn, InboundLimit, Limits,
    LoadBalancing, OutlierDetection, Place, RateKey, RateLimit, RequestPolicy, Retry, RetryBudget, Target,
};

/// The whole, in parts per million.
pub const MILLION: u32 = 1_000_000;

pub fn requests(wire: Option<v1::RequestPolicy>) -> Result<RequestPolicy, Invalid> {
    let default = RequestPolicy::default();
    let Some(wire) = wire else { return Ok(default) };
    let faults = wire.faults.into_iter().enumerate();
    Ok(RequestPolicy {
        timeout: duration("timeout", wire.timeout)?,
        backend_timeout: duration("backend_timeout", wire.backend_timeout)?,
        stream_idle: match wire.stream_idle {
            None => default.stream_idle,
            some => duration("stream_idle", some)?,
        },
        retry: at("retry", retry(wire.retry))?,
        faults: faults.map(|(index, wire)| at(&format!("faults[{index}]"), fault(wire))).collect::<Result<_, _>>()?,
    })
}

fn retry(wire: Option<v1::Retry>) -> Result<Retry, Invalid> {
    let default = Retry::default();
    let Some(wire) = wire else { return Ok(default) };
    if wire.attempts > 10 {
        return invalid("attempts", wire.attempts, "must be at most 10");
    }
    let codes = wire.codes.iter().enumerate().map(|(index, &code)| match u16::try_from(code) {
        Ok(code @ 400..=599) => Ok(StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)),
        _ => invalid(format!("codes[{index}]"), code, "must be 400 to 599"),
    });
    let grpc = wire.grpc_codes.iter().enumerate();
    let methods = wire.methods.iter().enumerate().map(|(index, method)| {
        Method::from_bytes(method.as_bytes())
            .or_else(|_| invalid(format!("methods[{index}]"), method, "must be an HTTP method"))
    });
    Ok(Retry {
        attempts: wire.attempts,
        codes: codes.collect::<Result<_, _>>()?,
        grpc_codes: grpc
            .map(|(index, &code)| grpc_code(&format!("grpc_codes[{index}]"), code))
            .collect::<Result<_, _>>()?,
        methods: (!wire.methods.is_empty()).then(|| methods.collect()).transpose()?,
        backoff_min: duration("backoff_min", wire.backoff_min)?.unwrap_or(default.backoff_min),
        backoff_base: duration("backoff_base", wire.backoff_base)?.unwrap_or(default.backoff_base),
        backoff_max: duration("backoff_max", wire.backoff_max)?.unwrap_or(default.backoff_max),
        hedge_after: duration("hedge_after", wire.hedge_after)?,
    })
}

fn grpc_code(field: &str, code: u32) -> Result<u8, Invalid> {
    match u8::try_from(code) {
        Ok(code @ 1..=16) => Ok(code),
        _ => invalid(field, code, "must be 1 to 16"),
    }
}

/// A share in parts per million.
pub fn ppm(field: &str, share: u32) -> Result<u32, Invalid> {
    if share <= MILLION { Ok(share) } else { invalid(field, share, format!("must be at most {MILLION}")) }
}

fn positive(field: &str, value: u32) -> Result<u32, Invalid> {
    if value > 0 { Ok(value) } else { invalid(field, value, "must be at least 1") }
}

fn fault(wire: v1::Fault) -> Result<Fault, Invalid> {
    use v1::fault::Abort as Wire;
    let abort = match wire.abort {
        None => None,
        Some(Wire::HttpStatus(status)) => match u16::try_from(status).map(StatusCode::from_u16) {
            Ok(Ok(code)) if (200..=599).contains(&status) => Some(Abort::Http(code)),
            _ => return invalid("http_status", status, "must be 200 to 599"),
        },
        Some(Wire::GrpcStatus(code)) => Some(Abort::Grpc(grpc_code("grpc_status", code)?)),
        Some(Wire::Reset(reset)) => reset.then_some(Abort::Reset),
    };
    let abort_ppm = ppm("abort_ppm", wire.abort_ppm)?;
    let delay_ppm = ppm("delay_ppm", wire.delay_ppm)?;
    let bandwidth_ppm = ppm("bandwidth_ppm", wire.bandwidth_ppm)?;
    Ok(Fault {
        name: wire.name.into(),
        headers: keys("headers", wire.headers, header_name)?,
        delay: duration("delay", wire.delay)?.map(|delay| (delay, delay_ppm)),
        abort: abort.map(|abort| (abort, abort_ppm)),
        bandwidth: (wire.bytes_per_second > 0).then_some((wire.bytes_per_second, bandwidth_ppm)),
        // A time that the clock does not have is in any case later than now.
        expires: (wire.expires_ms > 0)
            .then(|| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(wire.expires_ms)))
            .flatten(),
    })
}

pub fn backend(wire: Option<v1::BackendPolicy>) -> Result<BackendPolicy, Invalid> {
    let default = BackendPolicy::default();
    let Some(wire) = wire else { return Ok(default) };
    let budget =
        |wire: v1::RetryBudget| Ok(RetryBudget { ppm: ppm("ppm", wire.ppm)?, min_per_second: wire.min_per_second });
    Ok(BackendPolicy {
        load_balancing: at("load_balancing", or_default(wire.load_balancing, load_balancing))?,
        limits: at("limits", or_default(wire.limits, limits))?,
        outlier_detection: at("outlier_detection", or_default(wire.outlier_detection, outlier_detection))?,
        circuit_breaker: at("circuit_breaker", or_default(wire.circuit_breaker, circuit_breaker))?,
        retry_budget: at("retry_budget", or_default(wire.retry_budget, budget))?,
        connect_timeout: duration("connect_timeout", wire.connect_timeout)?.unwrap_or(default.connect_timeout),
        connection: at("connection", or_default(wire.connection, connection))?,
    })
}

fn or_default<W, M: Default>(wire: Option<W>, convert: impl Fn(W) -> Result<M, Invalid>) -> Result<M, Invalid> {
    wire.map_or_else(|| Ok(M::default()), convert)
}

fn load_balancing(wire: v1::LoadBalancing) -> Result<LoadBalancing, Invalid> {
    use v1::load_balancing::Algorithm as Wire;
    let Ok(algorithm) = Wire::try_from(wire.algorithm) else {
        return invalid("algorithm", wire.algorithm, "is no algorithm that this version knows");
    };
    let hash_on = wire.hash_on.and_then(|on| on.kind).map(hash_on).transpose()?;
    let algorithm = match (algorithm, hash_on) {
        (Wire::RingHash, Some(on)) => Algorithm::RingHash(on),
        (Wire::Maglev, Some(on)) => Algorithm::Maglev(on),
        (Wire::RingHash | Wire::Maglev, None) => return invalid("hash_on", "", "is required with this algorithm"),
        (_, Some(_)) => return invalid("hash_on", "set", "goes with RING_HASH and MAGLEV only"),
        (Wire::LeastLatency, None) => Algorithm::LeastLatency,
        (Wire::RoundRobin, None) => Algorithm::RoundRobin,
        (Wire::LeastRequest, None) => Algorithm::LeastRequest,
        (Wire::Random, None) => Algorithm::Random,
    };
    let places = wire.prefer.iter().enumerate().map(|(index, &place)| match v1::Place::try_from(place) {
        Ok(v1::Place::Zone) => Ok(Place::Zone),
        Ok(v1::Place::Region) => Ok(Place::Region),
        _ => invalid(format!("prefer[{index}]"), place, "is no place that this version knows"),
    });
    Ok(LoadBalancing {
        algorithm,
        slow_start: duration("slow_start", wire.slow_start)?,
        prefer: places.collect::<Result<_, _>>()?,
    })
}

fn hash_on(wire: v1::hash_on::Kind) -> Result<HashOn, Invalid> {
    let named = |field: &str, name: String| {
        if name.is_empty() { invalid(field, name, "must not be empty") } else { Ok(name.into()) }
    };
    Ok(match wire {
        v1::hash_on::Kind::Header(name) => HashOn::Header(header_name("hash_on.header", name)?),
        v1::hash_on::Kind::Cookie(name) => HashOn::Cookie(named("hash_on.cookie", name)?),
        v1::hash_on::Kind::Query(name) => HashOn::Query(named("hash_on.query", name)?),
        v1::hash_on::Kind::SourceIp(_) => HashOn::SourceIp,
    })
}

fn limits(wire: v1::Limits) -> Result<Limits, Invalid> {
    Ok(Limits {
        connections: positive("connections", wire.connections)?,
        pending: positive("pending", wire.pending)?,
        requests: positive("requests", wire.requests)?,
        retries: (wire.retries > 0).then_some(wire.retries),
    })
}

fn outlier_detection(wire: v1::OutlierDetection) -> Result<OutlierDetection, Invalid> {
    let default = OutlierDetection::default();
    let base_ejection = duration("base_ejection", wire.base_ejection)?.unwrap_or(default.base_ejection);
    Ok(OutlierDetection {
        consecutive_failures: wire.consecutive_failures,
        success_ppm: ppm("success_ppm", wire.success_ppm)?,
        minimum_requests: positive("minimum_requests", wire.minimum_requests)?,
        window: duration("window", wire.window)?.unwrap_or(default.window),
        base_ejection,
        max_ejection: duration("max_ejection", wire.max_ejection)?.unwrap_or(default.max_ejection).max(base_ejection),
        max_ejected_ppm: ppm("max_ejected_ppm", wire.max_ejected_ppm)?,
    })
}

fn circuit_breaker(wire: v1::CircuitBreaker) -> Result<CircuitBreaker, Invalid> {
    use v1::circuit_breaker::BreakOn as Wire;
    let default = CircuitBreaker::default();
    let break_on = match Wire::try_from(wire.break_on) {
        Ok(Wire::ConnectFailures) => BreakOn::ConnectFailures,
        Ok(Wire::Failures) => BreakOn::Failures,
        Ok(Wire::Never) => BreakOn::Never,
        Err(_) => return invalid("break_on", wire.break_on, "is no trigger that this version knows"),
    };
    let base_open = duration("base_open", wire.base_open)?.unwrap_or(default.base_open);
    Ok(CircuitBreaker {
        break_on,
        consecutive_failures: positive("consecutive_failures", wire.consecutive_failures)?,
        base_open,
        max_open: duration("max_open", wire.max_open)?.unwrap_or(default.max_open).max(base_open),
    })
}

fn connection(wire: v1::Connection) -> Result<Connection, Invalid> {
    let default = Connection::default();
    Ok(Connection {
        idle: duration("idle", wire.idle)?,
        max_age: duration("max_age", wire.max_age)?.unwrap_or(default.max_age),
        max_streams: if wire.max_streams == 0 { default.max_streams } else { wire.max_streams },
    })
}

pub fn inbound_limit(wire: v1::InboundLimit) -> Result<Arc<InboundLimit>, Invalid> {
    let mut services = Vec::with_capacity(wire.services.len());
    for (index, service) in wire.services.into_iter().enumerate() {
        let path = format!("services[{index}]");
        let port = port(&format!("{path}.port"), service.port)?;
        services.push(Target { service: name(&format!("{path}.service"), &service.service)?, port });
    }
    let matches = wire.matches.into_iter().enumerate();
    let matches = matches
        .map(|(index, found)| at(&format!("matches[{index}]"), route_match(v1::RouteMatch { rule: 0, ..found }, 1)));
    Ok(Arc::new(InboundLimit {
        limit: at("limit", rate_limit(wire.limit.unwrap_or_default()))?,
        services,
        matches: matches.collect::<Result<_, _>>()?,
        rules: wire.rules.into_iter().map(Into::into).collect(),
    }))
}

fn rate_limit(wire: v1::RateLimit) -> Result<RateLimit, Invalid> {
    use v1::rate_limit::Key as Wire;
    let key = match Wire::try_from(wire.key) {
        Ok(Wire::Total) => RateKey::Total,
        Ok(Wire::Identity) => RateKey::Identity,
        Ok(Wire::SourceIp) => RateKey::SourceIp,
        Ok(Wire::Header) => RateKey::Header(
            HeaderName::from_lowercase(wire.header.as_bytes())
                .or_else(|_| invalid("header", wire.header, "must be a lower-case header name"))?,
        ),
        Ok(Wire::Claim) if wire.claim.is_empty() => return invalid("claim", "", "must not be empty"),
        Ok(Wire::Claim) => RateKey::Claim(wire.claim.into()),
        Err(_) => return invalid("key", wire.key, "is no key that this version knows"),
    };
    let Some(per) = duration("per", wire.per)? else { return invalid("per", "0", "must be more than 0") };
    Ok(RateLimit {
        name: wire.name.into(),
        requests: positive("requests", wire.requests)?,
        per,
        burst: positive("burst", wire.burst)?,
        key,
    })
}
