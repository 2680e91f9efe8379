//! How exchanges that are ended are booked, what tokens have let in, and what trailers may say.

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderName, Request, Version};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::spawn_local,
};
use weft_policy::model::{
    Action, ConditionKind, InboundAuthentication, InboundPort, Issuer, Protocol, Revocation, SignatureAlgorithm as Alg,
    TextMatch,
};

use super::side::{Side, ask, echo, endless, open, policy, under, within};
use crate::{
    inbound::jwt::tests::maker::{Signer, issuer, policy as authentication, sign},
    outbound::tests::net::{eventually, local},
};

/// An app that switches to an echo of bytes.
async fn switching() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            spawn_local(async move {
                let mut bytes = [0; 4096];
                let _ = io.read(&mut bytes).await;
                let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                let _ = io.write_all(head).await;
                while let Ok(length @ 1..) = io.read(&mut bytes).await {
                    let _ = io.write_all(&bytes[..length]).await;
                }
            });
        }
    });
    port
}

/// A WebSocket through the plaintext front.
async fn websocket(side: &Side) -> TcpStream {
    let mut caller = TcpStream::connect(side.front).await.expect("listens");
    let head = b"GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    caller.write_all(head).await.expect("open");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within(caller.read_u8()).await.expect("an answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    caller.write_all(b"a").await.expect("open");
    assert_eq!(within(caller.read_u8()).await.expect("an echo"), b'a');
    caller
}

#[tokio::test]
async fn a_websocket_that_is_not_allowed_any_more_is_booked_with_the_reason_and_one_that_ends_is_not() {
    local(async {
        let side = Side::start(switching().await, Protocol::Http, open()).await;
        drop(websocket(&side).await);
        eventually("its end", || side.telemetry.render().contains("code_class=\"1xx\",version=\"1.1\"} 1")).await;
        let mut cut = websocket(&side).await;
        side.set(under(vec![policy("nobody", Action::Deny, vec![])]));
        assert!(within(cut.read(&mut [0; 1])).await.unwrap_or(0) == 0);
        eventually("the second end", || side.telemetry.render().matches("code_class=\"1xx\"").count() == 2).await;
        let text = side.telemetry.render();
        assert!(text.contains("code_class=\"1xx\",reason=\"rbac_denied\",version=\"1.1\"} 1"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn what_a_revoked_peer_has_in_flight_is_booked_as_refused_for_its_certificate() {
    local(async {
        let everybody = |side: &Side| {
            let revoked = [Revocation::Identity { id: account_id("orders"), issued_before: u64::MAX }];
            side.trust.set("weft.local", std::slice::from_ref(&side.authority.root), &revoked).expect("a root");
        };
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let mut sender = side.peer("orders").await;
        let mut body = first_chunk(&side, &mut sender, &[]).await;
        everybody(&side);
        within(body.data()).await.expect("not ended").expect_err("closed");
        let line = "tls=\"mtls\",code_class=\"2xx\",reason=\"tls_certificate\",version=\"2\"} 1";
        eventually(line, || side.telemetry.render().contains(line)).await;

        let side = Side::start(echo().await, Protocol::Tcp, open()).await;
        let (_tunnel, _sender) = side.tunnel("orders").await.expect("let in");
        everybody(&side);
        let line = "tls=\"mtls\",reason=\"tls_certificate\"} 1";
        eventually(line, || side.telemetry.render().contains(line)).await;
    })
    .await;
}

fn account_id(account: &str) -> weft_policy::SpiffeId {
    weft_policy::SpiffeId::workload("weft.local", "shop", account).expect("valid")
}

/// A token of these further claims, until long after this test.
fn token(more: &str) -> String {
    let claims = format!(r#"{{"iss":"https://id.example","aud":"shop","exp":32503680000{more}}}"#);
    sign(r#"{"alg":"ES256","kid":"ec"}"#, &claims, Alg::Es256, Signer::Ec)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn port(side: &Side, authentications: Vec<InboundAuthentication>) -> InboundPort {
    InboundPort { request_authentications: authentications, ..side.port.clone() }
}

async fn first_chunk(side: &Side, sender: &mut SendRequest<Bytes>, fields: &[(&str, &str)]) -> RecvStream {
    let answer = ask(sender, "GET", "/", fields).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", side.telemetry.render());
    let mut body = answer.into_body();
    assert_eq!(within(body.data()).await.expect("a body").expect("open"), "hello");
    body
}

/// Whether a body is still going on.
async fn goes_on(body: &mut RecvStream) -> bool {
    tokio::time::timeout(Duration::from_millis(100), body.data()).await.is_err()
}

/// Whether it was reset.
async fn is_cut(body: &mut RecvStream) -> bool {
    within(body.data()).await.is_some_and(|data| data.is_err())
}

#[tokio::test]
async fn a_changed_request_authentication_ends_what_it_would_not_let_in() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let (mut mesh, mut plain) = (side.peer("orders").await, side.plain().await);
        let good = bearer(&token(""));
        let without = |signer: Signer| {
            let mut keys = issuer().keys;
            keys.retain(|key| key.id.as_deref() != Some(signer.id()));
            Issuer { keys, ..issuer() }
        };
        // What changes, and whether the token is then still accepted.
        let changes: [(&str, Issuer, bool); 5] = [
            ("another key has gone", without(Signer::Rsa), true),
            ("its key has gone", without(Signer::Ec), false),
            ("another audience", Issuer { audiences: vec!["bank".into()], ..issuer() }, false),
            ("another issuer", Issuer { issuer: "https://other.example".into(), ..issuer() }, false),
            ("another algorithm", Issuer { algorithms: vec![Alg::Rs256], ..issuer() }, false),
        ];
        for sender in [&mut mesh, &mut plain] {
            for (what, issuer_then, stays) in &changes {
                side.publish(Some(vec![port(&side, vec![authentication(issuer(), true)])]));
                let mut body = first_chunk(&side, sender, &[("authorization", &good)]).await;
                // The same again, and it is not even looked at.
                side.publish(Some(vec![port(&side, vec![authentication(issuer(), true)])]));
                assert!(goes_on(&mut body).await, "{what}");
                side.publish(Some(vec![port(&side, vec![authentication(issuer_then.clone(), true)])]));
                match stays {
                    true => assert!(goes_on(&mut body).await, "{what}"),
                    false => assert!(is_cut(&mut body).await, "{what}"),
                }
            }
        }
        let text = side.telemetry.render();
        assert!(text.contains("code_class=\"2xx\",reason=\"token_invalid\",version=\"2\"} 4"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_request_authentication_that_comes_later_judges_the_tokens_of_what_is_in_flight() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let mut sender = side.peer("orders").await;
        let (good, bad) = (bearer(&token("")), bearer("a.b.c"));
        for required in [false, true] {
            side.publish(Some(vec![port(&side, vec![])]));
            let mut valid = first_chunk(&side, &mut sender, &[("authorization", &good)]).await;
            let mut invalid = first_chunk(&side, &mut sender, &[("authorization", &bad)]).await;
            let mut none = first_chunk(&side, &mut sender, &[]).await;
            side.publish(Some(vec![port(&side, vec![authentication(issuer(), required)])]));
            assert!(is_cut(&mut invalid).await, "{required}");
            assert!(goes_on(&mut valid).await, "{required}");
            match required {
                true => assert!(is_cut(&mut none).await),
                false => assert!(goes_on(&mut none).await),
            }
        }
        // A field that nobody had looked at: what was in it is not known.
        let places = vec![HeaderName::from_static("x-token")];
        let mut unknown = first_chunk(&side, &mut sender, &[("authorization", &good)]).await;
        side.publish(Some(vec![port(&side, vec![authentication(Issuer { from_headers: places, ..issuer() }, false)])]));
        assert!(is_cut(&mut unknown).await);
    })
    .await;
}

#[tokio::test]
async fn claims_that_a_changed_request_authentication_does_not_give_let_nobody_stay() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let mut sender = side.peer("orders").await;
        let claim = ConditionKind::Claim("role".into(), vec![TextMatch::Exact("admin".into())]);
        let access = under(vec![policy("admins", Action::Allow, vec![claim])]);
        let with = |authentications| vec![InboundPort { access: access.clone(), ..port(&side, authentications) }];
        let admin = bearer(&token(r#","role":"admin""#));
        side.publish(Some(with(vec![authentication(issuer(), false)])));
        let mut body = first_chunk(&side, &mut sender, &[("authorization", &admin)]).await;
        side.publish(Some(with(vec![authentication(issuer(), true)])));
        assert!(goes_on(&mut body).await);
        // Without it nobody has claims.
        side.publish(Some(with(vec![])));
        assert!(is_cut(&mut body).await);
    })
    .await;
}

/// An app that shows what it gets, up to the end of chunked trailers.
async fn shows() -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (port, (sender, receiver)) = (listener.local_addr().expect("bound").port(), mpsc::unbounded_channel());
    spawn_local(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let sender = sender.clone();
            spawn_local(async move {
                let mut got = Vec::new();
                while !(got.windows(5).any(|part| part == b"\r\n0\r\n") && got.ends_with(b"\r\n\r\n")) {
                    got.push(io.read_u8().await.expect("more"));
                }
                let _ = sender.send(String::from_utf8(got).expect("text"));
                let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            });
        }
    });
    (port, receiver)
}

/// What callers try to say in trailers, and whether the app may see it.
const TRAILERS: [(&str, bool); 10] = [
    ("x-checksum", true),
    ("x-user-id", false),
    ("x_user_id", false),
    ("x-token", false),
    ("authorization", false),
    ("x-forwarded-client-cert", false),
    ("x_forwarded_client_cert", false),
    ("x-weft-peer", false),
    ("l5d-client-id", false),
    ("host", false),
];

#[tokio::test]
async fn trailers_say_neither_who_calls_nor_what_a_token_claims() {
    local(async {
        let (app, mut seen) = shows().await;
        let side = Side::start(app, Protocol::Http1, open()).await;
        let issuer = Issuer {
            claims_to_headers: vec![("sub".into(), HeaderName::from_static("x-user-id"))],
            from_headers: ["authorization", "x-token"].map(HeaderName::from_static).to_vec(),
            ..issuer()
        };
        // One of another service, under which these requests do not fall, counts as well: the app is the same.
        let mut other = authentication(issuer.clone(), false);
        other.services = vec![crate::outbound::tests::net::target("other")];
        for authentications in [vec![authentication(issuer, false)], vec![other]] {
            side.publish(Some(vec![port(&side, authentications)]));
            let names: Vec<_> = TRAILERS.iter().map(|(name, _)| *name).collect();
            let check = |seen: &str| {
                let (head, rest) = seen.split_once("\r\n\r\n").expect("a head");
                assert!(!head.contains("x-user-id:"), "{head}");
                for (name, stays) in TRAILERS {
                    assert_eq!(rest.contains(&format!("{name}: ")), stays, "{name} in {rest}");
                }
            };

            let mut caller = TcpStream::connect(side.front).await.expect("listens");
            let fields: String = TRAILERS.iter().map(|(name, _)| format!("{name}: root\r\n")).collect();
            let request = format!(
                "POST / HTTP/1.1\r\nhost: web\r\nte: trailers\r\nx-user-id: root\r\ntrailer: {}\r\n\
                 transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n{fields}\r\n",
                names.join(", ")
            );
            caller.write_all(request.as_bytes()).await.expect("open");
            check(&within(seen.recv()).await.expect("a request"));

            let mut sender = side.peer("orders").await;
            let request = Request::builder().method("POST").uri("http://web.shop/").version(Version::HTTP_2);
            let request = request.header("x-user-id", "root").header("trailer", names.join(", "));
            let (answer, mut send) = sender.send_request(request.body(()).expect("a request"), false).expect("open");
            send.send_data("body".into(), false).expect("open");
            let name = |name: &str| HeaderName::try_from(name).expect("a name");
            send.send_trailers(TRAILERS.iter().map(|(of, _)| (name(of), "root".parse().expect("a value"))).collect())
                .expect("open");
            check(&within(seen.recv()).await.expect("a request"));
            assert_eq!(within(answer).await.expect("an answer").status(), 200);
        }
    })
    .await;
}
