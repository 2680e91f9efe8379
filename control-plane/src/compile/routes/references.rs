//! What the rules of a route refer to: Services, of its own namespace or, where a ReferenceGrant allows it, of another.

use std::collections::BTreeSet;

use super::{
    Views,
    attach::{self, Route},
};
use crate::source::{
    Problem, Reason, Resources,
    routes::{Backend, MirrorBackend},
};

/// A reference to a backend, of whatever type it is.
#[derive(Clone, Copy)]
pub struct Reference<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
    port: Option<i32>,
}

impl<'a> From<&'a Backend> for Reference<'a> {
    fn from(backend: &'a Backend) -> Self {
        Self {
            group: backend.group.as_deref(),
            kind: backend.kind.as_deref(),
            namespace: backend.namespace.as_deref(),
            name: &backend.name,
            port: backend.port,
        }
    }
}

impl<'a> From<&'a MirrorBackend> for Reference<'a> {
    fn from(backend: &'a MirrorBackend) -> Self {
        Self {
            group: backend.group.as_deref(),
            kind: backend.kind.as_deref(),
            namespace: backend.namespace.as_deref(),
            name: &backend.name,
            port: backend.port,
        }
    }
}

/// Which routes may refer to which Services of other namespaces.
pub struct Grants<'a>(BTreeSet<Grant<'a>>);

#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Grant<'a> {
    kind: &'a str,
    from: &'a str,
    to: &'a str,
    /// `None`: all Services there.
    name: Option<&'a str>,
}

impl<'a> Grants<'a> {
    pub fn of(resources: &'a Resources) -> Self {
        let mut found = BTreeSet::new();
        for object in resources.reference_grants.values() {
            let spec = &object.value.spec;
            for from in spec.from.iter().filter(|from| from.group == "gateway.networking.k8s.io") {
                let services = spec.to.iter().filter(|to| to.kind == "Service" && matches!(&*to.group, "" | "core"));
                found.extend(services.map(|to| Grant {
                    kind: &from.kind,
                    from: &from.namespace,
                    to: &object.namespace,
                    name: to.name.as_deref().filter(|name| !name.is_empty()),
                }));
            }
        }
        Self(found)
    }

    fn allow(&self, route: &Route<'_>, to: &str, name: &str) -> bool {
        let grant = |name| Grant { kind: route.kind, from: route.namespace, to, name };
        self.0.contains(&grant(None)) || self.0.contains(&grant(Some(name)))
    }
}

/// The service and port that are referred to.
pub fn resolve(
    route: &Route<'_>,
    reference: Reference<'_>,
    path: &str,
    (views, grants): (&Views<'_>, &Grants<'_>),
    consequence: &str,
    hint: bool,
) -> Result<(String, u32), Problem> {
    let wrong = |field: &str, message: String, hint: &str, reason: Reason| {
        let message = format!("{message}: {consequence}");
        Err(route.origin.problem(&format!("{path}.{field}"), message, hint).because(reason))
    };
    let kind = reference.kind.unwrap_or("Service");
    if kind != "Service" || !matches!(reference.group, None | Some("" | "core")) {
        let message = format!("a backend of kind {kind} is not supported");
        return wrong("kind", message, "use kind Service", Reason::InvalidKind);
    }
    let namespace = reference.namespace.unwrap_or(route.namespace);
    let id = format!("{namespace}/{}", reference.name);
    // A route for clients of its own namespace may send on to what they called.
    let is_parent = || {
        let services = route.parents.iter().filter(|parent| attach::is_service(parent));
        services.map(|parent| attach::service_of(route, parent)).any(|parent| parent == id)
    };
    if namespace != route.namespace && !grants.allow(route, namespace, reference.name) && !is_parent() {
        let message = "a backend in another namespace needs a ReferenceGrant".to_owned();
        let hint =
            format!("in namespace {namespace}, one from {} of namespace {} to Service", route.kind, route.namespace);
        return wrong("namespace", message, &hint, Reason::RefNotPermitted);
    }
    let Some(view) = views.get(&id) else {
        let problem = attach::missing_service(route, &format!("{path}.name"), &id, views, hint);
        return Err(problem.because(Reason::BackendNotFound));
    };
    let Some(port) = reference.port else {
        return wrong("port", "port is missing".to_owned(), "", Reason::BackendNotFound);
    };
    match view.ports.iter().find(|known| u32::try_from(port) == Ok(known.port)) {
        Some(known) => Ok((id, known.port)),
        None => {
            let problem = attach::missing_port(route, &format!("{path}.port"), view);
            Err(problem.because(Reason::BackendNotFound))
        }
    }
}
