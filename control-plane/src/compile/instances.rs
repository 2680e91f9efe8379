//! Instances of services: registered workloads and `Workload` objects in one form, each checked.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_proto::v1;

use crate::source::{
    Object, Problem, Resources, Workload, is_dns_label,
    pods::{Pod, Pods},
};

use super::{Registered, protocol};

/// One instance.
#[derive(Debug)]
pub struct Instance {
    /// `namespace/name`.
    pub id: String,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub address: String,
    pub mesh_address: String,
    pub spiffe_id: String,
    pub ports: Vec<v1::WorkloadPort>,
    pub healthy: bool,
    pub draining: bool,
    pub locality: Option<v1::Locality>,
    /// Whether a sidecar is connected, which wants a `WorkloadConfig`.
    pub registered: bool,
}

/// All instances by `namespace/name`. What registered wins over an object of the same name.
pub fn collect(
    resources: &Resources,
    registered: &[Arc<Registered>],
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Instance> {
    let mut found: BTreeMap<String, Instance> = resources
        .workloads
        .values()
        .map(|object| (object.id(), from_object(object, &resources.trust_domain)))
        .collect();
    let mut epochs: BTreeMap<String, u64> = BTreeMap::new();
    let believed = Believed::of(resources);
    for entry in registered {
        let registration = &entry.registration;
        let id = format!("{}/{}", registration.namespace, registration.name);
        let pod = || believed.pod(entry).map_err(|message| ("name".to_owned(), message));
        let pod = match check(entry).and_then(|()| pod()) {
            Ok(pod) => pod,
            Err((path, message)) => {
                problems.push(Problem { file: format!("registration {id}"), path, message, ..Problem::default() });
                continue;
            }
        };
        if epochs.get(&id).is_some_and(|epoch| *epoch > registration.epoch_ms) {
            continue;
        }
        epochs.insert(id.clone(), registration.epoch_ms);
        let mut instance = from_registration(id.clone(), entry);
        // What the API server says of a pod is not the pod's to say.
        if let Some(pod) = pod {
            instance.labels = pod.labels.clone();
        }
        found.insert(id, instance);
    }
    found
}

/// Which registrations are believed: in a cluster a workload with the identity of pods is one of them, and no other. Its
/// name decides about its labels, and these about the services whose endpoint it is.
pub struct Believed<'a> {
    pods: Option<&'a Pods>,
    trust_domain: &'a str,
    /// Namespaces and service accounts of pods.
    accounts: HashSet<(&'a str, &'a str)>,
}

impl<'a> Believed<'a> {
    /// By the pods of these resources; outside of a cluster all are.
    #[must_use]
    pub fn of(resources: &'a Resources) -> Self {
        let pods = resources.pods.as_deref();
        let account = |(id, pod): (&'a String, &'a Arc<Pod>)| Some((id.split_once('/')?.0, &*pod.service_account));
        let accounts = pods.into_iter().flatten().filter_map(account).collect();
        Self { pods, trust_domain: &resources.trust_domain, accounts }
    }

    /// The pod that has registered; none outside of the cluster.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn pod(&self, entry: &Registered) -> Result<Option<&'a Pod>, String> {
        let Some(pods) = self.pods else { return Ok(None) };
        let (namespace, name) = (&entry.registration.namespace, &entry.registration.name);
        let Some(pod) = pods.get(&format!("{namespace}/{name}")) else {
            let path = entry.spiffe_id.strip_prefix("spiffe://").and_then(|id| id.split_once("/ns/"));
            let account = path.and_then(|(_, path)| path.split_once("/sa/"));
            return match account.filter(|account| self.accounts.contains(account)) {
                Some(_) => Err(format!(
                    "\"{name}\" is no pod that is known, and {} is the identity of pods: these register by their own names",
                    entry.spiffe_id
                )),
                None => Ok(None),
            };
        };
        let own = pod.spiffe_id(self.trust_domain, namespace);
        if own == entry.spiffe_id {
            return Ok(Some(pod));
        }
        Err(format!("\"{name}\" is a pod whose identity is {own}, and {} registers by its name", entry.spiffe_id))
    }
}

fn check(entry: &Registered) -> Result<(), (String, String)> {
    let registration = &entry.registration;
    let wrong = |path: &str, value: &str, why: &str| Err((path.to_owned(), format!("\"{value}\" {why}")));
    if !is_dns_label(&registration.name) {
        return wrong("name", &registration.name, "is not a DNS label");
    }
    if !is_dns_label(&registration.namespace) {
        return wrong("namespace", &registration.namespace, "is not a DNS label");
    }
    if registration.address.parse::<IpAddr>().is_err() {
        return wrong("address", &registration.address, "is not an IP address");
    }
    let mesh = &registration.mesh_address;
    if !mesh.is_empty() {
        if mesh.parse::<SocketAddr>().map_or(true, |address| address.port() == 0) {
            return wrong("mesh_address", mesh, "is not an ip:port");
        }
        if !entry.spiffe_id.starts_with("spiffe://") {
            return wrong("spiffe_id", &entry.spiffe_id, "is not a SPIFFE id");
        }
    }
    let mut seen = Vec::new();
    for (index, port) in registration.ports.iter().enumerate() {
        let path = format!("ports[{index}].port");
        if !(1..=65535).contains(&port.port) {
            return wrong(&path, &port.port.to_string(), "is not a port: must be 1 to 65535");
        }
        if seen.contains(&port.port) {
            return wrong(&path, &port.port.to_string(), "is given twice");
        }
        if v1::Protocol::try_from(port.protocol).is_err() {
            return wrong(&format!("ports[{index}].protocol"), &port.protocol.to_string(), "is not a protocol");
        }
        seen.push(port.port);
    }
    Ok(())
}

fn from_registration(id: String, entry: &Registered) -> Instance {
    let registration = entry.registration.clone();
    Instance {
        id,
        namespace: registration.namespace,
        name: registration.name,
        labels: registration.labels.into_iter().collect(),
        address: registration.address,
        spiffe_id: if registration.mesh_address.is_empty() { String::new() } else { entry.spiffe_id.clone() },
        mesh_address: registration.mesh_address,
        ports: registration.ports,
        healthy: registration.healthy,
        draining: registration.draining,
        locality: registration.locality,
        registered: true,
    }
}

fn from_object(object: &Object<Workload>, trust_domain: &str) -> Instance {
    let spec = &object.value.spec;
    let account = spec.service_account.as_deref().unwrap_or("default");
    let spiffe_id = format!("spiffe://{trust_domain}/ns/{}/sa/{account}", object.namespace);
    let ports = spec.ports.iter().map(|port| v1::WorkloadPort {
        port: port.port,
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.as_deref().and_then(protocol::word).unwrap_or_default().into(),
        undeclared: false,
    });
    Instance {
        id: object.id(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        labels: object.value.metadata.labels.clone().unwrap_or_default(),
        address: spec.address.clone(),
        mesh_address: spec.mesh_address.clone().unwrap_or_default(),
        spiffe_id: spec.mesh_address.as_ref().map(|_| spiffe_id).unwrap_or_default(),
        ports: ports.collect(),
        healthy: true,
        draining: false,
        locality: None,
        registered: false,
    }
}
