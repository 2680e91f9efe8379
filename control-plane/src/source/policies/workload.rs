//! `Workload`: one instance of a service outside Kubernetes.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Spec;
use crate::source::check::Check;

/// Where an instance listens and who it is.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// IP address, no port.
    pub address: String,
    /// `ip:port` of the mesh listener. Default: not in the mesh.
    pub mesh_address: Option<String>,
    /// Service account in its SPIFFE id. Default `default`.
    pub service_account: Option<String>,
    /// Where the app listens.
    #[serde(default)]
    pub ports: Vec<WorkloadPort>,
}

/// Where the app listens.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadPort {
    /// 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u32,
    /// As in a Service's targetPort. Default none.
    pub name: Option<String>,
    /// `http http1 http2 grpc tcp tls`. Default: detect.
    #[schemars(extend("enum" = crate::source::validate::PROTOCOLS))]
    pub protocol: Option<String>,
}

impl Spec for WorkloadSpec {
    fn check(&self, check: &mut Check<'_>) {
        crate::source::validate::workload(self, check);
    }
}
