//! What is let in, and how a refusal looks from outside.

use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol as Extended;
use http::{Method, Request, Version};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use weft_policy::model::{Access, Action, AuthorizationPolicy, ConditionKind, Protocol, TlsMode};

use super::side::{Side, account, ask, echo, open, policy, under, within};
use crate::outbound::tests::net::{App, eventually, local};

fn only_post() -> ConditionKind {
    ConditionKind::Methods(vec![Method::POST])
}

#[tokio::test]
async fn a_request_is_let_in_for_what_the_policy_says_and_refused_without_the_policys_name() {
    local(async {
        let app = App::start("web", &[]).await;
        let writers = policy("secret-name", Action::Allow, vec![account("orders"), only_post()]);
        let side = Side::start(app.address.port(), Protocol::Http, under(vec![writers])).await;
        let (mut orders, mut other) = (side.peer("orders").await, side.peer("other").await);
        assert_eq!(ask(&mut orders, "POST", "/", &[]).await.expect("an answer").status(), 200);
        for (sender, method) in [(&mut orders, "GET"), (&mut other, "POST")] {
            let answer = ask(sender, method, "/", &[]).await.expect("an answer");
            assert_eq!(answer.status(), 403);
            let text = answer.headers()["proxy-status"].to_str().expect("ASCII").to_owned();
            assert!(text.contains("error=http_request_denied") && text.contains("rbac_denied"), "{text}");
            assert!(!text.contains("secret-name"), "{text}");
            let body = within(answer.into_body().data()).await.expect("a body").expect("open");
            assert!(!String::from_utf8_lossy(&body).contains("secret-name"), "{body:?}");
        }
        assert_eq!(app.count(), 1, "the app sees only what is let in");
        let denied = format!("policy=\"none-allows\",port=\"{}\"}} 2", app.address.port());
        let text = side.telemetry.render();
        assert!(text.contains(&format!("weft_authorization_denied_total{{{denied}")), "{text}");
        for peer in ["orders", "other"] {
            let hop = format!("service=\"shop/web\",port=\"80\",peer_service=\"shop/{peer}\",tls=\"mtls\"");
            let refused = format!("{hop},code_class=\"4xx\",reason=\"rbac_denied\",version=\"2\"}} 1\n");
            assert!(text.contains(&refused), "{refused} in {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_grpc_caller_gets_permission_denied() {
    local(async {
        let app = App::start("web", &[]).await;
        let side =
            Side::start(app.address.port(), Protocol::Grpc, under(vec![policy("d", Action::Deny, vec![])])).await;
        let fields = [("content-type", "application/grpc"), ("te", "trailers")];
        let answer = ask(&mut side.peer("orders").await, "POST", "/a.B/C", &fields).await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.headers()["grpc-status"].as_bytes()), (200, &b"7"[..]));
        assert!(answer.body().is_end_stream(), "trailers only");
        assert!(!answer.headers()["grpc-message"].to_str().expect("ASCII").contains("shop/"));
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_is_refused_before_the_app_is_dialled() {
    local(async {
        let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = app.local_addr().expect("bound").port();
        let allow = policy("orders-only", Action::Allow, vec![account("orders")]);
        let side = Side::start(port, Protocol::Tcp, under(vec![allow])).await;
        let (status, why) = side.tunnel("other").await.err().expect("refused");
        assert_eq!(status, 403);
        assert!(why.contains("rbac_denied") && !why.contains("orders-only"), "{why}");
        // Plaintext has no identity.
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        assert_eq!(within(plain.read(&mut [0; 1])).await.unwrap_or(0), 0);
        let nobody = tokio::time::timeout(Duration::from_millis(50), app.accept()).await;
        assert!(nobody.is_err(), "the app was dialled");
        side.tunnel("orders").await.expect("let in");
        let text = side.telemetry.render();
        assert!(text.contains("peer_service=\"shop/other\",tls=\"mtls\",reason=\"rbac_denied\"} 1"), "{text}");
        assert!(text.contains("peer_service=\"unknown\",tls=\"none\",reason=\"rbac_denied\"} 1"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn opaque_bytes_on_a_port_with_rules_on_requests_are_refused() {
    local(async {
        let app = echo().await;
        let writers = policy("writers", Action::Allow, vec![only_post()]);
        let side = Side::start(app, Protocol::Undeclared, under(vec![writers])).await;
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        plain.write_all(b"\0\0\0\x01 no request").await.expect("open");
        assert_eq!(within(plain.read(&mut [0; 1])).await.unwrap_or(0), 0, "bytes that no rule can look into");
        assert_eq!(side.tunnel("orders").await.err().expect("refused").0, 403);
    })
    .await;
}

#[tokio::test]
async fn a_policy_on_trial_is_counted_and_refuses_nobody() {
    local(async {
        let app = App::start("web", &[]).await;
        let trial = AuthorizationPolicy { dry_run: true, ..policy("trial", Action::Deny, vec![]) };
        let side = Side::start(app.address.port(), Protocol::Http, under(vec![trial])).await;
        assert_eq!(ask(&mut side.peer("orders").await, "GET", "/", &[]).await.expect("an answer").status(), 200);
        let labels = format!("policy=\"shop/trial\",port=\"{}\"}}", app.address.port());
        let text = side.telemetry.render();
        assert!(text.contains(&format!("weft_authorization_shadow_denied_total{{{labels} 1")), "{text}");
        assert!(text.contains(&format!("weft_authorization_denied_total{{{labels} 0")), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_strict_port_takes_no_plaintext() {
    local(async {
        let app = App::start("web", &[]).await;
        let strict = Access { tls_mode: TlsMode::Strict, ..open() };
        let side = Side::start(app.address.port(), Protocol::Http, strict).await;
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        let _ = plain.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        assert_eq!(within(plain.read(&mut [0; 1])).await.unwrap_or(0), 0);
        assert_eq!(ask(&mut side.peer("orders").await, "GET", "/", &[]).await.expect("an answer").status(), 200);
        assert!(side.telemetry.render().contains("reason=\"plaintext_denied\"} 1"));
    })
    .await;
}

#[tokio::test]
async fn without_a_configuration_nobody_is_let_in() {
    local(async {
        let app = App::start("web", &[]).await;
        let side = Side::start(app.address.port(), Protocol::Http, open()).await;
        side.publish(None);
        assert_eq!(ask(&mut side.peer("orders").await, "GET", "/", &[]).await.expect("an answer").status(), 503);
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        let _ = plain.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        assert_eq!(within(plain.read(&mut [0; 1])).await.unwrap_or(0), 0);
        // A front whose port the configuration does not know.
        side.publish(Some(vec![]));
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        let _ = plain.write_all(b"\0\0").await;
        assert_eq!(within(plain.read(&mut [0; 1])).await.unwrap_or(0), 0);
        assert_eq!(app.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn the_app_is_told_who_calls_and_believes_no_caller() {
    local(async {
        let app = App::start("web", &[]).await;
        let side = Side::start(app.address.port(), Protocol::Http, open()).await;
        let claims =
            [("x-forwarded-client-cert", "By=admin"), ("x_forwarded_client_cert", "By=admin"), ("l5d-client-id", "a")];
        let mut orders = side.peer("orders").await;
        ask(&mut orders, "GET", "/mesh", &claims).await.expect("an answer");
        let headers = app.last().headers;
        let told: Vec<_> = headers.get_all("x-forwarded-client-cert").iter().collect();
        let expected = "By=spiffe://weft.local/ns/shop/sa/web;URI=spiffe://weft.local/ns/shop/sa/orders";
        assert_eq!(told, [expected]);
        assert!(!headers.contains_key("x_forwarded_client_cert") && !headers.contains_key("l5d-client-id"));
        // A caller in plaintext, which nominates what is ours for removal.
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        let head = "GET /plain HTTP/1.1\r\nHost: web\r\nX-Forwarded-Client-Cert: By=admin\r\nAuthorization: a\r\n\
                    Connection: close, host, content-length, authorization, x-forwarded-client-cert\r\n\r\n";
        plain.write_all(head.as_bytes()).await.expect("open");
        eventually("the request", || app.count() == 2).await;
        let last = app.last();
        assert_eq!((&*last.host, last.headers["authorization"].as_bytes()), ("web", &b"a"[..]));
        assert!(!last.headers.contains_key("x-forwarded-client-cert"));
    })
    .await;
}

#[tokio::test]
async fn an_identity_in_trailers_does_not_reach_the_app() {
    local(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let side = Side::start(listener.local_addr().expect("bound").port(), Protocol::Http2, open()).await;
        let mut orders = side.peer("orders").await;
        let request = Request::builder().method("POST").uri("http://web.shop/").header("te", "trailers");
        let (_response, mut send) = orders.send_request(request.body(()).expect("a request"), false).expect("open");
        let mut trailers = http::HeaderMap::new();
        for name in ["x-forwarded-client-cert", "x_forwarded_client_cert", "x-weft-caller-version", "x-checksum"] {
            trailers.insert(name, http::HeaderValue::from_static("1"));
        }
        send.send_trailers(trailers).expect("open");
        let (io, _) = within(listener.accept()).await.expect("dialled");
        let mut server = within(h2::server::handshake(io)).await.expect("HTTP/2");
        let (request, _respond) = within(server.accept()).await.expect("a request").expect("open");
        let mut body = request.into_body();
        let received = async {
            tokio::select! {
                _ = server.accept() => panic!("no other request"),
                trailers = async { while body.data().await.is_some() {} body.trailers().await } => trailers,
            }
        };
        let trailers = within(received).await.expect("open").expect("trailers");
        assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-checksum"]);
    })
    .await;
}

#[tokio::test]
async fn extended_connect_carries_websocket_and_nothing_else() {
    local(async {
        let app = App::start("web", &[]).await;
        let side = Side::start(app.address.port(), Protocol::Http, open()).await;
        let mut orders = side.peer("orders").await;
        // Its first answer comes after the server's settings.
        ask(&mut orders, "GET", "/", &[]).await.expect("an answer");
        let request = Request::builder().method(Method::CONNECT).uri("http://web.shop/").version(Version::HTTP_2);
        let mut request = request.body(()).expect("a request");
        request.extensions_mut().insert(Extended::from_static("connect-udp"));
        let (response, _) = orders.send_request(request, false).expect("open");
        assert_eq!(within(response).await.expect("an answer").status(), 501);
        assert_eq!(app.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_mesh_peer_that_sends_no_preface_is_closed() {
    local(async {
        let side = Side::start(echo().await, Protocol::Http, open()).await;
        let svid = side.authority.svid("orders", Duration::from_secs(3600));
        let mut silent = side.tls(&svid, b"h2").await;
        eventually("the session", || side.sessions() == 1).await;
        tokio::time::pause();
        assert_eq!(within(silent.read(&mut [0; 1])).await.unwrap_or(0), 0);
        eventually("its end", || side.sessions() == 0).await;
    })
    .await;
}

#[tokio::test]
async fn connections_are_counted_by_port_and_peer() {
    local(async {
        let app = App::start("web", &[]).await;
        let side = Side::start(app.address.port(), Protocol::Http, open()).await;
        ask(&mut side.peer("orders").await, "GET", "/", &[]).await.expect("an answer");
        let _plain: h2::client::SendRequest<Bytes> = side.plain().await;
        let port = app.address.port();
        let peer = "tls=\"mtls\",peer=\"spiffe://weft.local/ns/shop/sa/orders\",source=\"loopback\"} 1";
        let plain = "tls=\"none\",peer=\"unknown\",source=\"loopback\"} 1";
        for labels in [peer, plain] {
            let series = format!("weft_inbound_connections_total{{port=\"{port}\",{labels}");
            eventually(&series, || side.telemetry.render().contains(&series)).await;
        }
    })
    .await;
}
