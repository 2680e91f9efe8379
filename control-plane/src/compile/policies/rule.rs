//! The rule of a route behind a compiled one: what policies can target, and what the route says itself.

use gateway_api::apis::standard::httproutes::HttpRouteRules;

use super::Origin;
use crate::source::{
    Resources, duration,
    policies::{
        Span,
        traffic::{Timeouts, TrafficPolicySpec},
    },
};

/// A rule of a route.
#[derive(Debug)]
pub struct Rule<'a> {
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: &'static str,
    /// Namespace of the route.
    pub namespace: &'a str,
    /// Name of the route.
    pub route: &'a str,
    /// Name of the rule, or its number from 0 when it has none.
    pub section: &'a str,
    /// What the route itself sets: the most specific of all.
    pub own: TrafficPolicySpec,
    name: &'a str,
}

impl<'a> Rule<'a> {
    /// By the name that a compiled rule has, `namespace/route#rule`.
    #[must_use]
    pub fn named(name: &'a str, resources: &Resources) -> Option<Self> {
        let (id, section) = name.rsplit_once('#')?;
        let (namespace, route) = id.split_once('/')?;
        let numbered = section.parse::<usize>().ok();
        let http = resources.routes.get(id).map(|route| route.value.spec.rules.as_deref().unwrap_or_default());
        let kind = if http.is_some() { "HTTPRoute" } else { "GRPCRoute" };
        let found = http.and_then(|rules| {
            let named = rules.iter().find(|rule| rule.name.as_deref() == Some(section));
            named.or_else(|| rules.get(numbered?))
        });
        Some(Self { kind, namespace, route, section, own: found.map(own).unwrap_or_default(), name })
    }

    /// What the rule's own values say of their origin.
    #[must_use]
    pub fn origin(&self) -> Origin<'_> {
        Origin::Route { kind: self.kind, rule: self.name }
    }
}

fn own(rule: &HttpRouteRules) -> TrafficPolicySpec {
    let timeouts = rule.timeouts.as_ref().map(|timeouts| {
        let span = |text: &Option<String>| text.as_deref().and_then(duration).map(Span);
        Timeouts {
            request: span(&timeouts.request),
            backend_request: span(&timeouts.backend_request),
            ..Timeouts::default()
        }
    });
    TrafficPolicySpec { timeouts, ..TrafficPolicySpec::default() }
}
