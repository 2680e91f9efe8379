//! Which rule a request would follow and why, computed from what is pushed with the code that the sidecar runs; where
//! each setting comes from, with the code that made it.

mod access;
mod behind;
mod effective;
mod tokens;

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, Method, Uri};
use prost::Message as _;
use serde_json::{Value, json};
use weft_policy::{
    canonical, convert,
    model::{ObjectName, PathMatch, RouteMatch, RouteRule, Routing, Service, ServicePort, ValueMatch},
    routing::RequestView,
};
use weft_proto::{ResourceType, v1};

use self::effective::Effective;
use crate::{
    compile::Registered,
    push::View,
    source::{Resources, did_you_mean},
};

/// A request to explain.
#[derive(Debug)]
pub struct Question {
    /// Method.
    pub method: Method,
    /// With a host, which names the service.
    pub url: Uri,
    /// Namespace of the caller: what a host name without one means, and whose routes count.
    pub namespace: String,
    /// `namespace/name` of the workload that asks, if it is one of the mesh.
    pub from: Option<String>,
    /// Header fields.
    pub headers: HeaderMap,
    /// When: what has ended by then does not apply.
    pub now: SystemTime,
}

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The URL has no host, or a path that no sidecar forwards.
    #[error("{0}")]
    BadRequest(String),
    /// Who asks may not look into the namespace; whether there is such a service is not said.
    #[error("service {namespace}/{name} is in a namespace that is not seen")]
    Hidden {
        /// Namespace that the host names.
        namespace: String,
        /// Service that the host names.
        name: String,
    },
    /// No such service.
    #[error("no service {name} in the mesh{}{hint}", if hint.is_empty() { "" } else { "; " })]
    NoService {
        /// What the host names.
        name: String,
        /// A name that is close.
        hint: String,
    },
    /// The service has no such port.
    #[error("service {service} has no port {port}; it has {known}")]
    NoPort {
        /// The service.
        service: String,
        /// What was asked for.
        port: u16,
        /// What there is.
        known: String,
    },
}

/// Answers the question as JSON: the service and port, the rule that wins, why each match lost or won, the shares of
/// the backends, and what is in force for the request: settings with their origins, faults, rate limits, and who is let in. `resources`
/// are what the view was made of; when they are newer for a moment, the origins are too. `sees` tells whose services may be asked about, and be named in hints, and
/// of whose workloads more than their service is told.
///
/// # Errors
/// When the URL leads nowhere, or to a namespace that is not seen.
pub fn explain(
    view: &View,
    resources: &Resources,
    registered: &[Arc<Registered>],
    question: &Question,
    sees: &dyn Fn(&str) -> bool,
) -> Result<Value, ExplainError> {
    let bad = |why: &str| ExplainError::BadRequest(format!("{}: {why}", question.url));
    let host = question.url.host().ok_or_else(|| bad("a URL with a host is needed, such as http://catalog/items"))?;
    canonical::path(question.url.path()).map_err(|violation| bad(&violation.detail))?;
    let service = service(view, host, &question.namespace, sees)?;
    let port = port(&service, question)?;
    let request = RequestView {
        method: &question.method,
        path: question.url.path(),
        query: question.url.query(),
        headers: &question.headers,
    };
    let mut answer = json!({
        "service": service.id.as_str(),
        "port": port.port,
        "protocol": port.protocol.as_str(),
        "healthyEndpoints": healthy(view, &service.id),
    });
    let effective =
        Effective { view, resources, registered, sees, question, request: &request, service: &service, port };
    let Some(routing) = &port.routing else {
        answer["decision"] = "service".into();
        answer["because"] = "no route is attached to this port: requests go to the service's own endpoints".into();
        answer["backends"] = json!([{ "service": service.id.as_str(), "port": port.port, "weight": 1, "share": 1.0 }]);
        effective.put(&port.direct, &mut answer);
        return Ok(answer);
    };
    let winner = routing.matches.iter().position(|found| found.matches(&request));
    let rule = winner.and_then(|index| routing.rules.get(routing.matches[index].rule));
    answer["why"] = why(routing, &request, winner);
    match rule {
        None => {
            answer["decision"] = "no_route".into();
            answer["status"] = 404.into();
            answer["because"] = "routes are attached to this port and none of them matches".into();
        }
        Some(rule) => {
            let (route, name) = rule.name.rsplit_once('#').unwrap_or((&rule.name, ""));
            answer["decision"] = "route".into();
            answer["route"] = route.into();
            answer["rule"] = name.into();
            if let Some(redirect) = &rule.filters.redirect {
                answer["status"] = redirect.status.as_u16().into();
                answer["because"] = "the rule redirects".into();
            } else if rule.total_weight == 0 {
                answer["status"] = 500.into();
                answer["because"] = "the rule has no valid backend with a weight".into();
            }
            answer["backends"] = backends(rule);
            effective.put(rule, &mut answer);
        }
    }
    Ok(answer)
}

/// The service that a host names, as callers in `from` see it: `name`, which is one of theirs, `name.namespace`, or that
/// with the domain of the cluster or of the mesh.
fn service(view: &View, host: &str, from: &str, sees: &dyn Fn(&str) -> bool) -> Result<Service, ExplainError> {
    let host = host.to_ascii_lowercase();
    let stem = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".mesh")).unwrap_or(&host);
    let (name, namespace) = stem.split_once('.').unwrap_or((stem, from));
    if !sees(namespace) {
        return Err(ExplainError::Hidden { namespace: namespace.to_owned(), name: name.to_owned() });
    }
    let wanted = format!("{namespace}/{name}");
    let held =
        |id: &str| decode(view.named(ResourceType::Service, id, from).first()?.resource.as_ref()?.value.as_ref());
    // A namespace may be called like the domain: its services come first, as in the sidecar.
    let called_so = host.split_once('.').filter(|(_, namespace)| *namespace == "mesh" && sees(namespace));
    let found = called_so.and_then(|(name, namespace)| held(&format!("{namespace}/{name}")));
    found.or_else(|| held(&wanted)).ok_or_else(|| {
        let all = view.all(ResourceType::Service, from).map(|resource| resource.name.as_str());
        let seen = all.filter(|id| id.split_once('/').is_some_and(|(namespace, _)| sees(namespace)));
        let hint = did_you_mean(&wanted, seen);
        ExplainError::NoService { name: wanted, hint }
    })
}

fn decode(bytes: &[u8]) -> Option<Service> {
    convert::service(v1::Service::decode(bytes).ok()?).ok()
}

fn port<'a>(service: &'a Service, question: &Question) -> Result<&'a ServicePort, ExplainError> {
    let named = question.url.port_u16();
    let wanted = named.unwrap_or(80);
    service.port(wanted).or_else(|| named.is_none().then(|| service.ports.first())?).ok_or_else(|| {
        let known: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
        ExplainError::NoPort { service: service.id.to_string(), port: wanted, known: known.join(", ") }
    })
}

/// Endpoints that may take requests.
fn healthy(view: &View, service: &ObjectName) -> usize {
    endpoints(view, service).filter(|endpoint| endpoint.healthy && !endpoint.draining).count()
}

fn endpoints(view: &View, service: &ObjectName) -> impl Iterator<Item = v1::Endpoint> {
    let slices = view.named(ResourceType::EndpointSlice, service.as_str(), "");
    let slices = slices.iter().filter_map(|resource| {
        let any = resource.resource.as_ref()?;
        v1::EndpointSlice::decode(any.value.as_ref()).ok()
    });
    slices.flat_map(|slice| slice.endpoints)
}

/// Each match in order of precedence, and why it won or lost.
fn why(routing: &Routing, request: &RequestView<'_>, winner: Option<usize>) -> Value {
    let lines = routing.matches.iter().enumerate().map(|(index, found)| {
        let rule = routing.rules.get(found.rule).map_or("", |rule| &rule.name);
        let because = match (mismatch(found, request), winner) {
            (Some(why), _) => why,
            (None, Some(first)) if first < index => "matches, but an earlier match takes precedence".to_owned(),
            (None, _) => "the first match in order of precedence".to_owned(),
        };
        json!({ "rule": rule, "conditions": conditions(found), "matched": found.matches(request),
                "wins": winner == Some(index), "because": because })
    });
    lines.collect()
}

/// The first condition that does not hold.
fn mismatch(found: &RouteMatch, request: &RequestView<'_>) -> Option<String> {
    if !found.path.matches(request.path) {
        let condition = path(&found.path);
        return Some(format!("path {} is not {condition}", request.path));
    }
    if let Some(method) = found.method.as_ref().filter(|method| *method != request.method) {
        return Some(format!("method is {} and not {method}", request.method));
    }
    if let Some(header) = found.headers.iter().find(|header| !header.matches(request.headers)) {
        let name = &header.name;
        let line = request.headers.get(name).map(|line| String::from_utf8_lossy(line.as_bytes()));
        let is = line.map_or_else(|| "missing".to_owned(), |line| format!("{line:?}"));
        return Some(format!("header {name} is {is} and not {}", value(&header.value)));
    }
    let without_query = RouteMatch { query: Vec::new(), ..found.clone() };
    let key = found.query.first().filter(|_| without_query.matches(request) && !found.matches(request))?;
    Some(format!("query parameter {} is not {}, or another one differs", key.name, value(&key.value)))
}

/// A condition on a value, for people.
fn value(condition: &ValueMatch) -> String {
    match condition {
        ValueMatch::Exact(value) => format!("{value:?}"),
        ValueMatch::Regex(pattern) => format!("like {}", pattern.as_str()),
    }
}

fn conditions(found: &RouteMatch) -> String {
    let mut parts = vec![path(&found.path)];
    parts.extend(found.method.as_ref().map(|method| format!("method {method}")));
    parts.extend(found.headers.iter().map(|header| format!("header {}: {}", header.name, value(&header.value))));
    parts.extend(found.query.iter().map(|key| format!("query {}: {}", key.name, value(&key.value))));
    parts.join(", ")
}

fn path(condition: &PathMatch) -> String {
    match condition {
        PathMatch::Any => "any path".to_owned(),
        PathMatch::Exact(path) => format!("exactly {path}"),
        PathMatch::Prefix(prefix) => format!("under {prefix}"),
        PathMatch::Regex(pattern) => format!("like {}", pattern.as_str()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn backends(rule: &RouteRule) -> Value {
    let of = |weight: u32| if rule.total_weight == 0 { 0.0 } else { f64::from(weight) / rule.total_weight as f64 };
    let lines = rule.backends.iter().map(|backend| match &backend.target {
        Some(target) => json!({ "service": target.service.as_str(), "port": target.port, "weight": backend.weight,
                                "share": of(backend.weight) }),
        None => json!({ "invalid": true, "weight": backend.weight, "share": of(backend.weight), "status": 500 }),
    });
    lines.collect()
}

#[cfg(test)]
mod tests;
