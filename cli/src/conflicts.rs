//! What is wrong with objects beside each other: policies on one target, routes with the same matches, targets and
//! selectors that meet nothing. Pure; the caller reads the files.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use weft_control_plane::source::{Origin, Problem, did_you_mean};

/// One object and the places of its fields.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it was written.
    pub origin: Arc<Origin>,
    /// Its kind.
    pub kind: String,
    /// `default` for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All of it.
    pub value: Value,
}

impl Item {
    fn list(&self, field: &str) -> &[Value] {
        self.value["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn id(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Everything that is found, by object.
pub fn find(items: &[Item]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut targets: BTreeMap<(&str, &str, String), &Item> = BTreeMap::new();
    for item in items {
        for (index, target) in item.list("targetRefs").iter().enumerate() {
            let path = format!("spec.targetRefs[{index}]");
            missing_target(items, item, &path, target, &mut problems);
            // Several of these on one target add up; others contradict each other.
            if matches!(item.kind.as_str(), "AuthorizationPolicy" | "FaultInjection" | "RateLimitPolicy") {
                continue;
            }
            let key = (item.kind.as_str(), item.namespace.as_str(), target_key(target));
            if let Some(first) = targets.get(&key).filter(|first| first.name != item.name) {
                let message = format!("{} has the same target", first.id());
                let hint = "where both set a field the older one wins: make one policy of them";
                problems.push(item.origin.problem(&path, message, hint));
            }
            targets.entry(key).or_insert(item);
        }
        missing_workload(items, item, &mut problems);
    }
    routes(items, &mut problems);
    problems
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn target_key(target: &Value) -> String {
    let kind = target["kind"].as_str().unwrap_or("Service");
    format!("{kind}/{}#{}", text(target, "name"), text(target, "sectionName"))
}

fn missing_target(items: &[Item], item: &Item, path: &str, target: &Value, problems: &mut Vec<Problem>) {
    let (kind, name) = (target["kind"].as_str().unwrap_or("Service"), text(target, "name"));
    if !matches!(kind, "Service" | "HTTPRoute" | "GRPCRoute") {
        return;
    }
    let near = || items.iter().filter(|other| other.kind == kind && other.namespace == item.namespace);
    if near().any(|other| other.name == name) {
        return;
    }
    let message = format!("{kind} {}/{name} is in none of the files", item.namespace);
    let hint = did_you_mean(name, near().map(|other| other.name.as_str()));
    problems.push(item.origin.problem(&format!("{path}.name"), message, hint));
}

/// A selector is looked at where the files have workloads: elsewhere, workloads register themselves.
fn missing_workload(items: &[Item], item: &Item, problems: &mut Vec<Problem>) {
    let (path, selector) = match item.kind.as_str() {
        "Service" => ("spec.selector", &item.value["spec"]["selector"]),
        "Workload" => return,
        _ => ("spec.selector.matchLabels", &item.value["spec"]["selector"]["matchLabels"]),
    };
    let Some(wanted) = selector.as_object().filter(|wanted| !wanted.is_empty()) else { return };
    let mut workloads =
        items.iter().filter(|other| other.kind == "Workload" && other.namespace == item.namespace).peekable();
    let has_all = |workload: &Item| {
        let labels = &workload.value["metadata"]["labels"];
        wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
    };
    if workloads.peek().is_some() && !workloads.any(has_all) {
        let message = format!("no Workload of namespace {} has these labels", item.namespace);
        problems.push(item.origin.problem(path, message, "compare them with metadata.labels of the workloads"));
    }
}

/// Two routes of one kind and one parent whose rules have the same matches: the second is never used.
fn routes(items: &[Item], problems: &mut Vec<Problem>) {
    let mut seen: BTreeMap<String, &Item> = BTreeMap::new();
    for item in items.iter().filter(|item| matches!(item.kind.as_str(), "HTTPRoute" | "GRPCRoute")) {
        for (index, rule) in item.list("rules").iter().enumerate() {
            for parent in item.list("parentRefs") {
                let namespace = parent["namespace"].as_str().unwrap_or(&item.namespace);
                let place = format!("{} {namespace}/{} {}", item.kind, text(parent, "name"), parent["port"]);
                let key = format!("{place} {}", rule["matches"]);
                let first = *seen.entry(key).or_insert(item);
                if (&first.namespace, &first.name) != (&item.namespace, &item.name) {
                    let path = format!("spec.rules[{index}]");
                    let message = format!("{} has a rule with the same matches for the same parent", first.id());
                    problems.push(item.origin.problem(&path, message, "the older route wins: change one of them"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(kind: &str, name: &str, value: Value) -> Item {
        let origin = Arc::new(Origin { file: "a.yaml".into(), positions: BTreeMap::new() });
        Item { origin, kind: kind.into(), namespace: "shop".into(), name: name.into(), value }
    }

    fn policy(kind: &str, name: &str, target: &str) -> Item {
        item(kind, name, json!({"spec": {"targetRefs": [{"kind": "Service", "name": target}]}}))
    }

    fn texts(items: &[Item]) -> Vec<String> {
        find(items).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn two_policies_on_one_target_contradict_each_other_unless_they_add_up() {
        let service = item("Service", "a", json!({}));
        let same = |kind: &str| texts(&[service.clone(), policy(kind, "x", "a"), policy(kind, "y", "a")]);
        assert!(same("TrafficPolicy")[0].contains("TrafficPolicy shop/x has the same target"));
        for adds_up in ["AuthorizationPolicy", "FaultInjection", "RateLimitPolicy"] {
            assert!(same(adds_up).is_empty(), "{adds_up}");
        }
        assert!(
            texts(&[service.clone(), policy("TrafficPolicy", "x", "a"), policy("RateLimitPolicy", "y", "a")])
                .is_empty()
        );
    }

    #[test]
    fn a_target_that_is_not_there_has_a_suggestion() {
        let found = texts(&[item("Service", "catalog", json!({})), policy("TrafficPolicy", "x", "catalgo")]);
        assert_eq!(
            found,
            [
                "a.yaml: spec.targetRefs[0].name: Service shop/catalgo is in none of the files (did you mean \"catalog\"?)"
            ]
        );
    }

    #[test]
    fn a_selector_is_compared_with_the_workloads_where_there_are_some() {
        let service = item("Service", "a", json!({"spec": {"selector": {"app": "a"}}}));
        let workload = |app: &str| item("Workload", app, json!({"metadata": {"labels": {"app": app}}}));
        assert!(texts(std::slice::from_ref(&service)).is_empty());
        assert!(texts(&[service.clone(), workload("b"), workload("a")]).is_empty());
        assert_eq!(texts(&[service, workload("b")]).len(), 1);
        let policy = item("PeerAuthentication", "p", json!({"spec": {"selector": {"matchLabels": {"app": "c"}}}}));
        assert_eq!(texts(&[policy, workload("b")]).len(), 1);
    }

    #[test]
    fn two_routes_with_the_same_matches_conflict_and_two_rules_of_one_do_not() {
        let route = |name: &str, path: &str| {
            item(
                "HTTPRoute",
                name,
                json!({"spec": {"parentRefs": [{"kind": "Service", "name": "a"}],
                "rules": [{"matches": [{"path": {"value": path}}]}, {"matches": [{"path": {"value": path}}]}]}}),
            )
        };
        assert!(texts(&[route("x", "/a"), route("y", "/b")]).is_empty());
        let found = texts(&[route("x", "/a"), route("y", "/a")]);
        assert!(
            found.len() == 2 && found[0].contains("HTTPRoute shop/x has a rule with the same matches"),
            "{found:?}"
        );
    }
}
