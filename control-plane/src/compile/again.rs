//! Compiling again after a change. Endpoints change most, and nothing but the endpoints of their own service depends on
//! an EndpointSlice: when nothing else has changed, only those are made anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1 as discovery;
use weft_proto::ResourceType;

use super::{
    Compiled, Output, Registered, compile_with,
    endpoints::{self, Endpoints},
    instances::{self, Believed},
    put_slices, services,
};
use crate::{
    jwks::KeySets,
    sessions::Secret,
    source::{
        Object, Problem, Resources,
        pods::{Pod, Pods},
    },
};

/// Compiles, and keeps the result for the next time.
pub struct Compiler {
    always: ((ResourceType, String), Compiled),
    secret: Secret,
    last: Option<Last>,
}

struct Last {
    resources: Arc<Resources>,
    registered: Arc<Vec<Arc<Registered>>>,
    sets: Arc<KeySets>,
    output: Output,
    problems: Vec<Problem>,
}

impl Compiler {
    /// With one resource that is in every output, and what the keys of sessions are made from.
    #[must_use]
    pub const fn new(always: ((ResourceType, String), Compiled), secret: Secret) -> Self {
        Self { always, secret, last: None }
    }

    /// Replaces the content of the resource that is in every output; false when it is the same.
    pub fn set_always(&mut self, content: Compiled) -> bool {
        let changed = self.always.1 != content;
        if changed {
            if let Some(last) = &mut self.last {
                last.output.insert(self.always.0.clone(), content.clone());
            }
            self.always.1 = content;
        }
        changed
    }

    /// Whether these are what was compiled last.
    #[must_use]
    pub fn holds(
        &self,
        resources: &Arc<Resources>,
        registered: &Arc<Vec<Arc<Registered>>>,
        sets: &Arc<KeySets>,
    ) -> bool {
        let same = |last: &Last| Arc::ptr_eq(&last.resources, resources) && last.has(registered, sets);
        self.last.as_ref().is_some_and(same)
    }

    /// What [`compile`] makes of these, and the resource that is always there.
    pub fn compile(
        &mut self,
        resources: &Arc<Resources>,
        registered: &Arc<Vec<Arc<Registered>>>,
        sets: &Arc<KeySets>,
    ) -> (&Output, &[Problem]) {
        let last = match self.last.take() {
            Some(last)
                if last.has(registered, sets)
                    && only_slices(&last.resources, resources)
                    && last.same_labels(resources) =>
            {
                last.with_slices(resources)
            }
            _ => {
                let (mut output, problems) = compile_with(resources, registered, sets, &self.secret);
                output.insert(self.always.0.clone(), self.always.1.clone());
                let (resources, registered, sets) = (Arc::clone(resources), Arc::clone(registered), Arc::clone(sets));
                Last { resources, registered, sets, output, problems }
            }
        };
        let last = self.last.insert(last);
        (&last.output, &last.problems)
    }
}

impl Last {
    fn has(&self, registered: &Arc<Vec<Arc<Registered>>>, sets: &Arc<KeySets>) -> bool {
        Arc::ptr_eq(&self.registered, registered) && Arc::ptr_eq(&self.sets, sets)
    }

    /// Whether the same registrations are believed, of pods with the same labels: policies select them by these.
    fn same_labels(&self, resources: &Resources) -> bool {
        let [before, now] = [Believed::of(&self.resources), Believed::of(resources)];
        self.registered.iter().all(|entry| {
            let [before, now] =
                [&before, &now].map(|believed| believed.pod(entry).map(|pod| pod.map(|pod| &pod.labels)));
            before == now
        })
    }

    /// The same with the EndpointSlices and pods of these resources.
    fn with_slices(mut self, resources: &Arc<Resources>) -> Self {
        // Outside of a cluster nothing else is made of EndpointSlices alone.
        let in_cluster = resources.pods.is_some();
        let members =
            if in_cluster { instances::collect(resources, &self.registered, &mut Vec::new()) } else { BTreeMap::new() };
        let sources = Endpoints::of(resources, &members);
        let labelled = services::labelled(&members);
        for id in changed(&self.resources, resources) {
            let Some(service) = resources.services.get(&id) else { continue };
            let view = services::explicit(service, &labelled);
            if view.selects() && !in_cluster {
                continue;
            }
            // Nothing else begins like its slices: a name has no slash.
            let first = (ResourceType::EndpointSlice, format!("{id}/"));
            let names = self.output.range(first.clone()..).map(|(key, _)| key);
            let old: Vec<_> =
                names.take_while(|(kind, name)| *kind == first.0 && name.starts_with(&first.1)).cloned().collect();
            old.iter().for_each(|key| _ = self.output.remove(key));
            put_slices(&mut self.output, &view, &sources);
        }
        self.resources = Arc::clone(resources);
        self
    }
}

/// Whether at most EndpointSlices and pods differ (and what was left out).
pub fn only_slices(old: &Resources, new: &Resources) -> bool {
    // By name, so that a kind that comes to be is not forgotten here.
    let Resources {
        trust_domain,
        namespaces,
        services,
        endpoint_slices: _,
        routes,
        grpc_routes,
        reference_grants,
        workloads,
        traffic_policies,
        authorization_policies,
        peer_authentications,
        rate_limit_policies,
        fault_injections,
        telemetry_policies,
        request_authentications,
        mesh_configs,
        pods,
        problems: _,
        left_out: _,
    } = old;
    *trust_domain == new.trust_domain
        && same(namespaces, &new.namespaces)
        && same(services, &new.services)
        && same(routes, &new.routes)
        && same(grpc_routes, &new.grpc_routes)
        && same(reference_grants, &new.reference_grants)
        && same(workloads, &new.workloads)
        && same(traffic_policies, &new.traffic_policies)
        && same(authorization_policies, &new.authorization_policies)
        && same(peer_authentications, &new.peer_authentications)
        && same(rate_limit_policies, &new.rate_limit_policies)
        && same(fault_injections, &new.fault_injections)
        && same(telemetry_policies, &new.telemetry_policies)
        && same(request_authentications, &new.request_authentications)
        && same(mesh_configs, &new.mesh_configs)
        && pods.is_some() == new.pods.is_some()
}

/// Objects that did not change are shared.
fn same<T>(old: &BTreeMap<String, Arc<T>>, new: &BTreeMap<String, Arc<T>>) -> bool {
    old.len() == new.len() && old.values().zip(new.values()).all(|(old, new)| Arc::ptr_eq(old, new))
}

type Slices = BTreeMap<String, Arc<Object<discovery::EndpointSlice>>>;

/// Ids of the services of slices that are new, other or gone, or have pods that are.
fn changed(old: &Resources, new: &Resources) -> BTreeSet<String> {
    let moved = moved(old.pods.as_deref(), new.pods.as_deref());
    let (old, new) = (&old.endpoint_slices, &new.endpoint_slices);
    let without = |all: &Slices, other: &Slices| {
        let differs =
            |(name, slice): &(&String, &Arc<_>)| !other.get(*name).is_some_and(|same| Arc::ptr_eq(same, slice));
        all.iter().filter(differs).filter_map(|(_, slice)| service_id(slice)).collect::<Vec<_>>()
    };
    let mut found: BTreeSet<String> = without(old, new).into_iter().chain(without(new, old)).collect();
    if !moved.is_empty() {
        // An endpoint that names no pod is known by its address.
        let addresses: HashSet<&str> =
            moved.values().flat_map(|pods| pods.iter().flat_map(|pod| &pod.addresses)).map(String::as_str).collect();
        let has = |slice: &Object<discovery::EndpointSlice>| {
            slice.value.endpoints.iter().any(|endpoint| match endpoints::pod_of(slice, endpoint) {
                Some(pod) => moved.contains_key(pod.as_str()),
                None => endpoint.addresses.iter().any(|address| addresses.contains(address.as_str())),
            })
        };
        found.extend(new.values().filter(|slice| has(slice)).filter_map(|slice| service_id(slice)));
    }
    found
}

fn service_id(slice: &Object<discovery::EndpointSlice>) -> Option<String> {
    Some(format!("{}/{}", slice.namespace, endpoints::service_of(slice)?))
}

/// Pods that are new, other or gone, as they were and as they are.
fn moved<'a>(old: Option<&'a Pods>, new: Option<&'a Pods>) -> BTreeMap<&'a str, Vec<&'a Pod>> {
    let without = |all: Option<&'a Pods>, other: Option<&'a Pods>| {
        let differs =
            move |(id, pod): &(&'a String, &'a Arc<Pod>)| other.and_then(|other| other.get(*id)) != Some(*pod);
        all.into_iter().flatten().filter(differs).map(|(id, pod)| (id.as_str(), &**pod))
    };
    let mut found = BTreeMap::<_, Vec<_>>::new();
    without(old, new).chain(without(new, old)).for_each(|(id, pod)| found.entry(id).or_default().push(pod));
    found
}

#[cfg(test)]
mod tests;
