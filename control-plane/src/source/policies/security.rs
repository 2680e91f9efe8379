//! Who may call: `AuthorizationPolicy`, `PeerAuthentication`. What tokens prove is in `jwt`.

use std::{collections::BTreeMap, net::IpAddr};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Spec, TargetRef, WorkloadSelector};
use crate::source::check::Check;

const TARGETS: &[&str] = &["Service", "Namespace"];

/// Allows or denies requests and connections.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// Default Allow.
    #[serde(default)]
    pub action: Action,
    /// Only logs and counts what it would deny. Default false.
    #[serde(default)]
    pub dry_run: bool,
    /// One of them must match. An Allow policy without rules allows nothing.
    #[serde(default)]
    pub rules: Vec<AuthorizationRule>,
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum Action {
    #[default]
    Allow,
    Deny,
}

/// Matches when a source, an operation and all conditions match; what is left out matches all.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// Who calls; one of them.
    pub from: Option<Vec<AuthorizationSource>>,
    /// What is called; one of them.
    pub to: Option<Vec<AuthorizationOperation>>,
    /// JWT claims that must be there, claim to values.
    pub claims: Option<BTreeMap<String, Vec<String>>>,
}

/// All given fields must match, each by one of its values.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationSource {
    /// SPIFFE ids; a `*` at the end matches the rest.
    pub identities: Option<Vec<String>>,
    /// SPIFFE ids that do not match.
    pub not_identities: Option<Vec<String>>,
    /// Namespaces of callers.
    pub namespaces: Option<Vec<String>>,
    /// Service accounts in the namespace of the policy.
    pub service_accounts: Option<Vec<String>>,
    /// Networks as `address/bits`.
    pub networks: Option<Vec<String>>,
}

/// All given fields must match, each by one of its values.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationOperation {
    /// Ports of the app.
    pub ports: Option<Vec<u32>>,
    /// HTTP methods.
    pub methods: Option<Vec<String>>,
    /// Canonical paths; a `*` at the end matches the rest.
    pub paths: Option<Vec<String>>,
    /// Hosts.
    pub hosts: Option<Vec<String>>,
    /// Headers, name to values.
    pub headers: Option<BTreeMap<String, Vec<String>>>,
}

impl Spec for AuthorizationPolicySpec {
    const ADD_UP: bool = true;
    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.action == Action::Deny && self.rules.is_empty() {
            check.wrong("spec.rules", "a Deny policy without rules denies nothing", "rules: [{}] denies everything");
        }
        for (index, rule) in self.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            not_empty(rule.from.as_deref(), &format!("{path}.from"), check);
            not_empty(rule.to.as_deref(), &format!("{path}.to"), check);
            for (place, from) in rule.from.iter().flatten().enumerate() {
                source(from, &format!("{path}.from[{place}]"), check);
            }
            for (place, to) in rule.to.iter().flatten().enumerate() {
                operation(to, &format!("{path}.to[{place}]"), check);
            }
            for (claim, values) in rule.claims.iter().flatten() {
                not_empty(Some(values), &format!("{path}.claims.{claim}"), check);
            }
        }
    }
    const TARGETS: &'static [&'static str] = TARGETS;
}

/// An empty list would read as "any" or as "none": it is neither.
fn not_empty<T>(list: Option<&[T]>, path: &str, check: &mut Check<'_>) {
    if list.is_some_and(<[T]>::is_empty) {
        check.wrong(path, "is an empty list", "leave the field out to match everything");
    }
}

fn source(from: &AuthorizationSource, path: &str, check: &mut Check<'_>) {
    for (field, list) in [
        ("identities", &from.identities),
        ("notIdentities", &from.not_identities),
        ("namespaces", &from.namespaces),
        ("serviceAccounts", &from.service_accounts),
        ("networks", &from.networks),
    ] {
        not_empty(list.as_deref(), &format!("{path}.{field}"), check);
    }
    for (field, list) in [("identities", &from.identities), ("notIdentities", &from.not_identities)] {
        for (index, id) in list.iter().flatten().enumerate() {
            if !id.starts_with("spiffe://") && id != "*" {
                let hint = "such as spiffe://weft.local/ns/shop/sa/web, or * for any identity";
                check.wrong(&format!("{path}.{field}[{index}]"), format!("\"{id}\" is not a SPIFFE id"), hint);
            }
        }
    }
    for (index, network) in from.networks.iter().flatten().enumerate() {
        if !is_network(network) {
            let message = format!("\"{network}\" is not a network");
            check.wrong(&format!("{path}.networks[{index}]"), message, "such as 10.0.0.0/8 or ::1/128");
        }
    }
}

fn is_network(text: &str) -> bool {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most))
}

fn operation(to: &AuthorizationOperation, path: &str, check: &mut Check<'_>) {
    not_empty(to.ports.as_deref(), &format!("{path}.ports"), check);
    for (field, list) in [("methods", &to.methods), ("paths", &to.paths), ("hosts", &to.hosts)] {
        not_empty(list.as_deref(), &format!("{path}.{field}"), check);
    }
    for (index, port) in to.ports.iter().flatten().enumerate() {
        check.port(&format!("{path}.ports[{index}]"), (*port).into());
    }
    for (index, method) in to.methods.iter().flatten().enumerate() {
        check.method(&format!("{path}.methods[{index}]"), method);
    }
    for (index, found) in to.paths.iter().flatten().enumerate() {
        if !found.starts_with('/') && found != "*" {
            let message = format!("\"{found}\" does not start with \"/\"");
            check.wrong(&format!("{path}.paths[{index}]"), message, "");
        }
    }
    for (name, values) in to.headers.iter().flatten() {
        check.header(&format!("{path}.headers.{name}"), name);
        not_empty(Some(values), &format!("{path}.headers.{name}"), check);
    }
}

/// Whether plaintext from outside the mesh is accepted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum PeerMode {
    Permissive,
    Strict,
}

/// Whether callers must be in the mesh.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// Strict or Permissive.
    pub mode: PeerMode,
    /// Ports of the app that differ, port to mode.
    #[serde(default)]
    pub ports: BTreeMap<String, PeerMode>,
}

impl Spec for PeerAuthenticationSpec {
    const TARGETS: &'static [&'static str] = TARGETS;

    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn check(&self, check: &mut Check<'_>) {
        for port in self.ports.keys() {
            check.port(&format!("spec.ports.{port}"), port.parse().unwrap_or(0));
        }
    }
}
