//! Who may call: `AuthorizationPolicy`, `PeerAuthentication`, `RequestAuthentication`.

mod authorization;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub use self::authorization::{
    Action, AuthorizationOperation, AuthorizationPolicySpec, AuthorizationRule, AuthorizationSource,
};
use super::{Spec, TargetRef, WorkloadSelector};
use crate::source::check::Check;

/// Namespace of the mesh itself. An `AuthorizationPolicy` or `PeerAuthentication` here that names no target applies to
/// the whole mesh.
pub const MESH_NAMESPACE: &str = "weft-system";

const TARGETS: &[&str] = &["Service", "Namespace"];

/// Whether plaintext from outside the mesh is accepted.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum PeerMode {
    Permissive,
    Strict,
}

/// Whether callers must be in the mesh. The most specific policy counts: of a port of the Service, of the Service or a
/// selector, of the namespace, of the mesh, then MeshConfig's peerMode. Of two at one level that differ, Strict counts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// What it applies to. Default: every workload of the namespace; in namespace weft-system: of the mesh.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// Strict or Permissive.
    pub mode: PeerMode,
    /// Ports of the app at which this policy differs, port to mode.
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

/// Which JSON Web Tokens are accepted.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// What it applies to. Default: every workload of the namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The workloads that it applies to, in place of targetRefs.
    pub selector: Option<WorkloadSelector>,
    /// A token must satisfy the one of its issuer.
    pub jwt: Vec<JwtRule>,
    /// Requests without a token are refused. Default false: they have no claims.
    #[serde(default)]
    pub required: bool,
}

/// The tokens of one issuer.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// `iss` of the tokens.
    pub issuer: String,
    /// One of them must be in `aud`. Default: not checked.
    pub audiences: Option<Vec<String>>,
    /// Where the control plane fetches the keys, https.
    pub jwks_uri: Option<String>,
    /// The keys themselves, JSON.
    pub jwks: Option<String>,
    /// Headers that hold the token. Default Authorization with Bearer.
    pub from_headers: Option<Vec<String>>,
    /// The token goes on to the app. Default false.
    #[serde(default)]
    pub forward: bool,
    /// Claims that the app gets as headers, claim to header.
    pub claims_to_headers: Option<BTreeMap<String, String>>,
}

impl Spec for RequestAuthenticationSpec {
    const TARGETS: &'static [&'static str] = TARGETS;

    fn targets(&self) -> &[TargetRef] {
        &self.target_refs
    }

    fn selector(&self) -> Option<&WorkloadSelector> {
        self.selector.as_ref()
    }

    fn check(&self, check: &mut Check<'_>) {
        if self.jwt.is_empty() {
            check.wrong("spec.jwt", "is empty", "a policy needs at least one issuer");
        }
        for (index, rule) in self.jwt.iter().enumerate() {
            let path = format!("spec.jwt[{index}]");
            if rule.issuer.is_empty() {
                check.wrong(&format!("{path}.issuer"), "is empty", "");
            }
            if rule.jwks_uri.is_some() == rule.jwks.is_some() {
                check.wrong(&path, "needs exactly one of jwksUri and jwks", "");
            }
            if let Some(uri) = &rule.jwks_uri
                && !uri.starts_with("https://")
            {
                check.wrong(&format!("{path}.jwksUri"), format!("\"{uri}\" is not an https URL"), "");
            }
            if let Some(keys) = &rule.jwks
                && !serde_json::from_str::<serde_json::Value>(keys).is_ok_and(|keys| keys["keys"].is_array())
            {
                check.wrong(&format!("{path}.jwks"), "is not a JSON Web Key Set", "{\"keys\": [...]}");
            }
            for (place, header) in rule.from_headers.iter().flatten().enumerate() {
                check.header(&format!("{path}.fromHeaders[{place}]"), header);
            }
            for (claim, header) in rule.claims_to_headers.iter().flatten() {
                check.header(&format!("{path}.claimsToHeaders.{claim}"), header);
            }
        }
    }
}
