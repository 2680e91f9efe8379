//! Rate limits that would count nothing, or not all: requests are counted by the sidecars where they arrive. The owner of a
//! route has no say over the workloads of another namespace, and endpoints outside the mesh have no sidecar.

use super::{Place, Policies, places};
use crate::{
    compile::routes::{Routings, Rule, Views},
    source::{Problem, Reason},
};

impl Policies<'_> {
    /// The targets of rate limits with requests that are not counted.
    #[must_use]
    pub fn uncounted(&self, routings: &Routings, views: &Views<'_>) -> Vec<Problem> {
        let mut found: Vec<Problem> = Vec::new();
        for object in self.resources.rate_limit_policies.values() {
            for (index, place) in places(object) {
                let Some((message, hint)) = why(place, routings, views) else { continue };
                let problem = object.origin.problem(&format!("spec.targetRefs[{index}]"), message, hint);
                found.push(problem.because(Reason::UnsupportedValue));
            }
        }
        found
    }
}

/// Why not all requests of a target are counted, and what to do.
fn why(place: Place<'_>, routings: &Routings, views: &Views<'_>) -> Option<(String, &'static str)> {
    let outside = |service: &str| views.get(service).is_some_and(|view| !view.selects());
    let of_mesh = "give the Service a selector and its instances a sidecar, or limit the calls at who makes them";
    if place.kind == "Service" {
        let service = format!("{}/{}", place.namespace, place.name);
        let message = format!("Service {service} has no selector: its endpoints have no sidecar that counts");
        return outside(&service).then_some((message, of_mesh));
    }
    if !place.kind.ends_with("Route") {
        return None;
    }
    let backends = routings.rules().filter(|rule| is_at(rule, place)).flat_map(|rule| {
        // An invalid one has no name.
        let named = rule.backends().iter().filter_map(|backend| Some((backend.service.split_once('/')?.0, backend)));
        named.map(move |(namespace, backend)| (rule, namespace, backend.service.as_str()))
    });
    let leads = |rule: &Rule| format!("rule {} of {} {} leads to Service", rule.name, rule.kind, rule.route);
    backends.into_iter().find_map(|(rule, namespace, service)| {
        if namespace != place.namespace {
            let message =
                format!("{} {service} in another namespace: the limit does not count these requests", leads(rule));
            return Some((message, "a RateLimitPolicy in the namespace of that Service can limit it"));
        }
        let message = || format!("{} {service}, which has no selector: nobody counts these requests", leads(rule));
        outside(service).then(|| (message(), of_mesh))
    })
}

fn is_at(rule: &Rule, place: Place<'_>) -> bool {
    rule.kind == place.kind
        && rule.route.split_once('/') == Some((place.namespace, place.name))
        && place.section.is_none_or(|section| section == rule.name)
}
