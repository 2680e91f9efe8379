//! Bodies against a real HTTP/2 peer that ends them badly.

use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::*;

/// What the peer does after the head and five bytes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Then {
    Reset(h2::Reason),
    Trailers,
    Silence,
}

/// The body of a response that a server made of frames sends.
async fn response(length: Option<u64>, then: Then, ends: Ends, times: Times) -> Body {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut server = h2::server::handshake(far).await.expect("a handshake");
        let (_, mut respond) = server.accept().await.expect("a request").expect("a request");
        let mut head = http::Response::builder();
        if let Some(length) = length {
            head = head.header("content-length", length);
        }
        let mut stream = respond.send_response(head.body(()).expect("a head"), false).expect("sent");
        stream.send_data(Bytes::from_static(b"bytes"), false).expect("sent");
        // The bytes leave before the reset, which drops what is queued.
        let _ = tokio::time::timeout(Duration::from_millis(1), server.accept()).await;
        match then {
            Then::Reset(reason) => stream.send_reset(reason),
            Then::Trailers => {
                stream.send_trailers(HeaderMap::new()).expect("sent");
                let _ = tokio::time::timeout(Duration::from_millis(1), server.accept()).await;
                stream.send_reset(h2::Reason::NO_ERROR);
            }
            Then::Silence => {}
        }
        while server.accept().await.is_some() {}
    });
    Body::incoming(Incoming::Caller(received(near).await), ends, times)
}

/// The body of what the peer at the other end answers to a request.
pub(super) async fn received(near: tokio::io::DuplexStream) -> hyper::body::Incoming {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.expect("a handshake");
    tokio::spawn(connection);
    let request = Request::builder().uri("http://app/").body(http_body_util::Empty::<Bytes>::new()).expect("a request");
    let response = sender.send_request(request).await.expect("a head");
    // The connection lives as long as its sender.
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(sender);
    });
    response.into_body()
}

fn usual() -> Times {
    Times { idle: Some(IDLE), ..Times::default() }
}

async fn all(body: Body) -> Result<Bytes, BodyError> {
    body.collect().await.map(http_body_util::Collected::to_bytes)
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_reset_without_an_error_was_cut() {
    let body = response(None, Then::Reset(h2::Reason::NO_ERROR), Ends::Stream, usual()).await;
    assert!(matches!(all(body).await, Err(BodyError::Cut)));
    let body = response(None, Then::Reset(h2::Reason::INTERNAL_ERROR), Ends::Stream, usual()).await;
    assert!(matches!(all(body).await, Err(BodyError::Http(_))));
}

#[tokio::test(start_paused = true)]
async fn a_length_tells_whether_an_early_response_was_cut() {
    let body = response(Some(9), Then::Reset(h2::Reason::NO_ERROR), Ends::EarlyResponse, usual()).await;
    assert!(matches!(all(body).await, Err(BodyError::Cut)));
    for length in [None, Some(5)] {
        let body = response(length, Then::Reset(h2::Reason::NO_ERROR), Ends::EarlyResponse, usual()).await;
        assert_eq!(all(body).await.expect("whole"), "bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_are_the_end_whatever_comes_after_them() {
    let body = response(None, Then::Trailers, Ends::Stream, usual()).await;
    assert_eq!(all(body).await.expect("whole"), "bytes");
}

#[tokio::test(start_paused = true)]
async fn a_body_on_which_nothing_moves_ends_unless_it_may_be_silent() {
    let start = Instant::now();
    let body = response(None, Then::Silence, Ends::Stream, usual()).await;
    assert!(matches!(all(body).await, Err(BodyError::Idle(IDLE))));
    assert_eq!(start.elapsed().as_secs(), IDLE.as_secs());
    let body = response(None, Then::Silence, Ends::Stream, Times::default()).await;
    assert!(tokio::time::timeout(IDLE * 10, all(body)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_whole_at_the_deadline_ends_however_long_it_may_be_silent() {
    let end = Instant::now() + Duration::from_secs(2);
    let deadline = Some(end);
    for idle in [None, Some(IDLE)] {
        let body = response(None, Then::Silence, Ends::Stream, Times { idle, deadline, grpc: false }).await;
        assert!(matches!(all(body).await, Err(BodyError::Deadline)));
    }
    let times = Times { idle: None, deadline, grpc: true };
    let body = response(None, Then::Silence, Ends::Stream, times).await.collect().await.expect("an end in order");
    assert_eq!(body.trailers().expect("trailers")["grpc-status"], "4");
    assert_eq!(Instant::now().duration_since(end).as_millis(), 0);
}
