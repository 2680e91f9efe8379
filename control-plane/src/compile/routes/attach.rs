//! Which Service ports a route is attached to, and for whose clients; of two kinds of routes at one port one is left.

use std::{borrow::Cow, collections::BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use weft_proto::v1;

use super::{
    super::services::{PortView, ServiceView},
    HINTS, Views, similar,
};
use crate::source::{
    Origin, Problem, Reason, Resources,
    routes::{
        self, Parent, Rule,
        matches::{self, Ranked},
    },
};

/// A service port, as the clients of a namespace see it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// `namespace/name`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// The clients' namespace; `None`: all that have no routes of their own.
    pub view: Option<String>,
}

/// A route of either kind.
pub struct Route<'a> {
    pub kind: &'static str,
    pub namespace: &'a str,
    /// `namespace/name`.
    pub id: String,
    pub origin: &'a Origin,
    pub parents: Vec<Parent>,
    pub rules: Vec<(Cow<'a, Rule>, Vec<Ranked>)>,
    created: Option<&'a Time>,
}

/// All routes; older ones first, then by name: what precedes in a tie.
pub fn routes(resources: &Resources) -> Vec<Route<'_>> {
    let http = resources.routes.values().map(|route| {
        let rules = route.value.spec.rules.iter().flatten();
        let rules = rules.map(|rule| (Cow::Borrowed(rule), rule.matches.iter().flatten().map(matches::http).collect()));
        Route {
            kind: "HTTPRoute",
            namespace: &route.namespace,
            id: route.id(),
            origin: &route.origin,
            parents: routes::http_parents(&route.value),
            rules: rules.collect(),
            created: route.value.metadata.creation_timestamp.as_ref(),
        }
    });
    let grpc = resources.grpc_routes.values().map(|route| {
        let rules = route.value.spec.rules.iter().flatten();
        let rules = rules.map(|rule| {
            let matches = rule.matches.iter().flatten().map(matches::grpc).collect();
            (Cow::Owned(routes::grpc_rule(rule)), matches)
        });
        Route {
            kind: "GRPCRoute",
            namespace: &route.namespace,
            id: route.id(),
            origin: &route.origin,
            parents: routes::grpc_parents(&route.value),
            rules: rules.collect(),
            created: route.value.metadata.creation_timestamp.as_ref(),
        }
    });
    let mut all: Vec<Route<'_>> = http.chain(grpc).collect();
    for route in &mut all {
        // What the schema has as the default: one rule that matches everything and has no backends.
        if route.rules.is_empty() {
            route.rules.push((Cow::Owned(Rule::default()), Vec::new()));
        }
        for (_, matches) in &mut route.rules {
            if matches.is_empty() {
                matches.push(matches::everything());
            }
        }
    }
    all.sort_by(|a, b| {
        let key = |route: &Route<'_>| (route.created.is_none(), route.created.map(|time| time.0));
        key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
    });
    all
}

/// Service ports, each with the place of the parent that leads to it.
pub type Attached = Vec<(usize, Key)>;

/// The service ports that the route attaches to.
pub fn ports(route: &Route<'_>, views: &Views<'_>, problems: &mut Vec<Problem>) -> Attached {
    let mut found = Attached::new();
    for (index, parent) in route.parents.iter().enumerate() {
        match of_parent(route, parent, &format!("spec.parentRefs[{index}]"), views, problems.len() < HINTS) {
            Ok(keys) => found.extend(keys.into_iter().map(|key| (index, key))),
            Err(problem) => problems.push(problem),
        }
    }
    found
}

/// Of two kinds of routes at one port the more specific one is left, GRPCRoutes; the others are ignored there (GEP-1294,
/// route types). A parent of which no port is left does not accept the route.
pub fn settle(routes: &[Route<'_>], attached: &mut [Attached], problems: &mut Vec<Problem>) {
    let grpc = routes.iter().zip(&*attached).filter(|(route, _)| route.kind == "GRPCRoute");
    let taken: BTreeSet<Key> = grpc.flat_map(|(_, ports)| ports.iter().map(|(_, key)| key.clone())).collect();
    for (route, ports) in routes.iter().zip(attached).filter(|(route, _)| route.kind == "HTTPRoute") {
        let parents = |ports: &Attached| ports.iter().map(|(parent, _)| *parent).collect::<BTreeSet<_>>();
        let before = parents(ports);
        ports.retain(|(_, key)| !taken.contains(key));
        for parent in before.difference(&parents(ports)) {
            let message = "GRPCRoutes are attached there, which precede: this attachment is ignored";
            let hint = "attach it to another port, or make it a GRPCRoute";
            let problem = route.origin.problem(&format!("spec.parentRefs[{parent}]"), message, hint);
            problems.push(problem.because(Reason::Conflicted));
        }
    }
}

/// `namespace/name` of the Service that a parent is.
pub fn service_of(route: &Route<'_>, parent: &Parent) -> String {
    format!("{}/{}", parent.namespace.as_deref().unwrap_or(route.namespace), parent.name)
}

/// Whether a parent is a Service, written as one.
pub fn is_service(parent: &Parent) -> bool {
    parent.kind.as_deref() == Some("Service") && matches!(parent.group.as_deref(), None | Some("" | "core"))
}

fn of_parent(
    route: &Route<'_>,
    parent: &Parent,
    path: &str,
    views: &Views<'_>,
    hint: bool,
) -> Result<Vec<Key>, Problem> {
    if !is_service(parent) {
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        let message = format!("a parent of kind {kind} is not supported: this attachment is ignored");
        let hint = "use kind Service with group \"\"";
        return Err(route.origin.problem(&format!("{path}.kind"), message, hint).because(Reason::UnsupportedValue));
    }
    let id = service_of(route, parent);
    let Some(view) = views.get(&id) else {
        let problem = missing_service(route, &format!("{path}.name"), &id, views, hint);
        return Err(problem.because(Reason::NoMatchingParent));
    };
    let matches = |port: &&PortView| {
        parent.port.is_none_or(|wanted| u32::try_from(wanted) == Ok(port.port))
            && parent.section_name.as_ref().is_none_or(|name| port.name == *name)
    };
    let ports: Vec<&PortView> = view.ports.iter().filter(matches).collect();
    if ports.is_empty() {
        let field = if parent.port.is_some() { "port" } else { "sectionName" };
        let problem = missing_port(route, &format!("{path}.{field}"), view);
        return Err(problem.because(Reason::NoMatchingParent));
    }
    let opaque = |port: &PortView| matches!(port.protocol, v1::Protocol::Tcp | v1::Protocol::Tls);
    if ports.iter().all(|port| opaque(port)) {
        let message = format!("Service {id} does not speak HTTP there: this attachment is ignored");
        let hint = "set appProtocol: http at the Service's port";
        return Err(route.origin.problem(path, message, hint).because(Reason::UnsupportedValue));
    }
    let clients = (view.namespace != route.namespace).then(|| route.namespace.to_owned());
    let key = |port: &PortView| Key { service: id.clone(), port: port.port, view: clients.clone() };
    Ok(ports.into_iter().filter(|port| !opaque(port)).map(key).collect())
}

/// What there is in another namespace is not for the owner of the route to know: hints are of its own.
pub fn missing_service(route: &Route<'_>, path: &str, id: &str, views: &Views<'_>, hint: bool) -> Problem {
    let own = id.split_once('/').is_some_and(|(namespace, _)| namespace == route.namespace);
    let hint = if hint && own { similar(id, views) } else { String::new() };
    route.origin.problem(path, format!("Service \"{id}\" does not exist"), hint)
}

/// As for Services: the ports are listed in the route's own namespace.
pub fn missing_port(route: &Route<'_>, path: &str, view: &ServiceView<'_>) -> Problem {
    let known: Vec<String> = view
        .ports
        .iter()
        .map(|port| if port.name.is_empty() { port.port.to_string() } else { format!("{} ({})", port.port, port.name) })
        .collect();
    let message = format!("Service \"{}\" has no such port", view.id);
    let hint = if view.namespace == route.namespace { format!("it has {}", known.join(", ")) } else { String::new() };
    route.origin.problem(path, message, hint)
}
