//! What the status of a route says of its parents, in the terms of Gateway API, from what compiling found wrong. Pure;
//! `app` writes it where the object is kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    source::{Problem, Reason, Resources},
    store::Key,
};

/// One condition without its times.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs` or `Programmed`.
    pub name: &'static str,
    /// `True` rather than `False`.
    pub holds: bool,
    /// A word of Gateway API.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A parent of a route, as it was written, and what holds for it.
pub type Parent = (Value, Vec<Condition>);

/// The parents of every route of the store. What a file has is reported with its place instead.
#[must_use]
pub fn of_routes(resources: &Resources, problems: &[Problem]) -> BTreeMap<Key, Vec<Parent>> {
    let mut found = BTreeMap::new();
    for route in resources.routes.values() {
        let key = Key::new("HTTPRoute", &route.namespace, &route.name);
        if *route.origin.file != key.to_string() {
            continue;
        }
        let own: Vec<&Problem> = problems.iter().filter(|problem| problem.file == *route.origin.file).collect();
        let parents = route.value.spec.parent_refs.iter().flatten().enumerate();
        let parents = parents.map(|(index, parent)| {
            let reference = serde_json::to_value(parent).unwrap_or_else(|_| json!({}));
            (reference, conditions(index, &own))
        });
        found.insert(key, parents.collect());
    }
    found
}

fn conditions(parent: usize, problems: &[&Problem]) -> Vec<Condition> {
    let path = format!("spec.parentRefs[{parent}]");
    let at_parent =
        |problem: &Problem| problem.path.strip_prefix(&path).is_some_and(|rest| !rest.starts_with(char::is_numeric));
    let unaccepted = |problem: &Problem| {
        at_parent(problem) || problem.path.starts_with("spec.rules") && problem.reason == Reason::UnsupportedValue
    };
    let unresolved = |problem: &Problem| {
        matches!(problem.reason, Reason::BackendNotFound | Reason::InvalidKind | Reason::RefNotPermitted)
    };
    let condition = |name, good: (&'static str, &str), bad: Option<&&Problem>| match bad {
        None => Condition { name, holds: true, reason: good.0, message: good.1.to_owned() },
        Some(problem) => {
            let reason = problem.reason.as_str();
            let hint = if problem.hint.is_empty() { String::new() } else { format!(" ({})", problem.hint) };
            let message = format!("{}: {}{hint}", problem.path, problem.message);
            Condition { name, holds: false, reason, message }
        }
    };
    let refused = problems.iter().find(|problem| unaccepted(problem));
    vec![
        condition("Accepted", ("Accepted", "the parent has taken the route"), refused),
        condition(
            "ResolvedRefs",
            ("ResolvedRefs", "every reference leads somewhere"),
            problems.iter().find(|problem| unresolved(problem)),
        ),
        condition("Programmed", ("Programmed", "it is pushed to the sidecars that use the service"), refused),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compile;

    /// Names, states and reasons of the only parent of the only route.
    fn outcome(route: &str) -> Vec<(&'static str, bool, &'static str)> {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80}]}\n";
        let (mut resources, _) = Resources::from_text("HTTPRoute default/r", route);
        resources.services = Resources::from_text("Service default/web", service).0.services;
        let (_, problems) = compile(&resources, &[]);
        let found = of_routes(&resources, &problems);
        let parents = &found[&Key::new("HTTPRoute", "default", "r")];
        assert_eq!(parents.len(), 1);
        parents[0].1.iter().map(|condition| (condition.name, condition.holds, condition.reason)).collect()
    }

    fn route(parent: &str, rules: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  \
             parentRefs: [{{kind: Service, group: \"\", name: {parent}}}]\n  rules: [{rules}]\n"
        )
    }

    #[test]
    fn a_good_route_is_accepted_resolved_and_programmed() {
        let good = outcome(&route("web", "{backendRefs: [{name: web, port: 80}]}"));
        let expected = [
            ("Accepted", true, "Accepted"),
            ("ResolvedRefs", true, "ResolvedRefs"),
            ("Programmed", true, "Programmed"),
        ];
        assert_eq!(good, expected);
    }

    #[test]
    fn a_dangling_backend_is_unresolved_and_the_rest_of_the_route_works() {
        let found = outcome(&route("web", "{backendRefs: [{name: wbe, port: 80}]}"));
        assert_eq!(found[1], ("ResolvedRefs", false, "BackendNotFound"));
        assert!(found[0].1 && found[2].1, "{found:?}");
    }

    #[test]
    fn a_parent_that_does_not_exist_does_not_accept() {
        let found = outcome(&route("wbe", "{backendRefs: [{name: web, port: 80}]}"));
        assert_eq!(found[0], ("Accepted", false, "NoMatchingParent"));
        assert_eq!(found[2], ("Programmed", false, "NoMatchingParent"));
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let found = outcome(&route(
            "web",
            "{filters: [{type: ExtensionRef, extensionRef: {group: a.example, kind: K, name: n}}], backendRefs: []}",
        ));
        assert_eq!(found[0], ("Accepted", false, "UnsupportedValue"));
    }
}
