//! What a cluster's API server says of pods, as far as the mesh needs it: who an endpoint is, and whether a sidecar stands
//! in front of it. Only pods that the API server knows are believed to be pods, with the labels that it tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use crate::inject::{MESH_PORT, SIDECAR};

/// The pods of a cluster, by `namespace/name`.
pub type Pods = BTreeMap<String, Arc<Pod>>;

/// One pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pod {
    /// Its addresses, as they are written; none when it has ended.
    pub addresses: BTreeSet<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Port of its sidecar's mesh listener; `None` without a sidecar.
    pub mesh_port: Option<u16>,
    /// Its service account, which is in its SPIFFE id.
    pub service_account: String,
}

impl Pod {
    /// What a Pod object says.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let all = entries(&object["status"]["podIPs"]).filter_map(|address| text(&address["ip"]));
        let has_sidecar = ["initContainers", "containers"]
            .iter()
            .flat_map(|list| entries(&spec[*list]))
            .any(|container| container["name"] == SIDECAR);
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        // One that has ended keeps its address in the status, while another pod may have got it.
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        Self {
            addresses: all.chain(text(&object["status"]["podIP"])).filter(|_| !ended).collect(),
            labels: labels.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect(),
            mesh_port: (has_sidecar && spec["hostNetwork"] != true).then_some(MESH_PORT),
            service_account: text(&spec["serviceAccountName"]).unwrap_or_else(|| "default".to_owned()),
        }
    }

    /// The SPIFFE id that it proves, in this trust domain and namespace.
    #[must_use]
    pub fn spiffe_id(&self, trust_domain: &str, namespace: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{}", self.service_account)
    }
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
