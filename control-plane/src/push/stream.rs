//! One discovery stream as a state machine without I/O: requests and views in, responses out.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use weft_proto::{
    ResourceType,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    v1::Rejection,
};

use super::View;

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
    /// Canonical name to the version that the client refused.
    refused: BTreeMap<String, String>,
    /// Names to answer whatever the client holds.
    answer: BTreeSet<String>,
    /// Subscribed names that were answered as missing.
    missing: BTreeSet<String>,
    outstanding: Option<Outstanding>,
    seen: bool,
    sent: u64,
    acked: u64,
    error: String,
}

struct Outstanding {
    nonce: String,
    sent: Vec<(String, String)>,
    removed: Vec<String>,
}

/// Sync state of one type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TypeStatus {
    /// Which type.
    pub kind: ResourceType,
    /// SYNCED, NOT_SENT, STALE or ERROR.
    pub state: &'static str,
    /// Responses sent.
    pub sent: u64,
    /// Responses accepted.
    pub acked: u64,
    /// The last NACK, until the next ACK.
    pub error: String,
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
        let due: Vec<_> = wanted
            .values()
            .filter(|(resource, answer)| {
                let version = Some(&resource.version);
                *answer || (state.held.get(&resource.name) != version && state.refused.get(&resource.name) != version)
            })
            .map(|(resource, _)| (*resource).clone())
            .collect();
        let gone: Vec<String> = state.held.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        let removed: Vec<String> =
            if removals { gone.into_iter().chain(missing.clone()).collect() } else { missing.clone() };
        if due.is_empty() && removed.is_empty() {
            return None;
        }
        state.answer.clear();
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
        state.outstanding = Some(Outstanding {
            nonce: nonce.clone(),
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

    /// Sync state, type by type.
    #[must_use]
    pub fn status(&self) -> Vec<TypeStatus> {
        self.types
            .iter()
            .map(|(kind, state)| TypeStatus {
                kind: *kind,
                state: match state {
                    state if !state.error.is_empty() => "ERROR",
                    state if state.outstanding.is_some() => "STALE",
                    state if state.sent == 0 && state.held.is_empty() => "NOT_SENT",
                    _ => "SYNCED",
                },
                sent: state.sent,
                acked: state.acked,
                error: state.error.clone(),
            })
            .collect()
    }
}

impl TypeState {
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
        let refused: Option<BTreeSet<String>> = error.as_ref().map(|error| {
            let details = error.details.iter().filter_map(|any| Rejection::decode(any.value.as_slice()).ok());
            let names: BTreeSet<_> = details.map(|rejection| rejection.name).collect();
            // Without details the whole response is refused.
            if names.is_empty() { outstanding.sent.iter().map(|(name, _)| name.clone()).collect() } else { names }
        });
        for (name, version) in outstanding.sent {
            if refused.as_ref().is_some_and(|refused| refused.contains(&name)) {
                // The client keeps its last good version, which is no longer known here: only a change is sent.
                self.refused.insert(name, version);
            } else {
                self.refused.remove(&name);
                self.held.insert(name, version);
            }
        }
        match error {
            Some(error) => self.error = error.message,
            None => {
                self.acked += 1;
                if self.refused.is_empty() {
                    self.error.clear();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
