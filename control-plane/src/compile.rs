//! Resources and registrations to the messages that sidecars get: pure, deterministic, no I/O.

pub mod again;
pub mod conditions;
mod endpoints;
mod grpc;
mod instances;
mod policies;
mod protocol;
mod routes;
mod services;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use weft_proto::{ResourceType, v1};

use crate::source::{Problem, Resources};

use self::{instances::Instance, services::ServiceView};

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
}

/// Compiled resources by type and canonical name.
pub type Output = BTreeMap<(ResourceType, String), Compiled>;

/// Compiles everything; the trust bundle is the caller's. A problem never stops the rest.
#[must_use]
pub fn compile(resources: &Resources, registered: &[Arc<Registered>]) -> (Output, Vec<Problem>) {
    let mut problems = Vec::new();
    let instances = instances::collect(resources, registered, &mut problems);
    let views = services::collect(resources, &instances, &mut problems);
    let mut routings = routes::compile(resources, &views, &mut problems);
    grpc::check(resources, &views, &mut problems);
    policies::check(resources, &views, &mut problems);
    let objects = endpoints::by_service(resources);
    let mut output = Output::new();
    for view in views.values() {
        let message = view.message(&mut routings);
        put(&mut output, ResourceType::Service, view.id.clone(), &message, Vec::new());
        put_slices(&mut output, view, &objects, &instances);
    }
    let mut memberships: HashMap<&str, Vec<&ServiceView<'_>>> = HashMap::new();
    for view in views.values() {
        view.members.iter().for_each(|member| memberships.entry(member).or_default().push(view));
    }
    for instance in instances.values().filter(|instance| instance.registered) {
        let of = memberships.get(instance.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let message = workload_config(instance, of);
        put(&mut output, ResourceType::WorkloadConfig, instance.id.clone(), &message, Vec::new());
    }
    (output, problems)
}

fn put_slices(
    output: &mut Output,
    view: &ServiceView<'_>,
    objects: &endpoints::ByService<'_>,
    instances: &BTreeMap<String, Instance>,
) {
    for slice in endpoints::slices(view, objects, instances) {
        let name = format!("{}/{}", view.id, slice.index);
        put(output, ResourceType::EndpointSlice, name, &slice, vec![view.id.clone()]);
    }
}

fn put(output: &mut Output, kind: ResourceType, name: String, message: &impl Message, aliases: Vec<String>) {
    output.insert((kind, name), Compiled { bytes: message.encode_to_vec().into(), aliases });
}

/// The inbound side: each port of the app, and the ports of its services that lead to it.
fn workload_config(instance: &Instance, views: &[&ServiceView<'_>]) -> v1::WorkloadConfig {
    let mut ports: BTreeMap<u32, v1::InboundPort> = instance
        .ports
        .iter()
        .map(|port| (port.port, v1::InboundPort { port: port.port, protocol: port.protocol, ..Default::default() }))
        .collect();
    for view in views {
        for port in &view.ports {
            let Some(target) = port.target.resolve(port.port, instance) else { continue };
            let inbound = ports.entry(target).or_insert_with(|| v1::InboundPort { port: target, ..Default::default() });
            if inbound.protocol == i32::from(v1::Protocol::Unspecified) {
                inbound.protocol = port.protocol.into();
            }
            inbound.services.push(v1::ServiceRef { service: view.id.clone(), port: port.port });
        }
    }
    v1::WorkloadConfig {
        id: instance.id.clone(),
        ports: ports.into_values().collect(),
        tls_mode: v1::TlsMode::Permissive.into(),
    }
}

#[cfg(test)]
mod tests;
