//! What policies of all of Weft's own kinds are attached to: whether it is there, and which of two at one target counts
//! as a whole. What is merged field by field is checked where it is merged, in `policies`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::routes::{HINTS, Views, similar};
use crate::source::{
    Object, Origin, Problem, Reason, Resources, did_you_mean,
    policies::{Custom, Spec, TargetRef, WorkloadSelector},
};

/// The only MeshConfig that counts.
const MESH_CONFIG: &str = "default";

/// A policy of any kind.
pub struct Policy<'a> {
    pub kind: &'static str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub metadata: &'a ObjectMeta,
    pub origin: &'a Origin,
    pub targets: &'a [TargetRef],
    selector: Option<&'a WorkloadSelector>,
    add_up: bool,
}

/// Every policy that is attached to something.
pub fn all(resources: &Resources) -> Vec<Policy<'_>> {
    let mut found = Vec::new();
    add(&mut found, "TrafficPolicy", &resources.traffic_policies);
    add(&mut found, "AuthorizationPolicy", &resources.authorization_policies);
    add(&mut found, "PeerAuthentication", &resources.peer_authentications);
    add(&mut found, "RateLimitPolicy", &resources.rate_limit_policies);
    add(&mut found, "FaultInjection", &resources.fault_injections);
    add(&mut found, "TelemetryPolicy", &resources.telemetry_policies);
    add(&mut found, "RequestAuthentication", &resources.request_authentications);
    found
}

fn add<'a, S: Spec>(
    found: &mut Vec<Policy<'a>>,
    kind: &'static str,
    objects: &'a BTreeMap<String, Arc<Object<Custom<S>>>>,
) {
    found.extend(objects.values().map(|object| Policy {
        kind,
        namespace: &object.namespace,
        name: &object.name,
        metadata: &object.value.metadata,
        origin: &object.origin,
        targets: object.value.spec.targets(),
        selector: object.value.spec.selector(),
        add_up: S::ADD_UP,
    }));
}

/// Reports targets that do not exist, and policies that have no effect because an older one is there.
pub fn check(resources: &Resources, views: &Views<'_>, problems: &mut Vec<Problem>) {
    let mut policies = all(resources);
    // Older ones first, then by name. What a file has was written at no known time: it comes last.
    policies.sort_by_cached_key(|policy| {
        let created = policy.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created.is_none(), created, policy.namespace, policy.name)
    });
    let mut taken: BTreeMap<(&str, &str, Place<'_>), &Policy<'_>> = BTreeMap::new();
    for policy in &policies {
        let targets = policy.targets.iter().enumerate();
        let targets = targets.map(|(index, target)| (format!("spec.targetRefs[{index}]"), Some(target)));
        let whole = policy.targets.is_empty().then(|| ("spec".to_owned(), None));
        for (path, target) in targets.chain(whole) {
            let hint = problems.len() < HINTS;
            if let Some(problem) = target.and_then(|target| missing(policy, target, &path, (resources, views), hint)) {
                problems.push(problem);
                continue;
            }
            if policy.add_up {
                continue;
            }
            let first = *taken.entry((policy.kind, policy.namespace, place(policy, target))).or_insert(policy);
            if first.name != policy.name {
                let message = format!(
                    "{} \"{}/{}\" is older and attached to the same: it wins",
                    first.kind, first.namespace, first.name
                );
                let hint = "remove one of them, or put both into one";
                problems.push(policy.origin.problem(&path, message, hint).because(Reason::Conflicted));
            }
        }
    }
    for config in resources.mesh_configs.values().filter(|config| config.name != MESH_CONFIG) {
        let message = format!("a MeshConfig named \"{}\" has no effect", config.name);
        problems.push(config.origin.problem("metadata.name", message, format!("name it \"{MESH_CONFIG}\"")));
    }
}

/// What a policy is attached to, in its namespace.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
enum Place<'a> {
    Target { kind: &'a str, name: &'a str, section: Option<&'a str> },
    Workloads(&'a BTreeMap<String, String>),
}

fn place<'a>(policy: &Policy<'a>, target: Option<&'a TargetRef>) -> Place<'a> {
    match (target, policy.selector) {
        (Some(target), _) => {
            Place::Target { kind: &target.kind, name: &target.name, section: target.section_name.as_deref() }
        }
        (None, Some(selector)) => Place::Workloads(&selector.match_labels),
        // The same as to name the namespace.
        (None, None) => Place::Target { kind: "Namespace", name: policy.namespace, section: None },
    }
}

/// What is wrong with a target.
fn missing(
    policy: &Policy<'_>,
    target: &TargetRef,
    path: &str,
    (resources, views): (&Resources, &Views<'_>),
    hint: bool,
) -> Option<Problem> {
    let TargetRef { kind, name, section_name, .. } = target;
    let id = format!("{}/{name}", policy.namespace);
    let problem = |field: &str, message: String, hint: String| {
        policy.origin.problem(&format!("{path}.{field}"), message, hint).because(Reason::TargetNotFound)
    };
    if kind == "Namespace" {
        let message = || format!("a policy applies to its own namespace, not to \"{name}\"");
        let hint = || format!("name \"{}\", or move the policy", policy.namespace);
        return (name != policy.namespace).then(|| problem("name", message(), hint()).because(Reason::Invalid));
    }
    let gone = |similar: &dyn Fn() -> String| {
        let hint = if hint { similar() } else { String::new() };
        Some(problem("name", format!("{kind} \"{id}\" does not exist"), hint))
    };
    let sections: Vec<String> = match kind.as_str() {
        "Service" => match views.get(&id) {
            Some(view) => view.ports.iter().flat_map(|port| [port.name.clone(), port.port.to_string()]).collect(),
            None => return gone(&|| similar(&id, views)),
        },
        "HTTPRoute" => match resources.routes.get(&id) {
            Some(route) => rules(route.value.spec.rules.iter().flatten().map(|rule| rule.name.as_ref())),
            None => return gone(&|| similar(&id, &resources.routes)),
        },
        _ => match resources.grpc_routes.get(&id) {
            Some(route) => rules(route.value.spec.rules.iter().flatten().map(|rule| rule.name.as_ref())),
            None => return gone(&|| similar(&id, &resources.grpc_routes)),
        },
    };
    let section = section_name.as_deref().filter(|section| !sections.iter().any(|known| known == section))?;
    let what = if kind == "Service" { "port" } else { "rule" };
    let hint = did_you_mean(section, sections.iter().map(String::as_str));
    let known = || {
        format!("it has {}", sections.iter().filter(|name| !name.is_empty()).cloned().collect::<Vec<_>>().join(", "))
    };
    let hint = if hint.is_empty() { known() } else { hint };
    Some(problem("sectionName", format!("{kind} \"{id}\" has no {what} named \"{section}\""), hint))
}

/// Names of rules; a number from 0 where there is none.
fn rules<'a>(names: impl Iterator<Item = Option<&'a String>>) -> Vec<String> {
    names.enumerate().map(|(index, name)| name.cloned().unwrap_or_else(|| index.to_string())).collect()
}
