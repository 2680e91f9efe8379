use weft_policy::model::{Access, ObjectName, PathMatch, Protocol, RateKey, RateLimit, RouteMatch, TlsMode};

use super::*;
use crate::outbound::tests::net::{ALL, App, Net, Spoken, local, target};

fn limit(name: &str, requests: u32) -> InboundLimit {
    let limit =
        RateLimit { name: name.into(), requests, per: Duration::from_secs(3600), burst: requests, key: RateKey::Total };
    InboundLimit { limit, services: vec![], matches: vec![], rules: vec![] }
}

fn port(limits: Vec<InboundLimit>) -> InboundPort {
    let rate_limits = limits.into_iter().map(Arc::new).collect();
    let access = Access::without_policies(TlsMode::Permissive);
    InboundPort {
        port: 8080,
        protocol: Protocol::Http,
        services: vec![target("web")],
        rate_limits,
        access,
        request_authentications: vec![],
    }
}

fn of(limiters: &Limiters, port: &InboundPort) -> Arc<[Limit]> {
    limiters.of(port, &port.services, &Telemetry::default(), 1)
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_in_the_callers_protocol_and_says_when_to_come_back() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let net = Net::inbound(spoken, app.address, vec![Arc::new(limit("shop/web#0", 2))]).await;
            for remaining in ["1", "0"] {
                let answer = net.get("/", &[]).await;
                assert_eq!(answer.status, 200, "{spoken:?}");
                assert_eq!(answer.headers["ratelimit-policy"], "\"shop/web#0\";q=2;w=3600");
                let rate = answer.headers["ratelimit"].to_str().expect("ASCII");
                assert!(rate.starts_with(&format!("\"shop/web#0\";r={remaining};t=")), "{rate}");
                assert!(!answer.headers.contains_key("retry-after"));
            }
            let answer = net.get("/", &[]).await;
            if spoken == Spoken::Grpc {
                assert_eq!((answer.status, answer.headers["grpc-status"].as_bytes()), (200, &b"8"[..]));
            } else {
                assert_eq!(answer.status, 429);
            }
            assert!(answer.headers["ratelimit"].to_str().expect("ASCII").starts_with("\"shop/web#0\";r=0;t="));
            let proxy_status = answer.headers["proxy-status"].to_str().expect("ASCII");
            assert!(proxy_status.contains("rate_limited: over the limit shop/web#0"), "{proxy_status}");
            let retry: u64 = answer.headers["retry-after"].to_str().expect("ASCII").parse().expect("seconds");
            assert!((1..=1800).contains(&retry), "{retry}");
            assert_eq!(app.count(), 2);
            net.metric("weft_rate_limit_requests_total{limit=\"shop/web#0\",result=\"limited\"} 1").await;
            let text = net.telemetry.render();
            assert!(text.contains("code_class=\"4xx\",reason=\"rate_limited\","), "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_limit_counts_what_it_matches_and_lets_in_and_the_tightest_is_told() {
    local(async {
        let app = App::start("web", &[]).await;
        let path = PathMatch::Prefix("/dear".into());
        let matches = vec![RouteMatch { rule: 0, path, method: None, headers: vec![], query: vec![] }];
        let dear = InboundLimit { matches, ..limit("dear", 1) };
        let net = Net::inbound(Spoken::Http1, app.address, vec![Arc::new(limit("all", 9)), Arc::new(dear)]).await;
        assert!(net.get("/dear", &[]).await.headers["ratelimit"].as_bytes().starts_with(b"\"dear\";r=0"));
        assert_eq!(net.get("/dear", &[]).await.status, 429);
        assert!(net.get("/cheap", &[]).await.headers["ratelimit"].as_bytes().starts_with(b"\"all\";r=7"));
    })
    .await;
}

#[test]
fn a_limit_that_stays_the_same_keeps_its_count_and_a_changed_one_begins_anew() {
    let limiters = Limiters::default();
    let first = of(&limiters, &port(vec![limit("a", 1), limit("b", 1)]));
    let second = of(&limiters, &port(vec![limit("b", 1), limit("a", 2)]));
    assert!(Arc::ptr_eq(&first[1].limiter, &second[0].limiter));
    assert!(!Arc::ptr_eq(&first[0].limiter, &second[1].limiter));
}

#[test]
fn limits_that_nothing_names_are_forgotten() {
    let limiters = Limiters::default();
    drop(of(&limiters, &port(vec![limit("a", 1), limit("b", 1)])));
    let _held = of(&limiters, &port(vec![limit("b", 1)]));
    assert_eq!(limiters.0.lock().expect("not poisoned").len(), 1);
}

#[test]
fn a_limit_of_a_service_is_for_calls_to_it() {
    let limiters = Limiters::default();
    let other = Target { service: ObjectName::new("shop", "other"), port: 80 };
    let port = port(vec![InboundLimit { services: vec![other.clone()], ..limit("a", 1) }, limit("b", 1)]);
    let names = |services: &[Target]| {
        let limits = limiters.of(&port, services, &Telemetry::default(), 1);
        limits.iter().map(|limit| limit.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&[target("web")]), ["b"]);
    assert_eq!(names(&[other]), ["a", "b"]);
}

#[test]
fn a_limit_that_is_there_for_two_services_counts_a_request_once() {
    let limiters = Limiters::default();
    let other = Target { service: ObjectName::new("shop", "other"), port: 80 };
    let of = |service: Target| InboundLimit { services: vec![service], ..limit("a", 1) };
    let port = port(vec![of(other.clone()), of(target("web")), limit("b", 1)]);
    let limits = limiters.of(&port, &[target("web"), other], &Telemetry::default(), 1);
    let names: Vec<_> = limits.iter().map(|limit| (limit.name(), limit.ways.len())).collect();
    assert_eq!(names, [("a", 2), ("b", 1)]);
}

#[test]
fn a_caller_with_a_certificate_says_which_rule_a_request_follows_and_others_are_matched() {
    let path = PathMatch::Prefix("/dear".into());
    let matches = vec![RouteMatch { rule: 0, path, method: None, headers: vec![], query: vec![] }];
    let dear = InboundLimit { matches, rules: vec!["shop/web#dear".into()], ..limit("dear", 1) };
    let limits = of(&Limiters::default(), &port(vec![dear]));
    let (method, headers) = (http::Method::GET, HeaderMap::new());
    let (ours, others) = (HeaderValue::from_static("shop/web#dear"), HeaderValue::from_static("shop/web#other"));
    for (mesh, rule, path, expected) in [
        (true, Some(&ours), "/dear", true),
        (true, Some(&ours), "/rewritten", true),
        (true, Some(&others), "/dear", false),
        (true, None, "/dear", false),
        (false, None, "/dear", true),
        (false, Some(&others), "/dear", true),
        (false, Some(&ours), "/rewritten", false),
    ] {
        let view = RequestView { method: &method, path, query: None, headers: &headers };
        assert_eq!(limits[0].meets((mesh, rule), &view), expected, "{mesh} {rule:?} {path}");
    }
}
