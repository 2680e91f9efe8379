//! Filters of routes, from a caller to apps and back, in each protocol.

mod faults;
mod hedging;
mod logged;
pub(crate) mod net;
mod sessions;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use net::{ALL, App, Net, Spoken, local, rule, target, to};
use weft_policy::model::{Cors, Filters, HeaderModifier, Mirror, Origin, PathModifier, Redirect, Rewrite, RouteRule};

fn change(
    set: (&'static str, &'static str),
    add: (&'static str, &'static str),
    remove: &'static str,
) -> HeaderModifier {
    let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    HeaderModifier { set: vec![field(set)], add: vec![field(add)], remove: vec![HeaderName::from_static(remove)] }
}

fn with(filters: Filters) -> RouteRule {
    RouteRule { filters, ..rule(vec![to("web")]) }
}

#[tokio::test]
async fn headers_are_changed_on_the_way_in_and_out() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[("x-secret", "1"), ("x-both", "app")]).await;
            let filters = Filters {
                request_headers: vec![change(("x-set", "new"), ("x-add", "more"), "x-gone")],
                response_headers: vec![change(("x-set", "out"), ("x-both", "rule"), "x-secret")],
                ..Filters::default()
            };
            let net = Net::start(spoken, &[("web", app.address)], with(filters)).await;
            let answer = net.get("/api", &[("x-set", "old"), ("x-add", "one"), ("x-gone", "1")]).await;
            let seen = app.last().headers;
            assert_eq!(seen["x-set"], "new", "{spoken:?}");
            assert_eq!(seen.get_all("x-add").iter().collect::<Vec<_>>(), ["one", "more"]);
            assert!(!seen.contains_key("x-gone"));
            assert_eq!(answer.headers["x-set"], "out");
            assert_eq!(answer.headers.get_all("x-both").iter().collect::<Vec<_>>(), ["app", "rule"]);
            assert!(!answer.headers.contains_key("x-secret"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_backends_filters_come_after_the_rules_and_back_before_them() {
    local(async {
        let app = App::start("web", &[]).await;
        let set = |value| change(("x-who", value), ("x-order", value), "x-none");
        let filters = |value| Filters {
            request_headers: vec![set(value)],
            response_headers: vec![set(value)],
            ..Filters::default()
        };
        let mut backend = to("web");
        backend.filters = filters("backend");
        let rule = RouteRule { filters: filters("rule"), ..rule(vec![backend]) };
        let net = Net::start(Spoken::Http1, &[("web", app.address)], rule).await;
        let answer = net.get("/api", &[]).await;
        assert_eq!(app.last().headers["x-who"], "backend");
        assert_eq!(app.last().headers.get_all("x-order").iter().collect::<Vec<_>>(), ["rule", "backend"]);
        assert_eq!(answer.headers["x-who"], "rule");
        assert_eq!(answer.headers.get_all("x-order").iter().collect::<Vec<_>>(), ["backend", "rule"]);
    })
    .await;
}

#[tokio::test]
async fn host_and_path_are_rewritten_after_routing() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let rewrite = Rewrite {
                hostname: Some(HeaderValue::from_static("new.example")),
                path: Some(PathModifier::Prefix("/v2".into())),
            };
            let filters = Filters { rewrite: Some(rewrite.into()), ..Filters::default() };
            let net = Net::start(spoken, &[("web", app.address)], with(filters)).await;
            assert_eq!(net.get("/api/items?q=/api", &[]).await.body, "web");
            let seen = app.last();
            assert_eq!((seen.host.as_str(), seen.path.as_str()), ("new.example", "/v2/items?q=/api"), "{spoken:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_redirect_answers_without_a_backend() {
    local(async {
        for spoken in ALL {
            let redirect = Redirect {
                scheme: None,
                hostname: Some("new.example".into()),
                path: Some(PathModifier::Prefix("/v2".into())),
                port: Some(8443),
                status: StatusCode::PERMANENT_REDIRECT,
            };
            let filters = Filters {
                redirect: Some(redirect.into()),
                response_headers: vec![change(("x-set", "out"), ("x-add", "out"), "x-gone")],
                ..Filters::default()
            };
            let app = App::start("web", &[]).await;
            let rule = RouteRule { filters, ..rule(vec![]) };
            let net = Net::start(spoken, &[("web", app.address)], rule).await;
            let answer = net.get("/api/items?q=1", &[]).await;
            assert_eq!(answer.status, 308, "{spoken:?}");
            assert_eq!(answer.headers["location"], "http://new.example:8443/v2/items?q=1");
            assert_eq!(answer.headers["proxy-status"], "weft; details=\"redirect of route shop/route#0\"");
            assert_eq!(answer.headers["x-set"], "out");
            assert_eq!(app.count(), 0);
            let labels = "direction=\"outbound\",service=\"shop/web\",port=\"80\",tls=\"none\"";
            net.counts(&format!("weft_http_requests_total{{{labels},code_class=\"3xx\",version="), 1).await;
        }
    })
    .await;
}

fn cors() -> Filters {
    let cors = Cors {
        allow_origins: vec![Origin::Exact("https://shop.example".into())],
        allow_methods: weft_policy::model::Allowed::Some(vec![Method::PUT]),
        ..Cors::default()
    };
    Filters { cors: Some(cors.into()), ..Filters::default() }
}

#[tokio::test]
async fn a_preflight_is_answered_and_the_request_after_it_may_be_read() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let net = Net::start(spoken, &[("web", app.address)], with(cors())).await;
            let origin = ("origin", "https://shop.example");
            let fields = [origin, ("access-control-request-method", "PUT")];
            let preflight = net.send("OPTIONS", "/api", &fields, b"").await.expect("an answer");
            assert_eq!((preflight.status, app.count()), (204, 0), "{spoken:?}");
            assert_eq!(preflight.headers["access-control-allow-origin"], "https://shop.example");
            assert_eq!(preflight.headers["access-control-allow-methods"], "PUT");
            let answer = net.get("/api", &[origin]).await;
            assert_eq!(answer.headers["access-control-allow-origin"], "https://shop.example");
            let other = net.get("/api", &[("origin", "https://evil.example")]).await;
            assert_eq!((other.status, app.count()), (200, 2));
            assert!(!other.headers.contains_key("access-control-allow-origin"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_page_may_read_an_error_that_we_made() {
    local(async {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
        let net = Net::start(Spoken::Http1, &[("web", gone)], with(cors())).await;
        let answer = net.get("/api", &[("origin", "https://shop.example")]).await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.headers["access-control-allow-origin"], "https://shop.example");
    })
    .await;
}

fn mirrored(ppm: u32) -> RouteRule {
    let request_headers = vec![change(("x-set", "new"), ("x-add", "1"), "x-gone")];
    with(Filters { mirrors: vec![Mirror { target: target("copy"), ppm }], request_headers, ..Filters::default() })
}

fn counted(result: &str) -> String {
    format!("weft_mirror_requests_total{{service=\"shop/copy\",result=\"{result}\"}} 1")
}

#[tokio::test]
async fn a_mirror_gets_the_request_with_its_body() {
    local(async {
        for spoken in ALL {
            for body in [&b""[..], b"hello"] {
                let (app, copy) = (App::start("web", &[]).await, App::start("copy", &[]).await);
                let apps = [("web", app.address), ("copy", copy.address)];
                let net = Net::start(spoken, &apps, mirrored(1_000_000)).await;
                let answer = net.send("POST", "/api/a?b", &[("x-gone", "1")], body).await.expect("an answer");
                assert_eq!(answer.body, "web", "{spoken:?}");
                net.metric(&counted("answered")).await;
                let (seen, copied) = (app.last(), copy.last());
                assert_eq!((copied.path, copied.host, copied.version), (seen.path, seen.host, seen.version));
                assert_eq!((copied.body, seen.body), (body.into(), body.into()));
                assert_eq!(copied.headers["x-set"], "new");
                assert!(!copied.headers.contains_key("x-gone"));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_mirrored() {
    static LARGE: [u8; 64 * 1024 + 1] = [b'x'; 64 * 1024 + 1];
    local(async {
        for spoken in ALL {
            let (app, copy) = (App::start("web", &[]).await, App::start("copy", &[]).await);
            let apps = [("web", app.address), ("copy", copy.address)];
            let net = Net::start(spoken, &apps, mirrored(1_000_000)).await;
            assert_eq!(net.send("POST", "/api", &[], &LARGE).await.expect("an answer").body, "web");
            net.metric(&counted("body_too_large")).await;
            assert_eq!((app.last().body.len(), copy.count()), (LARGE.len(), 0), "{spoken:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_fails_does_not_touch_the_request() {
    local(async {
        let app = App::start("web", &[]).await;
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
        let apps = [("web", app.address), ("copy", gone)];
        let net = Net::start(Spoken::Http1, &apps, mirrored(1_000_000)).await;
        assert_eq!(net.send("POST", "/api", &[], b"hello").await.expect("an answer").status, 200);
        net.metric(&counted("connection_refused")).await;
    })
    .await;
}

#[tokio::test]
async fn a_worker_has_a_bound_of_mirrored_requests() {
    local(async {
        // Accepts and never answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let app = App::start("web", &[]).await;
        let apps = [("web", app.address), ("copy", silent.local_addr().expect("bound"))];
        let net = Net::start(Spoken::Http1, &apps, mirrored(1_000_000)).await;
        for _ in 0..65 {
            assert_eq!(net.get("/api", &[]).await.status, 200);
        }
        net.metric(&counted("too_many")).await;
    })
    .await;
}

#[tokio::test]
async fn what_no_share_chooses_is_not_mirrored() {
    local(async {
        let (app, copy) = (App::start("web", &[]).await, App::start("copy", &[]).await);
        let net = Net::start(Spoken::Http1, &[("web", app.address), ("copy", copy.address)], mirrored(0)).await;
        assert_eq!(net.get("/api", &[]).await.status, 200);
        assert!(!net.telemetry.render().contains("weft_mirror_requests_total"));
    })
    .await;
}
