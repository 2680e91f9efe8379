//! The delta xDS server: what every sidecar is to hold, and the stream that gets it there. The protocol is a pure
//! state machine in `stream`; here is the gRPC around it.

mod address;
pub mod admission;
pub mod debounce;
mod limits;
pub mod proxies;
pub mod server;
pub mod stream;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use weft_proto::{ResourceType, discovery::Resource};

use crate::compile::Output;

/// Everything that may be pushed, as of one revision.
#[derive(Default)]
pub struct View {
    /// Counts changes since the process began.
    pub revision: u64,
    /// The event of the store that it was made at; later ones may have changed nothing in it, see [`Reflected`].
    pub store_revision: u64,
    kinds: BTreeMap<ResourceType, Kind>,
    addresses: address::Index,
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
    /// What clients of a namespace get in place of the resource of that name.
    views: HashMap<String, BTreeMap<String, Arc<Resource>>>,
    /// What is new, other or gone since the revision before, as it was and as it is; and what clients get in place of
    /// what is gone.
    changed: Vec<Arc<Resource>>,
}

impl Kind {
    fn in_view(&self, namespace: &str, name: &str) -> Option<&Arc<Resource>> {
        self.views.get(namespace)?.get(name)
    }

    /// The resource of this content: an old one that has the same, or a new one, which is a change.
    fn take(&mut self, old: Option<&Arc<Resource>>, content: Content<'_>) -> Arc<Resource> {
        if let Some(old) = old.filter(|old| content.is_of(old)) {
            return Arc::clone(old);
        }
        let new = Arc::new(content.resource());
        self.changed.extend(old.cloned());
        self.changed.push(Arc::clone(&new));
        new
    }
}

impl View {
    /// Makes the next view: versions are hashes of the content, unchanged resources are shared with `self`.
    /// `store_revision` is the event that the output reflects.
    #[must_use]
    pub fn next(&self, output: &Output, store_revision: u64) -> Self {
        let mut kinds: BTreeMap<ResourceType, Kind> = BTreeMap::new();
        for ((kind, name), compiled) in output {
            let next = kinds.entry(*kind).or_default();
            let old = self.kinds.get(kind);
            let content = |bytes| Content { kind: *kind, name, bytes, aliases: &compiled.aliases };
            let resource = next.take(old.and_then(|old| old.resources.get(name)), content(&compiled.bytes));
            for alias in &resource.aliases {
                next.aliases.entry(alias.clone()).or_default().push(Arc::clone(&resource));
            }
            next.resources.insert(name.clone(), resource);
            for (namespace, bytes) in &compiled.views {
                let resource = next.take(old.and_then(|old| old.in_view(namespace, name)), content(bytes));
                next.views.entry(namespace.clone()).or_default().insert(name.clone(), resource);
            }
        }
        for (kind, old) in &self.kinds {
            let next = kinds.entry(*kind).or_default();
            let gone = old.resources.iter().filter(|(name, _)| !next.resources.contains_key(*name));
            let mut changed: Vec<_> = gone.map(|(_, resource)| Arc::clone(resource)).collect();
            let views = old.views.iter().flat_map(|(namespace, views)| views.iter().map(move |view| (namespace, view)));
            let views = views.filter(|(namespace, (name, _))| next.in_view(namespace, name).is_none());
            let mut instead = BTreeSet::new();
            for (_, (name, view)) in views {
                changed.push(Arc::clone(view));
                instead.insert(name);
            }
            for name in instead {
                if let (Some(before), Some(now)) = (old.resources.get(name), next.resources.get(name))
                    // What is other itself is there already.
                    && Arc::ptr_eq(before, now)
                {
                    changed.push(Arc::clone(now));
                }
            }
            next.changed.extend(changed);
        }
        Self { revision: self.revision + 1, store_revision, kinds, addresses: address::Index::default() }
    }

    /// Every resource of a type, as clients of a namespace get it.
    pub fn all<'a>(&'a self, kind: ResourceType, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
        let of_kind = self.kinds.get(&kind);
        let own = of_kind.and_then(|kind| kind.views.get(namespace));
        let shared = of_kind.into_iter().flat_map(|kind| &kind.resources);
        shared.map(move |(name, shared)| own.and_then(|own| own.get(name)).unwrap_or(shared))
    }

    /// What clients of namespaces get in place of the resource of that name: the namespace, and the resource.
    pub fn instead(&self, kind: ResourceType) -> impl Iterator<Item = (&str, &Arc<Resource>)> {
        let views = self.kinds.get(&kind).into_iter().flat_map(|kind| &kind.views);
        views.flat_map(|(namespace, views)| views.values().map(move |resource| (namespace.as_str(), resource)))
    }

    /// The resources that a subscribed name, canonical, alias or address, leads to, as clients of a namespace get them.
    #[must_use]
    pub fn named(&self, kind: ResourceType, name: &str, namespace: &str) -> &[Arc<Resource>] {
        if let (ResourceType::EndpointSlice, Some(address)) = (kind, address::of_name(name)) {
            return self.addresses.at(self, address);
        }
        let Some(kind) = self.kinds.get(&kind) else { return &[] };
        let canonical = kind.in_view(namespace, name).or_else(|| kind.resources.get(name)).map(std::slice::from_ref);
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

/// What a resource is made from.
#[derive(Clone, Copy)]
struct Content<'a> {
    kind: ResourceType,
    name: &'a str,
    bytes: &'a Bytes,
    aliases: &'a [String],
}

impl Content<'_> {
    fn is_of(&self, old: &Resource) -> bool {
        old.aliases == self.aliases && old.resource.as_ref().is_some_and(|any| any.value == *self.bytes)
    }

    fn resource(&self) -> Resource {
        Resource {
            version: version(self.bytes),
            resource: Some(weft_proto::Any { type_url: self.kind.type_url().into(), value: self.bytes.clone() }),
            name: self.name.to_owned(),
            aliases: self.aliases.to_vec(),
            ttl: None,
        }
    }
}

/// Publishes views to all streams.
pub type ViewSender = watch::Sender<Arc<View>>;

/// The version of a resource with this content.
#[must_use]
pub fn version(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
