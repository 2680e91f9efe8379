//! One discovery stream as a state machine without I/O: requests and views in, responses out.

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

use super::{View, limits};

/// Bytes of resources in one response, about: the rest follows after its ACK, so that a slow consumer holds up no more
/// than this (rule 9). A single resource may be larger.
const RESPONSE: usize = 256 * 1024;
/// Refused resources that a status shows.
const SHOWN: usize = 16;

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
    sent: Vec<(String, String)>,
    removed: Vec<String>,
}

/// Sync state of one type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TypeStatus {
    /// Which type.
    pub kind: ResourceType,
    /// Whether the sidecar holds what it was sent.
    pub state: SyncState,
    /// Responses sent.
    pub sent: u64,
    /// Responses accepted.
    pub acked: u64,
    /// Revision of the view that the last response was made from; 0 before the first.
    pub sent_revision: u64,
    /// The same for the last response that was answered.
    pub acked_revision: u64,
    /// The last NACK, until what it refused has changed and was accepted, or is no longer wanted.
    pub error: String,
    /// What is refused at the moment, field by field; the first [`SHOWN`].
    pub refused: Vec<Rejection>,
}

/// Whether a sidecar holds what it was sent of a type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SyncState {
    /// Something that it was sent is refused.
    Error,
    /// Nothing was due so far.
    NotSent,
    /// Sent and not yet answered.
    Stale,
    /// What was sent last was accepted, or it came back with everything.
    Synced,
}

impl SyncState {
    /// As the API shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::NotSent => "NOT_SENT",
            Self::Stale => "STALE",
            Self::Synced => "SYNCED",
        }
    }
}

impl StreamState {
    /// Names the one workload whose configuration this peer may fetch.
    pub fn set_workload(&mut self, id: &str) {
        self.workload = Some(id.to_owned());
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
        if state.outstanding.is_some() {
            return None;
        }
        let allowed = |name: &str| kind != ResourceType::WorkloadConfig || workload.as_deref() == Some(name);
        let mut wanted = BTreeMap::new();
        let (mut missing, mut gone_names) = (Vec::new(), Vec::new());
        if state.wildcard {
            wanted.extend(view.all(kind).filter(|r| allowed(&r.name)).map(|r| (r.name.clone(), (r, false))));
        }
        for name in state.names.union(&state.answer) {
            let found = view.named(kind, name);
            let found: Vec<_> = found.into_iter().filter(|resource| allowed(&resource.name)).collect();
            if found.is_empty() && state.holds(name) {
                gone_names.push(name.clone());
            } else if found.is_empty() && (state.answer.contains(name) || !state.missing.contains(name)) {
                missing.push(name.clone());
            }
            let answer = state.answer.contains(name);
            for resource in found {
                let entry = wanted.entry(resource.name.clone()).or_insert((resource, false));
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
        let (due, rest) = fitting(all.map(|(resource, answer)| ((*resource).clone(), again(&resource.name, *answer))));
        let gone: Vec<String> = state.held.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        let removed: Vec<String> =
            if removals { gone.into_iter().chain(missing.clone()).collect() } else { missing.clone() };
        if due.is_empty() && removed.is_empty() {
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

/// As many resources as go into one response, and the names of those that are to be answered in a later one although
/// the client may hold them.
fn fitting(all: impl Iterator<Item = (Arc<Resource>, bool)>) -> (Vec<Arc<Resource>>, BTreeSet<String>) {
    let (mut due, mut rest, mut bytes) = (Vec::new(), BTreeSet::new(), 0_usize);
    for (resource, answer) in all {
        if bytes < RESPONSE {
            bytes += resource.resource.as_ref().map_or(0, |any| any.value.len());
            due.push(resource);
        } else if answer {
            rest.insert(resource.name.clone());
        }
    }
    (due, rest)
}

impl TypeState {
    fn status(&self, kind: ResourceType) -> TypeStatus {
        TypeStatus {
            kind,
            state: match self {
                state if !state.error.is_empty() => SyncState::Error,
                state if state.outstanding.is_some() => SyncState::Stale,
                state if state.sent == 0 && state.held.is_empty() => SyncState::NotSent,
                _ => SyncState::Synced,
            },
            sent: self.sent,
            acked: self.acked,
            sent_revision: self.sent_revision,
            acked_revision: self.acked_revision,
            error: self.error.clone(),
            refused: self.refused.values().take(SHOWN).cloned().collect(),
        }
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
