//! The access log: one line for each request, whoever answered it.

use std::{net::SocketAddr, time::Duration};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use weft_policy::model::{Abort, Fault, Filters, Redirect, RequestPolicy, Retry, RouteRule};

use super::{
    hedging::{hedged, silence},
    net::{ALL, App, Net, Spoken, eventually, local, rule, to},
};

fn fields(line: &Value) -> [&Value; 5] {
    ["direction", "path", "response_code", "reason", "attempts"].map(|name| &line[name])
}

#[tokio::test]
async fn what_a_service_a_filter_and_a_fault_answer_is_a_line_each() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let apps = [("web", app.address)];
            let net = Net::start(spoken, &apps, rule(vec![to("web")])).await;
            net.get("/api/items?q=1", &[("user-agent", "test")]).await;
            let lines = net.lines(1).await;
            let expected = [&json!("outbound"), &json!("/api/items?q=1"), &json!(200), &Value::Null, &json!(1)];
            assert_eq!(fields(&lines[0]), expected, "{spoken:?}");
            assert_eq!((&lines[0]["user_agent"], &lines[0]["authority"]), (&json!("test"), &json!("web.shop")));
            assert_eq!(lines[0]["upstream_host"], json!(app.address.to_string()));

            let redirect = Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND };
            let filters = Filters { redirect: Some(redirect.into()), ..Filters::default() };
            let net = Net::start(spoken, &apps, RouteRule { filters, ..rule(vec![]) }).await;
            net.get("/api", &[]).await;
            assert_eq!(fields(&net.lines(1).await[0])[2..], [&json!(302), &Value::Null, &json!(1)]);

            let abort = Some((Abort::Http(StatusCode::NOT_FOUND), 1_000_000));
            let name = "shop/chaos".into();
            let fault = Fault { name, headers: vec![], delay: None, abort, bandwidth: None, expires: None };
            let requests = RequestPolicy { faults: vec![fault], ..RequestPolicy::default() };
            let net = Net::start(spoken, &apps, RouteRule { requests: requests.into(), ..rule(vec![to("web")]) }).await;
            net.get("/api", &[]).await;
            let code = if spoken == Spoken::Grpc { 200 } else { 404 };
            let line = net.lines(1).await.remove(0);
            assert_eq!(
                (&line["reason"], line["response_flags"].as_str()),
                (&json!("fault_abort"), Some("FI")),
                "{line}"
            );
            assert!(spoken == Spoken::Grpc || line["response_code"] == code, "{line}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_sent_again_is_one_line_with_its_tries() {
    local(async {
        // Nobody listens at the first of the two.
        let closed: SocketAddr =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let other: SocketAddr =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let net = Net::start(Spoken::Http1, &[("web", closed), ("web", other)], rule(vec![to("web")])).await;
        assert_eq!(net.get("/api/1", &[]).await.status, 503);
        net.lines(1).await;
        net.get("/api/2", &[]).await;
        let lines = net.lines(2).await;
        assert_eq!(lines.len(), 2, "one for each request: {lines:#?}");
        assert_eq!((&lines[0]["path"], &lines[1]["path"]), (&json!("/api/1"), &json!("/api/2")));
        assert_eq!((&lines[0]["response_code"], &lines[0]["reason"]), (&json!(503), &json!("connection_refused")));
        assert!(lines[0]["attempts"].as_u64().is_some_and(|tries| tries > 1), "{}", lines[0]);
    })
    .await;
}

#[tokio::test]
async fn two_tries_at_once_are_one_line_whichever_has_the_answer() {
    local(async {
        let app = App::start("web", &[]).await;
        let apps = [("web", app.address), ("web", silence().await)];
        let net = Net::start(Spoken::Http1, &apps, hedged()).await;
        for sent in 1..=6 {
            let answer = tokio::time::timeout(Duration::from_secs(5), net.get(&format!("/api/{sent}"), &[])).await;
            assert_eq!(answer.expect("an answer").status, 200);
        }
        let lines = net.lines(6).await;
        assert!(net.text().contains("reason=\"hedge\""), "some were tried twice: {}", net.text());
        let told: Vec<_> = lines.iter().map(|line| (&line["path"], &line["response_code"])).collect();
        let expected: Vec<_> = (1..=6).map(|sent| (json!(format!("/api/{sent}")), json!(200))).collect();
        assert_eq!(told, expected.iter().map(|(path, code)| (path, code)).collect::<Vec<_>>());
        // What was given up has ended by now, and is no line either.
        tokio::task::yield_now().await;
        assert_eq!(net.lines(6).await.len(), 6);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_next_try_is_a_line() {
    local(async {
        let gone: SocketAddr =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let retry = Retry { backoff_min: Duration::from_secs(600), ..Retry::default() };
        let requests = RequestPolicy { retry, ..RequestPolicy::default() };
        let rule = RouteRule { requests: requests.into(), ..rule(vec![to("web")]) };
        let net = Net::start(Spoken::Http1, &[("web", gone)], rule).await;
        let mut caller = TcpStream::connect(net.address).await.expect("listens");
        caller.write_all(b"GET /api/left HTTP/1.1\r\nhost: web.shop\r\n\r\n").await.expect("sent");
        eventually("a retry", || net.text().contains("weft_upstream_retries_total{")).await;
        // A reset: one that only ends its side may still wait for the answer.
        socket2::SockRef::from(&caller).set_linger(Some(Duration::ZERO)).expect("set");
        drop(caller);
        let line = net.lines(1).await.remove(0);
        let told = ["path", "response_code", "reason", "attempts"].map(|name| line[name].clone());
        assert_eq!(told, [json!("/api/left"), json!(0), json!("client_gone"), json!(1)], "{line}");
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_before_it_is_routed_is_a_line() {
    local(async {
        let app = App::start("web", &[]).await;
        let net = Net::start(Spoken::Http1, &[("web", app.address)], rule(vec![to("web")])).await;
        for request in ["GET /api/../x HTTP/1.1\r\nhost: web.shop", "GET /api HTTP/1.1\r\nhost: web.shop:81"] {
            let mut caller = TcpStream::connect(net.address).await.expect("listens");
            caller.write_all(format!("{request}\r\nuser-agent: test\r\n\r\n").as_bytes()).await.expect("sent");
            net.lines(1).await;
        }
        let lines = net.lines(2).await;
        let told = |line: &Value| {
            ["path", "authority", "response_code", "reason", "user_agent"].map(|name| line[name].clone())
        };
        let agent = json!("test");
        assert_eq!(
            told(&lines[0]),
            [json!("/api/../x"), json!("web.shop"), json!(400), json!("bad_request"), agent.clone()]
        );
        assert_eq!(
            told(&lines[1])[..4],
            [json!("/api"), json!("web.shop:81"), json!(404), json!("unknown_port")],
            "{}",
            lines[1]
        );
        let net = Net::start(Spoken::Http2, &[("web", app.address)], rule(vec![to("web")])).await;
        let many: Vec<String> = (0..129).map(|n| format!("x-{n}")).collect();
        let fields: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
        assert_eq!(net.get("/api", &fields).await.status, 431);
        let line = net.lines(1).await.remove(0);
        assert_eq!((&line["response_code"], &line["path"]), (&json!(431), &json!("/api")), "{line}");
        assert_eq!(app.count(), 0);
    })
    .await;
}
