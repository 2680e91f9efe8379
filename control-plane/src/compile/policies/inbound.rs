//! Rate limits, as the workloads that they protect get them.

use std::{collections::HashMap, time::Duration};

use weft_proto::v1;

use super::{Attached, Place, Policies, Policy, Port, Rule, wire};
use crate::{
    compile::{instances::Instance, routes::Routings},
    source::policies::limits::{RateKey, RateLimit, RateLimitPolicySpec},
};

type Rate = Policy<RateLimitPolicySpec>;

/// A policy, and the rules through which it is there; none when it is for the port as a whole.
type Routed<'a> = (&'a Rate, Follows);

/// Which requests follow some rules: by their names, and by what they look like.
#[derive(Clone, Default, PartialEq)]
struct Follows {
    rules: Vec<String>,
    matches: Vec<v1::RouteMatch>,
}

/// Rate limits by what they apply to.
pub struct Inbound<'a> {
    rates: &'a Attached<'a, RateLimitPolicySpec>,
    selecting: Vec<&'a Rate>,
    /// Backends of the rules that are limited, and the rules that lead there.
    routed: HashMap<(String, u32), Vec<Routed<'a>>>,
}

/// One policy at one inbound port.
struct Applied<'a> {
    policy: &'a Rate,
    services: Vec<v1::ServiceRef>,
    follows: Follows,
}

impl<'a> Inbound<'a> {
    /// Those of these policies. Routes are limited where their requests arrive: at their backends.
    #[must_use]
    pub fn of(policies: &'a Policies<'a>, routings: &Routings) -> Self {
        let all = || policies.resources.rate_limit_policies.values().map(AsRef::as_ref);
        let mut routed = HashMap::<_, Vec<_>>::new();
        let routes = all().any(|rate: &Rate| rate.value.spec.target_refs.iter().any(|to| to.kind.ends_with("Route")));
        for rule in routings.rules().filter(|_| routes) {
            let place = Rule::of(rule);
            let whole = Place { kind: place.kind, namespace: place.namespace, name: place.route, section: None };
            let named = policies.rates.at(Place { section: Some(place.section), ..whole });
            let limited = [named, policies.rates.at(whole)].concat();
            if limited.is_empty() {
                continue;
            }
            let matches: Vec<_> = rule.matches().map(|found| v1::RouteMatch { rule: 0, ..found.clone() }).collect();
            // No request follows it; without matches the limit would be for all of them.
            if matches.is_empty() {
                continue;
            }
            // Its owner has no say over the workloads of another namespace, wherever the route leads.
            let own = |id: &str| id.split_once('/').is_some_and(|(namespace, _)| namespace == place.namespace);
            for backend in rule.backends().iter().filter(|backend| own(&backend.service)) {
                let at: &mut Vec<_> = routed.entry((backend.service.clone(), backend.port)).or_default();
                let follows = || Follows { rules: vec![rule.id()], matches: matches.clone() };
                at.extend(limited.iter().map(|policy| (*policy, follows())));
            }
        }
        Self {
            rates: &policies.rates,
            selecting: all().filter(|rate| rate.value.spec.selector.is_some()).collect(),
            routed,
        }
    }

    /// The limits of a port of the instance to which these service ports lead. A policy is there once for each service:
    /// a request that several of its targets lead to counts once.
    #[must_use]
    pub fn limits(&self, instance: &Instance, served: &[Port<'_>]) -> Vec<v1::InboundLimit> {
        let whole = self.whole(instance);
        let everything =
            whole.iter().map(|policy| Applied { policy, services: Vec::new(), follows: Follows::default() });
        let mut found: Vec<Applied<'a>> = everything.collect();
        for port in served {
            let service = v1::ServiceRef { service: format!("{}/{}", port.namespace, port.service), port: port.number };
            for (policy, follows) in self.at(port) {
                if whole.iter().any(|known| std::ptr::eq(*known, policy)) {
                    continue;
                }
                let same = |known: &&mut Applied<'a>| std::ptr::eq(known.policy, policy) && known.follows == follows;
                match found.iter_mut().find(same) {
                    Some(known) if known.services.contains(&service) => {}
                    Some(known) => known.services.push(service.clone()),
                    None => found.push(Applied { policy, services: vec![service.clone()], follows }),
                }
            }
        }
        found.into_iter().flat_map(|applied| messages(applied, served.len())).collect()
    }

    /// Each policy of a service port once, with all the rules through which it is there.
    fn at(&self, port: &Port<'_>) -> Vec<Routed<'a>> {
        let mut found: Vec<Routed<'a>> = Vec::new();
        for policy in self.rates.at_port(port) {
            if !found.iter().any(|(known, _)| std::ptr::eq(*known, policy)) {
                found.push((policy, Follows::default()));
            }
        }
        let key = (format!("{}/{}", port.namespace, port.service), port.number);
        for (policy, follows) in self.routed.get(&key).into_iter().flatten() {
            match found.iter_mut().find(|(known, _)| std::ptr::eq(*known, *policy)) {
                Some((_, known)) if known.rules.is_empty() => {}
                // A route that has several parents is there as often.
                Some((_, known)) => {
                    let rules = follows.rules.iter().filter(|one| !known.rules.contains(one));
                    let rules: Vec<_> = rules.cloned().collect();
                    let matches = follows.matches.iter().filter(|one| !known.matches.contains(one));
                    let matches: Vec<_> = matches.cloned().collect();
                    known.rules.extend(rules);
                    known.matches.extend(matches);
                }
                None => found.push((policy, follows.clone())),
            }
        }
        found
    }

    /// Policies for all that the instance lets in.
    fn whole(&self, instance: &Instance) -> Vec<&'a Rate> {
        let namespace = instance.namespace.as_str();
        let mut found = self.rates.at(Place { kind: "Namespace", namespace, name: namespace, section: None });
        found.extend(self.selecting.iter().copied().filter(|policy| {
            let selector = policy.value.spec.selector.as_ref();
            policy.namespace == instance.namespace
                && selector.is_some_and(|selector| {
                    selector.match_labels.iter().all(|(key, value)| instance.labels.get(key) == Some(value))
                })
        }));
        found
    }
}

/// One for each limit of the policy. When it is for every service that leads here it is for everything: a caller in
/// plaintext names none.
fn messages(applied: Applied<'_>, served: usize) -> impl Iterator<Item = v1::InboundLimit> {
    let Applied { policy, services, follows } = applied;
    let services = if services.len() == served { Vec::new() } else { services };
    let id = policy.id();
    policy.value.spec.limits.iter().enumerate().map(move |(index, limit)| v1::InboundLimit {
        limit: Some(message(format!("{id}#{index}"), limit)),
        services: services.clone(),
        matches: follows.matches.clone(),
        rules: follows.rules.clone(),
    })
}

fn message(name: String, limit: &RateLimit) -> v1::RateLimit {
    let key = match limit.key {
        None | Some(RateKey::Total) => v1::rate_limit::Key::Total,
        Some(RateKey::Identity) => v1::rate_limit::Key::Identity,
        Some(RateKey::SourceIp) => v1::rate_limit::Key::SourceIp,
        Some(RateKey::Header) => v1::rate_limit::Key::Header,
        Some(RateKey::Claim) => v1::rate_limit::Key::Claim,
    };
    v1::RateLimit {
        name,
        requests: limit.requests,
        per: wire(limit.per.map_or(Duration::from_secs(1), |per| per.0)),
        burst: limit.burst.unwrap_or(limit.requests),
        key: key.into(),
        header: limit.header.as_ref().map(|name| name.to_ascii_lowercase()).unwrap_or_default(),
        claim: limit.claim.clone().unwrap_or_default(),
    }
}
