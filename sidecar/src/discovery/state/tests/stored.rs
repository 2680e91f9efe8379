//! What is held, on disk and back.

use super::*;

/// What is held by `state`, once kept and restored.
fn restored(state: &State) -> Result<State, crate::state::Refused> {
    let id = weft_policy::SpiffeId::parse("spiffe://td/ns/a/sa/me").expect("valid");
    let stored = state.stored(&id);
    let again = crate::state::configuration::StoredConfiguration::decode(&stored.encode()).expect("whole");
    State::restore("a/me", [name("a/x")], &again)
}

#[test]
fn what_is_kept_is_used_at_once_and_only_the_difference_is_asked_for() {
    let mut state = state().keeping_originals();
    let workload = v1::WorkloadConfig { id: "a/me".into(), ..Default::default() };
    state.apply(response(ResourceType::TrustBundle, &[("td", bundle("td", root()))]));
    state.apply(response(ResourceType::WorkloadConfig, &[("a/me", workload)]));
    state.want([name("a/y"), name("a/none")]);
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 2)), ("a/x/1", slice("a/x", 1, 0))]));
    state.apply(response(ResourceType::EndpointSlice, &[("a/y/0", slice("a/y", 0, 1))]));
    state
        .apply(response(ResourceType::Service, &[("a/x", service("a/x", Some("a/y"))), ("a/y", service("a/y", None))]));
    state.apply(removal(ResourceType::Service, "a/none"));
    assert_eq!(services(&mut state), ["a/x", "a/y"]);

    let mut again = restored(&state).expect("accepted");
    assert_eq!(services(&mut again), ["a/x", "a/y"]);
    assert_eq!(again.missing(), [""; 0]);
    assert_eq!(again.endpoints(&name("a/x")), state.endpoints(&name("a/x")));
    assert_eq!(again.absent(), [name("a/none")].into());
    assert_eq!(again.take_trust_changes().len(), 1);
    let mut opening = (again.open(), state.open());
    for requests in [&mut opening.0, &mut opening.1] {
        requests.iter_mut().for_each(|request| request.resource_names_subscribe.sort());
    }
    assert_eq!(opening.0, opening.1, "the same names and versions");
    assert_eq!(opening.0[2].initial_resource_versions.len(), 3);
    assert!(state.follow_references().is_empty() && again.follow_references().is_empty());
}

#[test]
fn what_requests_see_is_kept_and_not_what_waits_for_its_backends() {
    let mut state = state().keeping_originals();
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 1))]));
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    assert_eq!(services(&mut state), ["a/x"]);
    // The next version refers to what has not come; the next endpoint set is not whole.
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", Some("a/late")))]));
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 2))]));
    assert_eq!(services(&mut state), ["a/x"]);

    let mut again = restored(&state).expect("accepted");
    let usable = again.usable();
    assert_eq!(usable.len(), 1);
    assert_eq!(usable[0].referenced().count(), 0, "the version of before");
    assert_eq!(again.endpoints(&name("a/x")).len(), 1, "the set of before");
}

#[test]
fn rule_08_a_restored_endpoint_set_stays_until_a_complete_one_comes() {
    let mut state = state().keeping_originals();
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 1))]));
    let mut again = restored(&state).expect("accepted");
    again.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 2))]));
    assert_eq!(again.endpoints(&name("a/x")), state.endpoints(&name("a/x")));
    let empty = v1::EndpointSlice { endpoints: Vec::new(), ..slice("a/x", 0, 1) };
    again.apply(response(ResourceType::EndpointSlice, &[("a/x/0", empty)]));
    assert!(again.endpoints(&name("a/x")).is_empty());
}

#[test]
fn one_stored_resource_that_is_not_accepted_refuses_the_whole_file() {
    let mut state = state().keeping_originals();
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 1))]));
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    state.usable();
    let id = weft_policy::SpiffeId::parse("spiffe://td/ns/a/sa/me").expect("valid");
    let stored = state.stored(&id);
    assert_eq!(stored.resources.len(), 2);
    let refused = |change: &dyn Fn(&mut crate::state::configuration::StoredConfiguration)| {
        let mut stored = stored.clone();
        change(&mut stored);
        State::restore("a/me", [], &stored).err().expect("refused").to_string()
    };
    let text = refused(&|stored| stored.resources[1].bytes = v1::Service::default().encode_to_vec().into());
    assert!(text.starts_with("its Service \"a/x\" is not accepted: "), "{text}");
    assert!(refused(&|stored| stored.resources[0].bytes = b"junk".as_slice().into()).contains("EndpointSlice"));
    assert!(refused(&|stored| stored.wanted[0] = "A B".into()).contains("no name of a service"));
    assert!(refused(&|stored| stored.absent.push("A B".into())).contains("no name of a service"));
}
