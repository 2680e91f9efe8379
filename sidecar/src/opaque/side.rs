//! The two ends of an opaque connection, each as a source and a sink of bytes, and how to end it so that the peer does
//! not take a failure for the end of the data. A tunnel's are in `tunnel`.

use std::io;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::TcpStream,
};

use crate::detect::Rewind;

/// Sizes that a source's buffer takes, one after the other, when a read fills it.
const SIZES: [usize; 3] = [4 * 1024, 16 * 1024, 64 * 1024];

/// Where bytes come from.
pub trait Source {
    /// The next bytes; `None` at the end of the data.
    ///
    /// # Errors
    /// When the peer is gone or has given up.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>>;

    /// So many bytes have left for the other side.
    fn passed(&mut self, length: usize);
}

/// Where bytes go.
pub trait Sink {
    /// Sends all of them; waits while the peer does not take them.
    ///
    /// # Errors
    /// When the peer is gone or has given up.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>>;

    /// The end of the data.
    ///
    /// # Errors
    /// When the peer is gone or has given up.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>>;
}

/// One end of an opaque connection.
pub trait Side {
    /// See [`Source`].
    type Source: Source;
    /// See [`Sink`].
    type Sink: Sink;

    /// Both directions.
    fn split(self) -> (Self::Source, Self::Sink);

    /// Ends both directions so that the peer sees a failure: what it got is not all there was to get.
    fn abort(source: Self::Source, sink: Self::Sink);
}

/// A byte stream that can be closed as a failure.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// See [`Side::abort`]. The default closes it as if all was well, where nothing else can be said.
    fn abort(self)
    where
        Self: Sized,
    {
    }
}

impl Stream for TcpStream {
    fn abort(self) {
        // Closing with a linger time of zero sends RST.
        if let Err(error) = SockRef::from(&self).set_linger(Some(std::time::Duration::ZERO)) {
            tracing::debug!(%error, "could not reset a connection");
        }
    }
}

impl Stream for Rewind<TcpStream> {
    fn abort(self) {
        self.into_inner().abort();
    }
}

/// hyper ends an upgraded HTTP/2 stream with END_STREAM, however it is dropped.
impl Stream for hyper_util::rt::TokioIo<hyper::upgrade::Upgraded> {}

#[cfg(test)]
impl Stream for tokio::io::DuplexStream {}

/// Reads a stream with a buffer that grows with the flow.
pub struct Reader<IO> {
    io: ReadHalf<IO>,
    buffer: BytesMut,
    step: usize,
}

impl<IO: Stream> Source for Reader<IO> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        // What was read before has been sent in most cases, so that its memory is used again.
        self.buffer.reserve(SIZES[self.step]);
        let length = self.io.read_buf(&mut self.buffer).await?;
        if length >= SIZES[self.step] && self.step + 1 < SIZES.len() {
            self.step += 1;
        }
        if length < SIZES[self.step] / 4 {
            // Passed on, these few bytes would keep all of the buffer while they wait to be sent.
            let bytes = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            return Ok((length > 0).then_some(bytes));
        }
        Ok(Some(self.buffer.split().freeze()))
    }

    fn passed(&mut self, _: usize) {}
}

impl<IO: Stream> Sink for WriteHalf<IO> {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.write_all(&bytes).await?;
        self.flush().await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.shutdown().await
    }
}

impl<IO: Stream> Side for IO {
    type Source = Reader<IO>;
    type Sink = WriteHalf<IO>;

    fn split(self) -> (Self::Source, Self::Sink) {
        let (read, write) = tokio::io::split(self);
        (Reader { io: read, buffer: BytesMut::new(), step: 0 }, write)
    }

    fn abort(source: Self::Source, sink: Self::Sink) {
        source.io.unsplit(sink).abort();
    }
}
