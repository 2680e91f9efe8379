//! Which protocol a connection speaks, from its first bytes, and a stream that replays them. Only for ports whose
//! protocol nobody declared, and to tell HTTP/1.1 from HTTP/2.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer than any method name.
const METHOD: usize = 24;
/// Line ends that may come before a request line: without a bound a peer could grow the prefix for the whole timeout.
const LINE_ENDS: usize = 8;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// A request line may follow.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS handshake record.
    Tls,
    /// Anything else.
    Opaque,
    /// Nothing came in time: the server speaks first.
    Silent,
}

impl Protocol {
    /// All of them, in the order of the discriminants.
    pub const ALL: [Self; 5] = [Self::Http1, Self::Http2, Self::Tls, Self::Opaque, Self::Silent];

    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::Silent => "silent",
        }
    }
}

/// The protocol and the bytes that were read to find it.
#[derive(Debug)]
pub struct Detected {
    /// What is spoken.
    pub protocol: Protocol,
    /// To be replayed by [`Rewind`].
    pub prefix: BytesMut,
}

/// Reads until the protocol is clear or `timeout` has passed.
///
/// # Errors
/// When the peer closes before its first byte or the read fails.
pub async fn detect(io: &mut (impl AsyncRead + Unpin), timeout: Duration) -> io::Result<Detected> {
    let mut prefix = BytesMut::with_capacity(1024);
    let read = async {
        loop {
            if io.read_buf(&mut prefix).await? == 0 {
                let none = prefix.is_empty();
                return if none { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) } else { Ok(Protocol::Opaque) };
            }
            if let Some(protocol) = classify(&prefix) {
                return Ok(protocol);
            }
        }
    };
    let protocol = match tokio::time::timeout(timeout, read).await {
        Ok(result) => result?,
        Err(_) if prefix.is_empty() => Protocol::Silent,
        Err(_) => Protocol::Opaque,
    };
    Ok(Detected { protocol, prefix })
}

/// The protocol, or `None` when more bytes are needed.
fn classify(bytes: &[u8]) -> Option<Protocol> {
    if bytes.starts_with(PREFACE) {
        return Some(Protocol::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    match bytes {
        [0x16, 0x03, ..] => return Some(Protocol::Tls),
        [0x16] => return None,
        _ => {}
    }
    // Empty lines before a request line are tolerated, as RFC 9112 section 2.2 asks.
    let Some(start) = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')) else {
        return (bytes.len() > LINE_ENDS).then_some(Protocol::Opaque);
    };
    let bytes = &bytes[start..];
    match bytes.iter().position(|&b| b == b' ') {
        Some(end) if end > 0 && bytes[..end].iter().all(is_token) => Some(Protocol::Http1),
        Some(_) => Some(Protocol::Opaque),
        None if bytes.len() <= METHOD && bytes.iter().all(is_token) => None,
        None => Some(Protocol::Opaque),
    }
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

/// A stream whose first bytes were already read.
#[derive(Debug)]
pub struct Rewind<IO> {
    prefix: BytesMut,
    io: IO,
}

impl<IO> Rewind<IO> {
    /// Replays `prefix`, then reads from `io`.
    pub const fn new(io: IO, prefix: BytesMut) -> Self {
        Self { prefix, io }
    }

    /// The stream, once all was replayed.
    pub fn io_if_replayed(&mut self) -> Option<&mut IO> {
        self.prefix.is_empty().then_some(&mut self.io)
    }

    /// The stream, without what was not replayed.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewind<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            self.prefix = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewind<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn first_bytes_are_classified() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"\r\nGET /", Some(Protocol::Http1)),
            (b"M-SEARCH *", Some(Protocol::Http1)),
            (b"GET", None),
            (b"PRI * HT", None),
            (PREFACE, Some(Protocol::Http2)),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
            (b"\x16", None),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque)),
            (b"hello world", Some(Protocol::Opaque)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Protocol::Opaque)),
            (b"\0\0\0\x08", Some(Protocol::Opaque)),
            (b"\r\n", None),
            (b"\r\n\r\n\r\n\r\n\r\n", Some(Protocol::Opaque)),
        ] {
            assert_eq!(classify(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn a_preface_split_over_reads_is_recognised_and_replayed() {
        let (mut client, mut server) = tokio::io::duplex(64);
        tokio::spawn(async move {
            for byte in PREFACE {
                client.write_all(&[*byte]).await.expect("open");
            }
            client.write_all(b"rest").await.expect("open");
        });
        let detected = detect(&mut server, Duration::from_secs(5)).await.expect("bytes came");
        assert_eq!(detected.protocol, Protocol::Http2);
        let mut all = Vec::new();
        Rewind::new(server, detected.prefix).read_to_end(&mut all).await.expect("readable");
        assert_eq!(all, [PREFACE, b"rest"].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_silent_after_the_timeout() {
        let (_client, mut server) = tokio::io::duplex(64);
        let detected = detect(&mut server, Duration::from_secs(5)).await.expect("no error");
        assert_eq!(detected.protocol, Protocol::Silent);
    }

    #[tokio::test]
    async fn an_end_before_the_first_byte_is_an_error() {
        let (client, mut server) = tokio::io::duplex(64);
        drop(client);
        assert!(detect(&mut server, Duration::from_secs(5)).await.is_err());
    }
}
