//! The rules of DESIGN section 4 that are the server's, by number.

mod address;
mod settled;

use proptest::prelude::*;
use weft_proto::rpc;

use super::*;
use crate::compile::{Compiled, Output};

mod views;

const SERVICE: ResourceType = ResourceType::Service;

fn view(entries: &[(ResourceType, &str, &str)]) -> View {
    after(&View::default(), entries)
}

fn after(old: &View, entries: &[(ResourceType, &str, &str)]) -> View {
    let output: Output = entries
        .iter()
        .map(|(kind, name, content)| {
            let alias = name.rsplit_once('/').map(|(alias, _)| alias.to_owned());
            let aliases = alias.filter(|_| *kind == ResourceType::EndpointSlice).into_iter().collect();
            ((*kind, (*name).to_owned()), Compiled { aliases, ..content.as_bytes().to_vec().into() })
        })
        .collect();
    old.next(&output, 0)
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
    let detail = weft_proto::Any { type_url: String::new(), value: rejection.encode_to_vec().into() };
    let error = rpc::Status { code: 3, message: format!("{name}: bad"), details: vec![detail] };
    DeltaDiscoveryRequest { error_detail: Some(error), ..ack(nonce) }
}

fn status(state: &StreamState) -> TypeStatus {
    state.status().into_iter().find(|of| of.kind == SERVICE).expect("it is subscribed to")
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
    assert_eq!(names(&state.next(&after(&old, &[(SERVICE, "a/x", "2")])).expect("changed")), ["a/x"]);
}

#[test]
fn rule_04_one_bad_resource_refuses_only_itself() {
    let old = view(&[(SERVICE, "a/x", "1"), (SERVICE, "a/y", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x", "a/y"]));
    let response = state.next(&old).expect("both");
    state.on_request(SERVICE, nack(&response.nonce, "a/x"));
    let status = status(&state);
    assert_eq!((status.state, status.error.as_str()), (SyncState::Error, "a/x: bad"));
    let refused = &status.refused[0];
    assert_eq!((refused.name.as_str(), refused.reason.as_str()), ("a/x", "bad"));
    assert_eq!(refused.version, old.named(SERVICE, "a/x", "")[0].version);
    let next = after(&old, &[(SERVICE, "a/y", "1")]);
    let response = state.next(&next).expect("x is gone, whichever version the client kept");
    assert_eq!((names(&response).len(), response.removed_resources), (0, vec!["a/x".to_owned()]), "y is held");
}

#[test]
fn rule_05_a_missing_name_is_answered_as_removed_and_pushed_when_it_appears() {
    let (empty, mut state) = (view(&[]), StreamState::default());
    state.on_request(SERVICE, subscribe(&["a/x"]));
    let response = state.next(&empty).expect("an answer");
    assert_eq!(response.removed_resources, ["a/x"]);
    state.on_request(SERVICE, ack(&response.nonce));
    assert!(state.next(&empty).is_none(), "answered once");
    assert_eq!(names(&state.next(&after(&empty, &[(SERVICE, "a/x", "1")])).expect("it appeared")), ["a/x"]);
}

#[test]
fn rule_06_a_reconnect_yields_only_the_difference() {
    let old = view(&[(SERVICE, "a/x", "1"), (SERVICE, "a/y", "1")]);
    let version = |name| old.named(SERVICE, name, "")[0].version.clone();
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
    let changed = after(&both, &[(SERVICE, "a/y", "1")]);
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
    let one = after(&two, &[(kind, "a/x/0", "1")]);
    assert_eq!(state.next(&one).expect("a removal").removed_resources, ["a/x/1"]);
}

#[test]
fn rule_09_changes_while_a_response_is_under_way_are_merged_into_one() {
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["*"]));
    let mut last = view(&[(SERVICE, "a/x", "1")]);
    let first = state.next(&last).expect("x");
    for content in ["2", "3", "4"] {
        last = after(&last, &[(SERVICE, "a/x", content)]);
        assert!(state.next(&last).is_none());
    }
    state.on_request(SERVICE, ack(&first.nonce));
    let second = state.next(&last).expect("one merged response");
    assert_eq!(second.resources[0].version, last.named(SERVICE, "a/x", "")[0].version);
    state.on_request(SERVICE, ack(&second.nonce));
    assert!(state.next(&last).is_none());
}

#[test]
fn rule_09_all_streams_share_the_encoded_bytes() {
    let view = view(&[(SERVICE, "a/x", "content")]);
    let bytes = [(); 2].map(|()| {
        let mut state = StreamState::default();
        state.on_request(SERVICE, subscribe(&["a/x"]));
        let response = state.next(&view).expect("x");
        response.resources[0].resource.clone().expect("a message").value
    });
    assert_eq!(bytes[0].as_ptr(), bytes[1].as_ptr());
}

#[test]
fn rule_09_one_response_is_bounded_and_the_rest_follows_its_ack() {
    let content = "x".repeat(100 * 1024);
    let names_of_all: Vec<String> = (0..7).map(|number| format!("a/{number}")).collect();
    let entries: Vec<_> = names_of_all.iter().map(|name| (SERVICE, name.as_str(), content.as_str())).collect();
    let view = view(&entries);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["*"]));
    // Asked for by name once more, so that each is due whatever the client holds.
    let all: Vec<&str> = names_of_all.iter().map(String::as_str).collect();
    for round in 0..2 {
        let (mut got, mut sizes) = (Vec::new(), Vec::new());
        while let Some(response) = state.next(&view) {
            assert!(state.next(&view).is_none(), "nothing more before the ACK");
            sizes.push(response.resources.len());
            got.extend(names(&response).into_iter().map(str::to_owned));
            state.on_request(SERVICE, ack(&response.nonce));
        }
        assert_eq!((got, sizes), (names_of_all.clone(), vec![3, 3, 1]), "round {round}");
        state.on_request(SERVICE, subscribe(&all));
    }
}

#[test]
fn rule_12_sync_state_follows_sent_and_acked() {
    let old = view(&[(SERVICE, "a/x", "1")]);
    let mut state = StreamState::default();
    assert_eq!(state.status(), [], "nothing of what it has not asked for");
    state.on_request(SERVICE, subscribe(&["a/x"]));
    assert_eq!(status(&state).state, SyncState::NotSent);
    let response = state.next(&old).expect("x");
    let sent = status(&state);
    assert_eq!((sent.state, sent.sent_revision, sent.acked_revision), (SyncState::Stale, 1, 0));
    state.on_request(SERVICE, ack(&response.nonce));
    let acked = status(&state);
    assert_eq!((acked.state, acked.sent_revision, acked.acked_revision), (SyncState::Synced, 1, 1));
    assert_eq!(state.status().len(), 1, "of what it has asked for");
    let gone =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a/x".into()], ..DeltaDiscoveryRequest::default() };
    state.on_request(SERVICE, gone);
    assert_eq!(state.status(), [], "and no longer wants");
}

#[test]
fn rule_12_a_resumed_client_that_holds_everything_is_synced() {
    let view = view(&[(SERVICE, "a/x", "1")]);
    let held = [("a/x".to_owned(), view.named(SERVICE, "a/x", "")[0].version.clone())].into();
    let mut state = StreamState::default();
    state.on_request(SERVICE, DeltaDiscoveryRequest { initial_resource_versions: held, ..subscribe(&["a/x"]) });
    assert!(state.next(&view).is_none());
    assert_eq!(status(&state).state, SyncState::Synced);
}

#[test]
fn rule_12_an_error_lasts_until_what_was_refused_is_accepted_or_unwanted() {
    let old = view(&[(SERVICE, "a/x", "1")]);
    let new = after(&old, &[(SERVICE, "a/x", "2"), (SERVICE, "a/y", "1")]);
    let refusing = || {
        let mut state = StreamState::default();
        state.on_request(SERVICE, subscribe(&["a/x"]));
        let response = state.next(&old).expect("x");
        state.on_request(SERVICE, nack(&response.nonce, "a/x"));
        state
    };
    let mut state = refusing();
    state.on_request(SERVICE, subscribe(&["a/y"]));
    let response = state.next(&new).expect("the change and y");
    assert_eq!(status(&state).state, SyncState::Error, "not yet accepted");
    state.on_request(SERVICE, ack(&response.nonce));
    let accepted = status(&state);
    assert_eq!((accepted.state, accepted.error.as_str(), accepted.refused.len()), (SyncState::Synced, "", 0));

    let mut state = refusing();
    let unsubscribe =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a/x".into()], ..subscribe(&["a/none"]) };
    state.on_request(SERVICE, unsubscribe);
    assert_eq!(state.next(&old).expect("there is none").removed_resources, ["a/none"]);
    assert_eq!(status(&state).error, "", "nobody wants it any more");
}

#[test]
fn the_text_of_a_refusal_is_bounded() {
    let view = view(&[(SERVICE, "a/x", "1")]);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x"]));
    let response = state.next(&view).expect("x");
    let error = rpc::Status { code: 3, message: "x".repeat(1 << 20), details: Vec::new() };
    state.on_request(SERVICE, DeltaDiscoveryRequest { error_detail: Some(error), ..ack(&response.nonce) });
    let status = status(&state);
    assert!(status.error.len() < 2000 && status.refused[0].reason.len() < 2000);
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

/// One step of a client or of the mesh.
#[derive(Clone, Debug)]
enum Step {
    Subscribe(u8),
    Unsubscribe(u8),
    Ack,
    Nack(u8),
    Content(u8, u8),
    Gone(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_u8).prop_map(Step::Subscribe),
        (0..5_u8).prop_map(Step::Unsubscribe),
        Just(Step::Ack),
        Just(Step::Ack),
        (0..4_u8).prop_map(Step::Nack),
        (0..4_u8, 0..6_u8).prop_map(|(name, content)| Step::Content(name, content)),
        (0..4_u8).prop_map(Step::Gone),
    ]
}

proptest! {
    /// What is known to be settled saves work and changes no response.
    #[test]
    fn a_stream_that_remembers_that_it_is_settled_sends_what_one_that_does_not_sends(
        namespace in prop_oneof!["", "c"],
        steps in proptest::collection::vec((step(), proptest::bool::ANY), 1..60)
    ) {
        let kind = ResourceType::EndpointSlice;
        // Number 4 is everything; the first two are slices of one service, subscribed to by its name.
        let wish = |number: u8| match number { 0 | 1 => "a/x".to_owned(), 4 => "*".to_owned(), _ => format!("a/y/{number}") };
        let name = |number: u8| if number < 2 { format!("a/x/{number}") } else { format!("a/y/{number}") };
        let (mut quick, mut thorough) = (StreamState::of_namespace(&namespace), StreamState::of_namespace(&namespace));
        let (mut view, mut contents) = (View::default(), std::collections::BTreeMap::new());
        let mut nonce = String::new();
        for (step, silent) in steps {
            let request = match step {
                Step::Subscribe(number) => Some(subscribe(&[&wish(number)])),
                Step::Unsubscribe(number) => {
                    Some(DeltaDiscoveryRequest { resource_names_unsubscribe: vec![wish(number)], ..ack("") })
                }
                Step::Ack => Some(ack(&nonce)),
                Step::Nack(number) => Some(nack(&nonce, &name(number))),
                Step::Content(number, content) => {
                    contents.insert(name(number), content);
                    None
                }
                Step::Gone(number) => {
                    contents.remove(&name(number));
                    None
                }
            };
            match request {
                Some(request) => {
                    quick.on_request(kind, request.clone());
                    thorough.on_request(kind, request);
                }
                None => view = view.next(&output(kind, &contents), 0),
            }
            // A stream does not see every view.
            if silent {
                continue;
            }
            thorough.types.values_mut().for_each(TypeState::unsettle);
            let response = quick.next(&view);
            prop_assert_eq!(&response, &thorough.next(&view));
            nonce = response.map_or(nonce, |response| response.nonce);
        }
    }
}

fn output(kind: ResourceType, contents: &std::collections::BTreeMap<String, u8>) -> Output {
    let compiled = |(name, content): (&String, &u8)| {
        let alias = name.rsplit_once('/').map(|(alias, _)| alias.to_owned());
        // From 3 on there is a view of it; what has one is subscribed to by its own name.
        let view = (*content >= 3 && name.starts_with("a/y")).then(|| ("c".to_owned(), vec![*content].into()));
        let bytes = vec![*content % 3].into();
        let compiled = Compiled { bytes, aliases: alias.into_iter().collect(), views: view.into_iter().collect() };
        ((kind, name.clone()), compiled)
    };
    contents.iter().map(compiled).collect()
}

#[test]
fn a_settled_stream_is_not_asked_about_a_change_of_something_else() {
    let mut contents: std::collections::BTreeMap<_, _> = [("a/x".to_owned(), 0), ("a/y".to_owned(), 0)].into();
    let old = View::default().next(&output(SERVICE, &contents), 0);
    let mut state = StreamState::default();
    state.on_request(SERVICE, subscribe(&["a/x"]));
    let response = state.next(&old).expect("x");
    state.on_request(SERVICE, ack(&response.nonce));
    assert_eq!(state.types[&SERVICE].settled, Some(1), "by the ACK alone");
    contents.insert("a/y".to_owned(), 1);
    let next = old.next(&output(SERVICE, &contents), 0);
    let since = state.types.get_mut(&SERVICE).expect("asked for").since_settled(SERVICE, &next, "");
    assert!(matches!(since, Since::Nothing));
    contents.insert("a/x".to_owned(), 1);
    let last = next.next(&output(SERVICE, &contents), 0);
    let since = state.types.get_mut(&SERVICE).expect("asked for").since_settled(SERVICE, &last, "");
    assert!(matches!(since, Since::Other(resources) if resources.len() == 1));
}
