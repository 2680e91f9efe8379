//! The rule of a route: what policies can target, and what the route says itself.

use super::Origin;
use crate::{
    compile::routes,
    source::{
        Resources,
        policies::{
            Span,
            traffic::{Backoff, Retries, Timeouts, TrafficPolicySpec},
        },
        routes::{self as read, requests::Requests},
    },
};

/// How many times longer than the first wait of a route's own retries the longest is.
const BACKOFF_GROWTH: u32 = 10;

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
    id: &'a str,
}

impl<'a> Rule<'a> {
    /// A rule that is being compiled.
    #[must_use]
    pub(in crate::compile) fn of(rule: &'a routes::Rule) -> Self {
        let (namespace, route) = rule.route.split_once('/').unwrap_or(("", &rule.route));
        let own = own(&rule.requests);
        Self { kind: rule.kind, namespace, route, section: &rule.name, own, id: &rule.route }
    }

    /// By the name that a compiled rule has, `namespace/route#rule`. Routes of both kinds can have it: `grpc` tells
    /// which is meant then.
    #[must_use]
    pub fn named(name: &'a str, grpc: bool, resources: &Resources) -> Option<Self> {
        let (id, section) = name.rsplit_once('#')?;
        let (namespace, route) = id.split_once('/')?;
        let of_http = || {
            let rules = resources.routes.get(id)?.value.spec.rules.iter().flatten();
            Some(("HTTPRoute", rules.map(|rule| (rule.name.as_deref(), Requests::of(rule))).collect::<Vec<_>>()))
        };
        let of_grpc = || {
            let rules = resources.grpc_routes.get(id)?.value.spec.rules.iter().flatten();
            let rules = rules.map(|rule| (rule.name.as_deref(), Requests::of(&read::grpc_rule(rule))));
            Some(("GRPCRoute", rules.collect()))
        };
        let (kind, rules) = if grpc { of_grpc().or_else(of_http) } else { of_http().or_else(of_grpc) }?;
        let numbered = section.parse::<usize>().ok();
        let named = rules.iter().find(|(name, _)| *name == Some(section));
        let found = named.or_else(|| rules.get(numbered?));
        let own = found.map(|(_, requests)| own(requests)).unwrap_or_default();
        Some(Self { kind, namespace, route, section, own, id })
    }

    /// What the rule's own values say of their origin.
    #[must_use]
    pub fn origin(&self) -> Origin<'_> {
        Origin::Route { kind: self.kind, route: self.id, rule: self.section }
    }
}

/// In the form of a policy, so that it is merged like one.
fn own(requests: &Requests) -> TrafficPolicySpec {
    let Requests { timeout, backend_timeout, attempts, codes, backoff } = requests;
    let timeouts =
        Timeouts { request: timeout.map(Span), backend_request: backend_timeout.map(Span), ..Timeouts::default() };
    // "The minimum duration a Gateway should wait": the jitter comes on top.
    let backoff = backoff.map(|least| Backoff {
        min: Some(Span(least)),
        base: Some(Span(least)),
        max: Some(Span(least.saturating_mul(BACKOFF_GROWTH))),
    });
    let codes = codes.as_ref().map(|codes| codes.iter().filter_map(|code| u16::try_from(*code).ok()).collect());
    let retries = Retries { attempts: *attempts, codes, backoff, ..Retries::default() };
    TrafficPolicySpec { timeouts: Some(timeouts), retries: Some(retries), ..TrafficPolicySpec::default() }
}
