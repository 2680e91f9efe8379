//! Who may call: `AuthorizationPolicy`, `PeerAuthentication`. What tokens prove is in `jwt`.

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
