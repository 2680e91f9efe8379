//! HTTP/1.1 to an application: one connection, driven by the task of the request that uses it. No task and no channel stand
//! between a request and the socket; hyper's client has both (`sidecar/docs/adr/0006`). Nothing here knows of pools.

mod body;
mod head;
mod sending;
mod upload;

use std::{
    future::poll_fn,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Version};
use http_body::{Frame, SizeHint};
use tokio::{
    io::AsyncReadExt as _,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use weft_policy::fields::Fields;

use self::{
    body::Decoder,
    head::{Asked, Head, Reader},
    sending::Sending,
    upload::Upload,
};
use crate::{
    detect::Rewind,
    error::{ProxyError, Reason},
    http::body::{Body, BodyError},
};

/// What a read has room for; the next size when one fills it.
const READS: [usize; 4] = [8 * 1024, 16 * 1024, 64 * 1024, 256 * 1024];
/// What a read for a head has room for at most, and what an idle connection keeps.
const SMALL: usize = READS[1];
/// With less room than this new room is made.
const ROOM: usize = 2 * 1024;

/// Why an exchange has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The answer breaks the rules of HTTP.
    #[error("{0}")]
    Malformed(String),
    /// The connection ended before the end of the head of an answer.
    #[error("the connection ended before an answer")]
    Ended,
    /// The socket failed.
    #[error("{0}")]
    Io(io::Error),
    /// The body of the request did not come whole.
    #[error("the body of the request: {0}")]
    Request(Box<BodyError>),
    /// It was not what its Content-Length says.
    #[error("the body of the request has another length than it says")]
    Length,
}

/// A connection, and what of an exchange is on it.
pub struct Connection {
    from: OwnedReadHalf,
    /// `None` while an upload has it.
    to: Option<OwnedWriteHalf>,
    /// What was read and not looked at.
    input: BytesMut,
    /// What was read after the head, of the body or of what must not be there.
    rest: Bytes,
    /// An empty map, whose memory the next head takes.
    spare: HeaderMap,
    reader: Reader,
    decoder: Decoder,
    sending: Sending,
    /// What is left of a request whose answer has begun.
    upload: Option<Upload>,
    /// Of [`READS`].
    step: usize,
    /// Room was made for more than [`SMALL`].
    large: bool,
    /// Another exchange can follow this one.
    keep: bool,
}

/// The head of an answer. Its body stays with the connection.
pub struct Answered {
    pub status: StatusCode,
    pub version: Version,
    pub fields: HeaderMap,
}

impl Connection {
    /// A connection that was just made.
    pub fn new(io: TcpStream) -> Self {
        let (from, to) = io.into_split();
        Self {
            from,
            to: Some(to),
            input: BytesMut::new(),
            rest: Bytes::new(),
            spare: HeaderMap::new(),
            reader: Reader::default(),
            decoder: Decoder::Done,
            sending: Sending::default(),
            upload: None,
            step: 0,
            large: false,
            keep: true,
        }
    }

    /// The peer has neither closed nor said anything to which nobody asked it. While that is so, no system call is made.
    pub fn is_quiet(&self) -> bool {
        self.rest.is_empty() && self.input.is_empty() && says_nothing(&self.from)
    }

    /// Sends a request and waits for the head of its answer. After an error `request` holds it again when not a byte of it was
    /// sent. What the answer leaves of the request is sent while its body is read.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(&mut self, request: &mut Option<Request<Body>>) -> Result<Answered, ProxyError> {
        let Some(head) = request else {
            return Err(ProxyError::new(Reason::Internal, "the request was already sent"));
        };
        if !self.is_quiet() {
            return Err(ProxyError::unsent(
                Reason::ConnectionTerminated,
                "the app had closed the connection, or said what nobody had asked it for",
            ));
        }
        let found = Fields::of(head.headers());
        let asked = Asked::of(head.method(), found);
        self.sending.head(head, found);
        if self.sending.has_body() {
            // What its body gives cannot be given back: with the first byte of it the request is gone.
            self.take(request);
        }
        let mut failed = None;
        let result = poll_fn(|context| self.poll_head(request, &mut failed, asked, context)).await;
        let answered = result.map_err(|error| error.of_exchange(!self.sending.begun))?;
        if !self.sending.is_done() {
            // What the peer has not read yet of this request must not become the beginning of the next one.
            self.keep = false;
            let rest = std::mem::take(&mut self.sending);
            if failed.is_none() {
                self.upload = self.to.take().map(|to| Upload::start(rest, to));
            }
        }
        Ok(answered)
    }

    /// Lets go of a request that is on its way, but for its body.
    fn take(&mut self, request: &mut Option<Request<Body>>) {
        let Some(request) = request.take() else { return };
        let (parts, body) = request.into_parts();
        self.sending.body(body, &parts.headers);
        self.spare = parts.headers;
        self.spare.clear();
    }

    fn poll_head(
        &mut self,
        request: &mut Option<Request<Body>>,
        failed: &mut Option<Error>,
        asked: Asked,
        context: &mut Context<'_>,
    ) -> Poll<Result<Answered, Error>> {
        if let (None, Some(to)) = (&failed, &mut self.to)
            && let Poll::Ready(sent) = self.sending.poll(to, context)
        {
            match sent {
                Ok(()) => {}
                // An answer may be there all the same, which says why no more is taken.
                Err(error @ Error::Io(_)) if self.sending.begun => *failed = Some(error),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if !self.sending.begun {
            // What comes now would be no answer to this request.
            return Poll::Pending;
        }
        if request.is_some() {
            self.take(request);
        }
        let error = match ready!(self.poll_answer(asked, context)) {
            Ok(head) => return Poll::Ready(Ok(head)),
            Err(error) => error,
        };
        Poll::Ready(Err(match error {
            Error::Malformed(_) => error,
            other => failed.take().unwrap_or(other),
        }))
    }

    /// The head of the answer, when all of it has come.
    fn poll_answer(&mut self, asked: Asked, context: &mut Context<'_>) -> Poll<Result<Answered, Error>> {
        loop {
            let read = self.reader.read(&mut self.input, &mut self.rest, &mut self.spare, asked);
            if let Some(Head { status, version, fields, decoder, keep }) = read.map_err(Error::Malformed)? {
                self.decoder = decoder;
                self.keep = keep;
                return Poll::Ready(Ok(Answered { status, version, fields }));
            }
            if ready!(self.poll_fill(context)).map_err(Error::Io)? == 0 {
                return Poll::Ready(Err(Error::Ended));
            }
        }
    }

    /// Reads more; 0 at the end of the connection.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (needed, usual) = match self.decoder {
            Decoder::Length(left) => (usize::try_from(left).unwrap_or(usize::MAX).min(READS[self.step]), READS[0]),
            Decoder::Chunked(_) | Decoder::Close => (ROOM, READS[self.step]),
            // A head is to come.
            Decoder::Done => (ROOM, READS[self.step].min(SMALL)),
        };
        if self.input.capacity() - self.input.len() < needed {
            // What was read before has been passed on in most cases, so that its memory is used again.
            self.input.reserve(needed.max(usual));
            self.large |= needed.max(usual) > SMALL;
        }
        let room = self.input.capacity() - self.input.len();
        let length = ready!(pin!(self.from.read_buf(&mut self.input)).poll(context))?;
        if length == room && self.step + 1 < READS.len() {
            self.step += 1;
        }
        Poll::Ready(Ok(length))
    }

    /// The next frame of the answer's body. After an error the body has ended, and so has the use of the connection.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let result = loop {
            match self.decoder.decode(&mut self.rest) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(why) => break Err(Error::Malformed(why)),
            }
            self.rest = Bytes::new();
            match ready!(self.poll_fill(context)) {
                Ok(0) => break self.decoder.end().map_err(Error::Malformed),
                Ok(_) => self.rest = self.input.split().freeze(),
                Err(error) => break Err(Error::Io(error)),
            }
        };
        (self.keep, self.decoder) = (false, Decoder::Done);
        Poll::Ready(result.err().map(Err))
    }

    /// The body of the answer has ended.
    pub fn is_done(&self) -> bool {
        self.decoder == Decoder::Done
    }

    /// Lets go of memory that an idle connection does not need.
    pub fn rests(&mut self) {
        // Even when it is empty it may hold the memory that it was a part of.
        self.rest = Bytes::new();
        if std::mem::take(&mut self.large) {
            self.input = BytesMut::new();
        }
        self.sending.rests();
    }

    /// Another exchange can follow this one once it has ended.
    pub const fn is_kept(&self) -> bool {
        self.keep
    }

    /// What is left of the body.
    pub fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }

    /// The bytes of a connection on which HTTP has ended.
    ///
    /// # Errors
    /// When the request is still being sent.
    pub fn into_bytes(self) -> io::Result<Rewind<TcpStream>> {
        let still = || io::Error::other("the request is still being sent");
        let io = self.from.reunite(self.to.ok_or_else(still)?).map_err(io::Error::other)?;
        let prefix = self.rest.try_into_mut().unwrap_or_else(|rest| BytesMut::from(&rest[..]));
        Ok(Rewind::new(io, prefix))
    }
}

/// No bytes wait to be read, nor an end.
fn says_nothing(from: &OwnedReadHalf) -> bool {
    from.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl Error {
    /// What a failed exchange was.
    fn of_exchange(self, unsent: bool) -> ProxyError {
        let reason = match self {
            Self::Malformed(_) => Reason::ProtocolError,
            _ => Reason::ConnectionTerminated,
        };
        ProxyError { unsent, ..ProxyError::new(reason, self.to_string()) }
    }
}

#[cfg(test)]
mod tests;
