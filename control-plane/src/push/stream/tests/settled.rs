//! Rule 12: when a sidecar has answered all of a view.

use super::*;

#[test]
fn rule_12_a_view_is_settled_when_all_of_it_is_answered_and_not_before() {
    let old = view(&[(SERVICE, "a/x", "1"), (ResourceType::EndpointSlice, "a/x/0", "1")]);
    let mut state = StreamState::default();
    assert!(!state.is_settled(&old), "nothing was asked for yet");
    for kind in [ResourceType::EndpointSlice, SERVICE] {
        state.on_request(kind, subscribe(&["a/x"]));
    }
    for _ in 0..2 {
        let response = state.next(&old).expect("one of each type");
        assert!(!state.is_settled(&old));
        let kind = ResourceType::from_type_url(&response.type_url).expect("known");
        state.on_request(kind, ack(&response.nonce));
    }
    assert!(state.next(&old).is_none() && state.is_settled(&old));

    let new = after(&old, &[(SERVICE, "a/x", "2"), (ResourceType::EndpointSlice, "a/x/0", "1")]);
    assert!(!state.is_settled(&new), "an ACK of an older view says nothing of this one");
    let response = state.next(&new).expect("the change");
    assert!(state.next(&new).is_none() && !state.is_settled(&new), "sent is not answered");
    // The sidecar asks for what a route refers to before it acknowledges: then there is more to come.
    state.on_request(ResourceType::EndpointSlice, subscribe(&["b/y"]));
    state.on_request(SERVICE, nack(&response.nonce, "a/x"));
    assert!(state.next(&new).is_some() && !state.is_settled(&new), "what was asked for later is due as well");
    state.on_request(ResourceType::EndpointSlice, ack("4"));
    assert!(state.next(&new).is_none() && state.is_settled(&new), "a refusal is an answer");
}
