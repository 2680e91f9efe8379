//! Endpoints of a service in slices of at most 100.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::discovery::v1 as discovery;
use weft_proto::v1;

use crate::source::{Object, Resources, pods::Pods};

use super::{instances::Instance, services::ServiceView};

/// Most endpoints of one slice.
pub const SLICE: usize = 100;

/// EndpointSlices by namespace and name of their service, each list by name.
type ByService<'a> = HashMap<(&'a str, &'a str), Vec<&'a Object<discovery::EndpointSlice>>>;

/// What endpoints are made of.
pub struct Endpoints<'a> {
    objects: ByService<'a>,
    /// Those of the cluster; `None` outside of one.
    pods: Option<&'a Pods>,
    /// Ids of those with a sidecar, by address.
    meshed: HashMap<&'a str, &'a str>,
    trust_domain: &'a str,
    instances: &'a BTreeMap<String, Instance>,
}

/// The name of the service that a slice belongs to.
pub fn service_of(slice: &Object<discovery::EndpointSlice>) -> Option<&str> {
    slice.value.metadata.labels.as_ref()?.get("kubernetes.io/service-name").map(String::as_str)
}

/// `namespace/name` of the pod that an endpoint of a slice is.
pub fn pod_of(slice: &Object<discovery::EndpointSlice>, endpoint: &discovery::Endpoint) -> Option<String> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    Some(format!("{}/{}", target.namespace.as_deref().unwrap_or(&slice.namespace), target.name.as_deref()?))
}

impl<'a> Endpoints<'a> {
    /// Of these resources and instances. EndpointSlices that name no service belong to nobody.
    #[must_use]
    pub fn of(resources: &'a Resources, instances: &'a BTreeMap<String, Instance>) -> Self {
        let mut objects = ByService::new();
        for slice in resources.endpoint_slices.values() {
            if let Some(service) = service_of(slice) {
                objects.entry((&slice.namespace, service)).or_default().push(&**slice);
            }
        }
        let pods = resources.pods.as_deref();
        let mut meshed = HashMap::new();
        for (id, pod) in pods.into_iter().flatten().filter(|(_, pod)| pod.mesh_port.is_some()) {
            meshed.extend(pod.addresses.iter().map(|address| (address.as_str(), id.as_str())));
        }
        Self { objects, pods, meshed, trust_domain: &resources.trust_domain, instances }
    }

    /// The slices of a service: at least slice 0, which says how many there are.
    pub fn slices(&self, view: &ServiceView<'_>) -> Vec<v1::EndpointSlice> {
        let endpoints = match self.pods {
            Some(pods) => self.in_cluster(view, pods),
            None if view.selects() => self.members(view).map(|instance| of_instance(view, instance)).collect(),
            None => {
                self.written(view).map(|(slice, endpoint, address)| of_object(view, slice, endpoint, address)).collect()
            }
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

    fn members(&self, view: &ServiceView<'_>) -> impl Iterator<Item = &'a Instance> {
        view.members.iter().filter_map(|id| self.instances.get(id)).collect::<Vec<_>>().into_iter()
    }

    /// The endpoints of its EndpointSlices.
    fn written(
        &self,
        view: &ServiceView<'_>,
    ) -> impl Iterator<Item = (&'a Object<discovery::EndpointSlice>, &'a discovery::Endpoint, &'a str)> {
        let slices = self.objects.get(&(view.namespace.as_str(), view.name.as_str()));
        let slices: Vec<_> = slices.into_iter().flatten().copied().collect();
        slices.into_iter().flat_map(|slice| {
            // More than one address is the same endpoint under other names: the first counts.
            let first =
                move |endpoint: &'a discovery::Endpoint| Some((slice, endpoint, endpoint.addresses.first()?.as_str()));
            slice.value.endpoints.iter().filter_map(first)
        })
    }

    /// Of a cluster: those of the EndpointSlices, which know of every pod, and beside them what selects workloads outside of
    /// it. A pod is one endpoint, however many slices it is in.
    fn in_cluster(&self, view: &ServiceView<'_>, pods: &Pods) -> Vec<v1::Endpoint> {
        let families: BTreeSet<&str> =
            self.written(view).map(|(slice, ..)| slice.value.address_type.as_str()).collect();
        // A pod with two addresses is in a slice of either family.
        let spec = view.object.and_then(|object| object.value.spec.as_ref());
        let first = spec.and_then(|spec| spec.ip_families.as_ref()?.first()).map(String::as_str);
        let family = first.filter(|first| families.contains(first)).or_else(|| families.first().copied());
        let (mut found, mut places) = (Vec::<v1::Endpoint>::new(), HashMap::<String, usize>::new());
        for (slice, endpoint, address) in self.written(view) {
            if family.is_some_and(|family| slice.value.address_type != family) {
                continue;
            }
            let pod = pod_of(slice, endpoint);
            let made = of_object(view, slice, endpoint, address);
            let Some(made) = self.identified(made, pod.as_deref(), pods) else { continue };
            match places.get(address) {
                None => {
                    places.insert(address.to_owned(), found.len());
                    found.push(made);
                }
                // While slices are rewritten, an endpoint may be in two: in one of them as it was.
                Some(&place) if made.healthy && !found[place].healthy => found[place] = made,
                Some(_) => {}
            }
        }
        let others = self.members(view).filter(|member| !pods.contains_key(&member.id));
        found.extend(others.filter(|member| !places.contains_key(&member.address)).map(|one| of_instance(view, one)));
        found
    }

    /// Who the endpoint is. `None`: a pod of which it is not (yet) known whether it has a sidecar, which must not be called
    /// in plaintext; or one that does not have this address, as the one before it with the same name. What names no pod is
    /// one all the same if it has the address of a pod with a sidecar.
    fn identified(&self, endpoint: v1::Endpoint, pod: Option<&str>, pods: &Pods) -> Option<v1::Endpoint> {
        let Some(id) = pod.or_else(|| self.meshed.get(endpoint.address.as_str()).copied()) else {
            return Some(endpoint);
        };
        let pod = pods.get(id).filter(|pod| pod.addresses.contains(&endpoint.address))?;
        let Some(mesh_port) = pod.mesh_port else { return Some(endpoint) };
        let address: IpAddr = endpoint.address.parse().ok()?;
        let namespace = id.split_once('/').map_or("", |(namespace, _)| namespace);
        let registered = self.instances.get(id).filter(|instance| instance.registered);
        // Where it listens is its own to say, at the address that is the pod's.
        let listens = registered.and_then(|instance| instance.mesh_address.parse::<SocketAddr>().ok());
        let mesh = listens.filter(|mesh| mesh.ip() == address).unwrap_or(SocketAddr::new(address, mesh_port));
        // A sidecar tells of its end before the API server does.
        let draining = endpoint.draining || registered.is_some_and(|instance| instance.draining);
        Some(v1::Endpoint {
            mesh_address: mesh.to_string(),
            spiffe_id: pod.spiffe_id(self.trust_domain, namespace),
            locality: endpoint.locality.clone().or_else(|| registered?.locality.clone()),
            healthy: endpoint.healthy && !draining,
            draining,
            workload: id.to_owned(),
            ..endpoint
        })
    }
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

fn of_object(
    view: &ServiceView<'_>,
    slice: &Object<discovery::EndpointSlice>,
    endpoint: &discovery::Endpoint,
    address: &str,
) -> v1::Endpoint {
    let named = |name: &str| {
        let mut ports = slice.value.ports.iter().flatten();
        let port = ports.find(|port| port.name.as_deref().unwrap_or_default() == name)?;
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

#[cfg(test)]
mod tests;
