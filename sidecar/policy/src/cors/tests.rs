use super::*;

fn cors(origins: &[Origin]) -> Cors {
    Cors {
        allow_origins: origins.to_vec(),
        allow_methods: Allowed::Some(vec![Method::GET, Method::PUT]),
        allow_headers: Allowed::Some(vec![header::AUTHORIZATION, HeaderName::from_static("x-a")]),
        expose_headers: Allowed::Some(vec![HeaderName::from_static("x-b"), HeaderName::from_static("x-c")]),
        max_age: 60,
        ..Cors::default()
    }
}

fn shop() -> Origin {
    Origin::Exact("https://shop.example".into())
}

fn request(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let parsed = fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut headers = HeaderMap::new();
    for (name, value) in parsed {
        headers.append(name, value);
    }
    headers
}

/// `name: value` of every field, sorted.
fn text(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("ASCII"))).collect();
    lines.sort();
    lines
}

fn preflight(cors: &Cors, origin: &'static str) -> Vec<String> {
    let headers = request(&[
        ("origin", origin),
        ("access-control-request-method", "DELETE"),
        ("access-control-request-headers", "x-z,authorization"),
    ]);
    text(&cors.preflight(&Method::OPTIONS, &headers).expect("a preflight"))
}

fn answer(cors: &Cors, asked: &[(&'static str, &'static str)], app: &[(&'static str, &'static str)]) -> Vec<String> {
    let mut headers = request(app);
    cors.answer(&cors.decide(&request(asked)), &mut headers);
    text(&headers)
}

const VARY: &str = "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

#[test]
fn a_preflight_is_answered_with_what_is_allowed() {
    assert_eq!(
        preflight(&cors(&[shop()]), "https://shop.example"),
        [
            "access-control-allow-headers: authorization, x-a",
            "access-control-allow-methods: GET, PUT",
            "access-control-allow-origin: https://shop.example",
            "access-control-max-age: 60",
            VARY,
        ]
    );
}

#[test]
fn an_origin_that_is_not_allowed_gets_no_headers() {
    assert_eq!(preflight(&cors(&[shop()]), "https://evil.example"), [VARY]);
    let evil = answer(&cors(&[shop()]), &[("origin", "https://evil.example")], &[("x-b", "1")]);
    assert_eq!(evil, ["vary: Origin", "x-b: 1"]);
}

#[test]
fn of_everything_a_preflight_gets_what_it_asked_for() {
    let all = Cors { allow_methods: Allowed::All, allow_headers: Allowed::All, ..cors(&[Origin::Any]) };
    assert_eq!(
        preflight(&all, "https://a.example"),
        [
            "access-control-allow-headers: x-z,authorization",
            "access-control-allow-methods: DELETE",
            "access-control-allow-origin: *",
            "access-control-max-age: 60",
            VARY,
        ]
    );
}

#[test]
fn only_options_with_origin_and_method_is_a_preflight() {
    let cors = cors(&[Origin::Any]);
    let full = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
    assert!(cors.preflight(&Method::OPTIONS, &request(&full)).is_some());
    assert!(cors.preflight(&Method::GET, &request(&full)).is_none());
    assert!(cors.preflight(&Method::OPTIONS, &request(&full[..1])).is_none());
    assert!(cors.preflight(&Method::OPTIONS, &request(&full[1..])).is_none());
}

#[test]
fn an_answer_says_who_may_read_what() {
    let allowed = answer(&cors(&[shop()]), &[("origin", "https://shop.example")], &[]);
    assert_eq!(
        allowed,
        [
            "access-control-allow-origin: https://shop.example",
            "access-control-expose-headers: x-b, x-c",
            "vary: Origin",
        ]
    );
    let any = answer(&cors(&[Origin::Any]), &[("origin", "https://a.example")], &[]);
    assert_eq!(any, ["access-control-allow-origin: *", "access-control-expose-headers: x-b, x-c"]);
}

#[test]
fn with_credentials_the_origin_is_named_and_nothing_is_a_star() {
    let all = Cors { expose_headers: Allowed::All, allow_credentials: true, ..cors(&[Origin::Any]) };
    let allowed = answer(&all, &[("origin", "https://a.example")], &[("x-q", "1"), ("x-r", "1")]);
    assert_eq!(
        allowed,
        [
            "access-control-allow-credentials: true",
            "access-control-allow-origin: https://a.example",
            "access-control-expose-headers: x-q, x-r",
            "vary: Origin",
            "x-q: 1",
            "x-r: 1",
        ]
    );
    let preflight = preflight(&all, "https://a.example");
    assert!(preflight.contains(&"access-control-allow-credentials: true".to_owned()), "{preflight:?}");
    assert!(!preflight.iter().any(|line| line.ends_with(": *")), "{preflight:?}");
}

#[test]
fn an_answer_without_an_origin_is_not_for_a_page() {
    assert_eq!(answer(&cors(&[shop()]), &[], &[]), ["vary: Origin"]);
    assert!(answer(&cors(&[Origin::Any]), &[], &[]).is_empty());
}

#[test]
fn vary_is_said_once() {
    for vary in ["Accept, origin", "*"] {
        assert_eq!(answer(&cors(&[shop()]), &[], &[("vary", vary)]), [format!("vary: {vary}")]);
    }
    assert_eq!(answer(&cors(&[shop()]), &[], &[("vary", "Accept")]), ["vary: Accept", "vary: Origin"]);
}

#[test]
fn what_the_app_says_of_cors_gives_way() {
    let app = [("access-control-allow-origin", "*"), ("access-control-allow-credentials", "true")];
    assert_eq!(answer(&cors(&[shop()]), &[("origin", "https://evil.example")], &app), ["vary: Origin"]);
    let allowed = answer(&cors(&[shop()]), &[("origin", "https://shop.example")], &app);
    assert_eq!(allowed[0], "access-control-allow-origin: https://shop.example");
}

#[test]
fn an_origin_below_is_one_whose_host_ends_so() {
    let below = Origin::Below("https://".into(), ".shop.example:8443".into());
    for (origin, allowed) in [
        ("https://a.shop.example:8443", true),
        ("https://a.b.shop.example:8443", true),
        ("https://shop.example:8443", false),
        ("https://.shop.example:8443", false),
        ("https://a.shop.example", false),
        ("http://a.shop.example:8443", false),
        ("https://ashop.example:8443", false),
        ("https://evil.example/.shop.example:8443", false),
        ("https://evil.example#.shop.example:8443", false),
        ("https://user@x.shop.example:8443", false),
        ("null", false),
    ] {
        let headers = request(&[("origin", origin)]);
        let decision = cors(std::slice::from_ref(&below)).decide(&headers);
        assert_eq!(decision.allow.is_some(), allowed, "{origin}");
    }
}

#[test]
fn an_origin_that_is_given_twice_is_none() {
    let twice = [("origin", "https://shop.example"), ("origin", "https://shop.example")];
    assert_eq!(answer(&cors(&[shop()]), &twice, &[]), ["vary: Origin"]);
}
