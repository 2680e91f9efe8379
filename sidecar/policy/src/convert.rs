//! The only conversion from the wire to the model. What passes here is valid everywhere; what does not is refused
//! with the path of the field, its value and why.

mod access;
mod filter;
pub mod jwt;
mod policy;
mod session;
mod telemetry;
mod trust;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, Method};
use weft_proto::v1;

pub use self::{
    access::{MAX_POLICIES, MAX_RULES, MAX_VALUES},
    filter::{Place, filters, is_fixed_header},
    telemetry::{MAX_HEADERS, otlp_endpoint},
    trust::{MAX_REVOCATIONS, MAX_ROOTS, MAX_SERIAL, trust_bundle},
};

use crate::{
    SpiffeId,
    model::{
        Endpoint, EndpointSlice, Filters, InboundPort, KeyMatch, Locality, MeshAddress, ObjectName, OutboundTraffic,
        PathMatch, PortMap, Protocol, RouteMatch, RouteRule, Routing, Service, ServicePort, Target, ValueMatch,
        WeightedBackend, WorkloadConfig,
    },
    pattern::Pattern,
};

/// Endpoints of one slice.
pub const MAX_ENDPOINTS: usize = 100;
/// Matches of one port.
pub const MAX_MATCHES: usize = 4096;
/// Weight of a backend or an endpoint.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// Why a resource is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Invalid {
    /// Path of the field, such as `ports[0].port`.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub reason: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.field, self.value, self.reason)
    }
}

impl std::error::Error for Invalid {}

fn invalid<T>(field: impl Into<String>, value: impl fmt::Display, reason: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field: field.into(), value: value.to_string(), reason: reason.into() })
}

fn at<T>(parent: &str, result: Result<T, Invalid>) -> Result<T, Invalid> {
    result.map_err(|error| Invalid { field: format!("{parent}.{}", error.field), ..error })
}

fn name(field: &str, text: &str) -> Result<ObjectName, Invalid> {
    ObjectName::parse(text).map_or_else(|| invalid(field, text, "must be namespace/name in lower-case DNS labels"), Ok)
}

fn port(field: &str, number: u32) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => invalid(field, number, "must be 1 to 65535"),
    }
}

fn ip(field: &str, text: &str) -> Result<IpAddr, Invalid> {
    text.parse().or_else(|_| invalid(field, text, "must be an IP address"))
}

fn protocol(field: &str, number: i32) -> Result<Protocol, Invalid> {
    let Ok(known) = v1::Protocol::try_from(number) else {
        return invalid(field, number, "is no protocol that this version knows");
    };
    Ok(match known {
        v1::Protocol::Unspecified => Protocol::Undeclared,
        v1::Protocol::Http1 => Protocol::Http1,
        v1::Protocol::Http2 => Protocol::Http2,
        v1::Protocol::Grpc => Protocol::Grpc,
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Tls => Protocol::Tls,
        v1::Protocol::Http => Protocol::Http,
    })
}

fn duration(field: &str, value: Option<prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    let text = format!("{}s {}ns", value.seconds, value.nanos);
    match Duration::try_from(value) {
        Ok(duration) => Ok((!duration.is_zero()).then_some(duration)),
        Err(_) => invalid(field, text, "must not be negative or out of range"),
    }
}

/// Converts a service.
///
/// # Errors
/// The first field that is wrong.
pub fn service(wire: v1::Service) -> Result<Service, Invalid> {
    let id = name("id", &wire.id)?;
    let mut virtual_ips = Vec::with_capacity(wire.virtual_ips.len());
    for (index, text) in wire.virtual_ips.iter().enumerate() {
        virtual_ips.push(ip(&format!("virtual_ips[{index}]"), text)?);
    }
    let mut hostnames = Vec::with_capacity(wire.hostnames.len());
    for (index, host) in wire.hostnames.into_iter().enumerate() {
        match crate::canonical::Authority::parse(host.as_bytes()) {
            Ok(authority) if authority.port.is_none() && *authority.host == *host => hostnames.push(host.into()),
            _ => return invalid(format!("hostnames[{index}]"), host, "must be a lower-case host name without a port"),
        }
    }
    if wire.ports.is_empty() {
        return invalid("ports", "[]", "must have at least one port");
    }
    let mut ports = Vec::with_capacity(wire.ports.len());
    let mut seen = BTreeSet::new();
    for (index, wire) in wire.ports.into_iter().enumerate() {
        let path = format!("ports[{index}]");
        let port = at(&path, service_port(&id, wire))?;
        if !seen.insert(port.port) {
            return invalid(format!("{path}.port"), port.port, "must be unique in the service");
        }
        ports.push(port);
    }
    Ok(Service { id, hostnames, virtual_ips, ports })
}

fn service_port(service: &ObjectName, wire: v1::ServicePort) -> Result<ServicePort, Invalid> {
    let number = port("port", wire.port)?;
    let target = Some(Target { service: service.clone(), port: number });
    let direct = RouteRule {
        backends: vec![WeightedBackend { target, weight: 1, filters: Filters::default() }],
        total_weight: 1,
        requests: Arc::new(at("requests", policy::requests(wire.requests))?),
        ..RouteRule::default()
    };
    Ok(ServicePort {
        port: number,
        name: wire.name.into(),
        protocol: protocol("protocol", wire.protocol)?,
        routing: wire.routing.map(|routing| at("routing", self::routing(routing))).transpose()?,
        direct: Arc::new(direct),
        backend: Arc::new(at("backend", policy::backend(wire.backend))?),
    })
}

fn routing(wire: v1::Routing) -> Result<Routing, Invalid> {
    if wire.matches.len() > MAX_MATCHES {
        return invalid("matches", wire.matches.len(), format!("must be at most {MAX_MATCHES}"));
    }
    let mut rules = Vec::with_capacity(wire.rules.len());
    for (index, rule) in wire.rules.into_iter().enumerate() {
        rules.push(Arc::new(at(&format!("rules[{index}]"), route_rule(rule))?));
    }
    let mut matches = Vec::with_capacity(wire.matches.len());
    for (index, found) in wire.matches.into_iter().enumerate() {
        matches.push(at(&format!("matches[{index}]"), route_match(found, rules.len()))?);
    }
    Ok(Routing { rules, matches })
}

fn route_match(wire: v1::RouteMatch, rules: usize) -> Result<RouteMatch, Invalid> {
    let rule = match usize::try_from(wire.rule) {
        Ok(rule) if rule < rules => rule,
        _ => return invalid("rule", wire.rule, format!("must be below the number of rules, {rules}")),
    };
    let method = if wire.method.is_empty() {
        None
    } else {
        match Method::from_bytes(wire.method.as_bytes()) {
            Ok(method) => Some(method),
            Err(_) => return invalid("method", wire.method, "must be an HTTP method"),
        }
    };
    let path = match wire.path.and_then(|path| path.kind) {
        None => PathMatch::Any,
        Some(v1::path_match::Kind::Exact(path)) => PathMatch::Exact(route_path("path.exact", path)?),
        Some(v1::path_match::Kind::Prefix(path)) => {
            let path = route_path("path.prefix", path)?;
            PathMatch::Prefix(if path.len() > 1 { path.trim_end_matches('/').into() } else { path })
        }
        Some(v1::path_match::Kind::Regex(text)) => PathMatch::Regex(pattern("path.regex", text)?),
    };
    let query = keys("query", wire.query, |_, name| Ok(name.into()))?;
    Ok(RouteMatch { rule, path, method, headers: keys("headers", wire.headers, header_name)?, query })
}

/// Conditions on headers or query parameters.
fn keys<N>(
    field: &str,
    wire: Vec<v1::KeyMatch>,
    name: impl Fn(&str, String) -> Result<N, Invalid>,
) -> Result<Vec<KeyMatch<N>>, Invalid> {
    let key = |(index, wire): (usize, v1::KeyMatch)| {
        let name = name(&format!("{field}[{index}].name"), wire.name)?;
        let value = if wire.regex {
            ValueMatch::Regex(pattern(&format!("{field}[{index}].value"), wire.value)?)
        } else {
            ValueMatch::Exact(wire.value.into())
        };
        Ok(KeyMatch { name, value })
    };
    wire.into_iter().enumerate().map(key).collect()
}

fn pattern(field: &str, text: String) -> Result<Pattern, Invalid> {
    Pattern::new(&text).or_else(|error| invalid(field, text, error.to_string()))
}

fn header_name(field: &str, text: String) -> Result<HeaderName, Invalid> {
    HeaderName::from_lowercase(text.as_bytes()).or_else(|_| invalid(field, text, "must be a lower-case header name"))
}

fn route_path(field: &str, path: String) -> Result<Box<str>, Invalid> {
    if path.starts_with('/') { Ok(path.into()) } else { invalid(field, path, "must begin with a slash") }
}

fn route_rule(wire: v1::RouteRule) -> Result<RouteRule, Invalid> {
    let mut backends = Vec::with_capacity(wire.backends.len());
    for (index, backend) in wire.backends.into_iter().enumerate() {
        let path = format!("backends[{index}]");
        if backend.weight > MAX_WEIGHT {
            return invalid(format!("{path}.weight"), backend.weight, format!("must be at most {MAX_WEIGHT}"));
        }
        let target = if backend.service.is_empty() {
            None
        } else {
            let service = name(&format!("{path}.service"), &backend.service)?;
            Some(Target { service, port: port(&format!("{path}.port"), backend.port)? })
        };
        let filters = at(&path, filter::filters(backend.filters, filter::Place::Backend))?;
        backends.push(WeightedBackend { target, weight: backend.weight, filters });
    }
    Ok(RouteRule {
        tag: http::HeaderValue::from_str(&wire.name).ok(),
        name: wire.name.into(),
        total_weight: backends.iter().map(|backend| u64::from(backend.weight)).sum(),
        backends,
        requests: Arc::new(at("requests", policy::requests(wire.requests))?),
        filters: filter::filters(wire.filters, filter::Place::Rule)?,
        session: wire.session.map(|wire| at("session", session::session(wire)).map(Box::new)).transpose()?,
    })
}

/// Converts an endpoint slice.
///
/// # Errors
/// The first field that is wrong.
pub fn endpoint_slice(wire: v1::EndpointSlice) -> Result<EndpointSlice, Invalid> {
    let service = name("service", &wire.service)?;
    if wire.endpoints.len() > MAX_ENDPOINTS {
        return invalid("endpoints", wire.endpoints.len(), format!("must be at most {MAX_ENDPOINTS}"));
    }
    let slice_count = match (wire.index, wire.slice_count) {
        (0, 0) => return invalid("slice_count", 0, "must be at least 1 on slice 0"),
        (0, count) => Some(count),
        (_, 0) => None,
        (_, count) => return invalid("slice_count", count, "must be set on slice 0 only"),
    };
    let (mut endpoints, mut common) = (Vec::with_capacity(wire.endpoints.len()), Common::default());
    for (index, endpoint) in wire.endpoints.into_iter().enumerate() {
        endpoints.push(Arc::new(at(&format!("endpoints[{index}]"), self::endpoint(endpoint, &mut common))?));
    }
    Ok(EndpointSlice { service, index: wire.index, slice_count, endpoints })
}

/// What the endpoints of a slice have in common, so that each holds a reference and not a copy.
#[derive(Default)]
struct Common {
    ports: Vec<PortMap>,
    localities: Vec<Arc<Locality>>,
    identities: Vec<SpiffeId>,
}

/// The value that was there before, if an equal one was. A slice has at most [`MAX_ENDPOINTS`] of them.
fn shared<T: Clone + PartialEq>(known: &mut Vec<T>, value: T) -> T {
    if let Some(same) = known.iter().find(|known| **known == value) {
        return same.clone();
    }
    known.push(value.clone());
    value
}

fn endpoint(wire: v1::Endpoint, common: &mut Common) -> Result<Endpoint, Invalid> {
    let mut ports = Vec::with_capacity(wire.ports.len());
    for (from, to) in wire.ports {
        ports.push((port("ports", from)?, port(&format!("ports[{from}]"), to)?));
    }
    let mesh = if wire.mesh_address.is_empty() {
        None
    } else {
        let Ok(address) = wire.mesh_address.parse::<SocketAddr>() else {
            return invalid("mesh_address", wire.mesh_address, "must be ip:port");
        };
        match SpiffeId::parse(&wire.spiffe_id) {
            Ok(identity) => Some(MeshAddress { address, identity: shared(&mut common.identities, identity) }),
            Err(error) => return invalid("spiffe_id", wire.spiffe_id, error.to_string()),
        }
    };
    if wire.weight > MAX_WEIGHT {
        return invalid("weight", wire.weight, format!("must be at most {MAX_WEIGHT}"));
    }
    let locality = wire.locality.unwrap_or_default();
    let locality = Locality { region: locality.region.into(), zone: locality.zone.into() };
    let workload = if wire.workload.is_empty() { None } else { Some(name("workload", &wire.workload)?) };
    Ok(Endpoint {
        address: ip("address", &wire.address)?,
        ports: shared(&mut common.ports, ports.into_iter().collect()),
        mesh,
        weight: wire.weight.max(1),
        locality: shared(&mut common.localities, Arc::new(locality)),
        healthy: wire.healthy,
        draining: wire.draining,
        workload,
    })
}

/// Converts the inbound side of a workload.
///
/// # Errors
/// The first field that is wrong.
pub fn workload_config(wire: v1::WorkloadConfig) -> Result<WorkloadConfig, Invalid> {
    let id = name("id", &wire.id)?;
    let mut ports = Vec::with_capacity(wire.ports.len());
    let mut seen = BTreeSet::new();
    for (index, wire) in wire.ports.into_iter().enumerate() {
        let path = format!("ports[{index}]");
        let number = port(&format!("{path}.port"), wire.port)?;
        if !seen.insert(number) {
            return invalid(format!("{path}.port"), number, "must be unique in the workload");
        }
        let mut services = Vec::with_capacity(wire.services.len());
        for (index, service) in wire.services.into_iter().enumerate() {
            let path = format!("{path}.services[{index}]");
            let port = port(&format!("{path}.port"), service.port)?;
            services.push(Target { service: name(&format!("{path}.service"), &service.service)?, port });
        }
        let limits = wire.rate_limits.into_iter().enumerate();
        let limits =
            limits.map(|(index, limit)| at(&format!("{path}.rate_limits[{index}]"), policy::inbound_limit(limit)));
        let authentications = wire.request_authentications.into_iter().enumerate().map(|(index, wire)| {
            at(&format!("{path}.request_authentications[{index}]"), jwt::inbound_authentication(wire))
        });
        ports.push(InboundPort {
            port: number,
            protocol: protocol(&format!("{path}.protocol"), wire.protocol)?,
            services,
            rate_limits: limits.collect::<Result<_, _>>()?,
            access: at(&path, access::access(wire.access))?,
            request_authentications: authentications.collect::<Result<_, _>>()?,
        });
    }
    let outbound = match v1::OutboundTraffic::try_from(wire.outbound_traffic) {
        Ok(v1::OutboundTraffic::AllowAny) => OutboundTraffic::AllowAny,
        Ok(v1::OutboundTraffic::RegistryOnly) => OutboundTraffic::RegistryOnly,
        Err(_) => return invalid("outbound_traffic", wire.outbound_traffic, "is not known here"),
    };
    Ok(WorkloadConfig { id, ports, telemetry: telemetry::telemetry(wire.telemetry)?, outbound })
}

#[cfg(test)]
mod tests;
