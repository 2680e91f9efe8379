//! The conventions as tables.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use weft_policy::{
    canonical::Authority,
    trace::{SpanId as OurSpanId, TraceId as OurTraceId},
};

use super::*;

fn call(method: &str, target: &str) -> HttpCall {
    let authority = Authority::parse(b"shop.example:8080").expect("valid");
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let target = PathAndQuery::try_from(target).expect("a target");
    let mut call = HttpCall::new(method, (authority, target), (Version::HTTP_11, false), &HeaderMap::new());
    call.complete = true;
    call
}

fn grpc(code: Option<u16>) -> HttpCall {
    HttpCall { grpc: true, grpc_status: code, status: Some(200), ..call("POST", "/shop.Cart/Add") }
}

fn span(kind: Kind, call: HttpCall) -> Span {
    Span {
        trace: OurTraceId::random([1, 2]),
        id: OurSpanId::random(3),
        parent: None,
        kind,
        started: SystemTime::UNIX_EPOCH,
        duration: Duration::from_secs(1),
        call: Call::Http(call),
        headers: Vec::new(),
        peer: Some(([10, 0, 0, 1], 0).into()),
        peer_id: None,
        service: None,
        route: None,
        resend: 0,
        reason: None,
        events: Vec::new(),
        events_dropped: 0,
    }
}

fn attribute(data: &SpanData, key: &str) -> Option<String> {
    data.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
}

#[test]
fn names_are_methods_and_routes_and_never_paths() {
    for (method, route, server, client) in [
        ("GET", None, "GET", "GET"),
        ("GET", Some("shop/items"), "GET shop/items", "GET"),
        ("PATCH", Some("r"), "PATCH r", "PATCH"),
        ("PROPFIND", None, "HTTP", "HTTP"),
        ("get", Some("r"), "HTTP r", "HTTP"),
    ] {
        for (kind, expected) in [(Kind::Server, server), (Kind::Client, client)] {
            let span = Span {
                route: route.map(http::HeaderValue::from_static),
                ..span(kind, call(method, "/items/4711?page=4711"))
            };
            let data = data(span);
            assert_eq!(data.name, expected, "{method} {route:?} {kind:?}");
            let (of_server, of_client) = (attribute(&data, "http.route"), attribute(&data, "weft.route"));
            let (own, other) = if kind == Kind::Server { (of_server, of_client) } else { (of_client, of_server) };
            assert_eq!((own.as_deref(), other), (route, None), "{method} {kind:?}");
        }
    }
}

#[test]
fn methods_that_anybody_can_make_up_are_other() {
    for (method, known) in [("GET", true), ("QUERYX", false), ("get", false), ("PATCH", true), ("BREW", false)] {
        let data = data(span(Kind::Server, call(method, "/")));
        let expected = if known { method } else { "_OTHER" };
        assert_eq!(attribute(&data, "http.request.method").as_deref(), Some(expected));
        let original = attribute(&data, "http.request.method_original");
        assert_eq!(original.as_deref(), (!known).then_some(method));
    }
}

#[test]
fn signatures_in_queries_are_redacted_in_both_kinds() {
    for (query, expected) in [
        ("a=b", "a=b"),
        ("sig=x&a=b", "sig=REDACTED&a=b"),
        ("a=b&Signature=x%3D", "a=b&Signature=REDACTED"),
        ("AWSAccessKeyId=x", "AWSAccessKeyId=REDACTED"),
        ("X-Goog-Signature=x&X-Amz-Signature=y", "X-Goog-Signature=REDACTED&X-Amz-Signature=REDACTED"),
        ("sig=x&sig=y=z", "sig=REDACTED&sig=REDACTED"),
        ("sig", "sig"),
        ("design=x", "design=x"),
        ("", ""),
    ] {
        let target = format!("/p?{query}");
        let server = data(span(Kind::Server, call("GET", &target)));
        assert_eq!(attribute(&server, "url.query").as_deref(), Some(expected));
        assert_eq!(attribute(&server, "url.path").as_deref(), Some("/p"));
        let client = data(span(Kind::Client, call("GET", &target)));
        let full = format!("http://shop.example:8080/p?{expected}");
        assert_eq!(attribute(&client, "url.full").as_deref(), Some(full.as_str()));
    }
}

#[test]
fn long_paths_and_queries_are_cut() {
    let target = format!("/{0}?{0}", "x".repeat(5000));
    let server = data(span(Kind::Server, call("GET", &target)));
    for key in ["url.path", "url.query"] {
        assert_eq!(attribute(&server, key).map(|text| text.len()), Some(MAX_TEXT), "{key}");
    }
}

#[test]
fn a_status_is_an_error_by_the_kind_of_span() {
    let cancelled = Some(Reason::ClientGone);
    for (status, reason, server, client) in [
        (Some(101), None, None, None),
        (Some(302), None, None, None),
        (Some(400), None, None, Some("400")),
        (Some(499), None, None, Some("499")),
        (Some(500), None, Some("500"), Some("500")),
        (Some(503), Some(Reason::ConnectionRefused), Some("connection_refused"), Some("connection_refused")),
        (Some(403), Some(Reason::RbacDenied), None, Some("rbac_denied")),
        (None, Some(Reason::RequestTimeout), Some("request_timeout"), Some("request_timeout")),
        (None, cancelled, None, None),
        (Some(200), cancelled, None, None),
    ] {
        for (kind, expected) in [(Kind::Server, server), (Kind::Client, client)] {
            let span = Span { reason, ..span(kind, HttpCall { status, ..call("GET", "/") }) };
            let data = data(span);
            assert_eq!(attribute(&data, "error.type").as_deref(), expected, "{status:?} {reason:?} {kind:?}");
            let said = if expected.is_some() { Status::error("") } else { Status::Unset };
            assert_eq!(data.status, said, "{status:?} {reason:?} {kind:?}");
            assert_eq!(attribute(&data, "http.response.status_code"), status.map(|status| status.to_string()));
        }
    }
}

#[test]
fn a_grpc_code_is_an_error_of_the_server_only_when_it_is_the_servers_fault() {
    const OF_THE_SERVER: [u16; 6] = [2, 4, 12, 13, 14, 15];
    for code in 0..=17 {
        let (server, client) = (data(span(Kind::Server, grpc(Some(code)))), data(span(Kind::Client, grpc(Some(code)))));
        let name = code_name(code);
        assert_eq!(attribute(&client, "error.type").as_deref(), (code != 0).then_some(&*name), "{code}");
        let expected = OF_THE_SERVER.contains(&code).then_some(&*name);
        assert_eq!(attribute(&server, "error.type").as_deref(), expected, "{code}");
        assert_eq!(attribute(&server, "rpc.response.status_code").as_deref(), Some(&*name));
    }
}

#[test]
fn a_grpc_method_that_nobody_has_shown_to_exist_is_other() {
    for (code, reason, expected) in [
        (Some(0), None, "shop.Cart/Add"),
        (Some(5), None, "shop.Cart/Add"),
        (Some(12), None, "_OTHER"),
        (None, None, "_OTHER"),
        (Some(14), Some(Reason::NoEndpoints), "_OTHER"),
    ] {
        let data = data(Span { reason, ..span(Kind::Server, grpc(code)) });
        assert_eq!(data.name, expected, "{code:?} {reason:?}");
        assert_eq!(attribute(&data, "rpc.method").as_deref(), Some(expected));
        let original = attribute(&data, "rpc.method_original");
        assert_eq!(original.as_deref(), (expected == "_OTHER").then_some("shop.Cart/Add"));
    }
}

#[test]
fn what_is_sent_again_is_counted_on_client_spans_alone() {
    for (kind, resend, expected) in [(Kind::Client, 0, None), (Kind::Client, 2, Some("2")), (Kind::Server, 2, None)] {
        for call in [call("GET", "/"), grpc(Some(0))] {
            let data = data(Span { resend, ..span(kind, call) });
            assert_eq!(attribute(&data, "http.request.resend_count").as_deref(), expected, "{kind:?} {resend}");
        }
    }
}

#[test]
fn a_port_that_is_not_known_is_not_told() {
    let known = Span { peer: Some(([10, 0, 0, 1], 81).into()), ..span(Kind::Client, call("GET", "/")) };
    let data_of = [data(known), data(span(Kind::Server, call("GET", "/")))];
    let ports = data_of.each_ref().map(|data| attribute(data, "network.peer.port"));
    assert_eq!(ports, [Some("81".to_owned()), None]);
    assert_eq!(attribute(&data_of[1], "network.peer.address").as_deref(), Some("10.0.0.1"));
}

#[test]
fn what_is_no_error_of_the_called_side_is_none_of_its_span_of_a_connection() {
    for (reason, server, client) in [
        (None, None, None),
        (Some(Reason::ClientGone), None, None),
        (Some(Reason::RbacDenied), None, Some("rbac_denied")),
        (Some(Reason::ConnectionTerminated), Some("connection_terminated"), Some("connection_terminated")),
        (Some(Reason::ConnectTimeout), Some("connect_timeout"), Some("connect_timeout")),
    ] {
        for (kind, expected) in [(Kind::Server, server), (Kind::Client, client)] {
            let bytes = Call::Tcp(Moved { sent: 5, received: 7 });
            let data = data(Span { reason, call: bytes, ..span(kind, call("GET", "/")) });
            assert_eq!(
                (&*data.name, attribute(&data, "error.type").as_deref()),
                ("TCP", expected),
                "{reason:?} {kind:?}"
            );
            let bytes = ["weft.bytes.sent", "weft.bytes.received"].map(|key| attribute(&data, key));
            assert_eq!(bytes, [Some("5".to_owned()), Some("7".to_owned())]);
            assert_eq!(attribute(&data, "network.transport").as_deref(), Some("tcp"));
        }
    }
}

#[test]
fn a_session_is_internal_below_its_handshake_and_tells_nothing_of_requests() {
    for kind in [Kind::Server, Kind::Client] {
        let call =
            HttpCall { session: Some(Moved { sent: 5, received: 7 }), status: Some(101), ..call("GET", "/chat") };
        let data = data(Span { parent: Some(OurSpanId::random(9)), ..span(kind, call) });
        assert_eq!(
            (&*data.name, data.span_kind.clone(), data.parent_span_is_remote),
            ("WebSocket", SpanKind::Internal, false)
        );
        assert!(data.attributes.iter().all(|pair| !pair.key.as_str().starts_with("http.")), "{:?}", data.attributes);
        assert_eq!(attribute(&data, "weft.bytes.received").as_deref(), Some("7"));
    }
}

#[test]
fn the_saga_of_a_request_is_found_in_its_baggage() {
    for (baggage, expected) in [
        ("saga.id=17", Some("17")),
        ("a=b, saga.id = s%2017 ;ttl=3,saga.id=18", Some("s%2017")),
        ("xsaga.id=17", None),
        ("saga.id=", None),
        ("saga.id", None),
        ("", None),
    ] {
        assert_eq!(of_baggage(baggage, "saga.id"), expected, "{baggage}");
        let baggage = Some(http::HeaderValue::from_static(baggage));
        let data = data(span(Kind::Server, HttpCall { baggage, ..call("GET", "/") }));
        assert_eq!(attribute(&data, "saga.id").as_deref(), expected);
    }
}
