//! Files beside each other, with the checks that the API warns of: what [`beside`] needs to know of them.

use std::sync::Arc;

use serde_json::Value;
use weft_control_plane::{
    beside::{self, Others},
    source::{Origin, Problem},
};

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

/// Everything that is found, by object; of two that contradict each other, the later one is told.
pub fn find(items: &[Item]) -> Vec<Problem> {
    let found = items.iter().enumerate().map(|(index, item)| {
        let mut object = item.value.clone();
        object["kind"] = item.kind.as_str().into();
        object["metadata"]["namespace"] = item.namespace.as_str().into();
        object["metadata"]["name"] = item.name.as_str().into();
        beside::find(&object, &item.origin, &InFiles { items, before: &items[..index] })
    });
    found.flatten().collect()
}

/// All objects of the files, and those before the one that is looked at.
struct InFiles<'i> {
    items: &'i [Item],
    before: &'i [Item],
}

impl InFiles<'_> {
    fn of<'a>(items: &'a [Item], kind: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a Item> {
        items.iter().filter(move |item| item.kind == kind && item.namespace == namespace)
    }
}

impl Others for InFiles<'_> {
    const MISSING: &'static str = "is in none of the files";
    const REFERENCES: bool = false;

    fn exists(&self, kind: &str, namespace: &str, name: &str) -> bool {
        Self::of(self.items, kind, namespace).any(|item| item.name == name)
    }

    fn names(&self, kind: &str, namespace: &str) -> Vec<String> {
        Self::of(self.items, kind, namespace).map(|item| item.name.clone()).collect()
    }

    fn of_kind<'a>(&'a self, kind: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a Value> {
        Self::of(self.before, kind, namespace).map(|item| &item.value)
    }

    fn workloads<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Value> {
        Self::of(self.items, "Workload", namespace).map(|item| &item.value["metadata"]["labels"])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn item(kind: &str, name: &str, mut value: Value) -> Item {
        value["metadata"]["name"] = name.into();
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
