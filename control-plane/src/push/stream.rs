//! One discovery stream as a state machine without I/O: requests and views in, responses out.

mod due;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prost::Message;
use weft_proto::{
    ResourceType,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    v1::Rejection,
};

use self::due::{Due, Since};
pub use self::status::{SyncState, TypeStatus};
use super::{View, limits};

/// What one stream subscribes to, holds and has refused.
#[derive(Default)]
pub struct StreamState {
    types: BTreeMap<ResourceType, TypeState>,
    peer: Peer,
    nonces: u64,
}

/// Who the client is.
#[derive(Default)]
struct Peer {
    /// The only WorkloadConfig that it may see.
    workload: Option<String>,
    /// Its own, by its proven identity: which view it gets. Empty: the one that is shared.
    namespace: String,
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
    /// The stream of a client that has proved to be of this namespace.
    #[must_use]
    pub fn of_namespace(namespace: &str) -> Self {
        let peer = Peer { namespace: namespace.to_owned(), ..Peer::default() };
        Self { peer, ..Self::default() }
    }

    /// Names the one workload whose configuration this peer may fetch.
    pub fn set_workload(&mut self, id: &str) {
        self.peer.workload = Some(id.to_owned());
        self.types.values_mut().for_each(TypeState::unsettle);
    }

    /// Names that the stream subscribes to, over all types.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.types.values().map(|state| state.names.len()).sum()
    }

    /// The services that it subscribes to; `*` for all.
    #[must_use]
    pub fn services(&self) -> Arc<[String]> {
        let of = self.types.get(&ResourceType::Service);
        let all = of.filter(|state| state.wildcard).map(|_| "*".to_owned());
        all.into_iter().chain(of.into_iter().flat_map(|state| state.names.iter().cloned())).collect()
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
        let state = self.types.get_mut(&kind)?;
        if state.outstanding.is_some() {
            return None;
        }
        let Due { resources: due, removed, all } = match state.since_settled(kind, view, &self.peer.namespace) {
            Since::Nothing => return None,
            Since::Other(resources) => Due { resources, removed: Vec::new(), all: true },
            Since::Unknown => state.due(kind, view, &self.peer, removals)?,
        };
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

    /// Whether the client has answered all that it is to hold by this view, of every type that it asked for; false
    /// before it asked for any. What it refused counts as answered: only a change of it is sent again.
    #[must_use]
    pub fn is_settled(&self, view: &View) -> bool {
        let mut asked = self.types.values().filter(|state| state.seen).peekable();
        asked.peek().is_some() && asked.all(|state| state.settled == Some(view.revision))
    }

    /// Sync state of the types that the sidecar subscribes to: nothing is due of others.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        let subscribed = |state: &TypeState| state.wildcard || !state.names.is_empty();
        let states = ResourceType::ALL.into_iter().filter_map(|kind| Some((kind, self.types.get(&kind)?)));
        states.filter(|(_, state)| subscribed(state)).map(|(kind, state)| state.status(kind)).collect()
    }
}

impl TypeState {
    /// What the client is to hold may be another set now.
    fn unsettle(&mut self) {
        self.settled = None;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.all = false;
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
