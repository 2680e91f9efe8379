//! The bytes of a session that ends when the peer must not be spoken to any more. hyper's HTTP/2 client keeps a task of its
//! own that holds the connection until the last stream has ended: only what it reads from and writes to can end it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::live::Session;

/// A stream that fails once its session has ended; it keeps the session among the live ones.
pub struct Watched<IO> {
    io: IO,
    session: Option<Session>,
}

impl<IO> Watched<IO> {
    /// `None`: a plaintext connection, which nothing ends.
    pub const fn new(io: IO, session: Option<Session>) -> Self {
        Self { io, session }
    }

    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        match &self.session {
            Some(session) if session.poll_ended(context).is_ready() => {
                let why = "the peer's certificate has ended or is not trusted any more";
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
            }
            _ => Ok(()),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_read(context, out)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
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
