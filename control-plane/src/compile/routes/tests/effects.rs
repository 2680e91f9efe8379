//! What a rule does to the requests that follow it: a row for each field and each class of its values.

use std::time::Duration;

use weft_policy::model::{Allowed, HeaderModifier, Mirror, ObjectName, Origin, PathModifier, Scheme, Target};

use super::*;

/// The only rule of a route, as a sidecar holds it.
fn the(rule_text: &str) -> (RouteRule, Vec<String>) {
    let (output, problems) = mesh(&route("HTTPRoute", "name: r", &format!("{{name: it, {rule_text}}}")));
    let service = held(&output, "default/web", "default");
    (rule(&service, 80, "GET /a/b").expect("a rule").clone(), problems)
}

fn good(rule_text: &str) -> RouteRule {
    let (rule, problems) = the(rule_text);
    assert_eq!(problems, [] as [String; 0], "{rule_text}");
    rule
}

const BACKEND: &str = "backendRefs: [{name: other, port: 80}]";

#[test]
fn header_modifiers_set_add_and_remove() {
    let fields = "{set: [{name: X-A, value: ' 1 '}], add: [{name: X-B, value: '2'}], remove: [X-C]}";
    let rule = good(&format!(
        "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {fields}}}, \
         {{type: ResponseHeaderModifier, responseHeaderModifier: {fields}}}], {BACKEND}"
    ));
    let expected = HeaderModifier {
        set: vec![(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))],
        add: vec![(HeaderName::from_static("x-b"), HeaderValue::from_static("2"))],
        remove: vec![HeaderName::from_static("x-c")],
    };
    assert_eq!(rule.filters.request_headers, std::slice::from_ref(&expected));
    assert_eq!(rule.filters.response_headers, [expected]);
}

#[test]
fn a_filter_of_a_backend_is_for_its_requests_only() {
    let rule = good(
        "backendRefs: [{name: other, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: \
         {remove: [a]}}, {type: URLRewrite, urlRewrite: {hostname: b.example}}]}, {name: web, port: 80, weight: 3}]",
    );
    assert_eq!(rule.filters, weft_policy::model::Filters::default());
    assert_eq!(rule.backends[0].filters.request_headers.len(), 1);
    assert!(rule.backends[0].filters.rewrite.is_some() && rule.backends[1].filters.rewrite.is_none());
    assert_eq!((rule.total_weight, rule.backends[1].weight), (4, 3));
}

#[test]
fn a_redirect_has_every_status_scheme_host_path_and_port() {
    let redirect = |fields: &str| {
        let rule = good(&format!("filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]"));
        rule.filters.redirect.expect("a redirect")
    };
    for status in [301, 302, 303, 307, 308] {
        assert_eq!(redirect(&format!("statusCode: {status}")).status.as_u16(), status);
    }
    let bare = redirect("hostname: a.example");
    assert_eq!((bare.status.as_u16(), bare.scheme, bare.port), (302, None, None), "the Service's port is meant");
    assert_eq!(bare.hostname.as_deref(), Some("a.example"));
    assert_eq!(redirect("scheme: https").scheme, Some(Scheme::Https));
    assert_eq!(redirect("scheme: http, port: 8080").port, Some(8080));
    let path = |fields: &str| redirect(&format!("path: {{{fields}}}")).path;
    assert_eq!(path("type: ReplaceFullPath, replaceFullPath: /x"), Some(PathModifier::Full("/x".into())));
    assert_eq!(path("type: ReplacePrefixMatch, replacePrefixMatch: /x"), Some(PathModifier::Prefix("/x".into())));
}

#[test]
fn a_rewrite_replaces_host_full_path_or_prefix() {
    let rewrite = |matches: &str, fields: &str| {
        let filter = format!("{{type: URLRewrite, urlRewrite: {{{fields}}}}}");
        good(&format!("{matches} filters: [{filter}], {BACKEND}")).filters.rewrite.expect("a rewrite")
    };
    assert_eq!(rewrite("", "hostname: a.example").hostname, Some(HeaderValue::from_static("a.example")));
    let full = rewrite("", "path: {type: ReplaceFullPath, replaceFullPath: /x/y}").path;
    assert_eq!(full, Some(PathModifier::Full("/x/y".into())));
    let prefix = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}";
    for matches in
        ["", "matches: [{path: {value: /a}}],", "matches: [{path: {type: PathPrefix, value: /a}, method: GET}],"]
    {
        assert_eq!(rewrite(matches, prefix).path, Some(PathModifier::Prefix("/x".into())), "{matches}");
    }
    let away = rewrite("", "path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}").path;
    assert_eq!(away, Some(PathModifier::Prefix("/".into())));
}

#[test]
fn several_mirrors_get_their_shares() {
    let mirror = |name: &str, share: &str| {
        format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 80}}{share}}}}}")
    };
    let filters = [
        mirror("other", ""),
        mirror("web", ", percent: 5"),
        mirror("web", ", fraction: {numerator: 1, denominator: 1000}"),
        mirror("web", ", percent: 0"),
    ];
    let rule = good(&format!("filters: [{}], {BACKEND}", filters.join(", ")));
    let to = |name: &str, ppm: u32| {
        let target = Target { service: ObjectName::new("default", name), port: 80 };
        Mirror { target, ppm }
    };
    assert_eq!(rule.filters.mirrors, [to("other", 1_000_000), to("web", 50_000), to("web", 1000)]);
    let (rule, problems) = the(&format!("filters: [{}], {BACKEND}", mirror("othr", "")));
    assert_eq!(
        problems,
        ["spec.rules[0].filters[0].requestMirror.backendRef.name: Service \"default/othr\" does not exist (did you \
             mean \"default/other\"?)"]
    );
    assert_eq!((rule.filters.mirrors.len(), rule.backends.len()), (0, 1), "the requests themselves go on");
}

#[test]
fn cors_says_who_may_call_and_how() {
    let cors = |fields: &str| {
        let filter = format!("{{type: CORS, cors: {{{fields}}}}}");
        good(&format!("filters: [{filter}], {BACKEND}")).filters.cors.expect("a policy")
    };
    let all = cors(
        "allowOrigins: ['https://a.example', 'https://*.b.example:8443'], allowCredentials: true, \
         allowMethods: [GET, PUT], allowHeaders: [X-A], exposeHeaders: [X-B, '*'], maxAge: 60",
    );
    let origins =
        [Origin::Exact("https://a.example".into()), Origin::Below("https://".into(), ".b.example:8443".into())];
    assert_eq!((all.allow_origins, all.allow_credentials, all.max_age), (origins.to_vec(), true, 60));
    assert_eq!(all.allow_methods, Allowed::Some(vec![Method::GET, Method::PUT]));
    assert_eq!(all.allow_headers, Allowed::Some(vec![HeaderName::from_static("x-a")]));
    assert_eq!(all.expose_headers, Allowed::All);
    let any = cors("allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*']");
    assert_eq!((any.allow_origins, any.allow_credentials, any.max_age), (vec![Origin::Any], false, 5));
    assert_eq!((any.allow_methods, any.allow_headers), (Allowed::All, Allowed::All));
}

#[test]
fn timeouts_and_retries_of_a_rule_are_those_of_its_requests() {
    let requests = |fields: &str| good(&format!("{fields}, {BACKEND}")).requests;
    let seconds = |seconds: u64| Some(Duration::from_secs(seconds));
    let timed = requests("timeouts: {request: 10s, backendRequest: 2s}");
    assert_eq!((timed.timeout, timed.backend_timeout), (seconds(10), seconds(2)));
    assert_eq!(requests("timeouts: {request: 0s, backendRequest: 2s}").timeout, None);
    let retry = requests("retry: {attempts: 4, codes: [500, 503], backoff: 100ms}").retry.clone();
    assert_eq!((retry.attempts, retry.codes.len()), (4, 2));
    let (least, longest) = (Duration::from_millis(100), Duration::from_secs(1));
    assert_eq!((retry.backoff_min, retry.backoff_base, retry.backoff_max), (least, least, longest));
    assert_eq!(requests("retry: {attempts: 0}").retry.attempts, 0);
    assert_eq!(requests("retry: {}").retry, weft_policy::model::Retry::default());
}

#[test]
fn what_a_grpc_route_has_of_filters_and_weights_works_as_in_an_http_route() {
    let rules = "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: '1'}]}}, \
                 {type: RequestMirror, requestMirror: {backendRef: {name: other, port: 80}, percent: 1}}], \
                 backendRefs: [{name: other, port: 80, weight: 9, filters: [{type: ResponseHeaderModifier, \
                 responseHeaderModifier: {remove: [b]}}]}, {name: web, port: 7070}]}";
    let (output, problems) = mesh(&route("GRPCRoute", "name: r", rules));
    assert_eq!(problems, [] as [String; 0]);
    let service = held(&output, "default/web", "default");
    let rule = rule(&service, 7070, "POST /a.B/C").expect("a rule");
    assert_eq!((rule.filters.request_headers.len(), rule.filters.mirrors[0].ppm), (1, 10_000));
    assert_eq!((rule.total_weight, rule.backends[0].filters.response_headers.len()), (10, 1));
}

#[test]
fn a_filter_that_answers_is_not_for_a_backend_and_its_share_answers_500() {
    for (filter, name) in [
        ("{type: RequestRedirect, requestRedirect: {statusCode: 301}}", "RequestRedirect"),
        ("{type: CORS, cors: {allowOrigins: ['*']}}", "CORS"),
    ] {
        let (rule, problems) =
            the(&format!("backendRefs: [{{name: other, port: 80, filters: [{filter}]}}, {{name: web, port: 80}}]"));
        let message = format!(
            "spec.rules[0].backendRefs[0].filters[0].type: filter {name} at a backend is not supported: its share \
             answers 500 (remove the filter)"
        );
        assert_eq!(problems, [message]);
        assert!(rule.backends[0].target.is_none() && rule.backends[1].target.is_some());
    }
}

#[test]
fn sessions_of_a_rule_are_carried_as_it_says() {
    use weft_policy::model::{Carrier, Session};
    let session = |fields: &str| good(&format!("sessionPersistence: {{{fields}}}, {BACKEND}")).session.expect("one");
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let given = session("sessionName: sid, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}");
    let carrier = Carrier::Cookie { name: "sid".into(), permanent: true };
    assert_eq!(*given, Session { carrier, absolute: seconds(3600), idle: None, key: None });
    let header = session("type: Header, sessionName: X-Session, idleTimeout: 5m");
    let carrier = Carrier::Header(HeaderName::from_static("x-session"));
    assert_eq!(*header, Session { carrier, absolute: None, idle: seconds(300), key: None });
    let Carrier::Cookie { name, permanent: false } = session("").carrier else {
        panic!("a cookie until the caller ends")
    };
    assert!(name.starts_with("weft-session-") && name.len() == 29, "a name of its own: {name}");
    assert!(good(BACKEND).session.is_none());
}

#[test]
fn each_rule_with_sessions_has_a_key_of_its_own_in_all_sidecars() {
    let rules = format!("{{name: a, sessionPersistence: {{}}, {BACKEND}}}, {{sessionPersistence: {{}}, {BACKEND}}}");
    let routes = route("HTTPRoute", "name: r", &rules);
    let (resources, _) = Resources::from_text("f.yaml", &format!("{SERVICES}{routes}"));
    let dir = tempfile::tempdir().expect("a directory");
    let keys = || {
        // As after a restart, or at another control plane with the same file.
        let secret = crate::sessions::Secret::open(dir.path()).expect("a secret");
        let (output, _) = crate::compile::compile_with(&resources, &[], &crate::jwks::KeySets::default(), &secret);
        let web = held(&output, "default/web", "default");
        let rules = &web.port(80).expect("the port").routing.as_ref().expect("routes").rules;
        let key = |rule: &RouteRule| rule.session.as_ref().expect("a session").key.clone().expect("a key");
        rules.iter().map(|rule| key(rule)).collect::<Vec<_>>()
    };
    let first = keys();
    assert_ne!(first[0], first[1]);
    assert_eq!(keys(), first);
}
