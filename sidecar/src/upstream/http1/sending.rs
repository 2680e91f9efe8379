//! A request in HTTP/1.1 on its way out: its head, and its body as its fields frame it. What is small leaves with one
//! system call, from a buffer that the connection keeps.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;
use weft_policy::fields::Fields;

use super::Error;
use crate::http::body::Body;

/// Pieces of a body that are shorter are copied beside what else is to be sent.
const SMALL: usize = 4 * 1024;
/// No more of a body is asked for while so much waits to be sent.
const ENOUGH: usize = 16 * 1024;

/// What is to be sent, and from where more of it comes.
#[derive(Default)]
pub struct Sending {
    /// To be sent first, from `sent` on.
    buffer: Vec<u8>,
    sent: usize,
    /// To be sent after the buffer.
    data: Bytes,
    /// To be sent after the data.
    tail: &'static [u8],
    /// How the body is framed; `None`: there is none.
    framing: Option<Framing>,
    /// `None`: all of it has been taken.
    body: Option<Outgoing>,
    /// Something has left.
    pub begun: bool,
}

/// How a body is framed: by so many bytes, or `None` for chunks.
type Framing = Option<u64>;

/// A body and how it is framed.
struct Outgoing {
    body: Body,
    /// Bytes to come; `None`: chunked.
    left: Framing,
    /// Names of the trailers that may follow.
    trailers: Vec<HeaderValue>,
}

impl Sending {
    /// Writes the head of a request with these fields into the buffer. Its body stays with it.
    pub fn head(&mut self, request: &Request<Body>, found: Fields) {
        self.framing = framing(request.headers(), found);
        self.begun = false;
        self.sent = 0;
        let out = &mut self.buffer;
        out.clear();
        out.extend_from_slice(request.method().as_str().as_bytes());
        out.push(b' ');
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        for (name, value) in request.headers() {
            field(out, name, value);
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The request whose head was written has a body.
    pub const fn has_body(&self) -> bool {
        self.framing.is_some()
    }

    /// Takes the body of the request whose head was written, if its fields say that it has one.
    pub fn body(&mut self, body: Body, fields: &HeaderMap) {
        let trailers = || fields.get_all(header::TRAILER).iter().cloned().collect();
        self.body = self.framing.take().map(|left| Outgoing { body, left, trailers: trailers() });
    }

    /// Lets go of a buffer that a large request has left.
    pub fn rests(&mut self) {
        if self.buffer.capacity() > ENOUGH {
            self.buffer = Vec::new();
        }
    }

    /// All of the request has left.
    pub fn is_done(&self) -> bool {
        self.body.is_none() && self.buffer.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Ready when all of the request has left.
    ///
    /// # Errors
    /// When the connection does not take it, or when the body does not come as it was announced.
    pub fn poll(&mut self, io: &mut (impl AsyncWrite + Unpin), context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            let more = self.fill(context)?;
            ready!(self.flush(io, context)).map_err(Error::Io)?;
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if more.is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Takes what the body gives. Pending: it gives nothing for now.
    fn fill(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Error> {
        while let Some(outgoing) = &mut self.body {
            // What follows a chunk's data leaves before anything of the next one.
            if !self.data.is_empty() || !self.tail.is_empty() || self.buffer.len() > ENOUGH {
                break;
            }
            let frame = match Pin::new(&mut outgoing.body).poll_frame(context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(frame) => frame.transpose().map_err(|error| Error::Request(Box::new(error)))?,
            };
            let ended = frame.is_none();
            if let Some(frame) = frame {
                self.frame(frame)?;
            }
            self.end_if(ended)?;
        }
        Ok(Poll::Ready(()))
    }

    fn frame(&mut self, frame: Frame<Bytes>) -> Result<(), Error> {
        let Some(outgoing) = &mut self.body else { return Ok(()) };
        let data = match frame.into_data() {
            Ok(data) if data.is_empty() => return Ok(()),
            Ok(data) => data,
            Err(frame) => {
                if let (Ok(trailers), None) = (frame.into_trailers(), outgoing.left) {
                    last_chunk(&mut self.buffer, &trailers, &outgoing.trailers);
                    self.body = None;
                }
                return Ok(());
            }
        };
        let chunked = outgoing.left.is_none();
        if let Some(left) = &mut outgoing.left {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            *left = left.checked_sub(length).ok_or(Error::Length)?;
        } else {
            hexadecimal(&mut self.buffer, data.len());
        }
        if data.len() > SMALL {
            self.data = data;
            self.tail = if chunked { b"\r\n" } else { b"" };
        } else {
            self.buffer.extend_from_slice(&data);
            if chunked {
                self.buffer.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// Lets go of a body that has come to its end.
    fn end_if(&mut self, ended: bool) -> Result<(), Error> {
        let Some(outgoing) = &self.body else { return Ok(()) };
        let whole = match outgoing.left {
            Some(left) => left == 0,
            None => ended || outgoing.body.is_end_stream(),
        };
        if !whole {
            return if ended { Err(Error::Length) } else { Ok(()) };
        }
        if outgoing.left.is_none() {
            match self.data.is_empty() {
                true => self.buffer.extend_from_slice(b"0\r\n\r\n"),
                false => self.tail = b"\r\n0\r\n\r\n",
            }
        }
        self.body = None;
        Ok(())
    }

    /// Sends what was taken.
    fn flush(&mut self, io: &mut (impl AsyncWrite + Unpin), context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let first = &self.buffer[self.sent..];
            let mut io = Pin::new(&mut *io);
            let mut length = match (first.is_empty(), self.data.is_empty()) {
                (true, true) if self.tail.is_empty() => break,
                (false, true) if self.tail.is_empty() => ready!(io.as_mut().poll_write(context, first))?,
                _ => {
                    let slices = [IoSlice::new(first), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                    ready!(io.as_mut().poll_write_vectored(context, &slices))?
                }
            };
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
            let of_buffer = length.min(first.len());
            self.sent += of_buffer;
            length -= of_buffer;
            let of_data = length.min(self.data.len());
            self.data.advance(of_data);
            self.tail = self.tail.get(length - of_data..).unwrap_or_default();
        }
        self.buffer.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

/// Without a length and without `chunked` there is no body.
fn framing(fields: &HeaderMap, found: Fields) -> Option<Framing> {
    if found.has(Fields::TRANSFER_ENCODING) {
        return Some(None);
    }
    if !found.has(Fields::CONTENT_LENGTH) {
        return None;
    }
    let length = fields.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    (length > 0).then_some(Some(length))
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The line before a chunk.
fn hexadecimal(out: &mut Vec<u8>, length: usize) {
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let digit = u32::try_from(length >> (4 * digit) & 0xf).unwrap_or_default();
        out.push(char::from_digit(digit, 16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(b'0'));
    }
    out.extend_from_slice(b"\r\n");
}

/// The end of a chunked body, with those of its trailers that were announced (RFC 9110 section 6.5.1).
fn last_chunk(out: &mut Vec<u8>, trailers: &HeaderMap, announced: &[HeaderValue]) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        let names = announced.iter().flat_map(|names| names.as_bytes().split(|byte| *byte == b','));
        let mut names = names.map(<[u8]>::trim_ascii);
        if names.any(|announced| announced.eq_ignore_ascii_case(name.as_str().as_bytes())) {
            field(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}
