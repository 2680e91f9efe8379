//! Views: what clients of a namespace get in place of what all others do.

use super::*;

/// `a/x` as everybody sees it and, in a view, as clients of namespace `c` do.
fn seen(old: &View, shared: &str, view: Option<&str>) -> View {
    let views = view.map(|content| ("c".to_owned(), content.as_bytes().to_vec().into())).into_iter().collect();
    let compiled = Compiled { views, ..shared.as_bytes().to_vec().into() };
    old.next(&[((SERVICE, "a/x".to_owned()), compiled)].into(), 0)
}

#[test]
fn a_client_gets_the_view_of_its_namespace_for_as_long_as_there_is_one() {
    let mut view = View::default();
    let (mut own, mut other) = (StreamState::of_namespace("c"), StreamState::of_namespace("d"));
    own.on_request(SERVICE, subscribe(&["a/x"]));
    other.on_request(SERVICE, subscribe(&["*"]));
    let got = |state: &mut StreamState, view: &View| {
        let response = state.next(view)?;
        state.on_request(SERVICE, ack(&response.nonce));
        assert_eq!((names(&response), response.removed_resources.len()), (vec!["a/x"], 0));
        let bytes = response.resources[0].resource.clone().expect("content").value;
        Some(String::from_utf8(bytes.to_vec()).expect("text"))
    };
    let steps = [
        // Shared, that of the view, and what each of the two is sent.
        ("1", None, Some("1"), Some("1")),
        ("1", Some("1c"), Some("1c"), None),
        ("2", Some("1c"), None, Some("2")),
        ("2", Some("2c"), Some("2c"), None),
        ("2", None, Some("2"), None),
        ("3", Some("3c"), Some("3c"), Some("3")),
        ("4", None, Some("4"), Some("4")),
    ];
    for (shared, of_view, to_own, to_other) in steps {
        view = seen(&view, shared, of_view);
        assert_eq!(got(&mut own, &view).as_deref(), to_own, "{shared} {of_view:?}");
        assert_eq!(got(&mut other, &view).as_deref(), to_other, "{shared} {of_view:?}");
    }
}

#[test]
fn rule_06_a_reconnect_of_a_client_with_a_view_yields_only_the_difference() {
    let view = seen(&View::default(), "1", Some("1c"));
    for (namespace, due) in [("c", false), ("d", true)] {
        let held = [("a/x".to_owned(), view.named(SERVICE, "a/x", "c")[0].version.clone())].into();
        let mut state = StreamState::of_namespace(namespace);
        state.on_request(SERVICE, DeltaDiscoveryRequest { initial_resource_versions: held, ..subscribe(&["a/x"]) });
        assert_eq!(state.next(&view).is_some(), due, "{namespace}");
    }
}
