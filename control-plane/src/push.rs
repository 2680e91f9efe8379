//! The delta xDS server: what every sidecar is to hold, and the stream that gets it there. The protocol is a pure
//! state machine in `stream`; here is the gRPC around it.

pub mod admission;
pub mod debounce;
mod limits;
pub mod proxies;
pub mod server;
pub mod stream;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use weft_proto::{ResourceType, discovery::Resource};

use crate::compile::Output;

/// Everything that may be pushed, as of one revision.
#[derive(Default)]
pub struct View {
    /// Counts changes since the process began.
    pub revision: u64,
    resources: BTreeMap<(ResourceType, String), Arc<Resource>>,
    aliases: HashMap<(ResourceType, String), Vec<String>>,
}

impl View {
    /// Makes the next view: versions are hashes of the content, unchanged resources are shared with `self`.
    #[must_use]
    pub fn next(&self, output: Output) -> Self {
        let mut aliases: HashMap<_, Vec<String>> = HashMap::new();
        let mut resources = BTreeMap::new();
        for ((kind, name), compiled) in output {
            let version = version(&compiled.bytes);
            for alias in &compiled.aliases {
                aliases.entry((kind, alias.clone())).or_default().push(name.clone());
            }
            let key = (kind, name);
            let resource = match self.resources.get(&key) {
                Some(old) if old.version == version && old.aliases == compiled.aliases => Arc::clone(old),
                _ => Arc::new(Resource {
                    version,
                    resource: Some(weft_proto::Any { type_url: kind.type_url().into(), value: compiled.bytes }),
                    name: key.1.clone(),
                    aliases: compiled.aliases,
                    ttl: None,
                }),
            };
            resources.insert(key, resource);
        }
        Self { revision: self.revision + 1, resources, aliases }
    }

    /// Every resource of a type.
    pub fn all(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.iter().filter(move |((candidate, _), _)| *candidate == kind).map(|(_, resource)| resource)
    }

    /// The resources that a subscribed name, canonical or alias, leads to.
    pub fn named(&self, kind: ResourceType, name: &str) -> Vec<&Arc<Resource>> {
        let key = (kind, name.to_owned());
        if let Some(resource) = self.resources.get(&key) {
            return vec![resource];
        }
        let canonical = self.aliases.get(&key).into_iter().flatten();
        canonical.filter_map(|name| self.resources.get(&(kind, name.clone()))).collect()
    }

    /// Same content, whatever the revision.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.resources.len() == other.resources.len()
            && self.resources.iter().zip(&other.resources).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1))
    }
}

/// Publishes views to all streams.
pub type ViewSender = watch::Sender<Arc<View>>;

fn version(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
