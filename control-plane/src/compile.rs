//! Resources and registrations to the messages that sidecars get: pure, deterministic, no I/O.

pub mod again;
mod attached;
pub mod conditions;
mod endpoints;
mod instances;
pub mod policies;
mod protocol;
mod routes;
mod services;
pub mod workloads;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use weft_proto::{ResourceType, v1};

use crate::{
    jwks::KeySets,
    sessions::Secret,
    source::{Problem, Resources, policies::mesh::OutboundTraffic},
};

use self::{
    endpoints::Endpoints,
    instances::Instance,
    policies::{Authentications, Guards, Inbound, Policies},
    services::ServiceView,
};

/// What a sidecar registered, and the identity that it proved.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What it says of its workload.
    pub registration: v1::Registration,
    /// SPIFFE id of its certificate.
    pub spiffe_id: String,
}

/// One resource, ready to be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Compiled {
    /// The encoded message.
    pub bytes: Bytes,
    /// Other names under which it can be subscribed to.
    pub aliases: Vec<String>,
    /// What clients of these namespaces get in place of `bytes`; nothing that has aliases has any.
    pub views: BTreeMap<String, Bytes>,
}

impl From<Vec<u8>> for Compiled {
    /// The same for everybody, under one name.
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into(), aliases: Vec::new(), views: BTreeMap::new() }
    }
}

/// Compiled resources by type and canonical name.
pub type Output = BTreeMap<(ResourceType, String), Compiled>;

/// Compiles everything, with no key sets but those in the resources.
#[must_use]
pub fn compile(resources: &Resources, registered: &[Arc<Registered>]) -> (Output, Vec<Problem>) {
    compile_with(resources, registered, &KeySets::default(), &Secret::default())
}

/// Compiles everything; the trust bundle is the caller's. A problem never stops the rest.
#[must_use]
pub fn compile_with(
    resources: &Resources,
    registered: &[Arc<Registered>],
    sets: &KeySets,
    secret: &Secret,
) -> (Output, Vec<Problem>) {
    let mut problems = Vec::new();
    let instances = instances::collect(resources, registered, &mut problems);
    let views = services::collect(resources, &instances, &mut problems);
    let routings = routes::compile(resources, &views, secret, &mut problems);
    let policies = Policies::of(resources);
    attached::check(resources, &views, &mut problems);
    problems.extend(policies.problems());
    problems.extend(policies.uncounted(&routings, &views));
    let authentications = Authentications::of(&policies, sets);
    problems.extend(authentications.problems());
    let inbound = (Inbound::of(&policies, &routings), Guards::of(resources), authentications);
    let endpoints = Endpoints::of(resources, &instances);
    let mut output = Output::new();
    for view in views.values() {
        put_service(&mut output, view, &routings, &policies);
        put_slices(&mut output, view, &endpoints);
    }
    let mut memberships: HashMap<&str, Vec<&ServiceView<'_>>> = HashMap::new();
    for view in views.values() {
        view.members.iter().for_each(|member| memberships.entry(member).or_default().push(view));
    }
    let mut unplaced = BTreeMap::new();
    for instance in instances.values().filter(|instance| instance.registered) {
        let of = memberships.get(instance.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let message = workload_config(resources, instance, of, &inbound, &mut unplaced);
        put(&mut output, ResourceType::WorkloadConfig, instance.id.clone(), &message, Vec::new());
    }
    problems.extend(unplaced.into_values());
    (output, problems)
}

/// The service as all its clients see it, and as those of namespaces with routes of their own do.
fn put_service(output: &mut Output, view: &ServiceView<'_>, routings: &routes::Routings, policies: &Policies<'_>) {
    let bytes = |namespace| Bytes::from(view.message(routings, policies, namespace).encode_to_vec());
    let shared = bytes(None);
    let own = routings.namespaces(&view.id).into_iter().map(|namespace| (namespace.to_owned(), bytes(Some(namespace))));
    let views = own.filter(|(_, bytes)| *bytes != shared).collect();
    output.insert((ResourceType::Service, view.id.clone()), Compiled { bytes: shared, aliases: Vec::new(), views });
}

fn put_slices(output: &mut Output, view: &ServiceView<'_>, endpoints: &Endpoints<'_>) {
    for slice in endpoints.slices(view) {
        let name = format!("{}/{}", view.id, slice.index);
        put(output, ResourceType::EndpointSlice, name, &slice, vec![view.id.clone()]);
    }
}

fn put(output: &mut Output, kind: ResourceType, name: String, message: &impl Message, aliases: Vec<String>) {
    output.insert((kind, name), Compiled { aliases, ..message.encode_to_vec().into() });
}

/// What MeshConfig says of calls that leave the mesh.
fn outbound_traffic(resources: &Resources) -> v1::OutboundTraffic {
    let mesh = resources.mesh_configs.get("default").and_then(|config| config.value.spec.outbound_traffic);
    match mesh {
        None | Some(OutboundTraffic::AllowAny) => v1::OutboundTraffic::AllowAny,
        Some(OutboundTraffic::RegistryOnly) => v1::OutboundTraffic::RegistryOnly,
    }
}

/// The inbound side: each port of the app, and the ports of its services that lead to it. A policy that has no place is a
/// problem once, at whichever port it is.
fn workload_config(
    resources: &Resources,
    instance: &Instance,
    views: &[&ServiceView<'_>],
    (limits, guards, authentications): &(Inbound<'_>, Guards<'_>, Authentications<'_>),
    unplaced: &mut BTreeMap<String, Problem>,
) -> v1::WorkloadConfig {
    let mut ports: BTreeMap<u32, v1::InboundPort> = instance
        .ports
        .iter()
        .map(|port| (port.port, v1::InboundPort { port: port.port, protocol: port.protocol, ..Default::default() }))
        .collect();
    let mut served: BTreeMap<u32, Vec<policies::Port<'_>>> = BTreeMap::new();
    for view in views {
        for port in &view.ports {
            let Some(target) = port.target.resolve(port.port, instance) else { continue };
            let inbound = ports.entry(target).or_insert_with(|| v1::InboundPort { port: target, ..Default::default() });
            if inbound.protocol == i32::from(v1::Protocol::Unspecified) {
                inbound.protocol = port.protocol.into();
            }
            inbound.services.push(v1::ServiceRef { service: view.id.clone(), port: port.port });
            served.entry(target).or_default().push(view.place(port));
        }
    }
    for port in ports.values_mut() {
        let served = served.get(&port.port).map(Vec::as_slice).unwrap_or_default();
        let (access, beyond) = guards.access(instance, port.port, served);
        port.access = Some(access);
        for (id, problem) in policies::access::too_many(&beyond, port.port, &instance.id) {
            unplaced.entry(id).or_insert(problem);
        }
        port.rate_limits = limits.limits(instance, served);
        port.request_authentications = authentications.at(instance, port.protocol, served);
    }
    let services: Vec<&str> = views.iter().map(|view| view.id.as_str()).collect();
    v1::WorkloadConfig {
        id: instance.id.clone(),
        ports: ports.into_values().collect(),
        telemetry: Some(policies::telemetry::settings(resources, instance, &services)),
        outbound_traffic: outbound_traffic(resources).into(),
    }
}

#[cfg(test)]
mod tests;
