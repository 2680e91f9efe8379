//! What is wrong with policies beside each other: two that set the same, and faults whose end nobody could tell.

use super::{Attached, Layer, Layers, Origin, Policies, Policy, faults::expires, places};
use crate::source::{Problem, Reason, policies::traffic::TrafficPolicySpec};

impl Policies<'_> {
    /// What is wrong, in the order of the objects.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        for object in self.resources.traffic_policies.values() {
            conflicts(object, &self.traffic, &mut found);
        }
        for object in self.resources.fault_injections.values().filter(|object| expires(object).is_err()) {
            let message = "counts from metadata.creationTimestamp, which is missing: this fault is left out";
            found.push(object.origin.problem("spec.expiresAfter", message, "such as 2030-01-31T12:00:00Z"));
        }
        found
    }
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
            let path = if object.value.spec.target_refs.is_empty() {
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
