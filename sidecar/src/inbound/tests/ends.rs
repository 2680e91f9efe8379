//! What is open ends when it is not allowed any more, and nothing else does.

use std::{io, time::Duration};

use bytes::Bytes;
use h2::RecvStream;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use weft_policy::model::{Access, Action, ConditionKind, PathPattern, Protocol, Segment, TlsMode};

use super::side::{Authority, Side, account, ask, echo, endless, open, policy, under, within};
use crate::{
    identity::MeshIdentity,
    opaque::{Side as _, Sink as _, Source as _},
    outbound::tests::net::{eventually, local},
};

fn deny(name: &'static str) -> Access {
    under(vec![policy(name, Action::Deny, vec![account(name)])])
}

/// A body that goes on after its first chunk.
async fn first_chunk(side: &Side, sender: &mut h2::client::SendRequest<Bytes>, path: &str) -> RecvStream {
    let answer = ask(sender, "GET", path, &[]).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", side.telemetry.render());
    let mut body = answer.into_body();
    assert_eq!(within(body.data()).await.expect("a body").expect("open"), "hello");
    body
}

/// Whether a body is still going on.
async fn goes_on(body: &mut RecvStream) -> bool {
    tokio::time::timeout(Duration::from_millis(100), body.data()).await.is_err()
}

#[tokio::test]
async fn a_policy_cuts_the_live_tunnels_of_whom_it_denies() {
    local(async {
        let side = Side::start(echo().await, Protocol::Tcp, open()).await;
        let (denied, _one) = side.tunnel("orders").await.expect("let in");
        let (stays, _two) = side.tunnel("other").await.expect("let in");
        let ((mut from, mut to), (mut from_other, mut to_other)) = (denied.split(), stays.split());
        for (from, to) in [(&mut from, &mut to), (&mut from_other, &mut to_other)] {
            to.send("a".into()).await.expect("open");
            assert_eq!(within(from.next()).await.expect("open").expect("bytes"), "a");
        }
        side.set(deny("orders"));
        let error = within(from.next()).await.expect_err("cut, and not ended");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        to_other.send("b".into()).await.expect("open");
        assert_eq!(within(from_other.next()).await.expect("open").expect("bytes"), "b");
        assert_eq!(side.tunnel("orders").await.err().expect("refused").0, 403);
        let text = side.telemetry.render();
        assert!(text.contains("peer_service=\"shop/orders\",tls=\"mtls\",reason=\"rbac_denied\"} 2"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_policy_cuts_live_opaque_connections_in_plaintext() {
    local(async {
        let side = Side::start(echo().await, Protocol::Tcp, open()).await;
        let mut plain = TcpStream::connect(side.front).await.expect("listens");
        plain.write_all(b"a").await.expect("open");
        within(plain.read_exact(&mut [0; 1])).await.expect("an echo");
        side.set(under(vec![policy("orders", Action::Allow, vec![account("orders")])]));
        let error = within(plain.read(&mut [0; 1])).await.expect_err("reset, and not ended");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test]
async fn a_policy_resets_live_streams_that_it_denies_and_the_connection_goes_on() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let (mut mesh, mut plain) = (side.peer("orders").await, side.plain().await);
        for sender in [&mut mesh, &mut plain] {
            side.set(open());
            let mut secret = first_chunk(&side, sender, "/secret/1").await;
            let mut public = first_chunk(&side, sender, "/public").await;
            let literal = Segment::Literal("secret".into());
            let paths = ConditionKind::Paths(vec![PathPattern::Segments { segments: [literal].into(), below: true }]);
            side.set(under(vec![policy("secret", Action::Deny, vec![paths])]));
            let error = within(secret.data()).await.expect("not ended").expect_err("reset");
            assert!(error.is_reset(), "{error}");
            assert!(goes_on(&mut public).await);
            assert_eq!(ask(sender, "GET", "/secret/2", &[]).await.expect("an answer").status(), 403);
            let _ = first_chunk(&side, sender, "/public").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_gets_403_when_it_is_denied() {
    local(async {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let side = Side::start(silent.local_addr().expect("bound").port(), Protocol::Http, open()).await;
        let mut sender = side.peer("orders").await;
        let waiting = ask(&mut sender, "GET", "/", &[]);
        let change = async {
            let (mut io, _) = within(silent.accept()).await.expect("dialled");
            let _ = within(io.read(&mut [0; 1024])).await.expect("the request");
            side.set(deny("orders"));
            // The app sees that nobody waits any more.
            assert_eq!(within(io.read(&mut [0; 1])).await.unwrap_or(0), 0);
        };
        let (answer, ()) = tokio::join!(waiting, change);
        assert_eq!(answer.expect("an answer").status(), 403);
    })
    .await;
}

#[tokio::test]
async fn a_rule_on_headers_that_comes_later_ends_what_it_cannot_judge_and_judges_what_it_has_seen() {
    local(async {
        let header = |value: &str| {
            let value = weft_policy::model::TextMatch::Exact(value.into());
            ConditionKind::Header(http::HeaderName::from_static("x-team"), vec![value])
        };
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let mut sender = side.peer("orders").await;
        let mut unknown = first_chunk(&side, &mut sender, "/").await;
        side.set(under(vec![policy("a", Action::Allow, vec![header("a")])]));
        within(unknown.data()).await.expect("not ended").expect_err("its headers were not kept");
        let answer = ask(&mut sender, "GET", "/", &[("x-team", "a")]).await.expect("an answer");
        let mut known = answer.into_body();
        assert_eq!(within(known.data()).await.expect("a body").expect("open"), "hello");
        // Another policy, by which it is still allowed, and one by which it is not.
        side.set(under(vec![policy("b", Action::Allow, vec![header("a"), account("orders")])]));
        assert!(goes_on(&mut known).await);
        side.set(under(vec![policy("c", Action::Allow, vec![header("c")])]));
        within(known.data()).await.expect("not ended").expect_err("reset");
    })
    .await;
}

#[tokio::test]
async fn a_mode_that_becomes_strict_closes_plaintext_and_nothing_else() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let mut mesh = side.peer("orders").await;
        let mut stays = first_chunk(&side, &mut mesh, "/").await;
        let mut plain = side.plain().await;
        let mut closed = first_chunk(&side, &mut plain, "/").await;
        let mut idle = TcpStream::connect(side.front).await.expect("listens");
        eventually("three connections", || side.telemetry.render().contains("peer=\"unknown\",source=\"loopback\"} 2"))
            .await;
        side.set(Access { tls_mode: TlsMode::Strict, ..open() });
        within(closed.data()).await.expect("not ended").expect_err("cut");
        assert_eq!(within(idle.read(&mut [0; 1])).await.unwrap_or(0), 0);
        assert!(goes_on(&mut stays).await);
        assert!(ask(&mut plain, "GET", "/", &[]).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn what_is_open_ends_when_the_configuration_goes() {
    local(async {
        let side = Side::start(echo().await, Protocol::Tcp, open()).await;
        let (tunnel, _connection) = side.tunnel("orders").await.expect("let in");
        let (mut from, _to) = tunnel.split();
        side.publish(None);
        within(from.next()).await.expect_err("cut");
    })
    .await;
}

#[tokio::test]
async fn sessions_end_when_their_root_is_not_trusted_any_more() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let mut sender = side.peer("orders").await;
        let mut body = first_chunk(&side, &mut sender, "/").await;
        let other = Authority::new("other");
        // A second root changes nothing.
        side.trust.set("weft.local", &[side.authority.root.clone(), other.root.clone()], &[]).expect("roots");
        assert!(goes_on(&mut body).await);
        side.trust.set("weft.local", &[other.root], &[]).expect("a root");
        // No new streams, while what is in flight goes on for a moment.
        while within(ask(&mut sender, "GET", "/", &[])).await.is_ok() {}
        assert!(goes_on(&mut body).await);
        within(body.data()).await.expect("not ended").expect_err("closed");
        eventually("its end", || side.sessions() == 0).await;
        let text = side.telemetry.render();
        assert!(text.contains("weft_mesh_closed_total{side=\"server\",reason=\"unknown_root\"} 1"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_moves_new_streams_to_new_sessions_and_ends_none() {
    local(async {
        let side = Side::start(endless().await, Protocol::Http, open()).await;
        let other = Authority::new("other");
        side.trust.set("weft.local", &[side.authority.root.clone(), other.root.clone()], &[]).expect("roots");
        let mut sender = side.peer("orders").await;
        let mut body = first_chunk(&side, &mut sender, "/").await;
        let hour = Duration::from_secs(3600);
        let own = |svid: &weft_svid::Svid, generation| {
            side.identity.send_replace(Some(MeshIdentity::new(svid, &side.trust, generation).expect("ours").into()));
        };
        // A renewal by the same authority moves nothing.
        own(&side.authority.svid("web", hour), 2);
        assert!(goes_on(&mut body).await);
        let _same = first_chunk(&side, &mut sender, "/").await;
        own(&other.svid("web", hour), 3);
        within(async { while ask(&mut sender, "GET", "/", &[]).await.is_ok() {} }).await;
        assert!(goes_on(&mut body).await);
        let _new = first_chunk(&side, &mut side.peer("orders").await, "/").await;
        assert!(goes_on(&mut body).await);
        assert!(!side.telemetry.render().contains("weft_mesh_closed_total{"), "{}", side.telemetry.render());
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_does_not_outlive_its_peers_certificate() {
    local(async {
        let side = Side::start(echo().await, Protocol::Tcp, open()).await;
        let svid = side.authority.svid("orders", Duration::from_secs(3));
        let mut peer = side.tls(&svid, crate::tunnel::ALPN).await;
        // Nothing is asked: that the session ends is enough.
        let _ = within(peer.read_to_end(&mut Vec::new())).await;
        eventually("its end", || side.sessions() == 0).await;
        let text = side.telemetry.render();
        assert!(text.contains("weft_mesh_closed_total{side=\"server\",reason=\"expired\"} 1"), "{text}");
    })
    .await;
}
