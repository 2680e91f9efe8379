//! The access log: one line for each request, whoever answered it.

use std::net::SocketAddr;

use http::StatusCode;
use serde_json::{Value, json};
use weft_policy::model::{Abort, Fault, Filters, Redirect, RequestPolicy, RouteRule};

use super::net::{ALL, App, Net, Spoken, local, rule, to};

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
            let filters = Filters { redirect: Some(redirect), ..Filters::default() };
            let net = Net::start(spoken, &apps, RouteRule { filters, ..rule(vec![]) }).await;
            net.get("/api", &[]).await;
            assert_eq!(fields(&net.lines(1).await[0])[2..], [&json!(302), &Value::Null, &json!(1)]);

            let abort = Some((Abort::Http(StatusCode::NOT_FOUND), 1_000_000));
            let name = "shop/chaos".into();
            let fault = Fault { name, headers: vec![], delay: None, abort, bandwidth: None, expires: None };
            let requests = RequestPolicy { faults: vec![fault], ..RequestPolicy::default() };
            let net = Net::start(spoken, &apps, RouteRule { requests, ..rule(vec![to("web")]) }).await;
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
