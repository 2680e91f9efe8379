//! HTTP/2 without a library's opinions: a client and servers on the frames' level, for tests that end streams badly.

use std::{future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, client, server};
use http::Request;
use tokio::net::{TcpListener, TcpStream};

use crate::net::{LIMIT, free};

/// A connection of its own; its task is given as well, so that a test can cut it off.
pub async fn connect(address: SocketAddr) -> (client::SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (sender, connection) = client::handshake(stream).await.expect("HTTP/2");
    let task = tokio::spawn(async move {
        let _ = connection.await;
    });
    (sender.ready().await.expect("a stream"), task)
}

/// Serves every request of every connection with `handle`, for as long as the test lives.
pub async fn serve<F, Fut>(handle: F) -> SocketAddr
where
    F: Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = End> + Send + 'static,
{
    let listener = TcpListener::bind(free()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(connection(stream, handle.clone()));
        }
    });
    address
}

/// What becomes of the connection after a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// It goes on.
    Stays,
    /// It is closed at once.
    Cut,
}

async fn connection<F, Fut>(stream: TcpStream, handle: F)
where
    F: Fn(Request<RecvStream>, server::SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = End> + Send + 'static,
{
    let Ok(mut connection) = server::handshake(stream).await else { return };
    let (cut, mut cuts) = tokio::sync::mpsc::unbounded_channel();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (work, cut) = (handle(request, respond), cut.clone());
                tokio::spawn(async move {
                    if work.await == End::Cut {
                        let _ = cut.send(());
                    }
                });
            }
            Some(()) = cuts.recv() => return,
        }
    }
}

/// Reads a body to its end: its length, or that it was cut off.
pub async fn drain(body: &mut RecvStream) -> Result<usize, h2::Error> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(length)
}

/// Not for ever.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let limit: Duration = LIMIT;
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}
