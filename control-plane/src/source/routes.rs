//! Routes as they were written, in the terms of the wire as far as that needs nothing but the route itself: what
//! checking them and compiling them share. A GRPCRoute is read as an HTTPRoute with other matches.

pub mod filters;
pub mod matches;
pub mod requests;
pub mod session;

use gateway_api::apis::experimental::{
    grpcroutes::{GrpcRoute, GrpcRouteRules},
    httproutes::{
        HttpRoute, HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesBackendRefs, HttpRouteRulesFilters,
        HttpRouteRulesFiltersRequestMirrorBackendRef,
    },
};
use serde::{Serialize, de::DeserializeOwned};

/// A reference to a parent, of either kind of route.
pub type Parent = HttpRouteParentRefs;
/// A rule of either kind of route; of a GRPCRoute without its matches.
pub type Rule = HttpRouteRules;
/// A backend of either kind of route.
pub type Backend = HttpRouteRulesBackendRefs;
/// A filter of either kind of route, of a rule or of a backend.
pub type Filter = HttpRouteRulesFilters;
/// Where a mirror leads.
pub type MirrorBackend = HttpRouteRulesFiltersRequestMirrorBackendRef;

/// The same fields in another of the generated types, which has them all. `None` only if it does not.
pub fn same<T: DeserializeOwned>(value: &impl Serialize) -> Option<T> {
    serde_json::from_value(serde_json::to_value(value).ok()?).ok()
}

/// The word of a unit enum as it is written in YAML.
pub fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The parents of an HTTPRoute.
pub fn http_parents(route: &HttpRoute) -> Vec<Parent> {
    route.spec.parent_refs.clone().unwrap_or_default()
}

/// The parents of a GRPCRoute.
pub fn grpc_parents(route: &GrpcRoute) -> Vec<Parent> {
    same::<Option<_>>(&route.spec.parent_refs).flatten().unwrap_or_default()
}

/// A rule of a GRPCRoute as one of an HTTPRoute, without its matches.
pub fn grpc_rule(rule: &GrpcRouteRules) -> Rule {
    let without = GrpcRouteRules { matches: None, ..rule.clone() };
    // Without backends it answers 500: never more than was asked for.
    same(&without).unwrap_or_default()
}

/// The filters of a backend as filters of a rule, which have the same fields.
pub fn backend_filters(backend: &Backend) -> Vec<Filter> {
    same::<Option<_>>(&backend.filters).flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_rule_keeps_everything_but_its_matches() {
        let rule = serde_json::json!({
            "name": "n",
            "matches": [{ "method": { "service": "a.B" } }],
            "filters": [{ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "m", "port": 1 } } }],
            "backendRefs": [{ "name": "b", "port": 2, "weight": 3, "filters": [{ "type": "ExtensionRef",
                "extensionRef": { "group": "g", "kind": "K", "name": "n" } }] }],
            "sessionPersistence": { "sessionName": "s" },
        });
        let typed: GrpcRouteRules = serde_json::from_value(rule.clone()).expect("a rule");
        let mut expected = rule;
        expected.as_object_mut().expect("an object").remove("matches");
        assert_eq!(serde_json::to_value(grpc_rule(&typed)).expect("JSON"), expected);
        assert_eq!(backend_filters(&grpc_rule(&typed).backend_refs.expect("backends")[0]).len(), 1);
    }
}
