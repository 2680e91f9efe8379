//! HTTPRoutes of Services: rules, backends, and matches in the precedence of Gateway API.

use std::{cmp::Reverse, collections::BTreeMap};

use gateway_api::apis::standard::httproutes::{
    HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType, HttpRouteRulesMatchesPathType, HttpRouteRulesMatchesQueryParamsType,
};
use serde::Serialize;
use weft_proto::v1;

use crate::source::{Object, Problem, Reason, Resources, did_you_mean, duration};

use super::services::{PortView, ServiceView};

/// Most matches of one port, as the wire has it.
const MAX_MATCHES: usize = 1024;

/// A hint compares a name with all others: that is not done for each of a mass of problems.
pub const HINTS: usize = 50;

/// All services by id.
pub type Views<'a> = BTreeMap<String, ServiceView<'a>>;

/// The routing of every service port that has routes.
pub fn compile(
    resources: &Resources,
    views: &Views<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<(String, u32), v1::Routing> {
    // Older routes first, then by name: what precedes in a tie.
    let mut routes: Vec<&Object<HttpRoute>> = resources.routes.values().map(AsRef::as_ref).collect();
    routes.sort_by_cached_key(|route| {
        let created = &route.value.metadata.creation_timestamp;
        (created.is_none(), created.as_ref().map(|time| time.0), route.id())
    });
    let mut found: BTreeMap<(String, u32), v1::Routing> = BTreeMap::new();
    for route in routes {
        let ports = attached(route, views, problems);
        let rules = rules(route, views, problems);
        for key in ports {
            let routing = found.entry(key).or_default();
            let base = u32::try_from(routing.rules.len()).unwrap_or(u32::MAX);
            if routing.matches.len() + rules.iter().map(|(_, matches)| matches.len()).sum::<usize>() > MAX_MATCHES {
                let message = format!("more than {MAX_MATCHES} matches at one Service port: this route is left out");
                problems.push(route.origin.problem("spec.rules", message, "").because(Reason::UnsupportedValue));
                continue;
            }
            for (offset, (rule, matches)) in (0..).zip(&rules) {
                routing.rules.push(rule.clone());
                routing
                    .matches
                    .extend(matches.iter().cloned().map(|found| v1::RouteMatch { rule: base + offset, ..found }));
            }
        }
    }
    for routing in found.values_mut() {
        routing.matches.sort_by_cached_key(precedence);
    }
    found
}

/// Exact path, longer prefix, method, more headers, more query parameters; ties stay in order.
fn precedence(found: &v1::RouteMatch) -> impl Ord + use<> {
    let (exact, length) = match found.path.as_ref().and_then(|path| path.kind.as_ref()) {
        Some(v1::path_match::Kind::Exact(path)) => (true, path.len()),
        Some(v1::path_match::Kind::Prefix(path)) => (false, path.len()),
        Some(v1::path_match::Kind::Regex(_)) | None => (false, 0),
    };
    Reverse((exact, length, !found.method.is_empty(), found.headers.len(), found.query.len()))
}

/// The service ports that the route attaches to.
fn attached(route: &Object<HttpRoute>, views: &Views<'_>, problems: &mut Vec<Problem>) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for (index, parent) in route.value.spec.parent_refs.iter().flatten().enumerate() {
        let path = format!("spec.parentRefs[{index}]");
        match parent_ports(route, parent, &path, views, problems.len() < HINTS) {
            Ok(ports) => found.extend(ports),
            Err(problem) => problems.push(problem),
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The ports of a parent that a route attaches to; the kinds of routes have the same references.
pub fn parent_ports<T>(
    route: &Object<T>,
    parent: &HttpRouteParentRefs,
    path: &str,
    views: &Views<'_>,
    hint: bool,
) -> Result<Vec<(String, u32)>, Problem> {
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if kind != "Service" || !matches!(parent.group.as_deref(), None | Some("" | "core")) {
        let message = format!("a parent of kind {kind} is not supported: this attachment is ignored");
        return Err(route
            .origin
            .problem(&format!("{path}.kind"), message, "use kind Service with group \"\"")
            .because(Reason::UnsupportedValue));
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let id = format!("{namespace}/{}", parent.name);
    if namespace != route.namespace {
        let message = "a route for clients of its own namespace only is not supported: this attachment is ignored";
        let hint = format!("move the route to namespace {namespace}");
        return Err(route
            .origin
            .problem(&format!("{path}.namespace"), message, hint)
            .because(Reason::UnsupportedValue));
    }
    let Some(view) = views.get(&id) else {
        return Err(missing_service(route, &format!("{path}.name"), &id, views, hint).because(Reason::NoMatchingParent));
    };
    let matches = |port: &&PortView| {
        parent.port.is_none_or(|wanted| u32::try_from(wanted) == Ok(port.port))
            && parent.section_name.as_ref().is_none_or(|name| port.name == *name)
    };
    let ports: Vec<&PortView> = view.ports.iter().filter(matches).collect();
    if ports.is_empty() {
        let field = if parent.port.is_some() { "port" } else { "sectionName" };
        return Err(missing_port(route, &format!("{path}.{field}"), view).because(Reason::NoMatchingParent));
    }
    let opaque = |port: &PortView| matches!(port.protocol, v1::Protocol::Tcp | v1::Protocol::Tls);
    if ports.iter().all(|port| opaque(port)) {
        let message = format!("Service {id} does not speak HTTP there: this attachment is ignored");
        let hint = "set appProtocol: http at the Service's port";
        return Err(route.origin.problem(path, message, hint).because(Reason::UnsupportedValue));
    }
    Ok(ports.into_iter().filter(|port| !opaque(port)).map(|port| (id.clone(), port.port)).collect())
}

fn missing_service<T>(route: &Object<T>, path: &str, id: &str, views: &Views<'_>, hint: bool) -> Problem {
    let hint = if hint { similar(id, views) } else { String::new() };
    route.origin.problem(path, format!("Service \"{id}\" does not exist"), hint)
}

/// What of the same namespace has nearly this id: who asks may not know of others.
pub fn similar<V>(id: &str, known: &BTreeMap<String, V>) -> String {
    let own = id.split_inclusive('/').next().unwrap_or_default();
    let known = known.range(own.to_owned()..).map(|(id, _)| id.as_str());
    did_you_mean(id, known.take_while(|id| id.starts_with(own)))
}

fn missing_port<T>(route: &Object<T>, path: &str, view: &ServiceView<'_>) -> Problem {
    let known: Vec<String> = view
        .ports
        .iter()
        .map(|port| if port.name.is_empty() { port.port.to_string() } else { format!("{} ({})", port.port, port.name) })
        .collect();
    let message = format!("Service \"{}\" has no such port", view.id);
    route.origin.problem(path, message, format!("it has {}", known.join(", ")))
}

type Rule = (v1::RouteRule, Vec<v1::RouteMatch>);

fn rules(route: &Object<HttpRoute>, views: &Views<'_>, problems: &mut Vec<Problem>) -> Vec<Rule> {
    // What the schema has as the default: every path, and no backends.
    let default = [HttpRouteRules::default()];
    let rules = route.value.spec.rules.as_deref().unwrap_or(&default).iter().enumerate();
    rules.map(|(index, rule)| compile_rule(route, index, rule, views, problems)).collect()
}

fn compile_rule(
    route: &Object<HttpRoute>,
    index: usize,
    rule: &HttpRouteRules,
    views: &Views<'_>,
    problems: &mut Vec<Problem>,
) -> Rule {
    let path = format!("spec.rules[{index}]");
    let mut unsupported = Vec::new();
    let mut filters = |path: &str, word: String| {
        let message = format!("filter {word} is not supported: the rule answers 500");
        unsupported.push(route.origin.problem(path, message, "remove the filter").because(Reason::UnsupportedValue));
    };
    for (place, filter) in rule.filters.iter().flatten().enumerate() {
        filters(&format!("{path}.filters[{place}].type"), word(&filter.r#type));
    }
    for (place, backend) in rule.backend_refs.iter().flatten().enumerate() {
        for (inner, filter) in backend.filters.iter().flatten().enumerate() {
            filters(&format!("{path}.backendRefs[{place}].filters[{inner}].type"), word(&filter.r#type));
        }
    }
    let mut matches = Vec::new();
    for (place, found) in rule.matches.iter().flatten().enumerate() {
        let path = format!("{path}.matches[{place}]");
        matches.push(compile_match(route, found, &path, &mut unsupported));
    }
    if matches.is_empty() {
        matches.push(v1::RouteMatch { path: Some(prefix("/")), ..v1::RouteMatch::default() });
    }
    let mut backends = Vec::new();
    for (place, backend) in rule.backend_refs.iter().flatten().enumerate() {
        let weight = backend.weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1);
        backends.push(
            match backend_of(route, backend, &format!("{path}.backendRefs[{place}]"), views, problems.len() < HINTS) {
                Ok((service, port)) => v1::WeightedBackend { service, port, weight, ..Default::default() },
                Err(problem) => {
                    problems.push(problem);
                    v1::WeightedBackend { weight, ..v1::WeightedBackend::default() }
                }
            },
        );
    }
    if !unsupported.is_empty() {
        backends.clear();
        problems.append(&mut unsupported);
    }
    let time = |text: Option<&String>| {
        let value = text.and_then(|text| duration(text)).filter(|value| !value.is_zero())?;
        prost_types::Duration::try_from(value).ok()
    };
    let timeouts = rule.timeouts.as_ref();
    let compiled = v1::RouteRule {
        name: format!("{}#{}", route.id(), rule.name.clone().unwrap_or_else(|| index.to_string())),
        backends,
        requests: Some(v1::RequestPolicy {
            timeout: time(timeouts.and_then(|timeouts| timeouts.request.as_ref())),
            backend_timeout: time(timeouts.and_then(|timeouts| timeouts.backend_request.as_ref())),
            ..v1::RequestPolicy::default()
        }),
        ..v1::RouteRule::default()
    };
    (compiled, matches)
}

/// The word of a unit enum as it is written in YAML.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn prefix(path: &str) -> v1::PathMatch {
    let trimmed = path.trim_end_matches('/');
    let path = if trimmed.is_empty() { "/" } else { trimmed };
    v1::PathMatch { kind: Some(v1::path_match::Kind::Prefix(path.to_owned())) }
}

/// A condition that we cannot check is left out and reported: the rule then has no backends, so that what it might
/// match is refused rather than sent to the wrong place.
fn compile_match(
    route: &Object<HttpRoute>,
    found: &HttpRouteRulesMatches,
    path: &str,
    unsupported: &mut Vec<Problem>,
) -> v1::RouteMatch {
    let mut refuse = |path: String| {
        let message = "RegularExpression is not supported: the rule answers 500";
        unsupported
            .push(route.origin.problem(&path, message, "use Exact or PathPrefix").because(Reason::UnsupportedValue));
    };
    let mut compiled = v1::RouteMatch { path: Some(prefix("/")), ..v1::RouteMatch::default() };
    if let Some(condition) = &found.path {
        let value = condition.value.as_deref().unwrap_or("/");
        match condition.r#type {
            Some(HttpRouteRulesMatchesPathType::Exact) => {
                compiled.path = Some(v1::PathMatch { kind: Some(v1::path_match::Kind::Exact(value.to_owned())) });
            }
            Some(HttpRouteRulesMatchesPathType::RegularExpression) => refuse(format!("{path}.path.type")),
            Some(HttpRouteRulesMatchesPathType::PathPrefix) | None => compiled.path = Some(prefix(value)),
        }
    }
    compiled.method = found.method.as_ref().map(word).unwrap_or_default();
    // Of conditions with the same name the first counts, as Gateway API says.
    let add = |list: &mut Vec<v1::KeyMatch>, name: String, value: &str| {
        if !list.iter().any(|known| known.name == name) {
            list.push(v1::KeyMatch { name, value: value.to_owned(), regex: false });
        }
    };
    for (index, header) in found.headers.iter().flatten().enumerate() {
        match header.r#type {
            Some(HttpRouteRulesMatchesHeadersType::RegularExpression) => {
                refuse(format!("{path}.headers[{index}].type"))
            }
            _ => add(&mut compiled.headers, header.name.to_ascii_lowercase(), &header.value),
        }
    }
    for (index, query) in found.query_params.iter().flatten().enumerate() {
        match query.r#type {
            Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression) => {
                refuse(format!("{path}.queryParams[{index}].type"));
            }
            _ => add(&mut compiled.query, query.name.clone(), &query.value),
        }
    }
    compiled
}

/// The service and port that a backend names.
pub fn backend_of<T>(
    route: &Object<T>,
    backend: &HttpRouteRulesBackendRefs,
    path: &str,
    views: &Views<'_>,
    hint: bool,
) -> Result<(String, u32), Problem> {
    let kind = backend.kind.as_deref().unwrap_or("Service");
    if kind != "Service" || !matches!(backend.group.as_deref(), None | Some("" | "core")) {
        let message = format!("a backend of kind {kind} is not supported: its share answers 500");
        return Err(route
            .origin
            .problem(&format!("{path}.kind"), message, "use kind Service")
            .because(Reason::InvalidKind));
    }
    let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
    let id = format!("{namespace}/{}", backend.name);
    if namespace != route.namespace {
        let message = "a backend in another namespace needs a ReferenceGrant: its share answers 500";
        let hint = "ReferenceGrant is not supported yet";
        return Err(route.origin.problem(&format!("{path}.namespace"), message, hint).because(Reason::RefNotPermitted));
    }
    let Some(view) = views.get(&id) else {
        return Err(missing_service(route, &format!("{path}.name"), &id, views, hint).because(Reason::BackendNotFound));
    };
    let Some(port) = backend.port else {
        let message = "port is missing: its share answers 500";
        return Err(route.origin.problem(&format!("{path}.port"), message, "").because(Reason::BackendNotFound));
    };
    match view.ports.iter().find(|known| u32::try_from(port) == Ok(known.port)) {
        Some(known) => Ok((id, known.port)),
        None => Err(missing_port(route, &format!("{path}.port"), view).because(Reason::BackendNotFound)),
    }
}
