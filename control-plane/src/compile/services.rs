//! Services: those that were written, and a visible one for each workload that no Service selects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};
use weft_proto::v1;

use crate::source::{Object, Problem, Resources, is_dns_label};

use super::{
    instances::Instance,
    policies::{self, Policies, Port},
    protocol,
    routes::{Routings, Rule},
};

/// Which port of an instance a service port leads to.
#[derive(Debug)]
pub enum Target {
    /// The same number.
    Same,
    /// This number.
    Number(u32),
    /// The port of this name.
    Name(String),
    /// Of an implicit service: the same number where there is one; else the port of this name; else, when an instance
    /// whose only port it is speaks like one that has another as its only port, that one. Two replicas on one machine
    /// cannot have the same port.
    Own { name: String, only: bool, protocol: i32 },
}

impl Target {
    /// The port at this instance; none if it has no port of that name.
    pub fn resolve(&self, service_port: u32, instance: &Instance) -> Option<u32> {
        match self {
            Self::Same => Some(service_port),
            Self::Number(port) => Some(*port),
            Self::Name(name) => instance.ports.iter().find(|port| port.name == *name).map(|port| port.port),
            Self::Own { name, only, protocol } => {
                let find = |wanted: &dyn Fn(&&v1::WorkloadPort) -> bool| declared(instance).find(wanted);
                let named = || find(&|port| !name.is_empty() && port.name == *name);
                let alone = || {
                    let unnamed = |port: &&v1::WorkloadPort| port.name.is_empty() && port.protocol == *protocol;
                    find(&unnamed).filter(|_| *only && name.is_empty() && declared(instance).count() == 1)
                };
                find(&|port| port.port == service_port).or_else(named).or_else(alone).map(|port| port.port)
            }
        }
    }
}

/// The ports that the workload says it has.
fn declared(instance: &Instance) -> impl Iterator<Item = &v1::WorkloadPort> {
    instance.ports.iter().filter(|port| !port.undeclared)
}

/// One port of a service.
#[derive(Debug)]
pub struct PortView {
    pub port: u32,
    pub name: String,
    pub protocol: v1::Protocol,
    pub target: Target,
}

/// A service and who is in it.
#[derive(Debug)]
pub struct ServiceView<'a> {
    /// `namespace/name`.
    pub id: String,
    pub namespace: String,
    pub name: String,
    /// The object; none if the service is implicit.
    pub object: Option<&'a Object<core::Service>>,
    pub ports: Vec<PortView>,
    /// Ids of its instances.
    pub members: BTreeSet<String>,
}

impl ServiceView<'_> {
    /// Whether its endpoints are instances; otherwise they are those of its EndpointSlices.
    pub fn selects(&self) -> bool {
        self.object.is_none_or(|object| selector(&object.value).is_some())
    }

    /// One of its ports, as policies name it.
    pub fn place<'p>(&'p self, port: &'p PortView) -> Port<'p> {
        Port { namespace: &self.namespace, service: &self.name, name: &port.name, number: port.port }
    }

    /// The message for the clients of a namespace with routes of its own, or for all others: each of its ports with its
    /// routes and policies.
    pub fn message(&self, routings: &Routings, policies: &Policies<'_>, clients: Option<&str>) -> v1::Service {
        let Self { namespace, name, .. } = self;
        let spec = self.object.and_then(|object| object.value.spec.as_ref());
        let mut addresses: Vec<String> = spec.and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        addresses.extend(spec.and_then(|spec| spec.cluster_ip.clone()).filter(|ip| !addresses.contains(ip)));
        addresses.retain(|ip| ip.parse::<std::net::IpAddr>().is_ok());
        let ports = self.ports.iter().map(|port| {
            let place = self.place(port);
            let of_rule = |rule: &Rule| policies.request_message(&place, Some(&policies::Rule::of(rule)));
            let routing = routings.message(&self.id, port.port, clients, of_rule);
            v1::ServicePort {
                port: port.port,
                name: port.name.clone(),
                protocol: port.protocol.into(),
                requests: if routing.is_none() { policies.request_message(&place, None) } else { None },
                backend: policies.backend_message(&place),
                routing,
            }
        });
        v1::Service {
            id: self.id.clone(),
            hostnames: vec![
                format!("{name}.{namespace}"),
                format!("{name}.{namespace}.svc.cluster.local"),
                format!("{name}.{namespace}.mesh"),
            ],
            virtual_ips: addresses,
            ports: ports.collect(),
        }
    }
}

fn selector(service: &core::Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// All services by id.
pub fn collect<'a>(
    resources: &'a Resources,
    instances: &BTreeMap<String, Instance>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, ServiceView<'a>> {
    let labelled = labelled(instances);
    let mut views: BTreeMap<String, ServiceView<'a>> =
        resources.services.values().map(|object| (object.id(), explicit(object, &labelled))).collect();
    let selected: BTreeSet<String> = views.values().flat_map(|view| view.members.iter().cloned()).collect();
    // In a cluster a pod has the Services that are written, and no others.
    let is_pod = |id: &str| resources.pods.as_ref().is_some_and(|pods| pods.contains_key(id));
    let alone = |instance: &&Instance| !selected.contains(&instance.id) && !is_pod(&instance.id);
    for instance in instances.values().filter(alone) {
        problems.extend(implicit(&mut views, instance));
    }
    views
}

/// Instances by namespace, label and value: asking each service about each instance takes longest of all.
pub type Labelled<'a> = HashMap<(&'a str, &'a str, &'a str), Vec<&'a Instance>>;

/// All instances in that order.
pub fn labelled(instances: &BTreeMap<String, Instance>) -> Labelled<'_> {
    let mut found = Labelled::new();
    for instance in instances.values() {
        for (key, value) in &instance.labels {
            found.entry((&instance.namespace, key, value)).or_default().push(instance);
        }
    }
    found
}

/// Instances of the namespace that have every label of the selector.
fn selected(object: &Object<core::Service>, labelled: &Labelled<'_>) -> BTreeSet<String> {
    let Some(selector) = selector(&object.value) else { return BTreeSet::new() };
    let first = selector.iter().next().and_then(|(key, value)| labelled.get(&(object.namespace.as_str(), key, value)));
    let all = |instance: &&&Instance| selector.iter().all(|(key, value)| instance.labels.get(key) == Some(value));
    first.into_iter().flatten().filter(all).map(|instance| instance.id.clone()).collect()
}

/// The service of an object, with the instances that it selects of these.
pub fn explicit<'a>(object: &'a Object<core::Service>, labelled: &Labelled<'_>) -> ServiceView<'a> {
    let ports = object.value.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter_map(|port| {
        let number = u32::try_from(port.port).ok()?;
        let name = port.name.clone().unwrap_or_default();
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => Target::Same,
            Some(IntOrString::Int(target)) => Target::Number(u32::try_from(*target).ok()?),
            Some(IntOrString::String(target)) => Target::Name(target.clone()),
        };
        let protocol = protocol::of(port.app_protocol.as_deref(), &name, number);
        Some(PortView { port: number, name, protocol, target })
    });
    ServiceView {
        id: object.id(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        object: Some(object),
        ports: ports.collect(),
        members: selected(object, labelled),
    }
}

/// Adds the instance to the service of its `app` label, or of its name. A Service object of that name is left alone:
/// it said whom it selects, and the workload is reachable by no name. A workload without ports offers nothing.
fn implicit(views: &mut BTreeMap<String, ServiceView<'_>>, instance: &Instance) -> Option<Problem> {
    let name = instance.labels.get("app").filter(|app| is_dns_label(app)).unwrap_or(&instance.name);
    let id = format!("{}/{name}", instance.namespace);
    declared(instance).next()?;
    if views.get(&id).is_some_and(|view| view.object.is_some()) {
        let kind = if instance.registered { "registration" } else { "workload" };
        return Some(Problem {
            file: format!("{kind} {}", instance.id),
            path: "labels".to_owned(),
            message: format!("Service \"{id}\" exists and does not select this workload, nor does another"),
            hint: "give it the labels of the Service's selector".to_owned(),
            ..Problem::default()
        });
    }
    let view = views.entry(id.clone()).or_insert_with(|| ServiceView {
        id,
        namespace: instance.namespace.clone(),
        name: name.clone(),
        object: None,
        ports: Vec::new(),
        members: BTreeSet::new(),
    });
    view.members.insert(instance.id.clone());
    let alone = declared(instance).count() == 1;
    for port in declared(instance) {
        if let Some(known) = view.ports.iter_mut().find(|known| known.port == port.port) {
            if let Target::Own { only, .. } = &mut known.target {
                *only |= alone;
            }
            continue;
        }
        let declared = v1::Protocol::try_from(port.protocol).unwrap_or_default();
        let protocol = match declared {
            v1::Protocol::Unspecified => protocol::of(None, &port.name, port.port),
            declared => declared,
        };
        let target = Target::Own { name: port.name.clone(), only: alone, protocol: port.protocol };
        view.ports.push(PortView { port: port.port, name: port.name.clone(), protocol, target });
    }
    view.ports.sort_by_key(|port| port.port);
    None
}
