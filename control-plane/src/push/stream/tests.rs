//! The rules of DESIGN section 4 that are the server's, by number.

use weft_proto::rpc;

use super::*;
use crate::compile::{Compiled, Output};

const SERVICE: ResourceType = ResourceType::Service;

fn view(entries: &[(ResourceType, &str, &str)]) -> View {
    let output: Output = entries
        .iter()
        .map(|(kind, name, content)| {
            let alias = name.rsplit_once('/').map(|(alias, _)| alias.to_owned());
            let aliases = alias.filter(|_| *kind == ResourceType::EndpointSlice).into_iter().collect();
            ((*kind, (*name).to_owned()), Compiled { bytes: content.as_bytes().to_vec(), aliases })
        })
        .collect();
    View::default().next(output)
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: nonce.into(), ..DeltaDiscoveryRequest::default() }
}

fn nack(nonce: &str, name: &str) -> DeltaDiscoveryRequest {
    let rejection = Rejection { name: name.into(), reason: "bad".into(), ..Rejection::default() };
    let detail = prost_types::Any { type_url: String::new(), value: rejection.encode_to_vec() };
    let error = rpc::Status { code: 3, message: format!("{name}: bad"), details: vec![detail] };
    DeltaDiscoveryRequest { error_detail: Some(error), ..ack(nonce) }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[test]
fn rule_01_a_peer_sees_its_own_workload_config_only() {
    let view = view(&[(ResourceType::WorkloadConfig, "a/me", "1"), (ResourceType::WorkloadConfig, "a/other", "1")]);
    let mut state = StreamState::default();
    state.set_workload("a/me");
    state.on_request(ResourceType::WorkloadConfig, subscribe(&["*", "a/other"]));
    let response = state.next(&view).expect("its own");
    assert_eq!(names(&response), ["a/me"]);
    assert_eq!(response.removed_resources, ["a/other"]);
}

#[test]
fn rule_02_a_subscription_with_a_stale_nonce_is_applied() {
    let view = view(&[(SERVICE, "a/x", "1"), (SERVICE, "a/y", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x"]));
    let first = state.next(&view).expect("x");
    state.on_request(SERVICE, DeltaDiscoveryRequest { response_nonce: "stale".into(), ..subscribe(&["a/y"]) });
    assert!(state.next(&view).is_none(), "one response at a time");
    state.on_request(SERVICE, ack(&first.nonce));
    assert_eq!(names(&state.next(&view).expect("y")), ["a/y"]);
}

#[test]
fn rule_03_what_was_refused_is_not_resent_until_it_changes() {
    let old = view(&[(SERVICE, "a/x", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x"]));
    let response = state.next(&old).expect("x");
    state.on_request(SERVICE, nack(&response.nonce, "a/x"));
    assert!(state.next(&old).is_none());
    assert_eq!(names(&state.next(&view(&[(SERVICE, "a/x", "2")])).expect("changed")), ["a/x"]);
}

#[test]
fn rule_04_one_bad_resource_refuses_only_itself() {
    let old = view(&[(SERVICE, "a/x", "1"), (SERVICE, "a/y", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x", "a/y"]));
    let response = state.next(&old).expect("both");
    state.on_request(SERVICE, nack(&response.nonce, "a/x"));
    let status = &state.status()[0];
    assert_eq!((status.state, status.error.as_str()), ("ERROR", "a/x: bad"));
    let next = view(&[(SERVICE, "a/y", "1")]);
    let response = state.next(&next).expect("x is gone, whichever version the client kept");
    assert_eq!((names(&response).len(), response.removed_resources), (0, vec!["a/x".to_owned()]), "y is held");
}

#[test]
fn rule_05_a_missing_name_is_answered_as_removed_and_pushed_when_it_appears() {
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x"]));
    let response = state.next(&view(&[])).expect("an answer");
    assert_eq!(response.removed_resources, ["a/x"]);
    state.on_request(SERVICE, ack(&response.nonce));
    assert!(state.next(&view(&[])).is_none(), "answered once");
    assert_eq!(names(&state.next(&view(&[(SERVICE, "a/x", "1")])).expect("it appeared")), ["a/x"]);
}

#[test]
fn rule_06_a_reconnect_yields_only_the_difference() {
    let old = view(&[(SERVICE, "a/x", "1"), (SERVICE, "a/y", "1")]);
    let version = |name| old.named(SERVICE, name)[0].version.clone();
    let held = [("a/x".to_owned(), version("a/x")), ("a/z".to_owned(), "gone".into())];
    let mut state = StreamState::default();
    let request = DeltaDiscoveryRequest { initial_resource_versions: held.into(), ..subscribe(&["a/x", "a/y", "a/z"]) };
    state.on_request(SERVICE, request);
    let response = state.next(&old).expect("the difference");
    assert_eq!((names(&response), response.removed_resources.len()), (vec!["a/y"], 0), "removals go last");
    state.on_request(SERVICE, ack(&response.nonce));
    assert_eq!(state.next(&old).expect("the removal").removed_resources, ["a/z"]);
}

#[test]
fn rule_07_endpoints_come_before_services_and_removals_last() {
    let both = view(&[(SERVICE, "a/x", "1"), (ResourceType::EndpointSlice, "a/x/0", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x", "a/y"]));
    state.on_request(ResourceType::EndpointSlice, subscribe(&["a/x"]));
    let first = state.next(&both).expect("endpoints");
    assert_eq!(first.type_url, ResourceType::EndpointSlice.type_url());
    let second = state.next(&both).expect("services");
    state.on_request(ResourceType::EndpointSlice, ack(&first.nonce));
    state.on_request(SERVICE, ack(&second.nonce));
    let changed = view(&[(SERVICE, "a/y", "1")]);
    let third = state.next(&changed).expect("the addition");
    assert_eq!((names(&third), third.removed_resources.len()), (vec!["a/y"], 0));
    assert!(state.next(&changed).is_none(), "nothing is removed while an addition is under way");
    state.on_request(SERVICE, ack(&third.nonce));
    let fourth = state.next(&changed).expect("the service goes before its endpoints");
    assert_eq!(fourth.removed_resources, ["a/x"]);
    state.on_request(SERVICE, ack(&fourth.nonce));
    let fifth = state.next(&changed).expect("its endpoints");
    assert_eq!(fifth.removed_resources, ["a/x/0"]);
    state.on_request(ResourceType::EndpointSlice, ack(&fifth.nonce));
    assert!(state.next(&changed).is_none(), "removed once");
}

#[test]
fn rule_08_a_set_that_shrinks_names_the_slices_that_are_gone() {
    let kind = ResourceType::EndpointSlice;
    let two = view(&[(kind, "a/x/0", "1"), (kind, "a/x/1", "1")]);
    let mut state = StreamState::default();
    state.on_request(kind, subscribe(&["a/x"]));
    let response = state.next(&two).expect("both slices by alias");
    assert_eq!(names(&response), ["a/x/0", "a/x/1"]);
    state.on_request(kind, ack(&response.nonce));
    let one = view(&[(kind, "a/x/0", "1")]);
    assert_eq!(state.next(&one).expect("a removal").removed_resources, ["a/x/1"]);
}

#[test]
fn rule_09_changes_while_a_response_is_under_way_are_merged_into_one() {
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["*"]));
    let first = state.next(&view(&[(SERVICE, "a/x", "1")])).expect("x");
    for content in ["2", "3", "4"] {
        assert!(state.next(&view(&[(SERVICE, "a/x", content)])).is_none());
    }
    state.on_request(SERVICE, ack(&first.nonce));
    let last = view(&[(SERVICE, "a/x", "4")]);
    let second = state.next(&last).expect("one merged response");
    assert_eq!(second.resources[0].version, last.named(SERVICE, "a/x")[0].version);
    state.on_request(SERVICE, ack(&second.nonce));
    assert!(state.next(&last).is_none());
}

#[test]
fn rule_12_sync_state_follows_sent_and_acked() {
    let view = view(&[(SERVICE, "a/x", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x"]));
    assert_eq!(state.status()[0].state, "NOT_SENT");
    let response = state.next(&view).expect("x");
    assert_eq!(state.status()[0].state, "STALE");
    state.on_request(SERVICE, ack(&response.nonce));
    assert_eq!(state.status()[0].state, "SYNCED");
}

#[test]
fn the_legacy_wildcard_ends_with_the_first_name() {
    let view = view(&[(SERVICE, "a/x", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&[]));
    let response = state.next(&view).expect("everything");
    assert_eq!(names(&response), ["a/x"]);
    let mut named = StreamState::default();
    named.on_request(SERVICE, subscribe(&["a/none"]));
    let response = named.next(&view).expect("an answer");
    named.on_request(SERVICE, ack(&response.nonce));
    named.on_request(SERVICE, subscribe(&[]));
    assert!(named.next(&view).is_none(), "an empty later request is no wildcard");
}
