//! Sessions that end, and those that stay.

use std::time::UNIX_EPOCH;

use futures_util::FutureExt as _;

use super::*;

fn peer(name: &str, not_after: SystemTime) -> PeerIdentity {
    PeerIdentity { id: SpiffeId::workload("weft.local", "shop", name).expect("valid"), not_after }
}

fn sessions() -> Rc<Sessions> {
    Sessions::new(TrustStore::default(), Telemetry::default())
}

#[tokio::test]
async fn a_session_ends_with_its_peers_certificate_and_not_with_anothers() {
    let sessions = sessions();
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let short = sessions.enter(&sessions.trusted(), Role::Client, &[], &peer("a", at(100)));
    let long = sessions.enter(&sessions.trusted(), Role::Server, &[], &peer("b", at(200)));
    sessions.expire(at(98), Instant::now());
    assert_eq!(short.ended().now_or_never(), None);
    sessions.expire(at(99), Instant::now());
    assert_eq!(short.ended().now_or_never(), Some(Why::Expired), "one look before its end");
    assert_eq!(long.ended().now_or_never(), None);
    let text = sessions.telemetry.render();
    assert!(text.contains("weft_mesh_closed_total{side=\"server\",reason=\"expired\"} 1"), "{text}");
    sessions.expire(at(99), Instant::now());
    assert_eq!(sessions.telemetry.render(), text, "counted once");
}

#[tokio::test]
async fn a_session_whose_root_went_takes_no_new_streams_and_is_closed_a_moment_later() {
    let sessions = sessions();
    let (wall, now) = (SystemTime::now(), Instant::now());
    let enter =
        |name| sessions.enter(&sessions.trusted(), Role::Client, &[], &peer(name, wall + Duration::from_secs(3600)));
    let (gone, stays) = (enter("a"), enter("b"));
    Sessions::leave(&sessions.open.borrow()[gone.key], SvidReason::UnknownRoot);
    assert!(gone.leaving().has_fired() && !stays.leaving().has_fired());
    assert_eq!(gone.left(Duration::MAX).now_or_never(), Some(()));
    sessions.expire(wall, now + LEAVE - Duration::from_millis(1));
    assert_eq!(gone.ended().now_or_never(), None, "what is in flight goes on");
    // The promise is 5 s, and looks are a second apart.
    sessions.expire(wall, now + Duration::from_secs(5) - TICK);
    assert_eq!(gone.ended().now_or_never(), Some(Why::Refused(SvidReason::UnknownRoot)));
    assert_eq!(stays.ended().now_or_never(), None);
}

#[tokio::test]
async fn a_session_that_has_ended_by_itself_is_forgotten() {
    let sessions = sessions();
    drop(sessions.enter(&sessions.trusted(), Role::Client, &[], &peer("a", UNIX_EPOCH)));
    let other =
        sessions.enter(&sessions.trusted(), Role::Client, &[], &peer("b", SystemTime::now() + Duration::from_secs(60)));
    sessions.expire(SystemTime::now(), Instant::now());
    assert_eq!(other.ended().now_or_never(), None);
    drop(other);
    assert!(sessions.open.borrow().is_empty());
}

#[tokio::test]
async fn whoever_waits_wakes_when_it_is_cut_and_the_first_reason_stays() {
    let cut = Rc::new(Cut::default());
    let waiting = Rc::clone(&cut);
    let local = tokio::task::LocalSet::new();
    let waiter = local.spawn_local(async move { waiting.fired().await });
    let fire = async {
        tokio::task::yield_now().await;
        cut.fire(1);
        cut.fire(2);
        waiter.await.expect("no panic")
    };
    let limited = tokio::time::timeout(Duration::from_secs(20), local.run_until(fire));
    assert_eq!(limited.await.expect("it wakes"), 1);
}

/// hyper's client holds the connection in a task of its own until the last stream has ended.
#[tokio::test]
async fn a_response_that_runs_ends_with_the_session_of_its_connection() {
    let running = tokio::task::LocalSet::new();
    let ends = running.run_until(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::task::spawn_local(async move {
            let mut server = h2::server::handshake(far).await.expect("HTTP/2");
            let mut open = Vec::new();
            while let Some(Ok((_, mut respond))) = server.accept().await {
                open.push(respond.send_response(http::Response::new(()), false).expect("a head"));
                let _: &Vec<h2::SendStream<bytes::Bytes>> = &open;
            }
        });
        let (sessions, end) = (sessions(), SystemTime::now() + Duration::from_secs(100));
        let session = sessions.enter(&sessions.trusted(), Role::Server, &[], &peer("a", end));
        let mut sender = crate::upstream::handshake(near, Some(session)).await.expect("HTTP/2");
        let request = http::Request::get("http://a/").body(crate::http::body::Body::empty()).expect("a request");
        let mut body = sender.send_request(request).await.expect("a head").into_body();
        let mut frame = std::pin::pin!(http_body_util::BodyExt::frame(&mut body));
        assert!(futures_util::poll!(frame.as_mut()).is_pending(), "it goes on");
        sessions.expire(end, Instant::now());
        let frame = tokio::time::timeout(Duration::from_secs(20), frame).await.expect("it ends");
        assert!(frame.is_some_and(|frame| frame.is_err()), "and not as a whole answer");
    });
    ends.await;
}
