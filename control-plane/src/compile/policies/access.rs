//! Who is let in at the ports of a workload: which AuthorizationPolicies guard a port, and whose mode counts there. A
//! policy of a Service guards every port that the Service leads to, whichever name a caller uses for it: the name is the
//! caller's choice.

mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use weft_policy::convert::MAX_POLICIES;
use weft_proto::v1;

use super::{Attached, Place, Policy, Port, age};
use crate::{
    compile::instances::Instance,
    source::{
        Problem, Reason, Resources,
        policies::{
            Spec,
            security::{Action, AuthorizationPolicySpec, MESH_NAMESPACE, PeerAuthenticationSpec, PeerMode},
        },
    },
};

/// Where a mode comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ModeOrigin<'a> {
    /// Nobody set it.
    Default,
    /// MeshConfig.
    Mesh,
    /// A PeerAuthentication.
    Policy { namespace: &'a str, name: &'a str },
}

impl fmt::Display for ModeOrigin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Mesh => f.write_str("MeshConfig default"),
            Self::Policy { namespace, name } => write!(f, "PeerAuthentication {namespace}/{name}"),
        }
    }
}

/// The policies on who is let in, by what they apply to.
pub struct Guards<'a> {
    authorization: Guarding<'a, AuthorizationPolicySpec>,
    modes: Guarding<'a, PeerAuthenticationSpec>,
    resources: &'a Resources,
}

/// Policies of one kind.
struct Guarding<'a, S> {
    /// To services, their ports, and namespaces.
    attached: Attached<'a, S>,
    /// To workloads by their labels, the oldest first.
    selecting: Vec<&'a Policy<S>>,
    /// To the whole mesh, the oldest first.
    everywhere: Vec<&'a Policy<S>>,
}

/// Policies for which a port has no place.
pub type Beyond<'a> = Vec<&'a Policy<AuthorizationPolicySpec>>;

/// What is wrong with policies beyond the bound of a port, by their ids.
#[must_use]
pub fn too_many(beyond: &Beyond<'_>, port: u32, workload: &str) -> Vec<(String, Problem)> {
    let closed = beyond.first().is_some_and(|first| !first.value.spec.dry_run);
    let then = if closed { "nobody is let in there" } else { "it is not looked at there" };
    let problem = |policy: &&Policy<AuthorizationPolicySpec>| {
        let message = format!("port {port} of workload {workload} has more than {MAX_POLICIES} policies: {then}");
        let hint = "put the rules of several policies into one, or aim them at fewer workloads";
        (policy.id(), policy.origin.problem("spec", message, hint).because(Reason::UnsupportedValue))
    };
    beyond.iter().map(problem).collect()
}

/// Policies at one level, the oldest first, each with the target through which it is there.
type Level<'a, S> = Vec<(String, &'a Policy<S>)>;

impl<'a, S: Spec> Guarding<'a, S> {
    fn of(objects: &'a BTreeMap<String, Arc<Policy<S>>>) -> Self {
        let mut sorted: Vec<&Policy<S>> = objects.values().map(AsRef::as_ref).collect();
        sorted.sort_by_cached_key(|object| age(object));
        let selecting = sorted.iter().copied().filter(|policy| policy.value.spec.selector().is_some()).collect();
        let everywhere = sorted.into_iter().filter(|policy| is_of_mesh(policy)).collect();
        Self { attached: Attached::of(objects), selecting, everywhere }
    }

    /// For a port of the instance to which these service ports lead: of the service port, of the workload, of the
    /// namespace, of the mesh.
    fn levels(&self, instance: &Instance, served: &[Port<'_>]) -> [Level<'a, S>; 4] {
        let namespace = instance.namespace.as_str();
        let (mut of_port, mut of_workload) = (Level::new(), Level::new());
        for port in served {
            let service = Place { kind: "Service", namespace: port.namespace, name: port.service, section: None };
            let number = port.number.to_string();
            for section in [port.name, &number].into_iter().filter(|section| !section.is_empty()) {
                let here = self.attached.at(Place { section: Some(section), ..service });
                of_port.extend(here.into_iter().map(|policy| (format!("{}:{number}", port.service), policy)));
            }
            let here = self.attached.at(service);
            of_workload.extend(here.into_iter().map(|policy| (port.service.to_owned(), policy)));
        }
        let selecting = self.selecting.iter().copied().filter(|policy| selects(policy, instance));
        of_workload.extend(selecting.map(|policy| (labels(policy), policy)));
        for level in [&mut of_port, &mut of_workload] {
            if level.len() > 1 {
                level.sort_by_cached_key(|(_, policy)| age(policy));
            }
        }
        let whole = Place { kind: "Namespace", namespace, name: namespace, section: None };
        let of_namespace = self.attached.at(whole).into_iter().filter(|policy| !is_of_mesh(policy));
        let of_namespace = of_namespace.map(|policy| (String::new(), policy)).collect();
        let of_mesh = self.everywhere.iter().map(|policy| (String::new(), *policy)).collect();
        [of_port, of_workload, of_namespace, of_mesh]
    }
}

/// A selector as the name of a target.
fn labels<S: Spec>(policy: &Policy<S>) -> String {
    policy.value.spec.selector().map(|selector| format!("{:?}", selector.match_labels)).unwrap_or_default()
}

fn selects<S: Spec>(policy: &Policy<S>, instance: &Instance) -> bool {
    policy.namespace == instance.namespace
        && policy.value.spec.selector().is_some_and(|selector| {
            selector.match_labels.iter().all(|(key, value)| instance.labels.get(key) == Some(value))
        })
}

/// Whether it applies to the whole mesh.
pub fn is_of_mesh<S: Spec>(policy: &Policy<S>) -> bool {
    let spec = &policy.value.spec;
    policy.namespace == MESH_NAMESPACE && spec.targets().is_empty() && spec.selector().is_none()
}

impl<'a> Guards<'a> {
    /// Those of these resources.
    #[must_use]
    pub fn of(resources: &'a Resources) -> Self {
        Self {
            authorization: Guarding::of(&resources.authorization_policies),
            modes: Guarding::of(&resources.peer_authentications),
            resources,
        }
    }

    /// Who is let in at this port of the instance, to which these service ports lead, and the policies for which there is
    /// no place. If one of those is in force, nobody is let in.
    #[must_use]
    pub fn access(&self, instance: &Instance, port: u32, served: &[Port<'_>]) -> (v1::Access, Beyond<'a>) {
        let levels = self.authorization.levels(instance, served);
        let mut found: Vec<&'a Policy<AuthorizationPolicySpec>> = Vec::new();
        let mut seen = BTreeSet::new();
        found.extend(levels.iter().flatten().map(|(_, policy)| *policy).filter(|policy| seen.insert(policy.id())));
        let mut beyond = Vec::new();
        if found.len() > MAX_POLICIES {
            // Those on trial go first.
            found.sort_by_key(|policy| policy.value.spec.dry_run);
            let closed = found.get(MAX_POLICIES).is_some_and(|policy| !policy.value.spec.dry_run);
            beyond = found.split_off(if closed { MAX_POLICIES - 1 } else { MAX_POLICIES });
        }
        let mut policies: Vec<_> = found.into_iter().map(|policy| self.message(policy)).collect();
        if let Some(first) = beyond.first().filter(|policy| !policy.value.spec.dry_run) {
            let everything = v1::AuthorizationRule { everything: true, groups: Vec::new() };
            let deny = v1::authorization_policy::Action::Deny.into();
            policies.push(v1::AuthorizationPolicy { action: deny, rules: vec![everything], ..self.message(first) });
        }
        let mode = match self.mode(instance, port, served).0 {
            PeerMode::Permissive => v1::TlsMode::Permissive,
            PeerMode::Strict => v1::TlsMode::Strict,
        };
        (v1::Access { tls_mode: mode.into(), policies }, beyond)
    }

    /// The mode of this port, and who says so.
    #[must_use]
    pub fn mode(&self, instance: &Instance, port: u32, served: &[Port<'_>]) -> (PeerMode, ModeOrigin<'a>) {
        for level in self.modes.levels(instance, served) {
            if let Some(found) = strictest(&level, port) {
                return found;
            }
        }
        let mesh = self.resources.mesh_configs.get("default").and_then(|config| config.value.spec.peer_mode);
        mesh.map_or((PeerMode::Permissive, ModeOrigin::Default), |mode| (mode, ModeOrigin::Mesh))
    }

    fn message(&self, policy: &Policy<AuthorizationPolicySpec>) -> v1::AuthorizationPolicy {
        use v1::authorization_policy::Action as Wire;
        let spec = &policy.value.spec;
        let action = match spec.action {
            Action::Allow => Wire::Allow,
            Action::Deny => Wire::Deny,
        };
        let of = rules::Of { trust_domain: &self.resources.trust_domain, namespace: &policy.namespace };
        v1::AuthorizationPolicy {
            name: policy.id(),
            action: action.into(),
            dry_run: spec.dry_run,
            rules: spec.rules.iter().map(|rule| of.rule(rule)).collect(),
        }
    }
}

/// What these say of the port. Of two with the same target the older counts; of different targets that lead here, the
/// strict one.
fn strictest<'a>(level: &Level<'a, PeerAuthenticationSpec>, port: u32) -> Option<(PeerMode, ModeOrigin<'a>)> {
    let mut found: Option<(PeerMode, &Policy<PeerAuthenticationSpec>)> = None;
    for (index, (target, policy)) in level.iter().enumerate() {
        let spec = &policy.value.spec;
        let mode = spec.ports.get(&port.to_string()).copied().unwrap_or(spec.mode);
        let outdone = level.iter().take(index).any(|(older, _)| older == target);
        if !outdone && (found.is_none() || mode == PeerMode::Strict && found.is_some_and(|(known, _)| known != mode)) {
            found = Some((mode, policy));
        }
    }
    found.map(|(mode, policy)| (mode, ModeOrigin::Policy { namespace: &policy.namespace, name: &policy.name }))
}
