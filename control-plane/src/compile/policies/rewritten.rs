//! Rate limits of rules that change the path: the workload sees the new path, and the matches of the rule, which are
//! for the old one, would never count a request.

use weft_proto::v1::{self, path_match::Kind, path_modifier};

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
            let targets: Vec<_> = places(object).filter(|(_, place)| place.kind.ends_with("Route")).collect();
            if targets.is_empty() {
                continue;
            }
            // A limit counts what any rule that it is for would match.
            let limited = || routings.rules().filter(|rule| targets.iter().any(|(_, place)| is_at(rule, *place)));
            let seen: Vec<&v1::RouteMatch> = limited().flat_map(Rule::matches).collect();
            for (index, place) in &targets {
                let Some(rule) = limited().find(|rule| is_at(rule, *place) && never_counts(rule, &seen)) else {
                    continue;
                };
                let message = format!(
                    "rule {} of {} {} rewrites the path: the limit sees the new path, which no match of \
                     its rules takes, and does not count these requests",
                    rule.name, rule.kind, rule.route
                );
                let hint = "limit the Service that the rule leads to";
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

/// Whether no request that follows the rule matches one of these where it arrives.
fn never_counts(rule: &Rule, seen: &[&v1::RouteMatch]) -> bool {
    let mut backends = rule.backends().iter().filter(|backend| !backend.service.is_empty()).peekable();
    backends.peek().is_some()
        && backends.all(|backend| {
            let modifier = rule.path_modifier(backend).and_then(|modifier| modifier.kind.as_ref());
            modifier.is_some_and(|modifier| {
                let mut sent = rule.matches();
                !sent.any(|sent| seen.iter().any(|seen| may_match(path(sent), modifier, path(seen))))
            })
        })
}

fn path(found: &v1::RouteMatch) -> Option<&Kind> {
    found.path.as_ref()?.kind.as_ref()
}

/// Whether a path that `sent` matches may match `seen` after the change. A regular expression may.
fn may_match(sent: Option<&Kind>, modifier: &path_modifier::Kind, seen: Option<&Kind>) -> bool {
    match (modifier, sent, seen) {
        (path_modifier::Kind::Full(path), _, Some(Kind::Exact(seen))) => path == seen,
        (path_modifier::Kind::Full(path), _, Some(Kind::Prefix(seen))) => is_under(path, seen),
        (path_modifier::Kind::Prefix(new), Some(Kind::Prefix(_)), Some(Kind::Exact(seen))) => is_under(seen, new),
        (path_modifier::Kind::Prefix(new), Some(Kind::Prefix(_)), Some(Kind::Prefix(seen))) => {
            is_under(seen, new) || is_under(new, seen)
        }
        _ => true,
    }
}

/// By segment.
fn is_under(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
