//! Connections to peers that answer as a test says, over loopback.

use std::{cell::RefCell, convert::Infallible, task::Poll};

use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};

use super::{super::Connection, *};
use crate::{
    error::{ProxyError, Reason},
    http::body::{Body, Ends, Incoming, Times},
};

/// A connection and its far end.
async fn connected() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (Connection::new(near.expect("connects")), far.expect("accepts").0)
}

pub(super) async fn local<T>(test: impl Future<Output = T>) -> T {
    within(tokio::task::LocalSet::new().run_until(test)).await
}

fn get() -> Option<Request<Body>> {
    Some(Request::builder().uri("/a?b").header("host", "app").body(Body::empty()).expect("a request"))
}

/// A POST whose body comes from what is sent to it: bytes, or trailers.
pub(super) async fn post(field: (&'static str, &str)) -> (Option<Request<Body>>, mpsc::Sender<Frame<Bytes>>) {
    let (sender, frames) = mpsc::channel(64);
    let body = streamed(frames).await;
    let request = Request::builder().method("POST").uri("/").header("host", "app").header(field.0, field.1);
    (Some(request.header("trailer", "x-sum").body(body).expect("a request")), sender)
}

/// The body of a request over HTTP/2: it can have trailers without more ado.
async fn streamed(mut frames: mpsc::Receiver<Frame<Bytes>>) -> Body {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (send, receive) = oneshot::channel();
    let send = RefCell::new(Some(send));
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let _ = send.borrow_mut().take().expect("one request").send(request.into_body());
        std::future::pending::<Result<Response<Body>, Infallible>>()
    });
    tokio::task::spawn_local(async move {
        let server = hyper::server::conn::http2::Builder::new(crate::http::serve::LocalExecutor);
        let _ = server.serve_connection(TokioIo::new(near), service).await;
    });
    tokio::task::spawn_local(async move {
        let (client, connection) = h2::client::handshake(far).await.expect("HTTP/2");
        tokio::task::spawn_local(connection);
        let request = Request::builder().method(Method::POST).uri("http://a/").body(()).expect("valid");
        let (_answer, mut stream) = client.ready().await.expect("ready").send_request(request, false).expect("open");
        let mut trailers = None;
        while let Some(frame) = frames.recv().await {
            match frame.into_data() {
                Ok(data) => stream.send_data(data, false).expect("open"),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        match trailers {
            Some(trailers) => stream.send_trailers(trailers).expect("open"),
            None => stream.send_data(Bytes::new(), true).expect("open"),
        }
        std::future::pending::<()>().await;
    });
    Body::incoming(Incoming::Caller(receive.await.expect("a request")), Ends::Stream, Times::default())
}

/// What is read up to the end of a head, and after it.
async fn request(far: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        assert!(far.read_buf(&mut bytes).await.expect("open") > 0, "{}", bytes.escape_ascii());
    }
    String::from_utf8(bytes).expect("text")
}

async fn body(connection: &mut Connection) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| connection.poll_frame(context)).await {
        let frame = frame.map_err(|error| error.to_string())?;
        body.extend_from_slice(frame.data_ref().expect("data"));
    }
    Ok(body)
}

async fn failure(connection: &mut Connection, request: &mut Option<Request<Body>>) -> ProxyError {
    connection.send(request).await.err().expect("no answer")
}

#[tokio::test]
async fn exchanges_follow_each_other_on_a_connection() {
    local(async {
        let (mut connection, mut far) = connected().await;
        tokio::task::spawn_local(async move {
            for _ in 0..3 {
                assert_eq!(request(&mut far).await, "GET /a?b HTTP/1.1\r\nhost: app\r\n\r\n");
                far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.expect("open");
            }
            far.read_u8().await.expect_err("its end");
        });
        for _ in 0..3 {
            let mut request = get();
            assert_eq!(connection.send(&mut request).await.expect("an answer").status, 200);
            assert!(request.is_none() && !connection.is_done());
            assert_eq!(body(&mut connection).await, Ok(b"hello".to_vec()));
            assert!(connection.is_done() && connection.is_kept() && connection.is_quiet());
        }
    })
    .await;
}

#[tokio::test]
async fn bytes_after_an_answer_end_the_use_of_a_connection() {
    for more in ["\r\n", "x", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"] {
        local(async {
            let (mut connection, mut far) = connected().await;
            let answer = ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", more].concat();
            tokio::task::spawn_local(async move {
                request(&mut far).await;
                far.write_all(answer.as_bytes()).await.expect("open");
                std::future::pending::<()>().await;
            });
            connection.send(&mut get()).await.expect("an answer");
            assert_eq!(body(&mut connection).await, Ok(b"ok".to_vec()));
            assert!(!connection.is_quiet(), "{more:?}");
            let mut again = get();
            let error = failure(&mut connection, &mut again).await;
            assert!(error.unsent && again.is_some(), "{error}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_body_is_framed_as_the_fields_of_its_request_say() {
    let large = Bytes::from(vec![b'x'; 9000]);
    let sum = HeaderMap::from_iter([
        (http::HeaderName::from_static("x-sum"), HeaderValue::from_static("1")),
        (http::HeaderName::from_static("x-other"), HeaderValue::from_static("2")),
    ]);
    let chunks = [b"3\r\none\r\n2328\r\n", &large[..], b"\r\n0\r\nx-sum: 1\r\n\r\n"].concat();
    let plain = [b"one", &large[..]].concat();
    for (field, trailers, expected) in [
        (("transfer-encoding", "chunked"), Some(sum), chunks),
        (("content-length", "9003"), None, plain),
        (("content-length", "0"), None, Vec::new()),
        (("x-nothing", ""), None, Vec::new()),
    ] {
        local(async {
            let (mut connection, mut far) = connected().await;
            let (mut request, sender) = post(field).await;
            for data in [Bytes::from_static(b"one"), large.clone()] {
                sender.send(Frame::data(data)).await.expect("open");
            }
            if let Some(trailers) = trailers {
                sender.send(Frame::trailers(trailers)).await.expect("open");
            }
            drop(sender);
            let (head, length) = (format!("{}: {}", field.0, field.1), expected.len());
            let app = async {
                let mut bytes = Vec::new();
                let end = |bytes: &[u8]| bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
                while end(&bytes).is_none_or(|end| bytes.len() - end < length) {
                    assert!(far.read_buf(&mut bytes).await.expect("open") > 0);
                }
                far.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("open");
                let tail = bytes.split_off(end(&bytes).expect("a head"));
                (String::from_utf8(bytes).expect("text"), tail)
            };
            let (answer, (written, tail)) = tokio::join!(connection.send(&mut request), app);
            assert_eq!(answer.expect("an answer").status, 204);
            assert!(written.contains(&head) && tail == expected, "{written}{}", tail.escape_ascii());
            assert!(connection.is_kept() && connection.is_quiet());
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_whose_body_is_not_as_it_says_is_never_whole() {
    for (length, sent) in [("9", "12345678"), ("3", "1234")] {
        local(async {
            let (mut connection, mut far) = connected().await;
            let (mut request, sender) = post(("content-length", length)).await;
            sender.send(Frame::data(Bytes::from(sent))).await.expect("open");
            drop(sender);
            let error = failure(&mut connection, &mut request).await;
            assert!(!error.unsent && request.is_none(), "{error}");
            drop(connection);
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).await.expect("its end");
            let text = String::from_utf8(bytes).expect("text");
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            assert!(body.len() < length.parse().expect("a number") || text.is_empty(), "{text}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_end_of_its_request_holds_nothing_up() {
    local(async {
        let (mut connection, mut far) = connected().await;
        let (mut request, sender) = post(("content-length", "2000000")).await;
        let (all, taken) = oneshot::channel();
        tokio::task::spawn_local(async move {
            let mut got = usize::from(far.read_u8().await.expect("a request") > 0);
            far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.expect("open");
            while got < 2_000_000 {
                got += far.read(&mut vec![0; 65_536]).await.expect("open");
            }
            let _ = all.send(());
            far.write_all(b"ok").await.expect("open");
            std::future::pending::<()>().await;
        });
        tokio::task::spawn_local(async move {
            for _ in 0..2000 {
                sender.send(Frame::data(Bytes::from(vec![b'x'; 1000]))).await.expect("open");
            }
        });
        assert_eq!(connection.send(&mut request).await.expect("an answer").status, 200);
        assert!(!connection.is_kept(), "the peer may take what follows for another request");
        // Nobody reads the answer, and the request gets to its end all the same.
        taken.await.expect("the whole request");
        assert_eq!(body(&mut connection).await, Ok(b"ok".to_vec()));
    })
    .await;
}

#[tokio::test]
async fn an_answer_of_a_peer_that_takes_no_more_is_still_an_answer() {
    local(async {
        let (mut connection, mut far) = connected().await;
        let (mut request, sender) = post(("transfer-encoding", "chunked")).await;
        let answer = {
            let mut sending = std::pin::pin!(connection.send(&mut request));
            let begun = std::future::poll_fn(|context| Poll::Ready(sending.as_mut().poll(context).is_pending()));
            assert!(begun.await, "no answer yet");
            // It closes with bytes unread, so that what is sent afterwards is refused.
            far.read_u8().await.expect("a request");
            far.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.expect("open");
            drop(far);
            sender.send(Frame::data(Bytes::from(vec![b'x'; 1000]))).await.expect("open");
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
            sending.await.expect("an answer")
        };
        assert_eq!(answer.status, 413);
        assert_eq!(body(&mut connection).await, Ok(b"no".to_vec()));
        assert!(!connection.is_kept(), "the peer has not taken all of the request");
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_closes_instead_of_answering_is_told_apart_from_one_that_got_nothing() {
    local(async {
        let (mut connection, mut far) = connected().await;
        let closing = tokio::task::spawn_local(async move {
            request(&mut far).await;
            far.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await.expect("open");
        });
        let mut sent = get();
        let error = failure(&mut connection, &mut sent).await;
        assert!(!error.unsent && sent.is_none() && error.reason == Reason::ConnectionTerminated, "{error}");
        closing.await.expect("a request");

        let (mut connection, far) = connected().await;
        drop(far);
        while connection.is_quiet() {
            tokio::task::yield_now().await;
        }
        let mut unsent = get();
        let error = failure(&mut connection, &mut unsent).await;
        assert!(error.unsent && unsent.is_some() && error.reason == Reason::ConnectionTerminated, "{error}");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_http_is_an_error_of_the_protocol() {
    for answer in ["hello\r\n\r\n", "HTTP/1.1 200 OK\nx: y\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n"] {
        local(async {
            let (mut connection, mut far) = connected().await;
            tokio::task::spawn_local(async move {
                request(&mut far).await;
                far.write_all(answer.as_bytes()).await.expect("open");
            });
            let error = failure(&mut connection, &mut get()).await;
            assert!(!error.unsent && error.reason == Reason::ProtocolError, "{answer:?}: {error}");
        })
        .await;
    }
}

#[tokio::test]
async fn the_bytes_after_an_upgrade_are_those_of_the_app() {
    local(async {
        let (mut connection, mut far) = connected().await;
        tokio::task::spawn_local(async move {
            request(&mut far).await;
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nfirst";
            far.write_all(answer).await.expect("open");
            assert_eq!(far.read_u8().await.expect("open"), b'!');
            far.write_all(b"second").await.expect("open");
        });
        let mut asked = get();
        asked.as_mut().expect("it").headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        assert_eq!(connection.send(&mut asked).await.expect("an answer").status, 101);
        assert!(!connection.is_kept());
        let mut bytes = connection.into_bytes().expect("all is sent");
        let mut first = [0; 5];
        bytes.read_exact(&mut first).await.expect("open");
        bytes.write_all(b"!").await.expect("open");
        let mut all = Vec::new();
        bytes.read_to_end(&mut all).await.expect("an end");
        assert_eq!((&first, &all[..]), (b"first", &b"second"[..]));
    })
    .await;
}

#[tokio::test]
async fn an_upload_ends_with_the_connection_that_it_is_on() {
    local(async {
        let (mut connection, mut far) = connected().await;
        let (mut request, sender) = post(("transfer-encoding", "chunked")).await;
        let app = tokio::task::spawn_local(async move {
            far.read_u8().await.expect("a request");
            far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await.expect("open");
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).await.expect("an end");
            bytes
        });
        connection.send(&mut request).await.expect("an answer");
        assert!(!connection.is_kept(), "the peer may take what follows for another request");
        drop(connection);
        let bytes = app.await.expect("no panic");
        assert!(!bytes.ends_with(b"0\r\n\r\n"), "{}", bytes.escape_ascii());
        drop(sender);
    })
    .await;
}
