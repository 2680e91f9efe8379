//! The ports of workloads to which a rule leads, as their sidecars have them: read once for each answer, and no more of
//! them than an answer is for.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use weft_policy::{
    convert,
    model::{InboundPort, RouteRule, Target},
};
use weft_proto::{ResourceType, v1};

use super::{effective::Effective, endpoints};

/// Ports of workloads in one answer: what they have in common is what people ask for.
pub const MAX: usize = 100;

/// What is behind a rule.
#[derive(Default)]
pub struct Behind {
    /// The first ports, by `namespace/name` of the workload and number.
    pub ports: BTreeMap<(String, u32), Port>,
    /// Namespaces with more, which who asks does not see.
    pub hidden: BTreeSet<String>,
    /// How many were left out.
    pub left_out: usize,
}

/// One port.
pub struct Port {
    /// As the sidecar has it.
    pub inbound: InboundPort,
    /// The backends of the rule that lead to it.
    pub targets: Vec<Target>,
}

impl Behind {
    /// What is behind this rule.
    #[must_use]
    pub fn of(of: &Effective<'_>, rule: &RouteRule) -> Self {
        let mut behind = Self::default();
        for target in rule.backends.iter().filter_map(|backend| backend.target.as_ref()) {
            let namespace = target.service.namespace();
            let sees = (of.sees)(namespace);
            for endpoint in endpoints(of.view, &target.service) {
                if !sees {
                    behind.hidden.insert(namespace.to_owned());
                    break;
                }
                if let Some(port) = endpoint.ports.get(&u32::from(target.port)) {
                    behind.add(of, endpoint.workload, *port, target);
                }
            }
        }
        behind
    }

    fn add(&mut self, of: &Effective<'_>, workload: String, port: u32, target: &Target) {
        let key = (workload, port);
        if let Some(known) = self.ports.get_mut(&key) {
            if !known.targets.contains(target) {
                known.targets.push(target.clone());
            }
            return;
        }
        if self.ports.len() >= MAX {
            self.left_out += 1;
            return;
        }
        let configs = of.view.named(ResourceType::WorkloadConfig, &key.0, "");
        let config = configs.first().and_then(|resource| resource.resource.as_ref());
        let config = config.and_then(|any| v1::WorkloadConfig::decode(any.value.as_ref()).ok());
        let Some(config) = config.and_then(|config| convert::workload_config(config).ok()) else { return };
        if let Some(inbound) = config.ports.into_iter().find(|inbound| u32::from(inbound.port) == port) {
            self.ports.insert(key, Port { inbound, targets: vec![target.clone()] });
        }
    }
}
