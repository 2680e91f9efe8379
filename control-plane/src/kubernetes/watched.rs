//! What is watched in a cluster: the kinds of the API and pods, where the API server has them, and what of an object is kept.

use serde_json::{Map, Value};

use crate::{
    api::kinds::{self, KINDS},
    store::Key,
};

/// Kind of what is watched and not shown: of a pod nothing is kept but who it is.
pub const POD: &str = "Pod";

/// One kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Watched {
    /// Its name.
    pub kind: &'static str,
    /// API group; empty for core kinds.
    pub group: &'static str,
    /// Name in URLs.
    pub plural: &'static str,
    /// Versions in which its objects are the same to us, the wanted one first.
    pub versions: &'static [&'static str],
    /// Whether objects have a namespace.
    pub namespaced: bool,
}

/// Everything that is watched.
pub fn all() -> impl Iterator<Item = Watched> {
    let pod = Watched { kind: POD, group: "", plural: "pods", versions: &["v1"], namespaced: true };
    KINDS.iter().map(of).chain([pod])
}

fn of(kind: &'static kinds::Kind) -> Watched {
    let versions: &[&str] = match (kind.group, kind.kind) {
        // Gateway API had no v1 of it before 1.5.
        (kinds::GATEWAY, "ReferenceGrant") => &["v1", "v1beta1"],
        (kinds::WEFT, _) => &["v1alpha1"],
        _ => &["v1"],
    };
    Watched { kind: kind.kind, group: kind.group, plural: kind.plural, versions, namespaced: kind.namespaced }
}

impl Watched {
    /// Path of the collection in one of its versions, over all namespaces.
    #[must_use]
    pub fn path(&self, version: &str) -> String {
        if self.group.is_empty() {
            format!("/api/{version}/{}", self.plural)
        } else {
            format!("/apis/{}/{version}/{}", self.group, self.plural)
        }
    }

    /// Path of an object.
    #[must_use]
    pub fn object_path(&self, version: &str, key: &Key) -> String {
        let base = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        let inside = if self.namespaced { format!("/namespaces/{}", key.namespace) } else { String::new() };
        format!("{base}/{version}{inside}/{}/{}", self.plural, key.name)
    }

    /// `plural.group`, or the plural.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether there are clusters without it: those that did not install its definition.
    #[must_use]
    pub fn optional(&self) -> bool {
        matches!(self.group, kinds::GATEWAY | kinds::WEFT)
    }

    /// What to do when the API server does not have it.
    #[must_use]
    pub fn missing(&self) -> String {
        let install = match self.group {
            kinds::GATEWAY => {
                "install the CRDs of Gateway API, version 1.2 or newer: https://gateway-api.sigs.k8s.io/guides/#installing-gateway-api"
            }
            kinds::WEFT => "install the CRDs that weft install prints",
            _ => "is this the API server of a cluster?",
        };
        let (resource, versions) = (self.resource(), self.versions.join(" or "));
        format!("the API server has no {resource} {versions}, and what was known of them stays: {install}")
    }

    /// The key of an object; none if it has no name.
    #[must_use]
    pub fn key(&self, object: &Value) -> Option<Key> {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let name = Some(text("name")).filter(|name| !name.is_empty())?;
        Some(Key::new(self.kind, if self.namespaced { text("namespace") } else { "" }, name))
    }

    /// What is kept of an object: what somebody wrote, without what changes with each write, in the version that we read.
    /// `None` when it is not the mesh's affair.
    #[must_use]
    pub fn kept(&self, mut object: Value) -> Option<Value> {
        let fields = object.as_object_mut()?;
        let version = self.versions.first()?;
        let version = if self.group.is_empty() { (*version).to_owned() } else { format!("{}/{version}", self.group) };
        // The items of a list have neither.
        fields.insert("apiVersion".into(), version.into());
        fields.insert("kind".into(), self.kind.into());
        let metadata = fields.get_mut("metadata")?.as_object_mut()?;
        for field in ["managedFields", "resourceVersion", "selfLink"] {
            metadata.remove(field);
        }
        let ours = match self.kind {
            "Service" => service(fields),
            "EndpointSlice" => slice(fields),
            "HTTPRoute" | "GRPCRoute" => attaches_to_service(fields),
            _ => true,
        };
        ours.then_some(object)
    }
}

/// The mesh carries TCP: the other ports of a Service are left to the cluster, and so is a Service without any.
fn service(fields: &mut Map<String, Value>) -> bool {
    let Some(spec) = fields.get_mut("spec") else { return false };
    let external = spec["type"] == "ExternalName";
    tcp(spec.get_mut("ports")) && !external
}

/// The same of its endpoints. What belongs to no Service, or has names for addresses, is not the mesh's.
fn slice(fields: &mut Map<String, Value>) -> bool {
    let named = fields["metadata"]["labels"]["kubernetes.io/service-name"].is_string();
    let addresses = matches!(fields.get("addressType").and_then(Value::as_str), Some("IPv4" | "IPv6"));
    if fields.get("endpoints").is_none_or(Value::is_null) {
        fields.insert("endpoints".into(), Value::Array(Vec::new()));
    }
    tcp(fields.get_mut("ports"));
    named && addresses
}

/// Keeps the TCP ports with a number; whether there are some.
fn tcp(ports: Option<&mut Value>) -> bool {
    let Some(ports) = ports.and_then(Value::as_array_mut) else { return false };
    ports.retain(|port| port["port"].is_number() && matches!(port["protocol"].as_str(), None | Some("TCP")));
    !ports.is_empty()
}

/// A route of gateways alone is for those who run them.
fn attaches_to_service(fields: &Map<String, Value>) -> bool {
    let parents = fields.get("spec").and_then(|spec| spec["parentRefs"].as_array());
    parents.into_iter().flatten().any(|parent| parent["kind"] == "Service")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watched(kind: &str) -> Watched {
        all().find(|watched| watched.kind == kind).expect("it is watched")
    }

    #[test]
    fn every_kind_of_the_api_is_watched_in_the_version_that_the_api_has() {
        for kind in KINDS {
            let watched = watched(kind.kind);
            assert_eq!(watched.versions[0], kind.version, "{}", kind.kind);
            assert_eq!((watched.group, watched.plural), (kind.group, kind.plural));
        }
        let key = Key::new("TrafficPolicy", "shop", "slow");
        let path = watched("TrafficPolicy").object_path("v1alpha1", &key);
        assert_eq!(path, "/apis/weft.dev/v1alpha1/namespaces/shop/trafficpolicies/slow");
        let path = watched("MeshConfig").object_path("v1alpha1", &Key::new("MeshConfig", "", "default"));
        assert_eq!(path, "/apis/weft.dev/v1alpha1/meshconfigs/default");
        assert_eq!(watched("Service").path("v1"), "/api/v1/services");
    }

    #[test]
    fn of_a_service_the_ports_are_kept_that_the_mesh_carries() {
        let dns = json!({ "metadata": { "name": "kube-dns", "namespace": "kube-system", "resourceVersion": "7",
            "managedFields": [{}], "uid": "u" },
            "spec": { "clusterIP": "10.0.0.10", "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP" }, { "port": 80 }] } });
        let kept = watched("Service").kept(dns.clone()).expect("it has TCP ports");
        assert_eq!(
            kept["spec"]["ports"],
            json!([{ "name": "dns-tcp", "port": 53, "protocol": "TCP" }, { "port": 80 }])
        );
        assert_eq!(kept["metadata"], json!({ "name": "kube-dns", "namespace": "kube-system", "uid": "u" }));
        assert_eq!((&kept["apiVersion"], &kept["kind"]), (&"v1".into(), &"Service".into()));
        let mut udp = dns;
        udp["spec"]["ports"][1]["protocol"] = "SCTP".into();
        udp["spec"]["ports"].as_array_mut().expect("ports").pop();
        assert_eq!(watched("Service").kept(udp), None);
        let elsewhere =
            json!({ "metadata": { "name": "x" }, "spec": { "type": "ExternalName", "ports": [{ "port": 1 }] } });
        assert_eq!(watched("Service").kept(elsewhere), None);
    }

    #[test]
    fn slices_without_a_service_and_routes_of_gateways_are_not_the_meshs() {
        let slice = |labels: Value, family: &str| {
            json!({ "metadata": { "name": "s", "labels": labels }, "addressType": family, "endpoints": null,
                "ports": [{ "port": 53, "protocol": "UDP" }, { "port": null }, { "port": 80, "protocol": "TCP" }] })
        };
        let of_web = json!({ "kubernetes.io/service-name": "web" });
        let kept = watched("EndpointSlice").kept(slice(of_web.clone(), "IPv6")).expect("it is of a Service");
        assert_eq!((&kept["endpoints"], kept["ports"].as_array().map(Vec::len)), (&json!([]), Some(1)));
        assert_eq!(watched("EndpointSlice").kept(slice(of_web, "FQDN")), None);
        assert_eq!(watched("EndpointSlice").kept(slice(json!({}), "IPv4")), None);
        let route = |kind: Value| json!({ "metadata": { "name": "r" }, "spec": { "parentRefs": [{ "name": "x", "kind": kind }] } });
        assert_eq!(watched("HTTPRoute").kept(route(Value::Null)), None, "Gateway is the default");
        assert_eq!(watched("HTTPRoute").kept(route("Gateway".into())), None);
        assert!(watched("GRPCRoute").kept(route("Service".into())).is_some());
    }

    #[test]
    fn an_older_version_is_read_as_the_wanted_one() {
        let grant = json!({ "apiVersion": "gateway.networking.k8s.io/v1beta1", "metadata": { "name": "g" } });
        let kept = watched("ReferenceGrant").kept(grant).expect("kept");
        assert_eq!(kept["apiVersion"], "gateway.networking.k8s.io/v1");
    }
}
