//! Bodies that are sent again, against a real HTTP/2 peer.

use http_body_util::BodyExt as _;

use super::*;
use crate::http::body::{Ends, Incoming, Times, tests::received};

/// A body of these frames; it ends with trailers, or stays open.
async fn body(frames: Vec<Bytes>, ends: bool) -> Body {
    let (near, far) = tokio::io::duplex(1024 * 1024);
    tokio::spawn(async move {
        let mut server = h2::server::handshake(far).await.expect("a handshake");
        let (_, mut respond) = server.accept().await.expect("a request").expect("a request");
        let mut stream = respond.send_response(http::Response::new(()), false).expect("sent");
        for frame in frames {
            stream.send_data(frame, false).expect("sent");
        }
        if ends {
            let trailers = [("x-end".parse().expect("a name"), "1".parse().expect("a value"))];
            stream.send_trailers(trailers.into_iter().collect()).expect("sent");
        }
        while server.accept().await.is_some() {}
    });
    Body::incoming(Incoming::Caller(received(near).await), Ends::Stream, Times::default())
}

fn replay(mut body: Body) -> Replay {
    Replay::take(&mut body).expect("a body of unknown length is kept")
}

async fn whole(body: Body) -> (Bytes, bool) {
    let all = body.collect().await.expect("whole");
    let trailers = all.trailers().is_some_and(|trailers| trailers.contains_key("x-end"));
    (all.to_bytes(), trailers)
}

#[tokio::test]
async fn every_try_has_all_bytes_and_the_trailers() {
    let replay = replay(body(vec![Bytes::from_static(b"one "), Bytes::from_static(b"two")], true).await);
    for _ in 0..3 {
        assert_eq!(whole(replay.next_try()).await, (Bytes::from_static(b"one two"), true));
        assert!(replay.is_complete());
    }
}

#[tokio::test]
async fn a_try_in_the_middle_begins_at_the_start_and_the_earlier_one_gets_nothing_more() {
    let replay = replay(body(vec![Bytes::from_static(b"one")], false).await);
    let mut first = replay.next_try();
    let frame = first.frame().await.expect("a frame").expect("data");
    assert_eq!(frame.into_data().expect("data"), "one");
    let mut second = replay.next_try();
    assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded))));
    let frame = second.frame().await.expect("a frame").expect("data");
    assert_eq!(frame.into_data().expect("data"), "one");
}

#[tokio::test]
async fn a_body_larger_than_the_bound_passes_whole_and_is_not_sent_again() {
    let frames = vec![Bytes::from(vec![7; 16 * 1024]); 5];
    let replay = replay(body(frames, true).await);
    let (bytes, trailers) = whole(replay.next_try()).await;
    assert_eq!((bytes.len(), trailers), (5 * 16 * 1024, true));
    assert!(!replay.is_complete());
}

#[tokio::test]
async fn a_body_of_exactly_the_bound_is_sent_again() {
    let replay = replay(body(vec![Bytes::from(vec![7; MAX_REPLAY / 4]); 4], true).await);
    for _ in 0..2 {
        assert_eq!(whole(replay.next_try()).await.0.len(), MAX_REPLAY);
    }
    assert!(replay.is_complete());
}

#[tokio::test]
async fn a_body_that_outgrows_the_bound_in_a_later_try_passes_whole_and_is_never_sent_in_part() {
    let replay = replay(body(vec![Bytes::from(vec![7; 16 * 1024]); 5], true).await);
    replay.next_try().frame().await.expect("a frame").expect("data");
    let (bytes, trailers) = whole(replay.next_try()).await;
    assert_eq!((bytes.len(), trailers), (5 * 16 * 1024, true), "the second try began when all was kept");
    assert!(!replay.is_complete());
    assert!(matches!(replay.next_try().frame().await, Some(Err(BodyError::Superseded))), "a part looks like a whole");
}
