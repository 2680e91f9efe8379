//! Subscriptions to addresses: what has one may come, change and go.

use weft_proto::v1;

use super::*;

const SLICE: ResourceType = ResourceType::EndpointSlice;

/// Slices `a/<name>/0`, each with these endpoints, and a service with a virtual address.
fn slices(old: &View, of: &[(&str, &[&str])]) -> View {
    let mut output: Output = of
        .iter()
        .map(|(name, addresses)| {
            let endpoints = addresses.iter().map(|ip| v1::Endpoint { address: (*ip).into(), ..Default::default() });
            let service = format!("a/{name}");
            let slice =
                v1::EndpointSlice { service: service.clone(), endpoints: endpoints.collect(), ..Default::default() };
            let compiled = Compiled { aliases: vec![service.clone()], ..slice.encode_to_vec().into() };
            ((SLICE, format!("{service}/0")), compiled)
        })
        .collect();
    let service = v1::Service { id: "a/x".into(), virtual_ips: vec!["10.96.0.1".into()], ..Default::default() };
    output.insert((SERVICE, "a/x".into()), service.encode_to_vec().into());
    old.next(&output, 0)
}

fn next(state: &mut StreamState, view: &View) -> Option<(Vec<String>, Vec<String>)> {
    let response = state.next(view)?;
    state.on_request(SLICE, ack(&response.nonce));
    Some((names(&response).into_iter().map(str::to_owned).collect(), response.removed_resources))
}

#[test]
fn an_address_leads_to_the_slices_of_what_has_it_and_to_nothing_when_nothing_has() {
    let first =
        slices(&View::default(), &[("x", &["10.0.0.1"]), ("y", &["10.0.0.1", "fd00::0:1"]), ("z", &["10.0.0.3"])]);
    let mut state = StreamState::default();
    state.on_request(
        SLICE,
        subscribe(&["address/10.0.0.1", "address/10.0.0.2", "address/fd00::1", "address/10.96.0.1"]),
    );
    let (mut named, mut absent) = (Vec::new(), Vec::new());
    while let Some((resources, removed)) = next(&mut state, &first) {
        named.extend(resources);
        absent.extend(removed);
    }
    assert_eq!((named, absent), (vec!["a/x/0".to_owned(), "a/y/0".into()], vec!["address/10.0.0.2".to_owned()]));
}

#[test]
fn what_gets_an_address_later_is_pushed_and_what_loses_it_is_told_each_time() {
    let mut view = slices(&View::default(), &[("x", &["10.0.0.1"])]);
    let mut state = StreamState::default();
    state.on_request(SLICE, subscribe(&["address/10.0.0.2"]));
    let absent = vec!["address/10.0.0.2".to_owned()];
    assert_eq!(next(&mut state, &view), Some((vec![], absent.clone())));
    for round in 0..3 {
        assert_eq!(next(&mut state, &view), None, "{round}");
        view = slices(&view, &[("x", &["10.0.0.1", "10.0.0.2"])]);
        assert_eq!(next(&mut state, &view), Some((vec!["a/x/0".into()], vec![])), "{round}");
        assert_eq!(next(&mut state, &view), None, "{round}");
        view = slices(&view, &[("x", &["10.0.0.1"])]);
        let mut told = Vec::new();
        while let Some((_, removed)) = next(&mut state, &view) {
            told.extend(removed);
        }
        assert!(told.contains(&absent[0]), "{round}: {told:?}");
    }
}
