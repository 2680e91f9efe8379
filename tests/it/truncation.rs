//! Bodies that end early: whoever sends them, and in whatever way, the other side is never told that they were whole.
//! Requests here, answers in [`answers`].

mod answers;

use std::net::SocketAddr;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::{
    http2::{End, connect, drain, serve, within},
    mesh::{TestMesh, Workload},
    net::free,
};

/// What an app sees of a request's body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Seen {
    /// Its first bytes.
    Part,
    /// Its end, as it should be.
    Complete,
    /// That it was cut off.
    Truncated,
}

/// Announced, and sent before the end.
const LENGTH: usize = 1000;
const PART: &[u8] = &[b'x'; 500];

/// How a caller ends its request.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// As it should be.
    Whole,
    /// HTTP/1.1: the connection is closed.
    Close,
    /// HTTP/1.1: no more is sent, but the caller waits for an answer.
    HalfClose,
    /// HTTP/2: the stream is reset.
    Reset(Reason),
    /// HTTP/2: the connection is cut.
    Cut,
}

async fn app_http1(seen: UnboundedSender<Seen>) -> SocketAddr {
    let listener = TcpListener::bind(free()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(watch_http1(stream, seen.clone()));
        }
    });
    address
}

/// Whether these bytes are a request with the whole of its body, as they should be read.
fn whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None => {
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            body.ends_with("\r\n0\r\n\r\n")
        }
    }
}

async fn watch_http1(mut stream: TcpStream, seen: UnboundedSender<Seen>) {
    let (mut bytes, mut told) = (Vec::new(), false);
    loop {
        match stream.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => break,
            Ok(_) if whole(&bytes) => {
                let _ = seen.send(Seen::Complete);
                let end: &[u8] = if bytes.starts_with(b"POST /eager ") {
                    b"0\r\n\r\n"
                } else {
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                };
                let _ = stream.write_all(end).await;
                return;
            }
            Ok(_) if !told && bytes.windows(PART.len()).any(|window| window == PART) => {
                told = true;
                if bytes.starts_with(b"POST /eager ") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                }
                let _ = seen.send(Seen::Part);
            }
            Ok(_) => {}
        }
    }
    // A probe connects and says nothing.
    if !bytes.is_empty() {
        let _ = seen.send(Seen::Truncated);
    }
}

async fn app_http2(seen: UnboundedSender<Seen>) -> SocketAddr {
    serve(move |request, mut respond| {
        let seen = seen.clone();
        async move {
            let eager = request.uri().path() == "/eager";
            let mut body = request.into_body();
            let mut got = 0;
            while got < PART.len() {
                match body.data().await {
                    Some(Ok(data)) => got += data.len(),
                    _ => break,
                }
            }
            let head = eager.then(|| respond.send_response(Response::new(()), false));
            let _ = seen.send(Seen::Part);
            if drain(&mut body).await.is_err() {
                let _ = seen.send(Seen::Truncated);
                return End::Stays;
            }
            let _ = seen.send(Seen::Complete);
            match head {
                Some(Ok(mut answer)) => drop(answer.send_data(Bytes::new(), true)),
                _ => drop(respond.send_response(Response::new(()), true)),
            }
            End::Stays
        }
    })
    .await
}

async fn next(what: &str, seen: &mut UnboundedReceiver<Seen>) -> Seen {
    within(what, seen.recv()).await.expect("the app lives")
}

/// Sends half of a body in HTTP/1.1, ends it when the app has that half, and returns what the app makes of it.
async fn send_http1(
    address: SocketAddr,
    path: &str,
    chunked: bool,
    ending: Ending,
    seen: &mut UnboundedReceiver<Seen>,
) -> Seen {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {LENGTH}") };
    let mut message = format!("POST {path} HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n").into_bytes();
    let mut half = PART.to_vec();
    if chunked {
        half = [format!("{:x}\r\n", PART.len()).as_bytes(), PART, b"\r\n"].concat();
    }
    message.extend(&half);
    stream.write_all(&message).await.expect("open");
    assert_eq!(next("the first half", seen).await, Seen::Part);
    match ending {
        Ending::Whole => {
            if chunked {
                half.extend(b"0\r\n\r\n");
            }
            stream.write_all(&half).await.expect("open");
        }
        Ending::HalfClose => stream.shutdown().await.expect("open"),
        _ => drop(stream),
    }
    next("the end", seen).await
}

/// The same in HTTP/2; `length` says whether it is announced.
async fn send_http2(
    address: SocketAddr,
    path: &str,
    length: bool,
    ending: Ending,
    seen: &mut UnboundedReceiver<Seen>,
) -> Seen {
    let (mut sender, task) = connect(address).await;
    let mut request = Request::post(format!("http://app{path}"));
    if length {
        request = request.header("content-length", LENGTH);
    }
    let (_response, mut body) = sender.send_request(request.body(()).expect("valid"), false).expect("open");
    body.send_data(Bytes::from_static(PART), false).expect("open");
    assert_eq!(next("the first half", seen).await, Seen::Part);
    match ending {
        Ending::Whole => body.send_data(Bytes::from_static(PART), true).expect("open"),
        Ending::Reset(reason) => body.send_reset(reason),
        _ => task.abort(),
    }
    next("the end", seen).await
}

/// Every way to end a request, to an app that `protocol` declares.
async fn requests_to(protocol: &str, address: SocketAddr, mut seen: UnboundedReceiver<Seen>) {
    let workload = Workload::beside("app", address, protocol);
    let mesh = TestMesh::builder(&format!("cut-{protocol}")).workload(workload).calls("app").start();
    let local = mesh.local("app");
    let seen = &mut seen;
    // An app may answer before it has the whole body: the two directions then end apart.
    for (path, framing) in [("/", false), ("/", true), ("/eager", false), ("/eager", true)] {
        for ending in [Ending::Whole, Ending::Close, Ending::HalfClose] {
            let expected = if matches!(ending, Ending::Whole) { Seen::Complete } else { Seen::Truncated };
            let got = send_http1(local, path, framing, ending, seen).await;
            assert_eq!(got, expected, "HTTP/1.1 {path}, chunked: {framing}, {ending:?}");
        }
        let resets = [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR].map(Ending::Reset);
        for ending in [Ending::Whole, Ending::Cut].into_iter().chain(resets) {
            let expected = if matches!(ending, Ending::Whole) { Seen::Complete } else { Seen::Truncated };
            let got = send_http2(local, path, framing, ending, seen).await;
            assert_eq!(got, expected, "HTTP/2 {path}, with Content-Length: {framing}, {ending:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_early_is_never_whole_for_an_http1_app() {
    let (sender, seen) = unbounded_channel();
    requests_to("http", app_http1(sender).await, seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_ends_early_is_never_whole_for_an_http2_app() {
    let (sender, seen) = unbounded_channel();
    requests_to("http2", app_http2(sender).await, seen).await;
}
