//! Authentication of requests, as the workloads that it protects get it: for each service that leads to a port the one
//! policy that is the most specific, with the keys that are known of its issuers.

use std::collections::BTreeMap;

use weft_proto::v1;

use super::{Attached, Place, Policies, Policy, Port, wire};
use crate::{
    compile::instances::Instance,
    jwks::{KeySets, keys},
    source::{
        Problem, Reason,
        policies::jwt::{JwtRule, RequestAuthenticationSpec},
    },
};

type Authentication = Policy<RequestAuthenticationSpec>;

/// RequestAuthentications by what they apply to.
pub struct Authentications<'a> {
    attached: Attached<'a, RequestAuthenticationSpec>,
    /// Those with a selector, the oldest first.
    selecting: Vec<&'a Authentication>,
    /// What is sent of each, by its id.
    messages: BTreeMap<String, v1::RequestAuthentication>,
    problems: Vec<Problem>,
}

impl<'a> Authentications<'a> {
    /// Those of these policies, with these keys.
    #[must_use]
    pub fn of(policies: &'a Policies<'a>, sets: &KeySets) -> Self {
        let objects = &policies.resources.request_authentications;
        let (mut messages, mut problems) = (BTreeMap::new(), Vec::new());
        for object in objects.values() {
            messages.insert(object.id(), message(object, sets, &mut problems));
        }
        let mut selecting: Vec<&Authentication> =
            objects.values().map(AsRef::as_ref).filter(|object| object.value.spec.selector.is_some()).collect();
        selecting.sort_by_cached_key(|object| super::age(object));
        Self { attached: Attached::of(objects), selecting, messages, problems }
    }

    /// Keys that are not there.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.clone()
    }

    /// What requests to a port of the instance need, to which these service ports lead.
    #[must_use]
    pub fn at(&self, instance: &Instance, protocol: i32, served: &[Port<'_>]) -> Vec<v1::InboundAuthentication> {
        if self.messages.is_empty() {
            return Vec::new();
        }
        // Bytes have no tokens: where they are declared, what is for all workloads leaves them alone. What names the
        // service or its workloads is kept, and refuses them: nobody may believe that they were looked at.
        let opaque = [v1::Protocol::Tcp, v1::Protocol::Tls].map(i32::from).contains(&protocol);
        let whole = self.whole(instance, opaque);
        let mut found: Vec<(&Authentication, Vec<v1::ServiceRef>)> = Vec::new();
        let mut without = Vec::new();
        for port in served {
            let service = v1::ServiceRef { service: format!("{}/{}", port.namespace, port.service), port: port.number };
            let Some(policy) = self.attached.at_port(port).first().copied().or(whole) else {
                without.push(service);
                continue;
            };
            match found.iter_mut().find(|(known, _)| std::ptr::eq(*known, policy)) {
                Some((_, services)) => services.push(service),
                None => found.push((policy, vec![service])),
            }
        }
        // A caller chooses the name that it calls: that of a service without a policy is no way around the others'.
        for (_, services) in &mut found {
            services.extend(without.iter().cloned());
        }
        if served.is_empty() {
            found.extend(whole.map(|policy| (policy, Vec::new())));
        }
        let message = |(policy, services): (&Authentication, Vec<v1::ServiceRef>)| {
            let authentication = self.messages.get(&policy.id())?.clone();
            let services = if services.len() == served.len() { Vec::new() } else { services };
            Some(v1::InboundAuthentication { authentication: Some(authentication), services })
        };
        found.into_iter().filter_map(message).collect()
    }

    /// The policy for all that the instance lets in.
    fn whole(&self, instance: &Instance, opaque: bool) -> Option<&'a Authentication> {
        let namespace = instance.namespace.as_str();
        let selects = |policy: &&&Authentication| {
            let selector = policy.value.spec.selector.as_ref();
            policy.namespace == namespace
                && selector.is_some_and(|selector| {
                    selector.match_labels.iter().all(|(key, value)| instance.labels.get(key) == Some(value))
                })
        };
        let place = Place { kind: "Namespace", namespace, name: namespace, section: None };
        let of_all = || self.attached.at(place).first().copied().filter(|_| !opaque);
        self.selecting.iter().find(selects).copied().or_else(of_all)
    }
}

fn message(object: &Authentication, sets: &KeySets, problems: &mut Vec<Problem>) -> v1::RequestAuthentication {
    let spec = &object.value.spec;
    let issuers = spec.jwt.iter().enumerate().map(|(index, rule)| {
        let keys = known(rule, sets).unwrap_or_else(|why| {
            let path = format!("spec.jwt[{index}].jwksUri");
            let message = format!("the keys of {} are not there, its tokens are refused: {why}", rule.issuer);
            problems.push(object.origin.problem(&path, message, "").because(Reason::KeysMissing));
            Vec::new()
        });
        issuer(rule, keys)
    });
    v1::RequestAuthentication { name: object.id(), issuers: issuers.collect(), required: spec.required }
}

/// The keys of an issuer.
fn known(rule: &JwtRule, sets: &KeySets) -> Result<Vec<v1::JwtKey>, String> {
    match (&rule.jwks_uri, &rule.jwks) {
        (Some(url), _) => sets.keys(url).map(<[_]>::to_vec),
        (None, Some(text)) => keys::parse(text).map(|parsed| parsed.keys),
        (None, None) => Err("it has none".to_owned()),
    }
}

fn issuer(rule: &JwtRule, keys: Vec<v1::JwtKey>) -> v1::JwtIssuer {
    let all = || keys::ALGORITHMS.into_iter().filter_map(keys::algorithm).collect::<Vec<_>>();
    let given = |words: &Vec<String>| words.iter().filter_map(|word| keys::algorithm(word)).collect();
    let algorithms: Vec<v1::JwtAlgorithm> = rule.algorithms.as_ref().map_or_else(all, given);
    let lower = |name: &String| name.to_ascii_lowercase();
    let headers = rule.claims_to_headers.iter().flatten();
    v1::JwtIssuer {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone().unwrap_or_default(),
        keys,
        algorithms: algorithms.into_iter().map(Into::into).collect(),
        clock_skew: rule.skew().and_then(wire),
        from_headers: rule.from_headers.iter().flatten().map(lower).collect(),
        forward: rule.forward,
        claims_to_headers: headers
            .map(|(claim, header)| v1::ClaimHeader { claim: claim.clone(), header: lower(header) })
            .collect(),
    }
}
