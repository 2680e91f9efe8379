//! The workloads of a mesh for those who explain it: who they are, and whose mode is in force at their ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Registered,
    instances::{self, Instance},
    policies::Guards,
    services,
};
use crate::source::Resources;

/// All workloads, registered or written down.
pub struct Workloads<'a> {
    resources: &'a Resources,
    instances: BTreeMap<String, Instance>,
}

impl<'a> Workloads<'a> {
    /// Those that compiling knows.
    #[must_use]
    pub fn of(resources: &'a Resources, registered: &[Arc<Registered>]) -> Self {
        Self { resources, instances: instances::collect(resources, registered, &mut Vec::new()) }
    }

    /// SPIFFE id and address of a workload `namespace/name`.
    #[must_use]
    pub fn known(&self, id: &str) -> Option<(&str, &str)> {
        self.instances.get(id).map(|instance| (instance.spiffe_id.as_str(), instance.address.as_str()))
    }

    /// Who says the mode of these ports of workloads.
    #[must_use]
    pub fn mode_origins(&self, wanted: &BTreeSet<(String, u32)>) -> BTreeMap<(String, u32), String> {
        let views = services::collect(self.resources, &self.instances, &mut Vec::new());
        let guards = Guards::of(self.resources);
        let origin = |(id, number): &(String, u32)| {
            let instance = self.instances.get(id)?;
            let views = views.values().filter(|view| view.members.iter().any(|member| member == id));
            let served: Vec<_> = views
                .flat_map(|view| view.ports.iter().map(move |port| (view, port)))
                .filter(|(_, port)| port.target.resolve(port.port, instance) == Some(*number))
                .map(|(view, port)| view.place(port))
                .collect();
            Some(((id.clone(), *number), guards.mode(instance, *number, &served).1.to_string()))
        };
        wanted.iter().filter_map(origin).collect()
    }
}
