use http::{HeaderName, StatusCode};

use super::*;
use crate::{
    model::{ObjectName, Target},
    pattern::Pattern,
};

fn fields(text: &[(&'static str, &'static str)]) -> Vec<(HeaderName, HeaderValue)> {
    text.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.into())
}

#[test]
fn headers_are_set_then_added_then_removed() {
    let mut headers: HeaderMap = fields(&[("a", "1"), ("b", "1"), ("c", "1")]).into_iter().collect();
    headers.append("a", HeaderValue::from_static("2"));
    let change = HeaderModifier {
        set: fields(&[("a", "3"), ("d", "1")]),
        add: fields(&[("a", "4"), ("b", "2"), ("e", "1")]),
        remove: vec![HeaderName::from_static("c"), HeaderName::from_static("e"), HeaderName::from_static("z")],
    };
    change.apply(&mut headers);
    let all = |name: &str| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b'|');
    assert_eq!([all("a"), all("b"), all("d")], [&b"3|4"[..], b"1|2", b"1"]);
    assert!(!headers.contains_key("c") && !headers.contains_key("e"));
}

#[test]
fn of_a_name_that_is_set_twice_the_first_counts() {
    let mut headers = HeaderMap::new();
    let change = HeaderModifier { set: fields(&[("a", "first"), ("a", "second")]), ..HeaderModifier::default() };
    change.apply(&mut headers);
    assert_eq!(headers["a"], "first");
    assert_eq!(headers.len(), 1);
}

/// The table of Gateway API's `HTTPPathModifier.replacePrefixMatch`. A trailing slash of the match and an empty
/// replacement do not reach here: `convert` makes `/foo` and `/` of them.
#[test]
fn a_prefix_is_replaced_as_in_the_table_of_gateway_api() {
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/", "/foo", "/xyz/", "/xyz/"),
        ("/foo", "/foo", "/xyz/", "/xyz/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/", "/", "/", "/"),
        ("/foo/bar/", "/foo", "/a/b", "/a/b/bar/"),
        ("/foo/foo", "/foo", "/x", "/x/foo"),
    ] {
        let change = PathModifier::Prefix(replacement.into());
        assert_eq!(change.apply(path, &prefix(matched)), expected, "{path} {matched} {replacement}");
    }
}

#[test]
fn a_prefix_is_replaced_only_where_one_was_matched() {
    let change = PathModifier::Prefix("/xyz".into());
    assert_eq!(change.apply("/foo", &PathMatch::Exact("/foo".into())), "/xyz");
    assert_eq!(change.apply("/foo", &PathMatch::Any), "/xyz/foo");
    let Ok(pattern) = Pattern::new("/fo+") else { panic!("a pattern") };
    assert_eq!(change.apply("/foo", &PathMatch::Regex(pattern)), "/foo");
    assert_eq!(change.apply("*", &PathMatch::Any), "*");
}

#[test]
fn a_full_replacement_takes_the_whole_path_and_the_query_stays() {
    let rewrite = Rewrite { hostname: None, path: Some(PathModifier::Full("/new".into())) };
    let path = |text| PathAndQuery::from_static(text);
    let rewritten = |from| rewrite.path(&path(from), &prefix("/")).map(|path| path.to_string());
    assert_eq!(rewritten("/a/b?q=/a&r").as_deref(), Some("/new?q=/a&r"));
    assert_eq!(rewritten("/a/b?").as_deref(), Some("/new?"));
    assert_eq!(rewritten("/new?x"), None, "nothing to change");
    assert_eq!(Rewrite::default().path(&path("/a"), &prefix("/")), None);
}

fn redirect() -> Redirect {
    Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND }
}

fn location(redirect: &Redirect, host: &str, port: u16) -> String {
    let authority = Authority::parse(host.as_bytes()).expect("an authority");
    let path = PathAndQuery::from_static("/foo/bar?q=1");
    let matched = prefix("/foo");
    let request = Redirected { authority: &authority, path: &path, matched: &matched, port };
    redirect.location(request).expect("a value").to_str().expect("ASCII").to_owned()
}

#[test]
fn a_redirect_keeps_what_it_does_not_name() {
    assert_eq!(location(&redirect(), "Shop.Mesh", 80), "http://shop.mesh/foo/bar?q=1");
    let named = Redirect { hostname: Some("example.com".into()), ..redirect() };
    assert_eq!(location(&named, "shop", 80), "http://example.com/foo/bar?q=1");
    assert_eq!(location(&redirect(), "[::1]:8080", 8080), "http://[::1]:8080/foo/bar?q=1");
}

#[test]
fn the_port_of_a_redirect_is_its_own_then_the_schemes_then_the_services() {
    for (scheme, port, expected) in [
        (None, None, "http://shop:8080/foo/bar?q=1"),
        (None, Some(80), "http://shop/foo/bar?q=1"),
        (None, Some(443), "http://shop:443/foo/bar?q=1"),
        (Some(Scheme::Http), None, "http://shop/foo/bar?q=1"),
        (Some(Scheme::Https), None, "https://shop/foo/bar?q=1"),
        (Some(Scheme::Https), Some(443), "https://shop/foo/bar?q=1"),
        (Some(Scheme::Https), Some(80), "https://shop:80/foo/bar?q=1"),
        (Some(Scheme::Https), Some(8443), "https://shop:8443/foo/bar?q=1"),
    ] {
        // The port of the Host is what the app believes; the Service's is what counts.
        let redirect = Redirect { scheme, port, ..redirect() };
        assert_eq!(location(&redirect, "shop:9999", 8080), expected, "{scheme:?} {port:?}");
    }
}

#[test]
fn a_redirect_changes_the_path_and_keeps_the_query() {
    let to = |path| Redirect { path: Some(path), ..redirect() };
    assert_eq!(location(&to(PathModifier::Prefix("/new".into())), "shop", 80), "http://shop/new/bar?q=1");
    assert_eq!(location(&to(PathModifier::Full("/new".into())), "shop", 80), "http://shop/new?q=1");
}

#[test]
fn a_redirect_of_a_request_without_host_is_a_path() {
    let authority = Authority { host: "".into(), port: None };
    let (path, matched) = (PathAndQuery::from_static("/a?b"), PathMatch::Any);
    let request = Redirected { authority: &authority, path: &path, matched: &matched, port: 80 };
    assert_eq!(redirect().location(request).expect("a value"), "/a?b");
}

#[test]
fn a_mirror_gets_its_share() {
    let mirror = |ppm| Mirror { target: Target { service: ObjectName::new("a", "b"), port: 80 }, ppm };
    for random in [0, 1, u64::MAX / 2, u64::MAX] {
        assert!(!mirror(0).chooses(random));
        assert!(mirror(1_000_000).chooses(random));
    }
    // Evenly spread numbers stand for random ones.
    let chosen = (0..10_000_u64).filter(|n| mirror(250_000).chooses((2 * n + 1) * (u64::MAX / 20_000))).count();
    assert_eq!(chosen, 2_500);
}
