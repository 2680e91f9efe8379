//! Rate limits, as the workloads that they protect get them.

use std::{collections::HashMap, time::Duration};

use weft_proto::v1;

use super::{Attached, Place, Policies, Policy, Port, Rule, wire};
use crate::{
    compile::{instances::Instance, routes::Routings},
    source::policies::limits::{RateKey, RateLimit, RateLimitPolicySpec},
};

type Rate = Policy<RateLimitPolicySpec>;

type Routed<'a> = (&'a Rate, Vec<v1::RouteMatch>);

/// Rate limits by what they apply to.
pub struct Inbound<'a> {
    rates: &'a Attached<'a, RateLimitPolicySpec>,
    selecting: Vec<&'a Rate>,
    /// Backends of the rules that are limited, and the matches that lead there.
    routed: HashMap<(String, u32), Vec<Routed<'a>>>,
}

/// One policy at one inbound port.
struct Applied<'a> {
    policy: &'a Rate,
    services: Vec<v1::ServiceRef>,
    matches: Vec<v1::RouteMatch>,
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
            // Its owner has no say over the workloads of another namespace, wherever the route leads.
            let own = |id: &str| id.split_once('/').is_some_and(|(namespace, _)| namespace == place.namespace);
            for backend in rule.backends().iter().filter(|backend| own(&backend.service)) {
                let at: &mut Vec<_> = routed.entry((backend.service.clone(), backend.port)).or_default();
                at.extend(limited.iter().map(|policy| (*policy, matches.clone())));
            }
        }
        Self {
            rates: &policies.rates,
            selecting: all().filter(|rate| rate.value.spec.selector.is_some()).collect(),
            routed,
        }
    }

    /// The limits of a port of the instance to which these service ports lead.
    #[must_use]
    pub fn limits(&self, instance: &Instance, served: &[Port<'_>]) -> Vec<v1::InboundLimit> {
        let mut found: Vec<Applied<'a>> = Vec::new();
        for policy in self.whole(instance) {
            found.push(Applied { policy, services: Vec::new(), matches: Vec::new() });
        }
        let whole = found.len();
        let mut add = |policy: &'a Rate, port: &Port<'_>, matches: &[v1::RouteMatch]| {
            if found[..whole].iter().any(|applied| std::ptr::eq(applied.policy, policy)) {
                return;
            }
            let service = v1::ServiceRef { service: format!("{}/{}", port.namespace, port.service), port: port.number };
            let same = |known: &&mut Applied<'a>| std::ptr::eq(known.policy, policy) && known.matches == matches;
            match found[whole..].iter_mut().find(same) {
                Some(known) if known.services.contains(&service) => {}
                Some(known) => known.services.push(service),
                None => found.push(Applied { policy, services: vec![service], matches: matches.to_vec() }),
            }
        };
        for port in served {
            for policy in self.rates.at_port(port) {
                add(policy, port, &[]);
            }
            let key = (format!("{}/{}", port.namespace, port.service), port.number);
            for (policy, matches) in self.routed.get(&key).into_iter().flatten() {
                add(policy, port, matches);
            }
        }
        found.into_iter().flat_map(|applied| messages(applied, served.len())).collect()
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
    let Applied { policy, services, matches } = applied;
    let services = if services.len() == served { Vec::new() } else { services };
    let id = policy.id();
    policy.value.spec.limits.iter().enumerate().map(move |(index, limit)| v1::InboundLimit {
        limit: Some(message(format!("{id}#{index}"), limit)),
        services: services.clone(),
        matches: matches.clone(),
    })
}

fn message(name: String, limit: &RateLimit) -> v1::RateLimit {
    let key = match limit.key {
        None | Some(RateKey::Total) => v1::rate_limit::Key::Total,
        Some(RateKey::Identity) => v1::rate_limit::Key::Identity,
        Some(RateKey::SourceIp) => v1::rate_limit::Key::SourceIp,
        Some(RateKey::Header) => v1::rate_limit::Key::Header,
    };
    v1::RateLimit {
        name,
        requests: limit.requests,
        per: wire(limit.per.map_or(Duration::from_secs(1), |per| per.0)),
        burst: limit.burst.unwrap_or(limit.requests),
        key: key.into(),
        header: limit.header.as_ref().map(|name| name.to_ascii_lowercase()).unwrap_or_default(),
    }
}
