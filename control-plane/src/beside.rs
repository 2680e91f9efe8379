//! What is wrong with an object beside others: two policies on one target, two routes with the same matches, references
//! and selectors that meet nothing. No reason to refuse it, because the other half may be on its way. Pure; for the
//! warnings of the API and for `weft analyze`.

mod databases;

use serde_json::Value;

pub use self::databases::shared;

use crate::source::{Origin, Problem, did_you_mean};

/// Group of the routes.
const ROUTES: &str = "gateway.networking.k8s.io";

/// The other objects.
pub trait Others {
    /// What is said of an object that is not among them.
    const MISSING: &'static str;
    /// Whether what routes refer to is looked at; compiling does so too.
    const REFERENCES: bool;

    /// Whether there is this one.
    fn exists(&self, kind: &str, namespace: &str, name: &str) -> bool;

    /// The names of those of a kind in a namespace, for suggestions.
    fn names(&self, kind: &str, namespace: &str) -> Vec<String>;

    /// Those of a kind in a namespace that the object is compared with: of a pair, one is to see the other.
    fn of_kind<'a>(&'a self, kind: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a Value>;

    /// The labels of the workloads of a namespace; none where workloads register themselves.
    fn workloads<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Value>;
}

/// Everything that is found; places are those of the object's origin.
pub fn find<O: Others>(object: &Value, origin: &Origin, others: &O) -> Vec<Problem> {
    let subject = Subject {
        object,
        origin,
        kind: text(object, "kind"),
        namespace: object["metadata"]["namespace"].as_str().unwrap_or("default"),
        name: text(&object["metadata"], "name"),
    };
    let mut problems = Vec::new();
    if matches!(subject.kind, "HTTPRoute" | "GRPCRoute") {
        if O::REFERENCES {
            subject.references(others, &mut problems);
        }
        subject.same_matches(others, &mut problems);
    }
    subject.targets(others, &mut problems);
    subject.selector(others, &mut problems);
    problems
}

struct Subject<'a> {
    object: &'a Value,
    origin: &'a Origin,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl Subject<'_> {
    /// The services that a route is attached to and leads to.
    fn references<O: Others>(&self, others: &O, problems: &mut Vec<Problem>) {
        let mut missing = |path: &str, reference: &Value, default: &str| {
            let namespace = reference["namespace"].as_str().unwrap_or(self.namespace);
            if is_service(reference, default) {
                problems.extend(self.missing(others, path, "Service", namespace, text(reference, "name")));
            }
        };
        for (index, parent) in list(self.object, "parentRefs").iter().enumerate() {
            missing(&format!("spec.parentRefs[{index}]"), parent, "Gateway");
        }
        for (index, rule) in list(self.object, "rules").iter().enumerate() {
            for (place, backend) in rule["backendRefs"].as_array().into_iter().flatten().enumerate() {
                missing(&format!("spec.rules[{index}].backendRefs[{place}]"), backend, "Service");
            }
        }
    }

    fn missing<O: Others>(&self, others: &O, path: &str, kind: &str, namespace: &str, name: &str) -> Option<Problem> {
        if others.exists(kind, namespace, name) {
            return None;
        }
        // What there is in another namespace is not for the owner of this object to know.
        let names = if namespace == self.namespace { others.names(kind, namespace) } else { Vec::new() };
        let hint = did_you_mean(name, names.iter().map(String::as_str));
        Some(self.origin.problem(path, format!("{kind} {namespace}/{name} {}", O::MISSING), hint))
    }

    /// Two routes of one kind and one parent whose rules have the same matches: one of them is never used. A route of
    /// another namespace is for the clients there.
    fn same_matches(&self, others: &impl Others, problems: &mut Vec<Problem>) {
        let parents = |route: &Value| list(route, "parentRefs").iter().map(|p| self.parent(p)).collect::<Vec<_>>();
        let own = parents(self.object);
        let near: Vec<&Value> =
            self.others(others).filter(|other| parents(other).iter().any(|parent| own.contains(parent))).collect();
        for (index, rule) in list(self.object, "rules").iter().enumerate() {
            let same = |other: &&&Value| list(other, "rules").iter().any(|theirs| theirs["matches"] == rule["matches"]);
            if let Some(other) = near.iter().find(same) {
                let message = format!("{} has a rule with the same matches for the same parent", self.id(other));
                let hint = "the older route wins: change one of them";
                problems.push(self.origin.problem(&format!("spec.rules[{index}]"), message, hint));
            }
        }
    }

    fn parent(&self, parent: &Value) -> String {
        let namespace = parent["namespace"].as_str().unwrap_or(self.namespace);
        format!("{namespace}/{} {} {}", text(parent, "name"), parent["port"], parent["sectionName"])
    }

    fn targets(&self, others: &impl Others, problems: &mut Vec<Problem>) {
        for (index, target) in list(self.object, "targetRefs").iter().enumerate() {
            let path = format!("spec.targetRefs[{index}]");
            let (kind, name) = (target["kind"].as_str().unwrap_or("Service"), text(target, "name"));
            if matches!(kind, "Service" | "HTTPRoute" | "GRPCRoute") {
                problems.extend(self.missing(others, &format!("{path}.name"), kind, self.namespace, name));
            }
            if kind == "Namespace" && name != self.namespace {
                let message = format!("a policy applies to its own namespace, {}, not to {name}", self.namespace);
                problems.push(self.origin.problem(&path, message, ""));
            }
            // Several of these on one target add up; others contradict each other.
            if matches!(self.kind, "AuthorizationPolicy" | "FaultInjection" | "RateLimitPolicy") {
                continue;
            }
            let same = |other: &&Value| list(other, "targetRefs").iter().any(|theirs| key(theirs) == key(target));
            for other in self.others(others).filter(same) {
                let message = format!("{} has the same target", self.id(other));
                let hint = "where both set a field the older one wins: make one policy of them";
                problems.push(self.origin.problem(&path, message, hint));
            }
        }
    }

    /// A selector is looked at where there are workloads among the objects: elsewhere, they register themselves.
    fn selector(&self, others: &impl Others, problems: &mut Vec<Problem>) {
        let (path, selector) = match self.kind {
            "Service" => ("spec.selector", &self.object["spec"]["selector"]),
            "Workload" => return,
            _ => ("spec.selector.matchLabels", &self.object["spec"]["selector"]["matchLabels"]),
        };
        let Some(wanted) = selector.as_object().filter(|wanted| !wanted.is_empty()) else { return };
        let mut workloads = others.workloads(self.namespace).peekable();
        let has_all = |labels: &Value| wanted.iter().all(|(name, value)| labels.get(name) == Some(value));
        if workloads.peek().is_some() && !workloads.any(has_all) {
            let message = format!("no Workload of namespace {} has these labels", self.namespace);
            problems.push(self.origin.problem(path, message, "compare them with metadata.labels of the workloads"));
        }
    }

    /// The others of its kind in its namespace.
    fn others<'a>(&'a self, others: &'a impl Others) -> impl Iterator<Item = &'a Value> {
        others.of_kind(self.kind, self.namespace).filter(|other| text(&other["metadata"], "name") != self.name)
    }

    fn id(&self, other: &Value) -> String {
        format!("{} {}/{}", self.kind, self.namespace, text(&other["metadata"], "name"))
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What makes two targets the same.
fn key(target: &Value) -> (&str, &str, &str) {
    (target["kind"].as_str().unwrap_or("Service"), text(target, "name"), text(target, "sectionName"))
}

fn is_service(reference: &Value, default: &str) -> bool {
    let group = reference["group"].as_str().unwrap_or(if default == "Service" { "" } else { ROUTES });
    reference["kind"].as_str().unwrap_or(default) == "Service" && matches!(group, "" | "core")
}
