//! One discovery stream as a state machine without I/O: requests and views in, responses out.

mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prost::Message;
use weft_proto::{
    ResourceType,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    v1::Rejection,
};

pub use self::status::{SyncState, TypeStatus};
use super::{View, limits};

/// Bytes of resources in one response, about: the rest follows after its ACK, so that a slow consumer holds up no more
/// than this (rule 9). A single resource may be larger.
const RESPONSE: usize = 256 * 1024;

/// What one stream subscribes to, holds and has refused.
#[derive(Default)]
pub struct StreamState {
    types: BTreeMap<ResourceType, TypeState>,
    /// The only WorkloadConfig that this peer may see.
    workload: Option<String>,
    nonces: u64,
}

#[derive(Default)]
struct TypeState {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Canonical name to version, as accepted by the client.
    held: BTreeMap<String, String>,
    /// Canonical name to what the client refused, and why.
    refused: BTreeMap<String, Rejection>,
    /// Subscribed names to answer whatever the client holds.
    answer: BTreeSet<String>,
    /// The same by canonical name: what did not fit into the last response.
    rest: BTreeSet<String>,
    /// Subscribed names that were answered as missing.
    missing: BTreeSet<String>,
    outstanding: Option<Outstanding>,
    /// The client holds or has refused all that it is to hold as of this revision: only what changes later matters.
    settled: Option<u64>,
    seen: bool,
    sent: u64,
    acked: u64,
    sent_revision: u64,
    acked_revision: u64,
    error: String,
}

struct Outstanding {
    nonce: String,
    revision: u64,
    /// With it the client has everything.
    all: bool,
    sent: Vec<(String, String)>,
    removed: Vec<String>,
}

impl StreamState {
    /// Names the one workload whose configuration this peer may fetch.
    pub fn set_workload(&mut self, id: &str) {
        self.workload = Some(id.to_owned());
        self.types.values_mut().for_each(TypeState::unsettle);
    }

    /// Names that the stream subscribes to, over all types.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.types.values().map(|state| state.names.len()).sum()
    }

    /// Takes a request.
    pub fn on_request(&mut self, kind: ResourceType, request: DeltaDiscoveryRequest) {
        let state = self.types.entry(kind).or_default();
        let first = !state.seen;
        state.seen = true;
        let empty = request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
        if first || !empty {
            state.unsettle();
        }
        if first {
            state.held.extend(request.initial_resource_versions);
            // Legacy wildcard: the first request of a type names nothing.
            state.wildcard |= empty && request.response_nonce.is_empty();
        }
        // Subscriptions change whatever the nonce says.
        for name in request.resource_names_unsubscribe {
            if name == "*" {
                state.wildcard = false;
            } else if state.names.remove(&name) && state.wildcard {
                state.answer.insert(name.clone());
            }
            state.missing.remove(&name);
        }
        for name in request.resource_names_subscribe {
            if name == "*" {
                state.wildcard = true;
            } else {
                // A resumed client asks for what it holds: only the difference is due.
                if !first {
                    state.answer.insert(name.clone());
                }
                state.names.insert(name);
            }
        }
        if !request.response_nonce.is_empty() {
            state.settle(&request.response_nonce, request.error_detail);
        }
    }

    /// The next response, if one is due; at most one of a type is under way. Removals wait until nothing else is.
    pub fn next(&mut self, view: &View) -> Option<DeltaDiscoveryResponse> {
        for removals in [false, true] {
            if removals && self.types.values().any(|state| state.outstanding.is_some()) {
                return None;
            }
            let mut order = ResourceType::ALL;
            if removals {
                // What refers goes before what it refers to.
                order.reverse();
            }
            for kind in order {
                if let Some(response) = self.respond(kind, view, removals) {
                    return Some(response);
                }
            }
        }
        None
    }

    fn respond(&mut self, kind: ResourceType, view: &View, removals: bool) -> Option<DeltaDiscoveryResponse> {
        let workload = self.workload.clone();
        let state = self.types.get_mut(&kind)?;
        if state.outstanding.is_some() || state.still_settled(kind, view) {
            return None;
        }
        let allowed = |resource: &&Arc<Resource>| {
            kind != ResourceType::WorkloadConfig || workload.as_ref() == Some(&resource.name)
        };
        let mut wanted: BTreeMap<&str, (&Arc<Resource>, bool)> = BTreeMap::new();
        let (mut missing, mut gone_names) = (Vec::new(), Vec::new());
        if state.wildcard {
            wanted.extend(view.all(kind).filter(allowed).map(|r| (r.name.as_str(), (r, false))));
        }
        for name in state.names.union(&state.answer) {
            let mut found = view.named(kind, name).iter().filter(allowed).peekable();
            let answer = state.answer.contains(name);
            if found.peek().is_none() && state.holds(name) {
                gone_names.push(name.clone());
            } else if found.peek().is_none() && (answer || !state.missing.contains(name)) {
                missing.push(name.clone());
            }
            for resource in found {
                let entry = wanted.entry(&resource.name).or_insert((resource, false));
                entry.1 |= answer;
            }
        }
        state.forget_refused(|name| wanted.contains_key(name));
        let all = wanted.values().filter(|(resource, answer)| {
            let refused = state.refused.get(&resource.name).map(|rejection| &rejection.version);
            let version = Some(&resource.version);
            *answer
                || state.rest.contains(&resource.name)
                || (state.held.get(&resource.name) != version && refused != version)
        });
        let again = |name: &str, answer: bool| answer || state.rest.contains(name);
        let Fitting { due, rest, cut } =
            fitting(all.map(|(resource, answer)| (Arc::clone(resource), again(&resource.name, *answer))));
        let gone: Vec<String> = state.held.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
        // What is answered may be wanted no more afterwards.
        let all = !cut && (removals || gone.is_empty()) && state.answer.is_empty();
        let removed: Vec<String> =
            if removals { gone.into_iter().chain(missing.clone()).collect() } else { missing.clone() };
        if due.is_empty() && removed.is_empty() {
            state.settled = all.then_some(view.revision);
            return None;
        }
        state.answer.clear();
        state.rest = rest;
        state.missing.extend(missing);
        if removals {
            state.missing.extend(gone_names);
        }
        for resource in &due {
            state.missing.remove(&resource.name);
            resource.aliases.iter().for_each(|alias| _ = state.missing.remove(alias));
        }
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        state.sent += 1;
        state.sent_revision = view.revision;
        state.outstanding = Some(Outstanding {
            nonce: nonce.clone(),
            revision: view.revision,
            all,
            sent: due.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect(),
            removed: removed.clone(),
        });
        Some(DeltaDiscoveryResponse {
            system_version_info: view.revision.to_string(),
            resources: due.iter().map(|resource| (**resource).clone()).collect(),
            type_url: kind.type_url().into(),
            nonce,
            removed_resources: removed,
        })
    }

    /// Sync state of every type, also of those that the sidecar has not asked for.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        let none = TypeState::default();
        ResourceType::ALL.into_iter().map(|kind| self.types.get(&kind).unwrap_or(&none).status(kind)).collect()
    }
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
    /// What the client is to hold may be another set now.
    fn unsettle(&mut self) {
        self.settled = None;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.all = false;
        }
    }

    /// Whether nothing that concerns this client has changed since it had everything. Most changes concern few clients,
    /// and the ACK of a change comes at the same revision.
    fn still_settled(&mut self, kind: ResourceType, view: &View) -> bool {
        let changed = self.settled.and_then(|revision| view.changed_since(revision, kind));
        let wants = |name: &String| self.names.contains(name) || self.held.contains_key(name);
        let concerned =
            |resource: &Arc<Resource>| self.wildcard || wants(&resource.name) || resource.aliases.iter().any(wants);
        let settled = changed.is_some_and(|changed| !changed.iter().any(concerned));
        self.settled = settled.then_some(view.revision);
        settled
    }

    /// What is no longer wanted is no longer wrong.
    fn forget_refused(&mut self, wanted: impl Fn(&str) -> bool) {
        let before = self.refused.len();
        self.refused.retain(|name, _| wanted(name));
        if self.refused.is_empty() && before > 0 {
            self.error.clear();
        }
    }

    /// The client holds something under this name, canonical or alias.
    fn holds(&self, name: &str) -> bool {
        self.held
            .keys()
            .any(|held| held.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }

    /// Applies an ACK or NACK of the response under way; any other nonce says nothing.
    fn settle(&mut self, nonce: &str, error: Option<weft_proto::rpc::Status>) {
        if self.outstanding.as_ref().is_none_or(|outstanding| outstanding.nonce != nonce) {
            return;
        }
        let Some(outstanding) = self.outstanding.take() else { return };
        for name in &outstanding.removed {
            self.held.remove(name);
            self.refused.remove(name);
        }
        self.acked_revision = outstanding.revision;
        let mut refused = error.as_ref().map(|error| rejections(error, &outstanding.sent)).unwrap_or_default();
        for (name, version) in outstanding.sent {
            if let Some(rejection) = refused.remove(&name) {
                // The client keeps its last good version: only a change is sent.
                self.refused.insert(name, Rejection { version, ..rejection });
            } else {
                self.refused.remove(&name);
                self.held.insert(name, version);
            }
        }
        match error {
            Some(error) => self.error = limits::text(error.message),
            None => {
                self.acked += 1;
                self.settled = outstanding.all.then_some(outstanding.revision);
                if self.refused.is_empty() {
                    self.error.clear();
                }
            }
        }
    }
}

/// What a NACK refuses of a response, by name; without details, all of it.
fn rejections(error: &weft_proto::rpc::Status, sent: &[(String, String)]) -> BTreeMap<String, Rejection> {
    let details = error.details.iter().take(sent.len());
    let mut refused: BTreeMap<_, _> = details
        .filter_map(|any| Rejection::decode(any.value.as_ref()).ok())
        .map(|rejection| {
            let (field, reason) = (limits::text(rejection.field), limits::text(rejection.reason));
            (rejection.name.clone(), Rejection { field, reason, ..rejection })
        })
        .collect();
    if refused.is_empty() {
        let whole = |(name, _): &(String, String)| {
            let reason = limits::text(error.message.clone());
            (name.clone(), Rejection { name: name.clone(), reason, ..Rejection::default() })
        };
        refused = sent.iter().map(whole).collect();
    }
    refused
}

#[cfg(test)]
mod tests;
