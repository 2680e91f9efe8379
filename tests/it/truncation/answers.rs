//! Answers that end early.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{Ending, LENGTH, PART, whole};
use crate::{
    http2::{End, connect, drain, serve, within},
    mesh::{TestMesh, Workload},
    net::free,
};

/// Lets the app end its answer: the caller has the first half.
type Go = Arc<Notify>;

/// An app that sends half of an answer, waits for the caller, and ends it as the path says: `/<length>/<ending>`.
async fn app_http1(go: Go) -> SocketAddr {
    let listener = TcpListener::bind(free()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(answer_http1(stream, Arc::clone(&go)));
        }
    });
    address
}

async fn answer_http1(mut stream: TcpStream, go: Go) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&bytes).into_owned();
    let mut half = PART.to_vec();
    if request.starts_with("GET /true/") {
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes()).await?;
    } else {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        half = [format!("{:x}\r\n", PART.len()).as_bytes(), PART, b"\r\n"].concat();
    }
    stream.write_all(&half).await?;
    go.notified().await;
    if request.contains("/whole ") {
        stream.write_all(&half).await?;
        if request.starts_with("GET /false/") {
            stream.write_all(b"0\r\n\r\n").await?;
        }
    }
    Ok(())
}

async fn app_http2(go: Go) -> SocketAddr {
    serve(move |request, mut respond| {
        let go = Arc::clone(&go);
        async move {
            let path = request.uri().path().to_owned();
            let mut head = Response::builder();
            if path.starts_with("/true/") {
                head = head.header("content-length", LENGTH);
            }
            let Ok(mut body) = respond.send_response(head.body(()).expect("valid"), false) else { return End::Stays };
            let _ = body.send_data(Bytes::from_static(PART), false);
            go.notified().await;
            match path.rsplit('/').next().unwrap_or_default() {
                "whole" => {
                    let _ = body.send_data(Bytes::from_static(PART), true);
                }
                "cut" => return End::Cut,
                number => body.send_reset(Reason::from(number.parse::<u32>().expect("a number"))),
            }
            End::Stays
        }
    })
    .await
}

fn word(ending: Ending) -> String {
    match ending {
        Ending::Whole => "whole".into(),
        Ending::Reset(reason) => u32::from(reason).to_string(),
        Ending::Close | Ending::HalfClose | Ending::Cut => "cut".into(),
    }
}

/// Whether an HTTP/1.1 caller gets the whole answer.
async fn call_http1(address: SocketAddr, path: &str, go: &Go) -> bool {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("open");
    let (mut bytes, mut told) = (Vec::new(), false);
    loop {
        let ended = matches!(within("the answer", stream.read_buf(&mut bytes)).await, Ok(0) | Err(_));
        if ended || whole(&bytes) {
            assert!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&bytes));
            return whole(&bytes);
        }
        if !told && bytes.windows(PART.len()).any(|window| window == PART) {
            told = true;
            go.notify_one();
        }
    }
}

/// Whether an HTTP/2 caller gets the whole answer.
async fn call_http2(address: SocketAddr, path: &str, go: &Go) -> bool {
    let (mut sender, _task) = connect(address).await;
    let request = Request::get(format!("http://app{path}")).body(()).expect("valid");
    let (response, _) = sender.send_request(request, true).expect("open");
    let response = within("the head", response).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut got = 0;
    while got < PART.len() {
        got += within("the first half", body.data()).await.expect("not the end").expect("not reset").len();
    }
    go.notify_one();
    within("the end", drain(&mut body)).await.is_ok()
}

/// Every way to end an answer, by an app that `protocol` declares.
async fn answers_of(protocol: &str, address: SocketAddr, go: Go, endings: &[Ending]) {
    let workload = Workload::beside("app", address, protocol);
    let mesh = TestMesh::builder(&format!("cut-answer-{protocol}")).workload(workload).calls("app").start();
    let local = mesh.local("app");
    for length in [true, false] {
        for ending in endings {
            let path = format!("/{length}/{}", word(*ending));
            let expected = matches!(ending, Ending::Whole);
            let got = call_http1(local, &path, &go).await;
            assert_eq!(got, expected, "whole for an HTTP/1.1 caller: {ending:?}, with Content-Length: {length}");
            let got = call_http2(local, &path, &go).await;
            assert_eq!(got, expected, "whole for an HTTP/2 caller: {ending:?}, with Content-Length: {length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_an_http1_app_that_ends_early_is_never_whole() {
    let go = Go::default();
    let address = app_http1(Arc::clone(&go)).await;
    answers_of("http", address, go, &[Ending::Whole, Ending::Close]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_an_http2_app_that_ends_early_is_never_whole() {
    let go = Go::default();
    let address = app_http2(Arc::clone(&go)).await;
    let resets = [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR].map(Ending::Reset);
    let endings: Vec<_> = [Ending::Whole, Ending::Cut].into_iter().chain(resets).collect();
    answers_of("http2", address, go, &endings).await;
}
