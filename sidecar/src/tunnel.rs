//! Opaque bytes as CONNECT streams on HTTP/2 connections of their own (ALPN `weft-tunnel`), with h2 and not hyper: a
//! stream can then be reset, so that a connection that failed is not taken for one that ended, and bytes are not
//! copied on their way. `upstream` makes such connections, `inbound` serves them.

use std::{future::poll_fn, io, time::Duration};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};

use crate::opaque::{Side, Sink, Source};

/// Name in ALPN.
pub const ALPN: &[u8] = b"weft-tunnel";
/// Tunnels on one connection.
pub const STREAMS: u32 = 100;
/// Bytes in flight on one stream.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// Bytes in flight on one connection: room for a whole window of every stream, so that readers that have stopped never
/// stop the others. Memory is used only by what they have not read.
pub const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Bytes waiting to be sent on one stream.
pub const SEND_BUFFER: usize = 256 * 1024;
/// A CONNECT has few fields.
pub const HEAD_BYTES: u32 = 16 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// One CONNECT stream.
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Tunnel {
    /// Both directions of a stream whose heads have passed.
    #[must_use]
    pub const fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive }
    }
}

impl Side for Tunnel {
    type Source = RecvStream;
    type Sink = SendStream<Bytes>;

    fn split(self) -> (RecvStream, SendStream<Bytes>) {
        (self.receive, self.send)
    }

    /// RFC 9113 section 8.5: an error of the TCP connection is a stream error of type CONNECT_ERROR.
    fn abort(_: RecvStream, mut send: SendStream<Bytes>) {
        send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl Source for RecvStream {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.data().await {
                // An empty frame says nothing: END_STREAM on it comes as the end.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Ok(Some(bytes)),
                Some(Err(error)) => return Err(io_error(error)),
                None => return Ok(None),
            }
        }
    }

    /// The window opens as the bytes leave, so that a slow reader holds at most one window of them.
    fn passed(&mut self, length: usize) {
        if let Err(error) = self.flow_control().release_capacity(length) {
            tracing::debug!(%error, "flow control of a tunnel");
        }
    }
}

impl Sink for SendStream<Bytes> {
    async fn send(&mut self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            self.reserve_capacity(bytes.len());
            let granted = match poll_fn(|context| self.poll_capacity(context)).await {
                Some(Ok(granted)) => granted,
                Some(Err(error)) => return Err(io_error(error)),
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            let part = bytes.split_to(granted.min(bytes.len()));
            if !part.is_empty() {
                self.send_data(part, false).map_err(io_error)?;
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.send_data(Bytes::new(), true).map_err(io_error)
    }
}

fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::Other };
    io::Error::new(kind, error)
}

/// Returns when the peer does not answer a PING any more. Asks only while `busy`.
pub async fn dead(ping: Option<PingPong>, busy: impl Fn() -> bool) {
    // h2 gives the handle once, to the one who made the connection.
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        if busy() && !matches!(tokio::time::timeout(PING_TIMEOUT, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
