//! `MeshConfig`: the defaults of the whole mesh, named `default`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Spec,
    security::PeerMode,
    telemetry::{self, AccessLog, Tracing},
    traffic::{self, TrafficPolicySpec},
};
use crate::source::check::Check;

/// What applies where no policy says otherwise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// Whether callers must be in the mesh. Default Permissive.
    pub peer_mode: Option<PeerMode>,
    /// What becomes of an app's calls to addresses outside the mesh, in transparent mode. Default AllowAny.
    pub outbound_traffic: Option<OutboundTraffic>,
    /// Calls. Its targetRefs stay empty.
    pub traffic: Option<TrafficPolicySpec>,
    /// Spans.
    pub tracing: Option<Tracing>,
    /// Access log.
    pub access_log: Option<AccessLog>,
}

/// Whether apps may call what is not in the mesh.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub enum OutboundTraffic {
    AllowAny,
    RegistryOnly,
}

impl Spec for MeshConfigSpec {
    fn check(&self, check: &mut Check<'_>) {
        if let Some(settings) = &self.traffic {
            traffic::traffic(settings, "spec.traffic", check);
            if !settings.target_refs.is_empty() {
                check.wrong(
                    "spec.traffic.targetRefs",
                    "has no use here: this is the whole mesh",
                    "use a TrafficPolicy",
                );
            }
        }
        telemetry::tracing(self.tracing.as_ref(), "spec.tracing", check);
    }
}
