//! What is wrong with policies beyond one object: targets that do not exist, and two that set the same.

use super::{Attached, Layer, Layers, Origin, Place, Policies, Policy, faults::expires, places};
use crate::{
    compile::services::ServiceView,
    source::{
        Problem, Reason, Resources, did_you_mean,
        policies::{Spec, traffic::TrafficPolicySpec},
    },
};
use std::collections::BTreeMap;

type Views<'a> = BTreeMap<String, ServiceView<'a>>;

impl Policies<'_> {
    /// What is wrong, in the order of the objects.
    #[must_use]
    pub fn problems(&self, views: &Views<'_>) -> Vec<Problem> {
        let mut found = Vec::new();
        for object in self.resources.traffic_policies.values() {
            missing(object, self.resources, views, &mut found);
            conflicts(object, &self.traffic, &mut found);
        }
        for object in self.resources.rate_limit_policies.values() {
            missing(object, self.resources, views, &mut found);
        }
        for object in self.resources.fault_injections.values() {
            missing(object, self.resources, views, &mut found);
            if expires(object).is_err() {
                let message = "counts from metadata.creationTimestamp, which is missing: this fault is left out";
                found.push(object.origin.problem("spec.expiresAfter", message, "such as 2030-01-31T12:00:00Z"));
            }
        }
        found
    }
}

/// Targets that are not there.
fn missing<S: Spec>(object: &Policy<S>, resources: &Resources, views: &Views<'_>, found: &mut Vec<Problem>) {
    let written = !object.value.spec.targets().is_empty();
    for (index, place) in places(object).filter(|_| written) {
        let path = format!("spec.targetRefs[{index}]");
        if let Err((field, message, hint)) = exists(place, resources, views) {
            let problem = object.origin.problem(&format!("{path}.{field}"), message, hint);
            found.push(problem.because(Reason::TargetNotFound));
        }
    }
}

type Missing = (&'static str, String, String);

fn exists(place: Place<'_>, resources: &Resources, views: &Views<'_>) -> Result<(), Missing> {
    let Place { kind, namespace, name, section } = place;
    let id = format!("{namespace}/{name}");
    let absent = |known: &mut dyn Iterator<Item = &str>| {
        ("name", format!("{kind} \"{id}\" does not exist"), did_you_mean(&id, known))
    };
    let no_section = |what: &str, mut known: Vec<String>| {
        known.retain(|name| !name.is_empty());
        Err(("sectionName", format!("{kind} \"{id}\" has no such {what}"), format!("it has {}", known.join(", "))))
    };
    match kind {
        "Namespace" if name != namespace => {
            Err(("name", "a policy applies to its own namespace only".to_owned(), format!("use \"{namespace}\"")))
        }
        "Service" => {
            let view = views.get(&id).ok_or_else(|| absent(&mut views.keys().map(String::as_str)))?;
            let Some(section) = section else { return Ok(()) };
            if view.ports.iter().any(|port| port.name == section || port.port.to_string() == section) {
                return Ok(());
            }
            let known = view.ports.iter().flat_map(|port| [port.port.to_string(), port.name.clone()]);
            no_section("port", known.collect())
        }
        "HTTPRoute" => {
            let routes = &resources.routes;
            let route = routes.get(&id).ok_or_else(|| absent(&mut routes.keys().map(String::as_str)))?;
            let rules = route.value.spec.rules.iter().flatten().map(|rule| rule.name.as_deref());
            rule_exists(section, rules).or_else(|known| no_section("rule", known))
        }
        "GRPCRoute" => {
            let routes = &resources.grpc_routes;
            let route = routes.get(&id).ok_or_else(|| absent(&mut routes.keys().map(String::as_str)))?;
            let rules = route.value.spec.rules.iter().flatten().map(|rule| rule.name.as_deref());
            rule_exists(section, rules).or_else(|known| no_section("rule", known))
        }
        _ => Ok(()),
    }
}

/// The names of the rules if none of them is the one.
fn rule_exists<'a>(section: Option<&str>, rules: impl Iterator<Item = Option<&'a str>>) -> Result<(), Vec<String>> {
    let names = rules.enumerate().map(|(index, name)| name.map_or_else(|| index.to_string(), str::to_owned));
    let names: Vec<String> = names.collect();
    if section.is_none_or(|section| names.iter().any(|name| name == section)) { Ok(()) } else { Err(names) }
}

/// Fields that an older policy with the same target sets too.
fn conflicts(object: &Policy<TrafficPolicySpec>, attached: &Attached<'_, TrafficPolicySpec>, found: &mut Vec<Problem>) {
    for (index, place) in places(object) {
        let older = attached.at(place).into_iter().take_while(|other| !std::ptr::eq(*other, object));
        let own = given(&object.value.spec);
        for other in older {
            let both: Vec<&str> = given(&other.value.spec).into_iter().filter(|field| own.contains(field)).collect();
            if both.is_empty() {
                continue;
            }
            let path = if object.value.spec.targets().is_empty() {
                "spec".to_owned()
            } else {
                format!("spec.targetRefs[{index}]")
            };
            let message = format!(
                "TrafficPolicy {} has the same target, is older (or first by name) and wins: {}",
                other.id(),
                both.join(", ")
            );
            let problem = object.origin.problem(&path, message, "set each field in one of them only");
            found.push(problem.because(Reason::Conflicted));
        }
    }
}

/// The fields that these settings have.
fn given(spec: &TrafficPolicySpec) -> Vec<&'static str> {
    let layers = Layers(vec![Layer { origin: Origin::Mesh, spec }]);
    let rows = super::Requests::merge(&layers).rows().into_iter().chain(super::Backend::merge(&layers).rows());
    rows.filter(|row| row.origin != Origin::Default).map(|row| row.field).collect()
}
