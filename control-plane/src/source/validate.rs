//! What a type cannot say: ranges, names, addresses. Every value that reaches the compiler has passed here.

mod filters;
mod routes;

use std::{collections::BTreeSet, net::SocketAddr};

use gateway_api::apis::standard::referencegrants::ReferenceGrant;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    check::{Check, label_value, qualified_name},
    policies::workload::WorkloadSpec,
};

pub use self::routes::{grpc_route, route};

/// Words for the protocol of a workload's port.
pub const PROTOCOLS: [&str; 6] = ["http", "http1", "http2", "grpc", "tcp", "tls"];

/// Labels, annotations and finalizers, as Kubernetes limits them.
pub fn metadata(metadata: &ObjectMeta, check: &mut Check<'_>) {
    for (key, value) in metadata.labels.iter().flatten() {
        let path = format!("metadata.labels.{key}");
        if let Err(why) = qualified_name(key) {
            check.wrong(&path, format!("\"{key}\" is not a label key"), why);
        }
        if let Err(why) = label_value(value) {
            check.wrong(&path, format!("\"{value}\" is not a label value"), why);
        }
    }
    for key in metadata.annotations.iter().flatten().map(|(key, _)| key) {
        if let Err(why) = qualified_name(&key.to_lowercase()) {
            check.wrong(&format!("metadata.annotations.{key}"), format!("\"{key}\" is not an annotation key"), why);
        }
    }
    let size: usize = metadata.annotations.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS {
        check.wrong("metadata.annotations", format!("{size} bytes are too many"), format!("at most {MAX_ANNOTATIONS}"));
    }
    for (index, finalizer) in metadata.finalizers.iter().flatten().enumerate() {
        if let Err(why) = qualified_name(finalizer) {
            let message = format!("\"{finalizer}\" is not a finalizer name");
            check.wrong(&format!("metadata.finalizers[{index}]"), message, why);
        }
    }
}

/// Bytes of all annotations of an object, as in Kubernetes.
const MAX_ANNOTATIONS: usize = 256 * 1024;

pub fn nothing(_: &Namespace, _: &mut Check<'_>) {}

pub fn service(service: &Service, check: &mut Check<'_>) {
    let Some(spec) = &service.spec else { return check.wrong("spec", "is missing", "") };
    if spec.type_.as_deref() == Some("ExternalName") {
        check.wrong("spec.type", "ExternalName is not supported", "use a Service with an EndpointSlice");
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ports.is_empty() {
        check.wrong("spec.ports", "a Service needs at least one port", "");
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        check.port(&format!("{path}.port"), port.port.into());
        match port.protocol.as_deref() {
            None | Some("TCP") => {}
            Some(other) => {
                check.wrong(&format!("{path}.protocol"), format!("{other} is not carried by the mesh"), "TCP only");
            }
        }
        if !seen.insert(port.port) {
            check.wrong(&format!("{path}.port"), format!("port {} is given twice", port.port), "");
        }
        if let Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target)) = &port.target_port {
            check.port(&format!("{path}.targetPort"), (*target).into());
        }
    }
}

pub fn endpoint_slice(slice: &EndpointSlice, check: &mut Check<'_>) {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    if service.is_none() {
        let message = "label kubernetes.io/service-name is missing";
        check.wrong("metadata.labels", message, "it names the Service that the endpoints belong to");
    }
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        check.wrong("addressType", format!("\"{}\" is not supported", slice.address_type), "IPv4 or IPv6");
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        if endpoint.addresses.is_empty() {
            check.wrong(&format!("endpoints[{index}].addresses"), "an endpoint needs an address", "");
        }
        for (place, address) in endpoint.addresses.iter().enumerate() {
            check.ip(&format!("endpoints[{index}].addresses[{place}]"), address);
        }
    }
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        check.port(&format!("ports[{index}].port"), port.port.unwrap_or(0).into());
    }
}

pub fn workload(spec: &WorkloadSpec, check: &mut Check<'_>) {
    check.ip("spec.address", &spec.address);
    if let Some(mesh) = &spec.mesh_address
        && mesh.parse::<SocketAddr>().map_or(true, |address| address.port() == 0)
    {
        check.wrong("spec.meshAddress", format!("\"{mesh}\" is not an ip:port"), "");
    }
    if let Some(account) = &spec.service_account {
        check.name("spec.serviceAccount", account);
        check.label("spec.serviceAccount", account);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        check.port(&format!("spec.ports[{index}].port"), port.port.into());
        if !seen.insert(port.port) {
            check.wrong(&format!("spec.ports[{index}].port"), format!("port {} is given twice", port.port), "");
        }
        if let Some(protocol) = &port.protocol {
            check.one_of(&format!("spec.ports[{index}].protocol"), "protocol", protocol, &PROTOCOLS);
        }
    }
}

pub fn reference_grant(grant: &ReferenceGrant, check: &mut Check<'_>) {
    for (field, empty) in [("from", grant.spec.from.is_empty()), ("to", grant.spec.to.is_empty())] {
        if empty {
            check.wrong(&format!("spec.{field}"), "is empty", "a grant needs at least one");
        }
    }
    for (index, from) in grant.spec.from.iter().enumerate() {
        check.name(&format!("spec.from[{index}].namespace"), &from.namespace);
    }
}
