//! The rules of DESIGN section 4 that are the client's, by number.

mod stored;

use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::parse(text).expect("a valid name")
}

fn state() -> State {
    State::new("a/me", [name("a/x")])
}

fn response<M: Message>(kind: ResourceType, resources: &[(&str, M)]) -> DeltaDiscoveryResponse {
    let resource = |(name, message): &(&str, M)| Resource {
        name: (*name).into(),
        version: "v".into(),
        resource: Some(weft_proto::Any { type_url: kind.type_url().into(), value: message.encode_to_vec().into() }),
        ..Resource::default()
    };
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: "n".into(),
        resources: resources.iter().map(resource).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn removal(kind: ResourceType, name: &str) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { removed_resources: vec![name.into()], ..response::<v1::Service>(kind, &[]) }
}

fn service(id: &str, backend: Option<&str>) -> v1::Service {
    let routing = backend.map(|backend| v1::Routing {
        rules: vec![v1::RouteRule {
            backends: vec![v1::WeightedBackend { service: backend.into(), port: 80, weight: 1, ..Default::default() }],
            ..Default::default()
        }],
        matches: vec![v1::RouteMatch::default()],
    });
    let port = v1::ServicePort { port: 80, routing, ..Default::default() };
    v1::Service { id: id.into(), ports: vec![port], ..Default::default() }
}

fn slice(service: &str, index: u32, count: u32) -> v1::EndpointSlice {
    let endpoint =
        v1::Endpoint { address: "127.0.0.1".into(), ports: [(80, 8000 + index)].into(), ..Default::default() };
    v1::EndpointSlice { service: service.into(), index, slice_count: count, endpoints: vec![endpoint] }
}

fn services(state: &mut State) -> Vec<String> {
    let mut names: Vec<_> = state.usable().iter().map(|service| service.id.to_string()).collect();
    names.sort();
    names
}

#[test]
fn rule_03_a_refused_resource_keeps_the_last_good_one() {
    let mut state = state();
    assert!(
        state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 1))])).error_detail.is_none()
    );
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    let bad = v1::Service { id: "a/x".into(), ..Default::default() };
    let answer = state.apply(response(ResourceType::Service, &[("a/x", bad)]));
    let error = answer.error_detail.expect("a NACK");
    assert_eq!(error.message, "a/x: ports: \"[]\": must have at least one port");
    assert_eq!(services(&mut state), ["a/x"]);
}

#[test]
fn rule_04_one_bad_resource_rejects_only_itself_and_is_not_held() {
    let mut state = state();
    let bad = v1::Service { id: "a/y".into(), ..Default::default() };
    let answer = state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None)), ("a/y", bad)]));
    let details = answer.error_detail.expect("a NACK").details;
    let rejection = v1::Rejection::decode(details[0].value.as_ref()).expect("a rejection");
    assert_eq!((details.len(), rejection.name.as_str(), rejection.field.as_str()), (1, "a/y", "ports"));
    let open = state.open();
    let held = &open.iter().find(|r| r.type_url.ends_with("Service")).expect("services").initial_resource_versions;
    assert_eq!(held.keys().collect::<Vec<_>>(), ["a/x"]);
}

#[test]
fn rule_05_a_removed_service_is_absent_until_it_appears() {
    let mut state = state();
    state.apply(removal(ResourceType::Service, "a/x"));
    assert!(state.absent().contains(&name("a/x")));
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    assert!(state.absent().is_empty());
}

#[test]
fn rule_07_a_service_waits_for_what_its_routes_refer_to() {
    let mut state = state();
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 1))]));
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", Some("a/v2")))]));
    assert_eq!(services(&mut state), Vec::<String>::new());
    let subscribed = state.follow_references();
    assert!(subscribed.iter().all(|request| request.resource_names_subscribe == ["a/v2"]));
    state.apply(response(ResourceType::Service, &[("a/v2", service("a/v2", None))]));
    assert_eq!(services(&mut state), Vec::<String>::new(), "its endpoints are missing");
    state.apply(response(ResourceType::EndpointSlice, &[("a/v2/0", slice("a/v2", 0, 1))]));
    assert_eq!(services(&mut state), ["a/v2", "a/x"]);
}

#[test]
fn rule_07_what_the_version_in_use_refers_to_is_kept_until_its_successor_may_be_used() {
    let mut state = state();
    for id in ["a/x", "a/v1"] {
        state.apply(response(ResourceType::EndpointSlice, &[(&format!("{id}/0"), slice(id, 0, 1))]));
    }
    state.apply(response(ResourceType::Service, &[("a/v1", service("a/v1", None))]));
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", Some("a/v1")))]));
    assert_eq!(services(&mut state), ["a/v1", "a/x"]);
    // The route turns to v2 and v1 goes, but v2 has not arrived.
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", Some("a/v2")))]));
    state.apply(removal(ResourceType::Service, "a/v1"));
    state.apply(removal(ResourceType::EndpointSlice, "a/v1/0"));
    assert_eq!(services(&mut state), ["a/v1", "a/x"]);
    assert_eq!((state.endpoints(&name("a/v1")).len(), state.absent().len()), (1, 0));
    state.apply(response(ResourceType::EndpointSlice, &[("a/v2/0", slice("a/v2", 0, 1))]));
    state.apply(response(ResourceType::Service, &[("a/v2", service("a/v2", None))]));
    assert_eq!(services(&mut state), ["a/v2", "a/x"]);
    assert_eq!((state.endpoints(&name("a/v1")).len(), state.absent().len()), (0, 1));
}

#[test]
fn rule_08_a_reconnect_empties_no_endpoint_set() {
    let (mut state, x) = (state(), name("a/x"));
    state.apply(response(ResourceType::EndpointSlice, &[("a/x/0", slice("a/x", 0, 1))]));
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    assert_eq!(services(&mut state), ["a/x"]);
    assert_eq!(state.open().len(), 4, "the whole subscription again");
    // A control plane that knows nothing new says nothing, or answers the alias as missing.
    state.apply(response::<v1::EndpointSlice>(ResourceType::EndpointSlice, &[]));
    state.apply(removal(ResourceType::EndpointSlice, "a/x"));
    assert_eq!(services(&mut state), ["a/x"]);
    assert_eq!(state.endpoints(&x).len(), 1);
}

#[test]
fn rule_09_many_wanted_services_are_one_request_of_each_type() {
    let mut state = state();
    let requests = state.want((0..500).map(|number| name(&format!("a/s{number}"))));
    let counts: Vec<_> = requests.iter().map(|request| request.resource_names_subscribe.len()).collect();
    assert_eq!(counts, [500, 500]);
    assert!(state.want([name("a/s1")]).is_empty(), "asked for already");
}

#[test]
fn rule_12_every_response_is_answered_once_with_its_nonce() {
    let mut state = state();
    let good = state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    assert_eq!((good.response_nonce.as_str(), good.error_detail.is_some()), ("n", false));
    let bad = v1::Service { id: "a/x".into(), ..Default::default() };
    let bad = state.apply(response(ResourceType::Service, &[("a/x", bad)]));
    assert_eq!((bad.response_nonce.as_str(), bad.error_detail.is_some()), ("n", true));
    let version = v1::Rejection::decode(bad.error_detail.expect("a NACK").details[0].value.as_ref()).map(|r| r.version);
    assert_eq!(version, Ok("v".to_owned()));
}

#[test]
fn rule_02_a_subscription_carries_no_nonce() {
    let mut state = state();
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    let requests = state.want([name("b/y")]);
    assert!(requests.iter().all(|request| request.response_nonce.is_empty() && request.error_detail.is_none()));
}

#[test]
fn rule_08_an_endpoint_set_changes_only_when_it_is_complete() {
    let (mut state, x) = (state(), name("a/x"));
    let kind = ResourceType::EndpointSlice;
    state.apply(response(kind, &[("a/x/0", slice("a/x", 0, 2))]));
    assert!(state.endpoints(&x).is_empty());
    state.apply(response(kind, &[("a/x/1", slice("a/x", 1, 0))]));
    assert_eq!(state.endpoints(&x).len(), 2);
    state.apply(response(kind, &[("a/x/0", slice("a/x", 0, 3))]));
    assert_eq!(state.endpoints(&x).len(), 2, "slice 2 is missing: the last complete set stays");
    state.apply(response(kind, &[("a/x/0", slice("a/x", 0, 1))]));
    state.apply(removal(kind, "a/x/1"));
    assert_eq!(state.endpoints(&x).len(), 1);
}

#[test]
fn rule_10_a_reconnect_carries_the_whole_subscription_and_what_is_held() {
    let mut state = state();
    state.apply(response(ResourceType::Service, &[("a/x", service("a/x", None))]));
    state.want([name("b/y")]);
    let open = state.open();
    let services = open.iter().find(|r| r.type_url.ends_with("weft.v1.Service")).expect("services");
    assert_eq!(services.resource_names_subscribe, ["a/x", "b/y"]);
    assert_eq!(services.initial_resource_versions["a/x"], "v");
}

#[test]
fn an_endpoint_that_has_not_changed_is_the_same_one_in_the_next_set() {
    let (mut state, x) = (state(), name("a/x"));
    let kind = ResourceType::EndpointSlice;
    let with = |addresses: &[&str]| {
        let mut slice = slice("a/x", 0, 1);
        let one = slice.endpoints.remove(0);
        let at = |address: &&str| v1::Endpoint { address: (*address).into(), ..one.clone() };
        slice.endpoints = addresses.iter().map(at).collect();
        response(kind, &[("a/x/0", slice)])
    };
    state.apply(with(&["10.0.0.1", "10.0.0.2"]));
    let first = state.endpoints(&x);
    state.apply(with(&["10.0.0.1", "10.0.0.2"]));
    assert!(Arc::ptr_eq(&first, &state.endpoints(&x)), "nothing has changed");
    state.apply(with(&["10.0.0.3", "10.0.0.1"]));
    let next = state.endpoints(&x);
    assert!(Arc::ptr_eq(&first[0], &next[1]), "it has moved only");
    assert_eq!(next[0].address.to_string(), "10.0.0.3");
}

#[test]
fn services_with_equal_policies_share_them() {
    let mut state = state();
    let limited = |id: &str, requests| {
        let mut service = service(id, Some("a/y"));
        let limits = Some(v1::Limits { connections: 1, pending: 1, requests, retries: 0 });
        service.ports[0].backend = Some(v1::BackendPolicy { limits, ..Default::default() });
        service
    };
    let services = [("a/x", limited("a/x", 1)), ("a/y", limited("a/y", 1)), ("a/z", limited("a/z", 2))];
    assert_eq!(state.apply(response(ResourceType::Service, &services)).error_detail, None);
    let port = |id: &str| &state.services[&name(id)].ports[0];
    assert!(Arc::ptr_eq(&port("a/x").backend, &port("a/y").backend));
    assert!(!Arc::ptr_eq(&port("a/x").backend, &port("a/z").backend));
    assert_eq!(port("a/z").backend.limits.requests, 2);
    let routed = |id: &str| &port(id).routing.as_ref().expect("routed").rules[0].requests;
    assert!(Arc::ptr_eq(routed("a/x"), &port("a/z").direct.requests));
}

#[test]
fn a_name_twice_in_a_response_is_refused() {
    let mut state = state();
    let twice = [("a/x", service("a/x", None)), ("a/x", service("a/x", None))];
    assert!(state.apply(response(ResourceType::Service, &twice)).error_detail.is_some());
}

#[test]
fn another_workloads_configuration_is_refused() {
    let mut state = state();
    let other = v1::WorkloadConfig { id: "a/other".into(), ..Default::default() };
    assert!(state.apply(response(ResourceType::WorkloadConfig, &[("a/other", other)])).error_detail.is_some());
    assert!(state.workload_config().is_none());
}

#[test]
fn what_is_missing_for_readiness_is_said() {
    let mut state = state();
    assert_eq!(state.missing(), ["trust bundle", "workload configuration a/me", "service a/x"]);
    state.apply(removal(ResourceType::Service, "a/x"));
    assert_eq!(state.missing(), ["trust bundle", "workload configuration a/me"]);
}

/// A bundle of `domain` with one root, which is a certificate or not.
fn bundle(domain: &str, root: Vec<u8>) -> v1::TrustBundle {
    v1::TrustBundle { trust_domain: domain.into(), roots: vec![root.into()], ..v1::TrustBundle::default() }
}

fn root() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    rcgen::CertificateParams::default().self_signed(&key).expect("a certificate").der().to_vec()
}

#[test]
fn rule_04_a_bundle_that_cannot_be_used_is_refused_and_not_held() {
    let mut state = state();
    for (name, bad) in [("td", bundle("td", b"no certificate".to_vec())), ("td", bundle("other", root()))] {
        let answer = state.apply(response(ResourceType::TrustBundle, &[(name, bad)]));
        assert!(answer.error_detail.is_some());
        assert_eq!(state.take_trust_changes(), []);
    }
    assert!(state.missing().contains(&"trust bundle".to_owned()));
}

#[test]
fn bundles_of_several_domains_and_withdrawn_ones_are_all_told_in_their_order() {
    let mut state = state();
    let bundles = [("one", bundle("one", root())), ("two", bundle("two", root()))];
    assert!(state.apply(response(ResourceType::TrustBundle, &bundles)).error_detail.is_none());
    state.apply(removal(ResourceType::TrustBundle, "one"));
    let changes = state.take_trust_changes();
    let told: Vec<_> = changes.iter().map(|(name, bundle)| (name.as_str(), bundle.is_some())).collect();
    assert_eq!(told, [("one", true), ("two", true), ("one", false)]);
    assert_eq!(state.take_trust_changes(), []);
}
