//! Endpoints of a cluster: who is in, once each, and as whom.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{compile::services, source::pods::Pod};

/// A cluster with these pods (name, address, whether it has a sidecar) and objects.
fn cluster(pods: &[(&str, &[&str], bool)], objects: &[Value]) -> Resources {
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    let (mut resources, problems) = Resources::from_text("f.yaml", &text.join("\n---\n"));
    assert_eq!(problems, []);
    let pods = pods.iter().map(|(name, addresses, sidecar)| {
        let containers = if *sidecar { json!([{ "name": "weft-sidecar" }]) } else { json!([]) };
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let object = json!({ "spec": { "initContainers": containers }, "status": { "podIPs": ips } });
        (format!("default/{name}"), Arc::new(Pod::of(&object)))
    });
    resources.pods = Some(Arc::new(pods.collect()));
    resources
}

fn service(families: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }], "ipFamilies": families } })
}

fn slice(name: &str, family: &str, endpoints: Value) -> Value {
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "web" } },
        "ports": [{ "port": 8080 }], "endpoints": endpoints })
}

fn of_pod(pod: &str, address: &str, conditions: Value) -> Value {
    json!({ "addresses": [address], "conditions": conditions, "targetRef": { "kind": "Pod", "name": pod } })
}

fn compiled(resources: &Resources) -> Vec<v1::Endpoint> {
    let instances = super::super::instances::collect(resources, &[], &mut Vec::new());
    let views = services::collect(resources, &instances, &mut Vec::new());
    let endpoints = Endpoints::of(resources, &instances);
    endpoints.slices(&views["default/web"]).into_iter().flat_map(|slice| slice.endpoints).collect()
}

fn addresses(endpoints: &[v1::Endpoint]) -> Vec<&str> {
    endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect()
}

#[test]
fn a_pod_is_called_over_the_mesh_only_if_it_has_a_sidecar_and_not_at_all_while_nobody_knows_it() {
    let endpoints = json!([
        of_pod("meshed", "10.0.0.1", json!({})),
        of_pod("plain", "10.0.0.2", json!({})),
        of_pod("unknown", "10.0.0.3", json!({})),
        of_pod("meshed", "10.0.0.9", json!({})),
        { "addresses": ["192.0.2.7"] },
    ]);
    let pods: [(_, &[_], _); 2] = [("meshed", &["10.0.0.1"], true), ("plain", &["10.0.0.2"], false)];
    let found = compiled(&cluster(&pods, &[service(Value::Null), slice("a", "IPv4", endpoints)]));
    assert_eq!(addresses(&found), ["10.0.0.1", "10.0.0.2", "192.0.2.7"], "not the address that the pod does not have");
    assert_eq!(found[0].spiffe_id, "spiffe://weft.local/ns/default/sa/default");
    assert_eq!(found[0].workload, "default/meshed");
    assert!(found[1..].iter().all(|endpoint| endpoint.mesh_address.is_empty() && endpoint.spiffe_id.is_empty()));
}

#[test]
fn no_pod_with_a_sidecar_is_called_in_plaintext_by_a_stale_or_missing_name() {
    let endpoints = json!([
        { "addresses": ["10.0.0.1"] },
        of_pod("before", "10.0.0.2", json!({})),
        of_pod("gone", "10.0.0.3", json!({})),
    ]);
    // A pod without a sidecar that has made way for one of the same name elsewhere.
    let pods: [(_, &[_], _); 3] =
        [("meshed", &["10.0.0.1"], true), ("before", &["10.0.0.9"], false), ("other", &["10.0.0.2"], true)];
    let found = compiled(&cluster(&pods, &[service(Value::Null), slice("a", "IPv4", endpoints)]));
    assert_eq!(addresses(&found), ["10.0.0.1"]);
    assert_eq!((&*found[0].mesh_address, &*found[0].workload), ("10.0.0.1:15008", "default/meshed"));
}

#[test]
fn the_address_of_a_pod_that_has_ended_is_not_its_own_any_more() {
    let of = |phase: &str| {
        let status = json!({ "phase": phase, "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }] });
        Pod::of(&json!({ "spec": {}, "status": status })).addresses.len()
    };
    assert_eq!(["Running", "Succeeded", "Failed"].map(of), [1, 0, 0]);
}

#[test]
fn an_endpoint_in_two_slices_is_one_and_healthy_if_it_is_in_one_of_them() {
    let pods: [(_, &[_], _); 1] = [("a", &["10.0.0.1"], true)];
    let (down, up) = (json!({ "ready": false }), json!({ "ready": true }));
    for (first, second) in [(&down, &up), (&up, &down)] {
        let one = slice("a", "IPv4", json!([of_pod("a", "10.0.0.1", first.clone())]));
        let two = slice("b", "IPv4", json!([of_pod("a", "10.0.0.1", second.clone())]));
        let found = compiled(&cluster(&pods, &[service(Value::Null), one, two]));
        assert_eq!(addresses(&found), ["10.0.0.1"]);
        assert!(found[0].healthy);
    }
}

#[test]
fn a_pod_with_two_addresses_is_one_endpoint_of_the_services_first_family() {
    let pods: [(_, &[_], _); 1] = [("a", &["10.0.0.1", "fd00::1"], true)];
    let slices = [
        slice("four", "IPv4", json!([of_pod("a", "10.0.0.1", json!({}))])),
        slice("six", "IPv6", json!([of_pod("a", "fd00::1", json!({}))])),
    ];
    let of = |families: Value, slices: &[Value]| {
        let objects: Vec<Value> = std::iter::once(service(families)).chain(slices.iter().cloned()).collect();
        compiled(&cluster(&pods, &objects))
    };
    assert_eq!(addresses(&of(json!(["IPv6", "IPv4"]), &slices)), ["fd00::1"]);
    assert_eq!(of(json!(["IPv6", "IPv4"]), &slices)[0].mesh_address, "[fd00::1]:15008");
    assert_eq!(addresses(&of(json!(["IPv4"]), &slices)), ["10.0.0.1"]);
    assert_eq!(addresses(&of(json!(["IPv6"]), &slices[..1])), ["10.0.0.1"], "what there is");
    assert_eq!(addresses(&of(Value::Null, &slices)), ["10.0.0.1"]);
}

#[test]
fn a_terminating_endpoint_drains_and_is_not_chosen() {
    let pods: [(_, &[_], _); 1] = [("a", &["10.0.0.1"], true)];
    let conditions = json!({ "ready": false, "serving": true, "terminating": true });
    let found = compiled(&cluster(
        &pods,
        &[service(Value::Null), slice("a", "IPv4", json!([of_pod("a", "10.0.0.1", conditions)]))],
    ));
    assert_eq!((found[0].healthy, found[0].draining), (false, true));
}

#[test]
fn a_workload_outside_of_the_cluster_joins_the_service_that_selects_it() {
    let pods: [(_, &[_], _); 1] = [("a", &["10.0.0.1"], true)];
    let vm = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "Workload",
        "metadata": { "name": "vm", "labels": { "app": "web" } }, "spec": { "address": "192.0.2.7", "ports": [{ "port": 80 }] } });
    let objects = [service(Value::Null), slice("a", "IPv4", json!([of_pod("a", "10.0.0.1", json!({}))])), vm];
    assert_eq!(addresses(&compiled(&cluster(&pods, &objects))), ["10.0.0.1", "192.0.2.7"]);
}
