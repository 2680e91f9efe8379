//! Connections to the operator API: TLS in front of HTTP/1.1 (plain only with `--dev`), each step with a time limit,
//! all of them together with a number.

pub mod https;

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use self::https::Https;
use super::access::Peer;

/// A TLS handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The head of a request takes no longer.
const HEAD: Duration = Duration::from_secs(10);
/// Bytes and fields of a head.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 128;
/// Silence after which the kernel asks whether the client is still there: a watch may be silent for hours.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Serves for as long as it is polled: at most `connections` at once, one more is closed. Without `https` it speaks
/// plain HTTP.
pub async fn serve(listener: TcpListener, router: Router, mut https: Option<Https>, connections: usize) -> Infallible {
    let places = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
    let mut full = false;
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed; waiting");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned().ok();
        if full != place.is_none() {
            full = place.is_none();
            tracing::warn!(full, "connection limit of the operator API (--api-max-connections)");
        }
        let Some(place) = place else { continue };
        let acceptor = https.as_mut().map(|https| https.acceptor(std::time::SystemTime::now()));
        let router = router.clone();
        tokio::spawn(async move {
            if let Err(error) = connection(stream, address, acceptor, router).await {
                tracing::debug!(%address, error, "connection to the operator API ended");
            }
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
) -> Result<(), String> {
    prepare(&stream).map_err(|error| error.to_string())?;
    let Some(acceptor) = acceptor else { return http(stream, address, router).await };
    let session = timeout(HANDSHAKE, handshake(acceptor, stream)).await.map_err(|_| "no TLS session in time")?;
    match session.map_err(|error| error.to_string())? {
        Some(session) => http(session, address, router).await,
        None => Err("plain HTTP on the TLS port".into()),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    Ok(())
}

/// A TLS session; none for a client that speaks plain HTTP, which is told so.
async fn handshake(
    acceptor: TlsAcceptor,
    mut stream: TcpStream,
) -> io::Result<Option<Box<tokio_rustls::server::TlsStream<TcpStream>>>> {
    let mut first = [0];
    // TLS begins with the byte 22, HTTP with a letter.
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
        let text = "this port speaks TLS: use https:// and trust root.pem of the control plane's data directory\n";
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        // What was sent is taken first: closing with unread bytes would reset the connection under the answer.
        let _ = stream.read(&mut [0; 4096]).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        return Ok(None);
    }
    Ok(Some(Box::new(acceptor.accept(stream).await?)))
}

async fn http<S>(stream: S, address: SocketAddr, router: Router) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request| answer(router.clone(), address, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    connection.await.map_err(|error| error.to_string())
}

fn answer(
    router: Router,
    address: SocketAddr,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(address));
    router.oneshot(request)
}

#[cfg(test)]
mod tests;
