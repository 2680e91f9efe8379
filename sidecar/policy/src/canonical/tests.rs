use http::{Request, Response, StatusCode};
use proptest::prelude::*;

use super::*;

fn parts(method: &str, target: &str, version: Version, headers: &[(&'static str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target).version(version);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request that http accepts").into_parts().0
}

fn rule(headers: &[(&'static str, &str)]) -> Result<Framing, &'static str> {
    let mut all = vec![("host", "a")];
    all.extend_from_slice(headers);
    request(&mut parts("POST", "/", Version::HTTP_11, &all)).map(|found| found.framing).map_err(|v| v.rule)
}

#[test]
fn exactly_one_framing_is_accepted() {
    assert_eq!(rule(&[]), Ok(Framing::None));
    assert_eq!(rule(&[("content-length", "5")]), Ok(Framing::Length(5)));
    assert_eq!(rule(&[("content-length", "005")]), Ok(Framing::Length(5)));
    assert_eq!(rule(&[("content-length", "5"), ("content-length", "5")]), Ok(Framing::Length(5)));
    assert_eq!(rule(&[("transfer-encoding", "Chunked")]), Ok(Framing::Stream));
}

#[test]
fn every_other_framing_is_refused_with_its_rule() {
    assert_eq!(rule(&[("transfer-encoding", "chunked"), ("content-length", "5")]), Err("te_with_cl"));
    assert_eq!(rule(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), Err("te_several"));
    for value in ["xchunked", "gzip, chunked", "chunked, gzip", "chunked;q=1", ",chunked", "chunked,", "", "identity"] {
        assert_eq!(rule(&[("transfer-encoding", value)]), Err("te_not_chunked"), "{value:?}");
    }
    assert_eq!(rule(&[("content-length", "5"), ("content-length", "6")]), Err("cl_differs"));
    for value in ["+5", "-0", "0x10", "1_0", "5 5", "5, 6", "", "99999999999999999999"] {
        assert_eq!(rule(&[("content-length", value)]), Err("cl_invalid"), "{value:?}");
    }
    let mut old = parts("POST", "/", Version::HTTP_10, &[("host", "a"), ("transfer-encoding", "chunked")]);
    assert_eq!(request(&mut old).expect_err("no chunks in 1.0").rule, "te_in_http10");
}

#[test]
fn framing_fields_are_gone_afterwards() {
    let mut head = parts("POST", "/", Version::HTTP_11, &[("host", "a"), ("content-length", "5")]);
    request(&mut head).expect("valid");
    assert!(!head.headers.contains_key("content-length"));
}

#[test]
fn exactly_one_host_is_accepted() {
    let host = |headers: &[(&'static str, &str)], target| {
        request(&mut parts("GET", target, Version::HTTP_11, headers)).map(|found| found.host).map_err(|v| v.rule)
    };
    let authority = |host: &str, port| Ok(Authority { host: host.into(), port });
    assert_eq!(host(&[("host", "Secret.com.")], "/"), authority("secret.com", None));
    assert_eq!(host(&[("host", "secret.com:80")], "/"), authority("secret.com", Some(80)));
    assert_eq!(host(&[("host", "[::1]:80")], "/"), authority("::1", Some(80)));
    assert_eq!(host(&[("host", "other")], "http://a.b/x"), authority("a.b", None), "the absolute form replaces Host");
    assert_eq!(host(&[], "/"), Err("host_missing"));
    assert_eq!(host(&[("host", "a"), ("host", "a")], "/"), Err("host_several"));
    for bad in ["", "a b", "u@a", "a/b", "a,b", "a:b", "a:0", "a:70000", "a..b", "[::1", "[x]"] {
        assert_eq!(host(&[("host", bad)], "/"), Err("host_invalid"), "{bad:?}");
    }
}

#[test]
fn http2_host_and_authority_must_agree() {
    let mut differs = parts("GET", "http://a/x", Version::HTTP_2, &[("host", "b")]);
    assert_eq!(request(&mut differs).expect_err("they differ").rule, "host_differs");
    let mut agrees = parts("GET", "http://a/x?y=1", Version::HTTP_2, &[]);
    request(&mut agrees).expect("valid");
    assert_eq!(agrees.uri, "/x?y=1");
    assert_eq!(agrees.headers["host"], "a");
}

#[test]
fn a_query_without_a_path_is_one_of_the_root() {
    for (uri, version) in [("http://a?y=1", Version::HTTP_11), ("http://a?y=1", Version::HTTP_2)] {
        let mut bare = parts("GET", uri, version, &[]);
        request(&mut bare).expect("valid");
        assert_eq!(bare.uri.path_and_query().expect("a target").as_str(), "/?y=1", "{version:?}");
    }
}

#[test]
fn ambiguous_paths_are_refused() {
    for good in ["/", "/a", "/a/", "/a.b/..c", "/a%20b", "/a;v=1", "/%C3%A4", "/a/b.c"] {
        assert_eq!(path(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "a",
        "//",
        "/a//b",
        "//a",
        "/.",
        "/..",
        "/a/../b",
        "/a/.",
        "/..;x/a",
        "/%2e%2e/a",
        "/%2F",
        "/%5c",
        "/a\\b",
        "/%00",
        "/%09",
        "/%0a",
        "/%0D",
        "/%1f",
        "/%7f",
        "/%252e",
        "/%23",
        "/%3F",
        "/%",
        "/%2",
        "/%zz",
        "/a#b",
        "/a b",
        "/\u{e4}",
        "/a\tb",
    ] {
        assert!(path(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn every_connection_line_is_honoured_but_cannot_remove_ours() {
    let headers = [
        ("host", "a"),
        ("connection", "x-one, close"),
        ("connection", "X-Two, host, authorization"),
        ("x-one", "1"),
        ("x-two", "2"),
        ("authorization", "b"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers, gzip"),
        ("upgrade", "h2c"),
    ];
    let mut head = parts("GET", "/", Version::HTTP_11, &headers);
    request(&mut head).expect("valid");
    let mut left: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["authorization", "host", "te"]);
    assert_eq!(head.headers["te"], "trailers");
}

#[test]
fn a_websocket_is_recognised_and_another_upgrade_is_dropped() {
    let upgrade = |value: &str| {
        let headers = [("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", value)];
        request(&mut parts("GET", "/", Version::HTTP_11, &headers)).expect("valid").upgrade
    };
    assert_eq!(upgrade("WebSocket"), Some(Upgrade::WebSocket));
    assert_eq!(upgrade("h2c"), None);
    let mut connect = parts("CONNECT", "a:1", Version::HTTP_11, &[("host", "a:1")]);
    assert_eq!(request(&mut connect).expect_err("off by default").status, 405);
}

#[test]
fn expectations_other_than_continue_are_refused() {
    let expect = |value: &str| {
        request(&mut parts("POST", "/", Version::HTTP_11, &[("host", "a"), ("expect", value)])).map_err(|v| v.status)
    };
    assert!(expect("100-Continue").is_ok());
    assert_eq!(expect("200-ok").map(|_| ()), Err(417));
}

#[test]
fn cookie_crumbs_become_one_field() {
    let mut head = parts("GET", "http://a/", Version::HTTP_2, &[("cookie", "a=1"), ("cookie", "b=2")]);
    request(&mut head).expect("valid");
    assert_eq!(head.headers["cookie"], "a=1; b=2");
}

fn answer(status: u16, method: Method, headers: &[(&'static str, &str)]) -> Result<Framing, &'static str> {
    let mut response = Response::builder().status(StatusCode::from_u16(status).expect("a status"));
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let mut parts = response.body(()).expect("a response").into_parts().0;
    super::response(&mut parts, &method, Version::HTTP_11).map_err(|v| {
        assert_eq!(v.status, 502);
        v.rule
    })
}

#[test]
fn a_hostile_response_is_refused() {
    let get = || Method::GET;
    assert_eq!(answer(200, get(), &[("transfer-encoding", "chunked"), ("content-length", "1")]), Err("te_with_cl"));
    assert_eq!(answer(200, get(), &[("content-length", "1"), ("content-length", "2")]), Err("cl_differs"));
    assert_eq!(answer(200, get(), &[("transfer-encoding", "gzip, chunked")]), Err("te_not_chunked"));
    assert_eq!(answer(200, get(), &[]), Ok(Framing::Stream));
    assert_eq!(answer(204, get(), &[("content-length", "0")]), Ok(Framing::None));
    assert_eq!(answer(200, Method::HEAD, &[("content-length", "7")]), Ok(Framing::Length(7)));
    assert_eq!(answer(304, get(), &[]), Ok(Framing::None));
}

#[test]
fn trailers_lose_what_belongs_into_the_head() {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", HeaderValue::from_static("0"));
    map.insert("content-length", HeaderValue::from_static("9"));
    map.insert("authorization", HeaderValue::from_static("x"));
    trailers(&mut map);
    assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn canonicalising_twice_changes_nothing(
        path in "/[a-z%./;]{0,12}",
        host in "[A-Za-z.:0-9]{1,12}",
        names in proptest::collection::vec("x-[a-c]", 0..4),
    ) {
        let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
        let mut request = Request::builder().uri(uri).header("host", host);
        for name in &names {
            request = request.header(name, "1").header("connection", name);
        }
        let Ok(request) = request.body(()) else { return Ok(()) };
        let mut head = request.into_parts().0;
        if let Ok(first) = super::request(&mut head) {
            let (uri, headers) = (head.uri.clone(), head.headers.clone());
            // What is gone is not found again.
            let again = super::request(&mut head).map(|again| super::Canonical { fields: first.fields, ..again });
            prop_assert_eq!(again, Ok(first));
            prop_assert_eq!((head.uri, head.headers), (uri, headers));
        }
    }
}
