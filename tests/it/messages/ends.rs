//! Both ends of the table: an app of one HTTP version, and callers of each.

use std::{convert::Infallible, future::Future, net::SocketAddr};

use http::{Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Body, Received};
use crate::{http2::within, net::free};

/// An app in one HTTP version, with room for everything the table sends.
pub async fn serve<F, Fut>(http2: bool, handle: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind(free()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let service = service_fn(move |request| {
                let work = handle(request);
                async move { Ok::<_, Infallible>(work.await) }
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                if http2 {
                    let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.max_header_list_size(1 << 20).serve_connection(io, service).await;
                } else {
                    let mut server = hyper::server::conn::http1::Builder::new();
                    let _ = server.max_headers(256).serve_connection(io, service).await;
                }
            });
        }
    });
    address
}

/// One exchange on a connection of its own.
pub async fn call(address: SocketAddr, http2: bool, mut request: Request<Body>) -> Received {
    let io = TokioIo::new(TcpStream::connect(address).await.expect("a connection"));
    let path = request.uri().path_and_query().expect("a path").as_str().to_owned();
    let response = if http2 {
        *request.uri_mut() = format!("http://app.example{path}").parse::<Uri>().expect("valid");
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(1 << 20)
            .handshake(io)
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        within("an answer", sender.send_request(request)).await
    } else {
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("app.example"));
        let (mut sender, connection) = http1::Builder::new().max_headers(256).handshake(io).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        within("an answer", sender.send_request(request)).await
    };
    let (head, body) = response.expect("an answer").into_parts();
    let body = within("a body", body.collect()).await.expect("a whole body");
    let trailers = body.trailers().cloned().unwrap_or_default();
    Received { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
}

/// Sends a head, waits for the interim answer, sends the body: both answers.
pub async fn call_after_continue(address: SocketAddr, head: &str, body: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("open");
    let mut interim = Vec::new();
    while !interim.ends_with(b"\r\n\r\n") {
        assert!(within("the interim answer", stream.read_buf(&mut interim)).await.expect("open") > 0);
    }
    stream.write_all(body).await.expect("open");
    let mut answer = Vec::new();
    within("the answer", stream.read_to_end(&mut answer)).await.expect("an end");
    (String::from_utf8_lossy(&interim).into_owned(), String::from_utf8_lossy(&answer).into_owned())
}
