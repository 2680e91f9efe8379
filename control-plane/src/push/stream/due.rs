//! What a client is to be sent of one type: everything that it wants against everything that it holds, or, for a client
//! that has everything, only what has changed since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_proto::{ResourceType, discovery::Resource};

use super::{Peer, TypeState, View};
use crate::push::address;

/// Bytes of resources in one response, about: the rest follows after its ACK, so that a slow consumer holds up no more
/// than this (rule 9). A single resource may be larger.
const RESPONSE: usize = 256 * 1024;

/// What goes into one response.
pub(super) struct Due {
    pub resources: Vec<Arc<Resource>>,
    pub removed: Vec<String>,
    /// With it the client has everything that it is to have.
    pub all: bool,
}

/// What has changed for a client since it had everything.
pub(super) enum Since {
    /// Nothing that concerns it.
    Nothing,
    /// Only the content of these, which it holds.
    Other(Vec<Arc<Resource>>),
    /// It did not have everything, or more is different.
    Unknown,
}

/// What goes into one response.
struct Fitting {
    due: Vec<Arc<Resource>>,
    /// Names of those that are to be answered in a later one although the client may hold them.
    rest: BTreeSet<String>,
    /// Something is left for a later one.
    cut: bool,
}

/// As many resources as go into one response.
fn fitting(all: impl Iterator<Item = (Arc<Resource>, bool)>) -> Fitting {
    let (mut due, mut rest, mut cut, mut bytes) = (Vec::new(), BTreeSet::new(), false, 0_usize);
    for (resource, answer) in all {
        if bytes < RESPONSE {
            bytes += resource.resource.as_ref().map_or(0, |any| any.value.len());
            due.push(resource);
            continue;
        }
        cut = true;
        if answer {
            rest.insert(resource.name.clone());
        }
    }
    Fitting { due, rest, cut }
}

impl TypeState {
    /// Most changes concern few clients, an ACK comes at the revision of its response, and what changes most are
    /// endpoints: none of this needs a look at all that the client wants.
    pub(super) fn since_settled(&mut self, kind: ResourceType, view: &View, namespace: &str) -> Since {
        let changed = self.settled.and_then(|revision| view.changed_since(revision, kind));
        let since = changed.map_or(Since::Unknown, |changed| self.since(kind, view, namespace, changed));
        self.settled = matches!(since, Since::Nothing).then_some(view.revision);
        since
    }

    fn since(&self, kind: ResourceType, view: &View, namespace: &str, changed: &[Arc<Resource>]) -> Since {
        // Which slices an address leads to is not known of the slices before they are looked at.
        if kind == ResourceType::EndpointSlice && address::is_in(&self.names) {
            return Since::Unknown;
        }
        let (mut other, mut bytes) = (Vec::new(), 0);
        for resource in changed {
            let named =
                self.names.contains(&resource.name) || resource.aliases.iter().any(|alias| self.names.contains(alias));
            let held = self.held.get(&resource.name);
            if !named && !self.wildcard && held.is_none() {
                continue;
            }
            if !named || held.is_none() || self.refused.contains_key(&resource.name) {
                return Since::Unknown;
            }
            match view.named(kind, &resource.name, namespace) {
                // What it was, or is for others, beside what it is.
                [now] if !Arc::ptr_eq(now, resource) => {
                    if now.aliases != resource.aliases {
                        return Since::Unknown;
                    }
                }
                [now] => {
                    bytes += now.resource.as_ref().map_or(0, |any| any.value.len());
                    if held != Some(&now.version) {
                        other.push(Arc::clone(now));
                    }
                }
                _ => return Since::Unknown,
            }
        }
        match (other.is_empty(), bytes < RESPONSE) {
            (true, _) => Since::Nothing,
            (false, true) => Since::Other(other),
            (false, false) => Since::Unknown,
        }
    }

    /// What is due by this view; `None` when nothing is.
    pub(super) fn due(&mut self, kind: ResourceType, view: &View, peer: &Peer, removals: bool) -> Option<Due> {
        let allowed = |resource: &&Arc<Resource>| {
            kind != ResourceType::WorkloadConfig || peer.workload.as_ref() == Some(&resource.name)
        };
        let mut wanted: BTreeMap<&str, (&Arc<Resource>, bool)> = BTreeMap::new();
        let (mut missing, mut gone_names, mut there) = (Vec::new(), Vec::new(), Vec::new());
        if self.wildcard {
            wanted.extend(view.all(kind, &peer.namespace).filter(allowed).map(|r| (r.name.as_str(), (r, false))));
        }
        for name in self.names.union(&self.answer) {
            let mut found = view.named(kind, name, &peer.namespace).iter().filter(allowed).peekable();
            let answer = self.answer.contains(name);
            if found.peek().is_none() && self.holds(name) {
                gone_names.push(name.clone());
            } else if found.peek().is_none() && (answer || !self.missing.contains(name)) {
                missing.push(name.clone());
            }
            if found.peek().is_some() {
                // Resources have their names and aliases with them, and not the addresses that lead to them.
                there.push(name.clone());
            }
            for resource in found {
                let entry = wanted.entry(&resource.name).or_insert((resource, false));
                entry.1 |= answer;
            }
        }
        there.iter().for_each(|name| _ = self.missing.remove(name));
        self.forget_refused(|name| wanted.contains_key(name));
        let again = |name: &str, answer: bool| answer || self.rest.contains(name);
        let due = wanted.values().filter(|(resource, answer)| {
            let refused = self.refused.get(&resource.name).map(|rejection| &rejection.version);
            let version = Some(&resource.version);
            again(&resource.name, *answer) || (self.held.get(&resource.name) != version && refused != version)
        });
        let Fitting { due, rest, cut } =
            fitting(due.map(|(resource, answer)| (Arc::clone(resource), again(&resource.name, *answer))));
        let gone: Vec<String> = self.held.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
        // What is answered may be wanted no more afterwards.
        let all = !cut && (removals || gone.is_empty()) && self.answer.is_empty();
        let removed: Vec<String> =
            if removals { gone.into_iter().chain(missing.clone()).collect() } else { missing.clone() };
        if due.is_empty() && removed.is_empty() {
            self.settled = all.then_some(view.revision);
            return None;
        }
        self.answer.clear();
        self.rest = rest;
        self.missing.extend(missing);
        if removals {
            self.missing.extend(gone_names);
        }
        for resource in &due {
            self.missing.remove(&resource.name);
            resource.aliases.iter().for_each(|alias| _ = self.missing.remove(alias));
        }
        Some(Due { resources: due, removed, all })
    }
}
