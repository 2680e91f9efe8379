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

use crate::compile::{Compiled, Output};

/// Everything that may be pushed, as of one revision.
#[derive(Default)]
pub struct View {
    /// Counts changes since the process began.
    pub revision: u64,
    /// The event of the store that it was made at; later ones may have changed nothing in it, see [`Reflected`].
    pub store_revision: u64,
    kinds: BTreeMap<ResourceType, Kind>,
}

/// How far the store's log has come in what is pushed, or in what a sidecar holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reflected {
    /// Revision of the newest view that has it.
    pub view: u64,
    /// The last event that the view reflects.
    pub store: u64,
}

/// The resources of one type.
#[derive(Default)]
struct Kind {
    resources: BTreeMap<String, Arc<Resource>>,
    aliases: HashMap<String, Vec<Arc<Resource>>>,
    /// What is new, other or gone since the revision before, as it was and as it is.
    changed: Vec<Arc<Resource>>,
}

impl View {
    /// Makes the next view: versions are hashes of the content, unchanged resources are shared with `self`.
    /// `store_revision` is the event that the output reflects.
    #[must_use]
    pub fn next(&self, output: &Output, store_revision: u64) -> Self {
        let mut kinds: BTreeMap<ResourceType, Kind> = BTreeMap::new();
        for ((kind, name), compiled) in output {
            let next = kinds.entry(*kind).or_default();
            let old = self.kinds.get(kind).and_then(|old| old.resources.get(name));
            let resource = match old {
                Some(old) if same(old, compiled) => Arc::clone(old),
                _ => {
                    let new = Arc::new(resource(*kind, name, compiled));
                    next.changed.extend(old.cloned());
                    next.changed.push(Arc::clone(&new));
                    new
                }
            };
            for alias in &resource.aliases {
                next.aliases.entry(alias.clone()).or_default().push(Arc::clone(&resource));
            }
            next.resources.insert(name.clone(), resource);
        }
        for (kind, old) in &self.kinds {
            let next = kinds.entry(*kind).or_default();
            let gone = old.resources.iter().filter(|(name, _)| !next.resources.contains_key(*name));
            next.changed.extend(gone.map(|(_, resource)| Arc::clone(resource)));
        }
        Self { revision: self.revision + 1, store_revision, kinds }
    }

    /// Every resource of a type.
    pub fn all(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<Resource>> {
        self.kinds.get(&kind).into_iter().flat_map(|kind| kind.resources.values())
    }

    /// The resources that a subscribed name, canonical or alias, leads to.
    #[must_use]
    pub fn named(&self, kind: ResourceType, name: &str) -> &[Arc<Resource>] {
        let Some(kind) = self.kinds.get(&kind) else { return &[] };
        let canonical = kind.resources.get(name).map(std::slice::from_ref);
        canonical.or_else(|| kind.aliases.get(name).map(Vec::as_slice)).unwrap_or_default()
    }

    /// Whether anything differs from the view that this one was made from.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.kinds.values().any(|kind| !kind.changed.is_empty())
    }

    /// What of a type differs from an earlier revision, as it was and as it is; `None` when that is not known any more.
    fn changed_since(&self, revision: u64, kind: ResourceType) -> Option<&[Arc<Resource>]> {
        if revision == self.revision {
            return Some(&[]);
        }
        let changed = || self.kinds.get(&kind).map(|kind| kind.changed.as_slice()).unwrap_or_default();
        (revision + 1 == self.revision).then(changed)
    }
}

fn same(old: &Resource, compiled: &Compiled) -> bool {
    old.aliases == compiled.aliases && old.resource.as_ref().is_some_and(|any| any.value == compiled.bytes)
}

fn resource(kind: ResourceType, name: &str, compiled: &Compiled) -> Resource {
    Resource {
        version: version(&compiled.bytes),
        resource: Some(weft_proto::Any { type_url: kind.type_url().into(), value: compiled.bytes.clone() }),
        name: name.to_owned(),
        aliases: compiled.aliases.clone(),
        ttl: None,
    }
}

/// Publishes views to all streams.
pub type ViewSender = watch::Sender<Arc<View>>;

fn version(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
