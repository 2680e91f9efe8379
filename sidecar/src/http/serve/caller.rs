//! A caller's connection in HTTP/1.x, and whether the caller is still there while its request is worked on. One that has
//! ended its side still gets its answer (RFC 9112 section 9.6); as it looks the same from here when nobody waits any more,
//! it is waited for only while something of the answer moves now and then.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::detect::Rewind;

/// How long a caller that has ended its side is waited for while nothing is sent to it.
pub const HALF_CLOSED: Duration = Duration::from_secs(10);

/// As many bytes are copied together rather than given to the kernel in pieces, which costs it more.
const FLAT: usize = 2048;

/// A stream that tells, without reading, that nothing more will come.
pub trait Callers {
    /// Ready when all was read and the peer has ended its side, or the connection is broken.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Callers for TcpStream {
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0; 1];
        match self.poll_peek(context, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What waits to be read is read first.
            Poll::Ready(Ok(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<IO: Callers> Callers for Rewind<IO> {
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.io_if_replayed() {
            Some(io) => io.poll_end(context),
            None => Poll::Pending,
        }
    }
}

/// Tests that have no sockets have callers that stay.
#[cfg(test)]
impl Callers for tokio::io::DuplexStream {
    fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// The stream as hyper has it. hyper reads nothing while it works on a request, but flushes whenever it is polled.
pub struct Caller<IO> {
    io: IO,
    seen: Arc<Seen>,
}

/// What is seen of the caller. Shared within one task; hyper wants streams that could leave the thread.
#[derive(Default)]
pub struct Seen {
    /// One of the constants below.
    side: AtomicU8,
    /// Something was sent since the last look.
    moved: AtomicBool,
    /// What was done last is a read that waits: a request is to come. While it answers, hyper reads nothing.
    awaited: AtomicBool,
    /// Something was sent since [`Seen::is_idle`] looked.
    answered: AtomicBool,
}

const OPEN: u8 = 0;
const ENDED: u8 = 1;
const BROKEN: u8 = 2;
/// Nobody wants to know any more.
const IGNORED: u8 = 3;

impl<IO> Caller<IO> {
    /// The stream, and what is seen of it.
    pub fn new(io: IO) -> (Self, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        (Self { io, seen: Arc::clone(&seen) }, seen)
    }
}

impl Seen {
    /// Ready when the caller is not waited for any more. To be polled after the connection.
    pub async fn gone(&self) {
        let mut timer = None;
        poll_fn(|context| match self.side.load(Relaxed) {
            ENDED => {
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED)));
                if self.moved.swap(false, Relaxed) {
                    timer.as_mut().reset(Instant::now() + HALF_CLOSED);
                }
                timer.as_mut().poll(context)
            }
            BROKEN => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
    }

    /// Nothing is being answered, and nothing was sent since this looked last.
    pub fn is_idle(&self) -> bool {
        !self.answered.swap(false, Relaxed) && self.awaited.load(Relaxed)
    }

    fn sent(&self) {
        self.moved.store(true, Relaxed);
        self.answered.store(true, Relaxed);
        self.awaited.store(false, Relaxed);
    }

    /// HTTP is over: what follows an upgrade has ends of its own.
    pub fn ignore(&self) {
        self.side.store(IGNORED, Relaxed);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Caller<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        self.seen.awaited.store(read.is_pending(), Relaxed);
        read
    }
}

impl<IO: AsyncWrite + Callers + Unpin> AsyncWrite for Caller<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        if written.is_ready() {
            self.seen.sent();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = bytes.iter().map(|piece| piece.len()).sum();
        let written = if length <= FLAT {
            let mut flat: SmallVec<[u8; FLAT]> = SmallVec::new();
            bytes.iter().for_each(|piece| flat.extend_from_slice(piece));
            Pin::new(&mut self.io).poll_write(context, &flat)
        } else {
            Pin::new(&mut self.io).poll_write_vectored(context, bytes)
        };
        if written.is_ready() {
            self.seen.sent();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.seen.side.load(Relaxed) == OPEN
            && let Poll::Ready(end) = this.io.poll_end(context)
        {
            this.seen.side.store(if end.is_ok() { ENDED } else { BROKEN }, Relaxed);
        }
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
