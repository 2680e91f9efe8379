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
    sessions.expire(at(98));
    assert_eq!(short.ended().now_or_never(), None);
    sessions.expire(at(99));
    assert_eq!(short.ended().now_or_never(), Some(Why::Expired), "one look before its end");
    assert_eq!(long.ended().now_or_never(), None);
    let text = sessions.telemetry.render();
    assert!(text.contains("weft_mesh_closed_total{side=\"server\",reason=\"expired\"} 1"), "{text}");
    sessions.expire(at(99));
    assert_eq!(sessions.telemetry.render(), text, "counted once");
}

#[tokio::test]
async fn a_session_that_has_ended_by_itself_is_forgotten() {
    let sessions = sessions();
    drop(sessions.enter(&sessions.trusted(), Role::Client, &[], &peer("a", UNIX_EPOCH)));
    let other =
        sessions.enter(&sessions.trusted(), Role::Client, &[], &peer("b", SystemTime::now() + Duration::from_secs(60)));
    sessions.expire(SystemTime::now());
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
