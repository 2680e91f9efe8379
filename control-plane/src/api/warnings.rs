//! What an author should know of an object beside others: dangling references, routes that overlap, two policies on
//! one target. No reason to refuse it, because the other half may be on its way.

use serde_json::Value;
use weft_proto::ResourceType;

use super::{
    ApiState,
    kinds::{GATEWAY, Kind},
};
use crate::store::Key;

/// Most warnings of one write.
const MOST: usize = 8;

/// Texts for `Warning` headers.
pub fn of(state: &ApiState, kind: &Kind, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if kind.group == GATEWAY && kind.kind.ends_with("Route") {
        route(state, kind, object, &mut found);
    }
    policy(state, kind, object, &mut found);
    found.truncate(MOST);
    found
}

fn own_namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or("default")
}

fn list<'a>(object: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    object[name].as_array().into_iter().flatten()
}

/// Whether there is such a Service: in the store, in a file, or made for its workloads.
fn service_exists(state: &ApiState, namespace: &str, name: &str) -> bool {
    state.store.get(&Key::new("Service", namespace, name)).is_some()
        || !state.pushed.view.borrow().named(ResourceType::Service, &format!("{namespace}/{name}")).is_empty()
}

fn is_service(reference: &Value, default: &str) -> bool {
    let group = reference["group"].as_str().unwrap_or(if default == "Service" { "" } else { GATEWAY });
    reference["kind"].as_str().unwrap_or(default) == "Service" && matches!(group, "" | "core")
}

fn route(state: &ApiState, kind: &Kind, object: &Value, found: &mut Vec<String>) {
    let own = own_namespace(object);
    let mut missing = |path: String, reference: &Value, default: &str| {
        let namespace = reference["namespace"].as_str().unwrap_or(own);
        let name = reference["name"].as_str().unwrap_or_default();
        if is_service(reference, default) && !service_exists(state, namespace, name) {
            found.push(format!("{path}: Service {namespace}/{name} does not exist (yet)"));
        }
    };
    for (index, parent) in list(&object["spec"], "parentRefs").enumerate() {
        missing(format!("spec.parentRefs[{index}]"), parent, "Gateway");
    }
    for (index, rule) in list(&object["spec"], "rules").enumerate() {
        for (place, backend) in list(rule, "backendRefs").enumerate() {
            missing(format!("spec.rules[{index}].backendRefs[{place}]"), backend, "Service");
        }
    }
    let overlap = |other: &Value| {
        let parents = |route: &Value| list(&route["spec"], "parentRefs").cloned().collect::<Vec<_>>();
        let shared = parents(object).iter().any(|parent| parents(other).contains(parent));
        shared.then(|| same_match(object, other)).flatten()
    };
    for other in others(state, kind, object) {
        if let Some(index) = overlap(&other) {
            let name = other["metadata"]["name"].as_str().unwrap_or_default();
            found.push(format!(
                "spec.rules[{index}]: {} {own}/{name} has a rule with the same matches for the same parent; the older \
                 route wins",
                kind.kind
            ));
        }
    }
}

/// The first rule whose matches another route has too.
fn same_match(object: &Value, other: &Value) -> Option<usize> {
    list(&object["spec"], "rules")
        .position(|rule| list(&other["spec"], "rules").any(|theirs| theirs["matches"] == rule["matches"]))
}

fn policy(state: &ApiState, kind: &Kind, object: &Value, found: &mut Vec<String>) {
    let own = own_namespace(object);
    for (index, target) in list(&object["spec"], "targetRefs").enumerate() {
        let path = format!("spec.targetRefs[{index}]");
        let (target_kind, name) =
            (target["kind"].as_str().unwrap_or_default(), target["name"].as_str().unwrap_or_default());
        let exists = match target_kind {
            "Service" => service_exists(state, own, name),
            "HTTPRoute" | "GRPCRoute" => state.store.get(&Key::new(target_kind, own, name)).is_some(),
            _ => true,
        };
        if !exists {
            found.push(format!("{path}: {target_kind} {own}/{name} does not exist (yet)"));
        }
        if target_kind == "Namespace" && name != own {
            found.push(format!("{path}: a policy applies to its own namespace, {own}, not to {name}"));
        }
        // Several authorization policies on one target add up; others would contradict each other.
        if kind.kind == "AuthorizationPolicy" {
            continue;
        }
        for other in others(state, kind, object) {
            if list(&other["spec"], "targetRefs").any(|theirs| same_target(theirs, target)) {
                let other = other["metadata"]["name"].as_str().unwrap_or_default();
                found.push(format!(
                    "{path}: {} {own}/{other} has the same target; where both set a field the older one wins",
                    kind.kind
                ));
            }
        }
    }
}

fn same_target(a: &Value, b: &Value) -> bool {
    ["kind", "name", "sectionName"].iter().all(|field| a[field] == b[field])
}

/// The other objects of this kind in its namespace.
fn others(state: &ApiState, kind: &Kind, object: &Value) -> Vec<std::sync::Arc<Value>> {
    let (_, all) = state.store.list(kind.kind, Some(own_namespace(object)));
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    all.iter().filter(|stored| stored.key.name != name).map(|stored| std::sync::Arc::clone(&stored.object)).collect()
}
