//! GRPCRoutes of Services: whether their parents and backends are there. The sidecars do not route by them yet.

use gateway_api::apis::standard::{
    grpcroutes::{GrpcRouteParentRefs, GrpcRouteRulesBackendRefs},
    httproutes::{HttpRouteParentRefs, HttpRouteRulesBackendRefs},
};

use super::routes::{self, Views};
use crate::source::{Problem, Resources};

/// Reports the references of all routes that lead nowhere.
pub fn check(resources: &Resources, views: &Views<'_>, problems: &mut Vec<Problem>) {
    for route in resources.grpc_routes.values() {
        for (index, reference) in route.value.spec.parent_refs.iter().flatten().enumerate() {
            let path = format!("spec.parentRefs[{index}]");
            let hint = problems.len() < routes::HINTS;
            problems.extend(routes::parent_ports(route, &parent(reference), &path, views, hint).err());
        }
        for (index, rule) in route.value.spec.rules.iter().flatten().enumerate() {
            for (place, reference) in rule.backend_refs.iter().flatten().enumerate() {
                let path = format!("spec.rules[{index}].backendRefs[{place}]");
                let hint = problems.len() < routes::HINTS;
                problems.extend(routes::backend_of(route, &backend(reference), &path, views, hint).err());
            }
        }
    }
}

/// The same reference as an HTTPRoute has it.
pub fn parent(reference: &GrpcRouteParentRefs) -> HttpRouteParentRefs {
    let GrpcRouteParentRefs { group, kind, name, namespace, port, section_name } = reference.clone();
    HttpRouteParentRefs { group, kind, name, namespace, port, section_name }
}

fn backend(reference: &GrpcRouteRulesBackendRefs) -> HttpRouteRulesBackendRefs {
    let GrpcRouteRulesBackendRefs { filters: _, group, kind, name, namespace, port, weight } = reference.clone();
    HttpRouteRulesBackendRefs { filters: None, group, kind, name, namespace, port, weight }
}
