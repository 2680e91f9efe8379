//! What is held, in the form in which it is kept on disk, and back: the last good version of each resource as it came
//! from the wire. A service is kept in the version that requests see, and its endpoints as the last complete set.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use weft_policy::{SpiffeId, model::ObjectName};
use weft_proto::{ResourceType, discovery::Resource};

use super::State;
use crate::state::{
    Refused,
    configuration::{StoredConfiguration, StoredResource},
};

/// Resources as they came. Empty and without cost while nothing is kept.
#[derive(Default)]
pub(super) struct Originals {
    kept: bool,
    held: BTreeMap<(ResourceType, String), Arc<StoredResource>>,
    /// Of the services in use.
    services: HashMap<ObjectName, Arc<StoredResource>>,
    /// Of the complete endpoint sets.
    slices: HashMap<ObjectName, Vec<Arc<StoredResource>>>,
}

impl Originals {
    /// A resource was accepted.
    pub(super) fn accepted(&mut self, kind: ResourceType, resource: &Resource) {
        if !self.kept {
            return;
        }
        let bytes = resource.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        let (name, version) = (resource.name.clone(), resource.version.clone());
        // A copy: a view would keep the whole response in memory.
        let stored = StoredResource { kind, name: name.clone(), version, bytes: bytes.to_vec().into() };
        self.held.insert((kind, name), Arc::new(stored));
    }

    /// A resource was removed. Our own configuration stays in use, and so it stays here.
    pub(super) fn removed(&mut self, kind: ResourceType, name: &str) {
        if kind != ResourceType::WorkloadConfig {
            self.held.remove(&(kind, name.to_owned()));
        }
    }

    /// Requests see the held version of a service from now on.
    pub(super) fn used(&mut self, service: &ObjectName) {
        if self.kept
            && let Some(stored) = self.held.get(&(ResourceType::Service, service.as_str().to_owned()))
        {
            self.services.insert(service.clone(), Arc::clone(stored));
        }
    }

    /// The endpoint set of a service is that of its held slices 0 to `count` - 1.
    pub(super) fn completed(&mut self, service: &ObjectName, count: u32) {
        if self.kept {
            let slices = (0..count).map(|index| (ResourceType::EndpointSlice, format!("{service}/{index}")));
            self.slices.insert(service.clone(), slices.filter_map(|key| self.held.get(&key).cloned()).collect());
        }
    }

    /// Drops what is not in use any more.
    pub(super) fn leave(&mut self, used: impl Fn(&ObjectName) -> bool, complete: impl Fn(&ObjectName) -> bool) {
        self.services.retain(|name, _| used(name));
        self.slices.retain(|name, _| complete(name));
    }

    fn all(&self) -> Vec<StoredResource> {
        let own = [ResourceType::TrustBundle, ResourceType::WorkloadConfig];
        let held = self.held.iter().filter(|((kind, _), _)| own.contains(kind)).map(|(_, stored)| stored);
        let mut all: Vec<_> = held.chain(self.slices.values().flatten()).chain(self.services.values()).collect();
        all.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        all.into_iter().map(|stored| (**stored).clone()).collect()
    }
}

impl State {
    /// From now on resources are kept as they come.
    #[must_use]
    pub fn keeping_originals(mut self) -> Self {
        self.originals.kept = true;
        self
    }

    /// What is held, for the disk.
    #[must_use]
    pub fn stored(&self, spiffe_id: &SpiffeId) -> StoredConfiguration {
        let text = |names: &mut dyn Iterator<Item = &ObjectName>| names.map(ToString::to_string).collect();
        StoredConfiguration {
            workload: self.id.clone(),
            spiffe_id: spiffe_id.to_string(),
            resources: self.originals.all(),
            wanted: text(&mut self.wanted.iter()),
            absent: text(&mut self.absent().iter()),
        }
    }

    /// The state of before, converted by the code that converts what comes from the wire; with all of it, or none.
    ///
    /// # Errors
    /// The first resource or name that is not accepted.
    pub fn restore(
        id: &str,
        declared: impl IntoIterator<Item = ObjectName>,
        stored: &StoredConfiguration,
    ) -> Result<Self, Refused> {
        let mut state = Self::new(id, declared).keeping_originals();
        for one in &stored.resources {
            let any = weft_proto::Any { type_url: one.kind.type_url().into(), value: one.bytes.clone() };
            let (name, version) = (one.name.clone(), one.version.clone());
            let resource = Resource { name, version, resource: Some(any), ..Resource::default() };
            state.accept(one.kind, &resource).map_err(|invalid| {
                Refused::Content(format!("its {} {:?} is not accepted: {invalid}", one.kind.name(), one.name))
            })?;
        }
        let parse = |name: &String| {
            ObjectName::parse(name).ok_or_else(|| Refused::Content(format!("{name:?} is no name of a service")))
        };
        for name in &stored.wanted {
            state.wanted.insert(parse(name)?);
        }
        for name in &stored.absent {
            let name = parse(name)?;
            if !state.services.contains_key(&name) {
                state.absent.insert(name);
            }
        }
        Ok(state)
    }
}
