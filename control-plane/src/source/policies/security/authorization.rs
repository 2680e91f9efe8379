//! `AuthorizationPolicy`: its fields, and what is refused because it would let in more or less than it seems to. Values
//! are parsed by the code that the sidecar uses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use weft_policy::{
    convert::{MAX_RULES, MAX_VALUES},
    model::{HostMatch, IdentityMatch, Network, PathPattern, TextMatch, rule_header},
};

use super::{Spec, TARGETS, TargetRef, WorkloadSelector};
use crate::source::check::Check;

/// Allows or denies requests and connections. Deny goes before Allow. Without a policy everything is let in; with an
/// Allow policy only what one of them matches. What is not known (the identity of a caller in plaintext, a token that
/// is not there, requests inside opaque bytes) is matched by no rule that allows, and by the negated conditions of
/// rules that deny; of opaque bytes, by all conditions on requests.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// What it applies to. Default: every workload of the namespace; in namespace weft-system: of the mesh. A Service's
    /// policies guard its workloads' ports, whichever name a caller uses.
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
    #[schemars(length(max = MAX_RULES))]
    pub rules: Vec<AuthorizationRule>,
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum Action {
    #[default]
    Allow,
    Deny,
}

/// Matches when a source, an operation and all claims match; what is left out matches all. `{}` matches everything.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// Who calls; one of them.
    pub from: Option<Vec<AuthorizationSource>>,
    /// What is called; one of them.
    pub to: Option<Vec<AuthorizationOperation>>,
    /// Claims of the verified token, claim to values; nested claims are joined by dots. Of each claim one value must be
    /// there; a `*` at the end of a value matches the rest.
    pub claims: Option<BTreeMap<String, Vec<String>>>,
    /// Claims of which none of the values may be there.
    pub not_claims: Option<BTreeMap<String, Vec<String>>>,
}

/// All given fields must match, each by one of its values.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationSource {
    /// SPIFFE ids; a `*` at the end, after the trust domain, matches the rest, and alone any identity.
    pub identities: Option<Vec<String>>,
    /// SPIFFE ids that do not match.
    pub not_identities: Option<Vec<String>>,
    /// Namespaces of callers.
    pub namespaces: Option<Vec<String>>,
    /// Namespaces of callers that do not match.
    pub not_namespaces: Option<Vec<String>>,
    /// Service accounts in the namespace of the policy.
    pub service_accounts: Option<Vec<String>>,
    /// Service accounts in the namespace of the policy that do not match.
    pub not_service_accounts: Option<Vec<String>>,
    /// Networks as `address/bits`.
    pub networks: Option<Vec<String>>,
    /// Networks that do not match.
    pub not_networks: Option<Vec<String>>,
}

/// All given fields must match, each by one of its values.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationOperation {
    /// Ports of the app.
    #[schemars(inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<u32>>,
    /// Ports that do not match.
    #[schemars(inner(range(min = 1, max = 65535)))]
    pub not_ports: Option<Vec<u32>>,
    /// HTTP methods, which have case; a Deny rule matches whatever the case.
    pub methods: Option<Vec<String>>,
    /// Methods that do not match.
    pub not_methods: Option<Vec<String>>,
    /// Canonical paths: `/a/b`, `/a/*` (that path and all below), `/a/{name}/b` (any one segment there), `*` (any). A
    /// Deny rule also matches what a lenient app takes for the same path: with parameters, a trailing slash, or
    /// characters percent-encoded that need not be.
    pub paths: Option<Vec<String>>,
    /// Paths that do not match.
    pub not_paths: Option<Vec<String>>,
    /// Host names without a port: `a.b`, `*.b` (all below), `*` (any). Case, port and a trailing dot do not matter.
    pub hosts: Option<Vec<String>>,
    /// Hosts that do not match.
    pub not_hosts: Option<Vec<String>>,
    /// Headers, name to values; a `*` at the end of a value matches the rest, and alone any value. Of a header with
    /// several values (lines, or a comma-separated list) an Allow rule needs every one to match, a Deny rule one,
    /// whatever its case, and also of a name that some apps take for the same (`x_role`).
    pub headers: Option<BTreeMap<String, Vec<String>>>,
    /// Headers of which none of the values may be there.
    pub not_headers: Option<BTreeMap<String, Vec<String>>>,
}

/// Names of fields and their lists of texts.
type Lists<'a, const N: usize> = [(&'static str, &'a Option<Vec<String>>); N];

/// Names of fields and their conditions by name.
type Maps<'a> = [(&'static str, &'a Option<BTreeMap<String, Vec<String>>>); 2];

impl AuthorizationSource {
    /// The lists of texts, by field.
    #[must_use]
    pub const fn lists(&self) -> Lists<'_, 8> {
        [
            ("identities", &self.identities),
            ("notIdentities", &self.not_identities),
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
            ("networks", &self.networks),
            ("notNetworks", &self.not_networks),
        ]
    }
}

impl AuthorizationOperation {
    /// The lists of texts, by field.
    #[must_use]
    pub const fn lists(&self) -> Lists<'_, 6> {
        [
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
        ]
    }

    /// Lists of ports, by field.
    #[must_use]
    pub const fn port_lists(&self) -> [(&'static str, &Option<Vec<u32>>); 2] {
        [("ports", &self.ports), ("notPorts", &self.not_ports)]
    }

    /// Header conditions, by field.
    #[must_use]
    pub const fn header_maps(&self) -> Maps<'_> {
        [("headers", &self.headers), ("notHeaders", &self.not_headers)]
    }
}

impl AuthorizationRule {
    /// Claim conditions, by field.
    #[must_use]
    pub const fn claim_maps(&self) -> Maps<'_> {
        [("claims", &self.claims), ("notClaims", &self.not_claims)]
    }

    /// How many values its conditions have.
    fn values(&self) -> usize {
        let texts = |lists: &[(&str, &Option<Vec<String>>)]| -> usize {
            lists.iter().map(|(_, list)| list.as_ref().map_or(0, Vec::len)).sum()
        };
        let maps = |maps: Maps<'_>| -> usize {
            maps.iter().flat_map(|(_, map)| map.iter()).flat_map(BTreeMap::values).map(Vec::len).sum()
        };
        let sources = self.from.iter().flatten().map(|from| texts(&from.lists()));
        let operations = self.to.iter().flatten().map(|to| {
            let ports: usize = to.port_lists().iter().map(|(_, list)| list.as_ref().map_or(0, Vec::len)).sum();
            texts(&to.lists()) + ports + maps(to.header_maps())
        });
        sources.chain(operations).sum::<usize>() + maps(self.claim_maps())
    }
}

impl Spec for AuthorizationPolicySpec {
    const ADD_UP: bool = true;
    const TARGETS: &'static [&'static str] = TARGETS;

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
        if self.rules.len() > MAX_RULES {
            check.wrong("spec.rules", format!("{} are too many", self.rules.len()), format!("at most {MAX_RULES}"));
        }
        let values: usize = self.rules.iter().map(AuthorizationRule::values).sum();
        if values > MAX_VALUES {
            let message = format!("{values} values in all are too many");
            check.wrong("spec.rules", message, format!("at most {MAX_VALUES}: use several policies"));
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
            for (field, map) in rule.claim_maps() {
                named(map.as_ref(), &format!("{path}.{field}"), check, TextMatch::parse, |claim| {
                    if claim.is_empty() { Err("is no name of a claim".to_owned()) } else { Ok(()) }
                });
            }
        }
    }
}

/// An empty list would read as "any" or as "none": it is neither.
fn not_empty<T>(list: Option<&[T]>, path: &str, check: &mut Check<'_>) {
    if list.is_some_and(<[T]>::is_empty) {
        check.wrong(path, "is an empty list", "leave the field out to match everything");
    }
}

fn source(from: &AuthorizationSource, path: &str, check: &mut Check<'_>) {
    if from.lists().iter().all(|(_, list)| list.is_none()) {
        check.wrong(path, "says nothing of who calls", "leave from out to match everyone");
    }
    for (field, list) in from.lists() {
        let path = format!("{path}.{field}");
        not_empty(list.as_deref(), &path, check);
        for (index, text) in list.iter().flatten().enumerate() {
            let path = format!("{path}[{index}]");
            match field {
                "identities" | "notIdentities" => {
                    let hint = "such as spiffe://weft.local/ns/shop/sa/web, or * for any identity";
                    value(IdentityMatch::parse(text), text, &path, hint, check);
                }
                "networks" | "notNetworks" => value(Network::parse(text), text, &path, "", check),
                "namespaces" | "notNamespaces" if text.contains('.') => check.label(&path, text),
                _ => check.name(&path, text),
            }
        }
    }
}

fn value<T>(parsed: Result<T, String>, text: &str, path: &str, hint: &str, check: &mut Check<'_>) {
    if let Err(why) = parsed {
        check.wrong(path, format!("{text:?} {why}"), hint);
    }
}

fn operation(to: &AuthorizationOperation, path: &str, check: &mut Check<'_>) {
    let texts = to.lists().iter().all(|(_, list)| list.is_none());
    let ports = to.port_lists().iter().all(|(_, list)| list.is_none());
    if texts && ports && to.header_maps().iter().all(|(_, map)| map.is_none()) {
        check.wrong(path, "says nothing of what is called", "leave to out to match everything");
    }
    for (field, list) in to.port_lists() {
        let path = format!("{path}.{field}");
        not_empty(list.as_deref(), &path, check);
        for (index, port) in list.iter().flatten().enumerate() {
            check.port(&format!("{path}[{index}]"), (*port).into());
        }
    }
    for (field, list) in to.lists() {
        let path = format!("{path}.{field}");
        not_empty(list.as_deref(), &path, check);
        for (index, text) in list.iter().flatten().enumerate() {
            let path = format!("{path}[{index}]");
            match field {
                "methods" | "notMethods" => check.method(&path, text),
                "paths" | "notPaths" => value(PathPattern::parse(text), text, &path, "", check),
                _ => value(HostMatch::parse(text), text, &path, "", check),
            }
        }
    }
    for (field, map) in to.header_maps() {
        named(map.as_ref(), &format!("{path}.{field}"), check, TextMatch::parse_header, |name| {
            rule_header(name).map(|_| ())
        });
    }
}

/// Conditions by name: each name once, each with values.
fn named<T>(
    map: Option<&BTreeMap<String, Vec<String>>>,
    path: &str,
    check: &mut Check<'_>,
    parse: impl Fn(&str) -> Result<T, String>,
    name: impl Fn(&str) -> Result<(), String>,
) {
    if map.is_some_and(BTreeMap::is_empty) {
        check.wrong(path, "is empty", "leave the field out to match everything");
    }
    for (key, values) in map.into_iter().flatten() {
        let path = format!("{path}.{key}");
        value(name(key), key, &path, "", check);
        not_empty(Some(values), &path, check);
        for (index, text) in values.iter().enumerate() {
            value(parse(text), text, &format!("{path}[{index}]"), "", check);
        }
    }
}
