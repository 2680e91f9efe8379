//! Which rule a request follows: a row for each field of a match and each class of its values.

use super::*;

#[test]
fn a_request_follows_the_rule_of_an_http_route_whose_match_it_fits() {
    let rows: &[(&str, &[&str], &[&str])] = &[
        ("path: {type: Exact, value: /a/b}", &["GET /a/b", "PUT /a/b?q=1"], &["GET /a", "GET /a/b/", "GET /a/b/c"]),
        ("path: {type: PathPrefix, value: /a}", &["GET /a", "GET /a/", "GET /a/b"], &["GET /ab", "GET /"]),
        ("path: {type: PathPrefix, value: /a/}", &["GET /a", "GET /a/b"], &["GET /ab"]),
        ("path: {value: /a}", &["GET /a/b"], &["GET /b"]),
        ("path: {type: PathPrefix}", &["GET /", "GET /x"], &[]),
        ("path: {type: RegularExpression, value: '/v[0-9]+/.*'}", &["GET /v12/x"], &["GET /v/x", "GET /x/v12/x"]),
        ("method: PATCH", &["PATCH /", "PATCH /x"], &["GET /", "POST /"]),
        ("headers: [{name: X-User, value: beta}]", &["GET / x-user=beta"], &["GET /", "GET / x-user=beta2"]),
        (
            "headers: [{name: a, value: '1'}, {name: b, value: '2'}]",
            &["GET / a=1 b=2"],
            &["GET / a=1", "GET / b=2", "GET / a=1 b=3"],
        ),
        // Of two with one name the first counts.
        ("headers: [{name: a, value: '1'}, {name: A, value: '2'}]", &["GET / a=1"], &["GET / a=2"]),
        (
            "headers: [{name: x, type: RegularExpression, value: 'be.a'}]",
            &["GET / x=beta", "GET / x=bela"],
            &["GET / x=beta2", "GET /"],
        ),
        (
            "queryParams: [{name: V, value: '2'}]",
            &["GET /?V=2", "GET /?a=1&V=2"],
            &["GET /?v=2", "GET /", "GET /?V=22"],
        ),
        ("queryParams: [{name: v, type: Exact, value: '2'}]", &["GET /?v=2"], &["GET /?v=3"]),
        (
            "queryParams: [{name: v, type: RegularExpression, value: '[0-9]'}]",
            &["GET /?v=2"],
            &["GET /?v=22", "GET /?w=2"],
        ),
        (
            "path: {value: /a}, method: GET, headers: [{name: h, value: '1'}], queryParams: [{name: q, value: '1'}]",
            &["GET /a?q=1 h=1"],
            &["GET /a?q=1", "GET /a h=1", "GET /?q=1 h=1", "PUT /a?q=1 h=1"],
        ),
    ];
    let backend = "backendRefs: [{name: other, port: 80}]";
    for (condition, hits, misses) in rows {
        let rules = format!("{{name: it, matches: [{{{condition}}}], {backend}}}");
        let (output, problems) = mesh(&route("HTTPRoute", "name: r", &rules));
        assert_eq!(problems, [] as [String; 0], "{condition}");
        let service = held(&output, "default/web", "default");
        for (requests, expected) in [(hits, Some("it")), (misses, None)] {
            for request in *requests {
                assert_eq!(followed(&service, 80, request), expected, "{condition}: {request}");
            }
        }
    }
}

#[test]
fn a_call_follows_the_rule_of_a_grpc_route_whose_match_it_fits() {
    let rows: &[(&str, &[&str], &[&str])] = &[
        (
            "method: {service: shop.v1.Catalog, method: Get}",
            &["POST /shop.v1.Catalog/Get"],
            &["POST /shop.v1.Catalog/GetAll", "POST /shop.v1.Catalog", "POST /shop.v1.Cart/Get"],
        ),
        (
            "method: {type: Exact, service: shop.v1.Catalog}",
            &["POST /shop.v1.Catalog/Get", "POST /shop.v1.Catalog/List"],
            &["POST /shop.v1.Catalogue/Get"],
        ),
        ("method: {method: Get}", &["POST /a.B/Get", "POST /C/Get"], &["POST /a.B/GetAll", "POST /Get"]),
        (
            "method: {type: RegularExpression, service: 'shop\\.v[12]\\.Catalog'}",
            &["POST /shop.v1.Catalog/Get", "POST /shop.v2.Catalog/List"],
            &["POST /shop.v3.Catalog/Get", "POST /shopxv1xCatalog/Get"],
        ),
        (
            "method: {type: RegularExpression, method: 'Get|List'}",
            &["POST /a.B/List"],
            &["POST /a.B/GetX", "POST /a.B/xList"],
        ),
        (
            "method: {type: RegularExpression, service: 'a|b', method: 'Get.*'}",
            &["POST /b/GetAll"],
            &["POST /c/GetAll", "POST /a/Set"],
        ),
        ("headers: [{name: X-A, value: '1'}]", &["POST /a.B/C x-a=1"], &["POST /a.B/C", "POST /a.B/C x-a=2"]),
        (
            "headers: [{name: x, type: RegularExpression, value: '[12]'}], method: {service: a.B}",
            &["POST /a.B/C x=2"],
            &["POST /a.B/C x=3", "POST /a.C/C x=2"],
        ),
        ("", &["POST /a.B/C"], &[]),
    ];
    for (condition, hits, misses) in rows {
        let rules = format!("{{name: it, matches: [{{{condition}}}], backendRefs: [{{name: other, port: 80}}]}}");
        let (output, problems) = mesh(&route("GRPCRoute", "name: r", &rules));
        assert_eq!(problems, [] as [String; 0], "{condition}");
        let service = held(&output, "default/web", "default");
        for (requests, expected) in [(hits, Some("it")), (misses, None)] {
            for request in *requests {
                assert_eq!(followed(&service, 7070, request), expected, "{condition}: {request}");
            }
        }
    }
}

#[test]
fn the_more_specific_match_of_an_http_route_precedes_wherever_it_is_written() {
    // In the order of Gateway API, with regular expressions after exact paths.
    let ranked = [
        ("exact", "path: {type: Exact, value: /a/b}"),
        ("pattern", "path: {type: RegularExpression, value: '/a/b|/a/c'}"),
        ("short-pattern", "path: {type: RegularExpression, value: '/a/.'}"),
        ("long", "path: {value: /a/b}"),
        ("method", "path: {value: /a}, method: GET"),
        ("headers", "path: {value: /a}, headers: [{name: a, value: '1'}, {name: b, value: '1'}]"),
        ("header", "path: {value: /a}, headers: [{name: a, value: '1'}], queryParams: [{name: q, value: '1'}]"),
        ("query", "path: {value: /a}, queryParams: [{name: q, value: '1'}]"),
        ("short", "path: {value: /a}"),
        ("rest", ""),
    ];
    // With the first so many left out, the next one is followed.
    for first in 0..ranked.len() {
        let rule = |(name, found): &(&str, &str)| format!("{{name: {name}, matches: [{{{found}}}]}}");
        let rules: Vec<String> = ranked[first..].iter().rev().map(rule).collect();
        let (output, _) = mesh(&route("HTTPRoute", "name: r", &rules.join(", ")));
        let service = held(&output, "default/web", "default");
        assert_eq!(followed(&service, 80, "GET /a/b?q=1 a=1 b=1"), Some(ranked[first].0));
    }
}

#[test]
fn the_more_specific_match_of_a_grpc_route_precedes_wherever_it_is_written() {
    let ranked = [
        ("both", "method: {service: a.Bcd, method: Get}"),
        ("service-and-header", "method: {service: a.Bcd}, headers: [{name: h, value: '1'}]"),
        ("service", "method: {service: a.Bcd}"),
        ("pattern", "method: {type: RegularExpression, service: 'a.+', method: Get}"),
        ("method", "method: {method: Get}"),
        ("header", "headers: [{name: h, value: '1'}]"),
        ("rest", ""),
    ];
    for first in 0..ranked.len() {
        let rule = |(name, found): &(&str, &str)| format!("{{name: {name}, matches: [{{{found}}}]}}");
        let rules: Vec<String> = ranked[first..].iter().rev().map(rule).collect();
        let (output, _) = mesh(&route("GRPCRoute", "name: r", &rules.join(", ")));
        let service = held(&output, "default/web", "default");
        assert_eq!(followed(&service, 7070, "POST /a.Bcd/Get h=1"), Some(ranked[first].0));
    }
}

#[test]
fn in_a_tie_the_older_route_precedes_and_then_the_first_by_name() {
    let of = |name: &str, created: &str| {
        let created = if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
        route("HTTPRoute", &format!("name: {name}{created}"), &format!("{{name: {name}}}"))
    };
    for (routes, winner) in [
        ([of("a", "2026-01-02T00:00:00Z"), of("b", "2026-01-01T00:00:00Z")], "b"),
        ([of("b", ""), of("a", "")], "a"),
        ([of("a", ""), of("b", "2026-01-01T00:00:00Z")], "b"),
    ] {
        let (output, _) = mesh(&routes.concat());
        assert_eq!(followed(&held(&output, "default/web", "default"), 80, "GET /"), Some(winner));
    }
}
