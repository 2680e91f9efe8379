//! What the sidecar holds of each type, as a state machine without I/O: responses in, ACKs and NACKs out.

mod addresses;
mod policies;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
    sync::Arc,
};

use prost::Message;
use weft_policy::{
    convert::{self, Invalid},
    model::{Endpoint, EndpointSlice, ObjectName, Service, TrustBundle, WorkloadConfig},
};
use weft_proto::{
    ResourceType,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    rpc, v1,
};
use weft_svid::TrustStore;

use self::{addresses::Addresses, policies::Policies, stored::Originals};

/// What is held, wanted and in use.
pub struct State {
    id: String,
    trust_changes: Vec<(String, Option<TrustBundle>)>,
    workload: Option<Arc<WorkloadConfig>>,
    services: HashMap<ObjectName, Arc<Service>>,
    in_use: HashMap<ObjectName, Arc<Service>>,
    /// By service and number.
    slices: BTreeMap<(ObjectName, u32), EndpointSlice>,
    complete: HashMap<ObjectName, Arc<[Arc<Endpoint>]>>,
    versions: BTreeMap<ResourceType, BTreeMap<String, String>>,
    wanted: BTreeSet<ObjectName>,
    declared: BTreeSet<ObjectName>,
    absent: HashSet<ObjectName>,
    bundle_seen: bool,
    originals: Originals,
    addresses: Addresses,
    policies: Policies,
}

impl State {
    /// For one workload with its declared upstreams.
    #[must_use]
    pub fn new(id: &str, declared: impl IntoIterator<Item = ObjectName>) -> Self {
        let declared: BTreeSet<_> = declared.into_iter().collect();
        Self {
            id: id.into(),
            trust_changes: Vec::new(),
            workload: None,
            services: HashMap::new(),
            in_use: HashMap::new(),
            slices: BTreeMap::new(),
            complete: HashMap::new(),
            versions: BTreeMap::new(),
            wanted: declared.clone(),
            declared,
            absent: HashSet::new(),
            bundle_seen: false,
            originals: Originals::default(),
            addresses: Addresses::default(),
            policies: Policies::default(),
        }
    }

    /// The workload id.
    #[must_use]
    pub fn workload(&self) -> &str {
        &self.id
    }

    /// The inbound side.
    #[must_use]
    pub fn workload_config(&self) -> Option<Arc<WorkloadConfig>> {
        self.workload.clone()
    }

    /// Services that were answered as not existing, and that no request may reach any more.
    #[must_use]
    pub fn absent(&self) -> HashSet<ObjectName> {
        self.absent.iter().filter(|name| !self.in_use.contains_key(*name)).cloned().collect()
    }

    /// Subscribed services.
    #[must_use]
    pub fn subscribed(&self) -> usize {
        self.wanted.len()
    }

    /// The last complete endpoint set of a service: the same one, and the same endpoints in it, until they change.
    #[must_use]
    pub fn endpoints(&self, service: &ObjectName) -> Arc<[Arc<Endpoint>]> {
        self.complete.get(service).cloned().unwrap_or_default()
    }

    /// Trust bundles that have come, or were withdrawn (`None`), since this was asked last, in their order.
    pub fn take_trust_changes(&mut self) -> Vec<(String, Option<TrustBundle>)> {
        std::mem::take(&mut self.trust_changes)
    }

    /// What is still missing for the first readiness, in words.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.bundle_seen {
            missing.push("trust bundle".to_owned());
        }
        if self.workload.is_none() {
            missing.push(format!("workload configuration {}", self.id));
        }
        let open = self.declared.iter().filter(|name| !self.in_use.contains_key(*name) && !self.absent.contains(*name));
        missing.extend(open.map(|name| format!("service {name}")));
        missing
    }

    /// The first request of each type on a new stream: the whole subscription, and what is held.
    #[must_use]
    pub fn open(&self) -> Vec<DeltaDiscoveryRequest> {
        let names: Vec<String> = self.wanted.iter().map(ToString::to_string).collect();
        [
            (ResourceType::WorkloadConfig, vec![self.id.clone()]),
            (ResourceType::TrustBundle, vec!["*".to_owned()]),
            (ResourceType::EndpointSlice, names.iter().cloned().chain(self.addresses.names()).collect()),
            (ResourceType::Service, names),
        ]
        .into_iter()
        // A first request without names would be the legacy wildcard.
        .filter(|(_, names)| !names.is_empty())
        .map(|(kind, names)| DeltaDiscoveryRequest {
            initial_resource_versions: self.versions.get(&kind).cloned().unwrap_or_default().into_iter().collect(),
            ..subscribe(kind, names)
        })
        .collect()
    }

    /// Subscribes to services; the requests to send, one for each type however many names are new (rule 9).
    pub fn want(&mut self, names: impl IntoIterator<Item = ObjectName>) -> Vec<DeltaDiscoveryRequest> {
        let new: Vec<String> =
            names.into_iter().filter(|name| self.wanted.insert(name.clone())).map(|name| name.to_string()).collect();
        if new.is_empty() {
            return Vec::new();
        }
        [ResourceType::EndpointSlice, ResourceType::Service].map(|kind| subscribe(kind, new.clone())).into()
    }

    /// Subscribes to what the held services' routes refer to.
    pub fn follow_references(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let targets =
            self.services.values().flat_map(|service| service.referenced().map(|target| target.service.clone()));
        // What an address led to came as endpoints only.
        let by_address = self.slices.keys().map(|(service, _)| service.clone());
        let new: BTreeSet<_> = targets.chain(by_address).filter(|name| !self.wanted.contains(name)).collect();
        self.want(new)
    }

    /// The services that requests may see: a new version only when everything that it refers to is held.
    pub fn usable(&mut self) -> Vec<Arc<Service>> {
        for (name, service) in &self.services {
            let ready = self.complete.contains_key(name)
                && service.referenced().all(|target| {
                    let held =
                        self.services.contains_key(&target.service) && self.complete.contains_key(&target.service);
                    held || self.absent.contains(&target.service)
                });
            if ready {
                self.in_use.insert(name.clone(), Arc::clone(service));
                self.originals.used(name);
            }
        }
        self.leave_unreferenced();
        self.in_use.values().cloned().collect()
    }

    /// Drops what was removed, except what a version refers to that is in use only until its successor may be.
    fn leave_unreferenced(&mut self) {
        let waiting = self.in_use.iter().filter(|(name, service)| {
            self.services.get(*name).is_some_and(|successor| !Arc::ptr_eq(successor, service))
        });
        let referenced = waiting.flat_map(|(_, service)| service.referenced().map(|target| target.service.clone()));
        let kept: HashSet<ObjectName> = referenced.collect();
        self.in_use.retain(|name, _| self.services.contains_key(name) || kept.contains(name));
        let held = |name: &ObjectName| self.slices.range(slices_of(name)).next().is_some();
        self.complete.retain(|name, _| kept.contains(name) || held(name));
        self.originals.leave(|name| self.in_use.contains_key(name), |name| self.complete.contains_key(name));
    }

    /// Applies a response: each resource by itself, removals last. Returns the ACK or NACK.
    pub fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let mut rejections = Vec::new();
        let kind = ResourceType::from_type_url(&response.type_url);
        let mut names = HashSet::new();
        for resource in &response.resources {
            let result = if names.insert(&resource.name) {
                kind.map_or_else(
                    || Err(whole("type_url", &response.type_url, "is not known here")),
                    |kind| self.accept(kind, resource),
                )
            } else {
                Err(whole("name", &resource.name, "is twice in one response"))
            };
            if let Err(invalid) = result {
                rejections.push(v1::Rejection {
                    name: resource.name.clone(),
                    version: resource.version.clone(),
                    field: invalid.field.clone(),
                    reason: invalid.to_string(),
                });
            }
        }
        if let Some(kind) = kind {
            for name in &response.removed_resources {
                self.remove(kind, name);
            }
        }
        let error_detail = (!rejections.is_empty()).then(|| rpc::Status {
            code: 3,
            message: rejections.iter().map(|r| format!("{}: {}", r.name, r.reason)).collect::<Vec<_>>().join("\n"),
            details: rejections
                .iter()
                .map(|rejection| weft_proto::Any {
                    type_url: "type.googleapis.com/weft.v1.Rejection".into(),
                    value: rejection.encode_to_vec().into(),
                })
                .collect(),
        });
        DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn accept(&mut self, kind: ResourceType, resource: &Resource) -> Result<(), Invalid> {
        let mut slice_of = None;
        let bytes = resource.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        match kind {
            ResourceType::TrustBundle => {
                let bundle = convert::trust_bundle(decode(bytes)?)?;
                if *bundle.trust_domain != *resource.name {
                    return Err(whole("trust_domain", &bundle.trust_domain, "differs from the resource's name"));
                }
                TrustStore::takes(&bundle.roots, &bundle.revocations)
                    .map_err(|error| whole("roots", "(certificates)", &error.to_string()))?;
                self.trust_changes.push((resource.name.clone(), Some(bundle)));
                self.bundle_seen = true;
            }
            ResourceType::WorkloadConfig => {
                let workload = convert::workload_config(decode(bytes)?)?;
                if workload.id.as_str() != self.id {
                    return Err(whole("id", workload.id.as_str(), "is not this workload"));
                }
                self.workload = Some(Arc::new(workload));
            }
            ResourceType::Service => {
                let mut service = convert::service(decode(bytes)?)?;
                if service.id.as_str() != resource.name {
                    return Err(whole("id", service.id.as_str(), "differs from the resource's name"));
                }
                self.policies.share(&mut service);
                self.absent.remove(&service.id);
                self.services.insert(service.id.clone(), Arc::new(service));
            }
            ResourceType::EndpointSlice => {
                let mut slice = convert::endpoint_slice(decode(bytes)?)?;
                if format!("{}/{}", slice.service, slice.index) != resource.name {
                    return Err(whole("service", slice.service.as_str(), "differs from the resource's name"));
                }
                let key = (slice.service.clone(), slice.index);
                if let Some(before) = self.slices.get(&key) {
                    keep_equal(&mut slice.endpoints, &before.endpoints);
                }
                slice_of = Some(key.0.clone());
                self.slices.insert(key, slice);
            }
        }
        self.originals.accepted(kind, resource);
        if let Some(service) = slice_of {
            self.complete_set(&service);
        }
        self.versions.entry(kind).or_default().insert(resource.name.clone(), resource.version.clone());
        Ok(())
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        if let Some(versions) = self.versions.get_mut(&kind) {
            versions.remove(name);
        }
        self.originals.removed(kind, name);
        match kind {
            // Whoever is not trusted any more must not get in, whatever else breaks.
            ResourceType::TrustBundle => self.trust_changes.push((name.to_owned(), None)),
            // A withdrawn configuration of our own keeps what is held: the control plane may be starting.
            ResourceType::WorkloadConfig => {}
            ResourceType::Service => {
                if let Some(name) = ObjectName::parse(name) {
                    self.services.remove(&name);
                    self.absent.insert(name);
                }
            }
            ResourceType::EndpointSlice if self.addresses.removed(name) => {}
            ResourceType::EndpointSlice => {
                let Some((service, index)) = name.rsplit_once('/') else { return };
                let (Some(service), Ok(index)) = (ObjectName::parse(service), index.parse::<u32>()) else { return };
                let key = (service, index);
                self.slices.remove(&key);
                self.complete_set(&key.0);
            }
        }
    }

    /// Replaces the endpoint set once slices 0 to n-1 are held; until then the last complete one stays.
    fn complete_set(&mut self, service: &ObjectName) {
        let held = || self.slices.range(slices_of(service)).map(|((_, index), slice)| (*index, slice));
        let Some(count) = held().next().filter(|(index, _)| *index == 0).and_then(|(_, first)| first.slice_count)
        else {
            return;
        };
        if !(0..count).eq(held().map(|(index, _)| index).take_while(|index| *index < count)) {
            return;
        }
        let all = || held().take_while(|(index, _)| *index < count).flat_map(|(_, slice)| &slice.endpoints);
        let before = self.complete.get(service);
        let same = before.is_some_and(|before| {
            before.len() == all().count() && before.iter().zip(all()).all(|(before, now)| Arc::ptr_eq(before, now))
        });
        if !same {
            let all = all().cloned().collect();
            self.complete.insert(service.clone(), all);
        }
        self.originals.completed(service, count);
    }
}

/// The keys of all slices of a service.
fn slices_of(service: &ObjectName) -> RangeInclusive<(ObjectName, u32)> {
    (service.clone(), 0)..=(service.clone(), u32::MAX)
}

/// Puts in the place of each endpoint the one of before, if it is equal: what was made of it is then known to be right.
fn keep_equal(endpoints: &mut [Arc<Endpoint>], before: &[Arc<Endpoint>]) {
    for (index, endpoint) in endpoints.iter_mut().enumerate() {
        // Most stay where they are.
        let mut candidates = before.get(index).into_iter().chain(before);
        if let Some(same) = candidates.find(|before| **before == *endpoint) {
            *endpoint = Arc::clone(same);
        }
    }
}

fn subscribe(kind: ResourceType, names: Vec<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Invalid> {
    M::decode(bytes).map_err(|error| whole("", "", &error.to_string()))
}

fn whole(field: &str, value: &str, reason: &str) -> Invalid {
    Invalid { field: field.into(), value: value.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests;
