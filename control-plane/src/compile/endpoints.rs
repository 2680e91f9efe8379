//! Endpoints of a service in slices of at most 100.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::discovery::v1 as discovery;
use weft_proto::v1;

use crate::source::{Object, Resources};

use super::{instances::Instance, services::ServiceView};

/// Most endpoints of one slice.
pub const SLICE: usize = 100;

/// EndpointSlices by namespace and name of their service, each list by name.
pub type ByService<'a> = HashMap<(&'a str, &'a str), Vec<&'a discovery::EndpointSlice>>;

/// The EndpointSlices by service; those that name none belong to nobody.
pub fn by_service(resources: &Resources) -> ByService<'_> {
    let mut found = ByService::new();
    for slice in resources.endpoint_slices.values() {
        if let Some(service) = service_of(slice) {
            found.entry((&slice.namespace, service)).or_default().push(&slice.value);
        }
    }
    found
}

/// The name of the service that a slice belongs to.
pub fn service_of(slice: &Object<discovery::EndpointSlice>) -> Option<&str> {
    slice.value.metadata.labels.as_ref()?.get("kubernetes.io/service-name").map(String::as_str)
}

/// The slices of a service: at least slice 0, which says how many there are.
pub fn slices(
    view: &ServiceView<'_>,
    objects: &ByService<'_>,
    instances: &BTreeMap<String, Instance>,
) -> Vec<v1::EndpointSlice> {
    let endpoints: Vec<v1::Endpoint> = if view.selects() {
        let members = view.members.iter().filter_map(|id| instances.get(id));
        members.map(|instance| of_instance(view, instance)).collect()
    } else {
        of_objects(view, objects)
    };
    let count = endpoints.len().div_ceil(SLICE).max(1);
    let mut rest = endpoints.into_iter();
    (0..count)
        .map(|k| v1::EndpointSlice {
            service: view.id.clone(),
            index: u32::try_from(k).unwrap_or(u32::MAX),
            slice_count: if k == 0 { u32::try_from(count).unwrap_or(u32::MAX) } else { 0 },
            endpoints: rest.by_ref().take(SLICE).collect(),
        })
        .collect()
}

fn of_instance(view: &ServiceView<'_>, instance: &Instance) -> v1::Endpoint {
    // Ports of an implicit service are the union of its instances' ports: not all of them have each.
    let ports = view.ports.iter();
    v1::Endpoint {
        address: instance.address.clone(),
        ports: ports.filter_map(|port| Some((port.port, port.target.resolve(port.port, instance)?))).collect(),
        mesh_address: instance.mesh_address.clone(),
        spiffe_id: instance.spiffe_id.clone(),
        weight: 1,
        locality: instance.locality.clone(),
        healthy: instance.healthy,
        draining: instance.draining,
        workload: instance.id.clone(),
    }
}

fn of_objects(view: &ServiceView<'_>, objects: &ByService<'_>) -> Vec<v1::Endpoint> {
    let mut found = Vec::new();
    for slice in objects.get(&(view.namespace.as_str(), view.name.as_str())).into_iter().flatten() {
        for endpoint in &slice.endpoints {
            // More than one address is the same endpoint under other names: the first counts.
            if let Some(address) = endpoint.addresses.first() {
                found.push(of_object(view, slice, endpoint, address));
            }
        }
    }
    found
}

fn of_object(
    view: &ServiceView<'_>,
    slice: &discovery::EndpointSlice,
    endpoint: &discovery::Endpoint,
    address: &str,
) -> v1::Endpoint {
    let named = |name: &str| {
        let port = slice.ports.iter().flatten().find(|port| port.name.as_deref().unwrap_or_default() == name)?;
        u32::try_from(port.port?).ok()
    };
    let conditions = endpoint.conditions.as_ref();
    let draining = conditions.and_then(|conditions| conditions.terminating) == Some(true);
    let ready = conditions.and_then(|conditions| conditions.ready) != Some(false);
    v1::Endpoint {
        address: address.to_owned(),
        ports: view.ports.iter().filter_map(|port| Some((port.port, named(&port.name)?))).collect(),
        weight: 1,
        locality: endpoint.zone.clone().map(|zone| v1::Locality { zone, region: String::new() }),
        healthy: ready && !draining,
        draining,
        ..v1::Endpoint::default()
    }
}
