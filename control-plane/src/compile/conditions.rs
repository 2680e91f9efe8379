//! What the status of an object says of it, in the terms of Gateway API: from what compiling found wrong, and from what
//! sidecars refuse. Pure; `app` writes it where the object is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use weft_proto::ResourceType;

use super::attached;
use crate::{
    source::{HasMetadata, Object, Origin, Problem, Reason, Resources, routes},
    store::Key,
};

/// What sidecars refuse at the moment: by type and canonical name of a pushed resource and the namespace of the sidecars,
/// the field and why.
pub type Refused = BTreeMap<(ResourceType, String, String), String>;

/// Verdicts on the objects of the store.
pub type Verdicts = BTreeMap<Key, Verdict>;

/// One condition without its times.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs` or `Programmed`.
    pub name: &'static str,
    /// `True` rather than `False`.
    pub holds: bool,
    /// A word of Gateway API where it has one.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What holds for an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Uid and generation that this was found of: it says nothing of another.
    pub of: (Option<String>, Option<i64>),
    /// The conditions.
    pub conditions: Conditions,
}

/// Conditions, by what they are about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Conditions {
    /// Of each parent or target, as it is to be named.
    Each(Vec<(Value, Vec<Condition>)>),
    /// Of the object as a whole. Of one that has parents or targets: the same for all of them.
    Whole(Vec<Condition>),
}

/// The verdict on every object of the store whose kind has a status. What a file has is reported with its place instead.
#[must_use]
pub fn of(resources: &Resources, problems: &[Problem], refused: &Refused) -> Verdicts {
    let judge = Judge::new(resources, problems, refused);
    let mut found = Verdicts::new();
    for route in resources.routes.values() {
        let parents = || routes::http_parents(&route.value);
        judge.object(&mut found, "HTTPRoute", route, |own| judge.route(&route.namespace, own, parents()));
    }
    for route in resources.grpc_routes.values() {
        let parents = || routes::grpc_parents(&route.value);
        judge.object(&mut found, "GRPCRoute", route, |own| judge.route(&route.namespace, own, parents()));
    }
    for policy in attached::all(resources) {
        let of = (policy.namespace, policy.name, policy.metadata, policy.origin);
        judge.add(&mut found, policy.kind, of, |own| judge.policy(&policy, own));
    }
    for service in resources.services.values() {
        let refusal = judge.refusal(&service.id(), &service.namespace);
        judge.object(&mut found, "Service", service, |own| judge.whole(own, refusal));
    }
    for workload in resources.workloads.values() {
        let config = (ResourceType::WorkloadConfig, workload.id(), workload.namespace.clone());
        let refusal = refused.get(&config).map(String::as_str);
        judge.object(&mut found, "Workload", workload, |own| judge.whole(own, refusal));
    }
    for config in resources.mesh_configs.values() {
        judge.object(&mut found, "MeshConfig", config, |own| judge.whole(own, None));
    }
    for (key, left) in &resources.left_out {
        let all = vec![
            condition("Accepted", ACCEPTED, Some(failed(&left.problem))),
            condition("Programmed", PROGRAMMED, Some(failed(&left.problem))),
        ];
        found.insert(key.clone(), Verdict { of: left.of.clone(), conditions: Conditions::Whole(all) });
    }
    found
}

const ACCEPTED: (&str, &str) = ("Accepted", "it is valid, and what it is attached to is there");
const RESOLVED: (&str, &str) = ("ResolvedRefs", "every reference leads somewhere");
const PROGRAMMED: (&str, &str) = ("Programmed", "it is pushed to the sidecars that it concerns");

type Named<'a> = (&'a str, &'a str, &'a ObjectMeta, &'a Origin);

/// What the verdicts are made from.
struct Judge<'a> {
    /// By place.
    problems: HashMap<&'a str, Vec<&'a Problem>>,
    /// Why a Service is refused as most clients get it, by its id.
    services: HashMap<&'a str, &'a str>,
    /// Why it is refused as the clients of a namespace get it that has routes of its own, by its id and that namespace.
    views: HashMap<(&'a str, &'a str), &'a str>,
    /// Why endpoints of it are refused, which are the same for all.
    slices: HashMap<&'a str, &'a str>,
}

impl<'a> Judge<'a> {
    fn new(resources: &Resources, problems: &'a [Problem], refused: &'a Refused) -> Self {
        let (services, views, slices) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut judge = Self { problems: HashMap::new(), services, views, slices };
        for problem in problems {
            judge.problems.entry(&problem.file).or_default().push(problem);
        }
        if refused.is_empty() {
            return judge;
        }
        let consumers = judge.consumers(resources);
        // Of several reasons the first in order, so that it does not change with each sidecar that says the same.
        let first = |why: &'a str| move |held: &mut &'a str| *held = (*held).min(why);
        for ((kind, name, clients), why) in refused {
            let why = why.as_str();
            match kind {
                ResourceType::Service if consumers.contains(&(name.clone(), clients.clone())) => {
                    judge.views.entry((name, clients)).and_modify(first(why)).or_insert(why);
                }
                ResourceType::Service => _ = judge.services.entry(name).and_modify(first(why)).or_insert(why),
                ResourceType::EndpointSlice => {
                    let service = name.rsplit_once('/').map_or(name.as_str(), |(service, _)| service);
                    judge.slices.entry(service).and_modify(first(why)).or_insert(why);
                }
                _ => {}
            }
        }
        judge
    }

    /// Services with the namespaces whose clients get them with routes of their own.
    fn consumers(&self, resources: &Resources) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        let mut add = |origin: &Origin, namespace: &str, parents: Vec<routes::Parent>| {
            let own = self.problems.get(&*origin.file).map(Vec::as_slice).unwrap_or_default();
            if own.iter().any(|problem| !problem.reason.is_accepted()) {
                return;
            }
            for parent in parents {
                if parent.namespace.as_deref().is_some_and(|service| service != namespace) {
                    found.insert((service(&parent, namespace), namespace.to_owned()));
                }
            }
        };
        for route in resources.routes.values() {
            add(&route.origin, &route.namespace, routes::http_parents(&route.value));
        }
        for route in resources.grpc_routes.values() {
            add(&route.origin, &route.namespace, routes::grpc_parents(&route.value));
        }
        found
    }

    /// Why sidecars refuse a service, as far as that concerns objects of this namespace.
    fn refusal(&self, service: &str, namespace: &str) -> Option<&'a str> {
        let own = service.split_once('/').is_some_and(|(of, _)| of == namespace);
        let pushed = if own { self.services.get(service) } else { self.views.get(&(service, namespace)) };
        pushed.or_else(|| self.slices.get(service)).copied()
    }

    fn object<T: HasMetadata>(
        &self,
        found: &mut Verdicts,
        kind: &str,
        object: &Object<T>,
        conditions: impl FnOnce(&[&Problem]) -> Conditions,
    ) {
        let of = (object.namespace.as_str(), object.name.as_str(), object.value.metadata(), &*object.origin);
        self.add(found, kind, of, conditions);
    }

    fn add(
        &self,
        found: &mut Verdicts,
        kind: &str,
        (namespace, name, metadata, origin): Named<'_>,
        conditions: impl FnOnce(&[&Problem]) -> Conditions,
    ) {
        let key = Key::new(kind, namespace, name);
        if *origin.file != key.to_string() {
            return;
        }
        let own = self.problems.get(&*origin.file).map(Vec::as_slice).unwrap_or_default();
        let of = (metadata.uid.clone(), metadata.generation);
        found.insert(key, Verdict { of, conditions: conditions(own) });
    }

    fn route(&self, namespace: &str, own: &[&Problem], parents: Vec<routes::Parent>) -> Conditions {
        let unresolved = |problem: &&&Problem| {
            matches!(problem.reason, Reason::BackendNotFound | Reason::InvalidKind | Reason::RefNotPermitted)
        };
        let each = parents.iter().enumerate().map(|(index, parent)| {
            let path = format!("spec.parentRefs[{index}]");
            let unaccepted = |problem: &&&Problem| {
                problem.path.starts_with(&path)
                    || problem.path.starts_with("spec.rules") && problem.reason == Reason::UnsupportedValue
            };
            let bad = own.iter().find(unaccepted).map(|problem| failed(problem));
            let dangling = own.iter().find(unresolved).map(|problem| failed(problem));
            let refusal = self.refusal(&service(parent, namespace), namespace);
            let conditions = vec![
                condition("Accepted", ACCEPTED, bad.clone()),
                condition("ResolvedRefs", RESOLVED, dangling),
                programmed(bad, refusal),
            ];
            (json(parent), conditions)
        });
        Conditions::Each(each.collect())
    }

    fn policy(&self, policy: &attached::Policy<'_>, own: &[&Problem]) -> Conditions {
        let of = |path: &str, refusal: Option<&str>| {
            let here =
                |problem: &&&Problem| problem.path.starts_with(path) || !problem.path.starts_with("spec.targetRefs");
            let first = |accepted: bool| {
                let mut found = own.iter().filter(|problem| problem.reason.is_accepted() == accepted);
                found.find(here).map(|problem| failed(problem))
            };
            let bad = first(false);
            let idle = bad.clone().or_else(|| first(true));
            vec![condition("Accepted", ACCEPTED, bad), programmed(idle, refusal)]
        };
        if policy.targets.is_empty() {
            let namespace = json!({ "group": "", "kind": "Namespace", "name": policy.namespace });
            return Conditions::Each(vec![(namespace, of("spec", None))]);
        }
        let each = policy.targets.iter().enumerate().map(|(index, target)| {
            let mut reference = json!({ "group": target.group, "kind": target.kind, "name": target.name });
            if let Some(section) = &target.section_name {
                reference["sectionName"] = section.as_str().into();
            }
            let service = (target.kind == "Service").then(|| format!("{}/{}", policy.namespace, target.name));
            let refusal = service.and_then(|service| self.refusal(&service, policy.namespace));
            (reference, of(&format!("spec.targetRefs[{index}]"), refusal))
        });
        Conditions::Each(each.collect())
    }

    fn whole(&self, own: &[&Problem], refusal: Option<&str>) -> Conditions {
        let bad = own.first().map(|problem| failed(problem));
        Conditions::Whole(vec![condition("Accepted", ACCEPTED, bad.clone()), programmed(bad, refusal)])
    }
}

/// The id of the service that a route of this namespace names.
fn service(parent: &routes::Parent, namespace: &str) -> String {
    format!("{}/{}", parent.namespace.as_deref().unwrap_or(namespace), parent.name)
}

/// Why a condition does not hold: reason and message.
type Failure = (&'static str, String);

fn failed(problem: &Problem) -> Failure {
    let hint = if problem.hint.is_empty() { String::new() } else { format!(" ({})", problem.hint) };
    let path = if problem.path.is_empty() { String::new() } else { format!("{}: ", problem.path) };
    (problem.reason.as_str(), format!("{path}{}{hint}", problem.message))
}

fn condition(name: &'static str, (reason, message): (&'static str, &str), bad: Option<Failure>) -> Condition {
    match bad {
        None => Condition { name, holds: true, reason, message: message.to_owned() },
        Some((reason, message)) => Condition { name, holds: false, reason, message },
    }
}

/// True only for what sidecars act on: not for what is not accepted, not for what they refuse.
fn programmed(unaccepted: Option<Failure>, refusal: Option<&str>) -> Condition {
    let refused = || {
        let text =
            |why: &str| format!("a sidecar keeps the last version that it took: {why} (weft status tells which)");
        refusal.map(|why| ("RefusedBySidecar", text(why)))
    };
    condition("Programmed", PROGRAMMED, unaccepted.or_else(refused))
}

fn json(reference: &impl serde::Serialize) -> Value {
    serde_json::to_value(reference).unwrap_or_else(|_| json!({}))
}

#[cfg(test)]
mod tests;
