//! Rate limits of rules that lead to another namespace: requests are counted where they arrive, and the owner of a route
//! has no say over the workloads there.

use super::{Place, Policies, places};
use crate::{
    compile::routes::{Routings, Rule},
    source::{Problem, Reason},
};

impl Policies<'_> {
    /// The targets of rate limits with a rule whose requests are not counted.
    #[must_use]
    pub fn uncounted(&self, routings: &Routings) -> Vec<Problem> {
        let mut found: Vec<Problem> = Vec::new();
        for object in self.resources.rate_limit_policies.values() {
            for (index, place) in places(object).filter(|(_, place)| place.kind.ends_with("Route")) {
                let mut rules = routings.rules().filter(|rule| is_at(rule, place));
                let Some((rule, service)) = rules.find_map(|rule| Some((rule, elsewhere(rule, place.namespace)?)))
                else {
                    continue;
                };
                let message = format!(
                    "rule {} of {} {} leads to Service {service} in another namespace: the limit does not count these \
                     requests",
                    rule.name, rule.kind, rule.route
                );
                let hint = "a RateLimitPolicy in the namespace of that Service can limit it";
                let problem = object.origin.problem(&format!("spec.targetRefs[{index}]"), message, hint);
                found.push(problem.because(Reason::UnsupportedValue));
            }
        }
        found
    }
}

fn is_at(rule: &Rule, place: Place<'_>) -> bool {
    rule.kind == place.kind
        && rule.route.split_once('/') == Some((place.namespace, place.name))
        && place.section.is_none_or(|section| section == rule.name)
}

/// The first backend outside the namespace. An invalid one has no name.
fn elsewhere<'a>(rule: &'a Rule, namespace: &str) -> Option<&'a str> {
    let mut services = rule.backends().iter().map(|backend| backend.service.as_str());
    services.find(|service| service.split_once('/').is_some_and(|(theirs, _)| theirs != namespace))
}
