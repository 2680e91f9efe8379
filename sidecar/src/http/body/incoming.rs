//! A body that a peer sends: where it comes from, how it may end, and how long it may take.

use std::{
    num::NonZeroU32,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use weft_policy::canonical;

use super::BodyError;
use crate::upstream::{Held, Stream};

/// What a peer sends, as the codec of its connection gives it. An answer holds what it comes on.
pub enum Incoming {
    /// The body of a caller's request.
    Caller(hyper::body::Incoming),
    /// The body of an answer in HTTP/2.
    Http2(hyper::body::Incoming, Stream),
    /// The body of an answer in HTTP/1.1, or the connection after an upgrade.
    Http1(Box<Held>),
    /// An answer that has no body, or none any more.
    Nothing,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Caller(incoming) | Self::Http2(incoming, _) => {
                Pin::new(incoming).poll_frame(context).map_err(BodyError::Http)
            }
            Self::Http1(held) => {
                let frame = std::task::ready!(held.poll_frame(context));
                // With its last byte the connection is free for another exchange.
                if held.is_done()
                    && let Self::Http1(held) = std::mem::replace(&mut *self, Self::Nothing)
                {
                    held.finish();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http1)))
            }
            Self::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Caller(incoming) | Self::Http2(incoming, _) => incoming.is_end_stream(),
            Self::Http1(_) => false,
            Self::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Caller(incoming) | Self::Http2(incoming, _) => incoming.size_hint(),
            Self::Http1(held) => held.size_hint(),
            Self::Nothing => SizeHint::with_exact(0),
        }
    }
}

/// A body that a peer sends.
pub(super) struct FromPeer {
    incoming: Incoming,
    /// From the first wait on, and from the start when there is a deadline.
    waiting: Option<Box<Waiting>>,
    /// Milliseconds; `None`: for ever.
    idle: Option<NonZeroU32>,
    ends: Ends,
    grpc: bool,
    /// Ended by us.
    over: bool,
}

/// How long a body may take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Times {
    /// Without a byte; `None`: for ever.
    pub idle: Option<Duration>,
    /// To its end; what comes later is not waited for.
    pub deadline: Option<tokio::time::Instant>,
    /// It is the answer to a gRPC call: at the deadline it ends with the status that says so.
    pub grpc: bool,
}

/// When something last moved, and the timer for whatever ends first.
struct Waiting {
    moved: tokio::time::Instant,
    /// Moved since the last look, so that a busy body costs no timer operation.
    busy: bool,
    deadline: Option<tokio::time::Instant>,
    /// From the first wait on.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What an end without END_STREAM means. hyper gives a stream that was reset with NO_ERROR as one that
/// ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ends {
    /// HTTP/1.1: the framing says where the body ends, and its codec checks it.
    Framed,
    /// HTTP/2, a body that only its sender can end: without END_STREAM it was cut.
    Stream,
    /// HTTP/2, the response to a request whose body may still be on its way: RFC 9113 section 8.1 lets a server reset
    /// that with NO_ERROR after a complete response. Only a Content-Length tells whether the response was cut.
    EarlyResponse,
}

impl FromPeer {
    pub(super) fn new(incoming: Incoming, ends: Ends, times: Times) -> Self {
        let waiting = times.deadline.map(|deadline| Box::new(Waiting::new(Some(deadline))));
        Self { incoming, waiting, idle: millis(times.idle), ends, grpc: times.grpc, over: false }
    }

    /// Changes how long it may be silent, unless it may be for ever.
    pub(super) fn set_idle(&mut self, idle: Option<Duration>) {
        if self.idle.is_some() {
            self.idle = millis(idle);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    /// That nothing was asked for in a while says nothing of the peer.
    pub(super) const fn moved(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.busy = true;
        }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Pending => self.wait(context),
            Poll::Ready(Some(Ok(frame))) => {
                self.moved();
                // Trailers are the end, whatever is said of the stream afterwards.
                if frame.is_trailers() {
                    self.ends = Ends::Framed;
                }
                Poll::Ready(Some(Ok(without_forbidden_trailers(frame))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) if self.was_cut() => Poll::Ready(Some(Err(BodyError::Cut))),
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    /// Nothing has come: pending until the time is over. The timer is made at the first wait and set anew only when it
    /// fires, so that a busy body costs no timer operation.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let idle = self.idle.map(|millis| Duration::from_millis(millis.get().into()));
        if idle.is_none() && self.waiting.is_none() {
            return Poll::Pending;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::new(Waiting::new(None)));
        let late = std::task::ready!(waiting.poll(context, idle));
        self.over = true;
        Poll::Ready(Some(match (late, self.grpc) {
            // A gRPC caller gets the status that it would have got from the server.
            (BodyError::Deadline, true) => Ok(Frame::trailers(deadline_exceeded())),
            (error, _) => Err(error),
        }))
    }

    fn was_cut(&self) -> bool {
        if self.ends == Ends::Framed || self.incoming.is_end_stream() {
            return false;
        }
        match self.incoming.size_hint().exact() {
            Some(left) => left > 0,
            None => self.ends == Ends::Stream,
        }
    }
}

impl Waiting {
    fn new(deadline: Option<tokio::time::Instant>) -> Self {
        Self { moved: tokio::time::Instant::now(), busy: false, deadline, timer: None }
    }

    /// Ready when the deadline has passed, or when nothing has moved for the idle time.
    fn poll(&mut self, context: &mut Context<'_>, idle: Option<Duration>) -> Poll<BodyError> {
        if std::mem::take(&mut self.busy) || self.timer.is_none() {
            self.moved = tokio::time::Instant::now();
        }
        let silent = idle.map(|idle| self.moved + idle);
        let Some(end) = silent.into_iter().chain(self.deadline).min() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
        while timer.as_mut().poll(context).is_ready() {
            let now = tokio::time::Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                return Poll::Ready(BodyError::Deadline);
            }
            if now >= end {
                return Poll::Ready(BodyError::Idle(idle.unwrap_or_default()));
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

fn deadline_exceeded() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("4"));
    trailers.insert("grpc-message", HeaderValue::from_static("weft: request_timeout: the call took too long"));
    trailers
}

/// At least one millisecond.
fn millis(idle: Option<Duration>) -> Option<NonZeroU32> {
    let millis = u32::try_from(idle?.as_millis()).unwrap_or(u32::MAX);
    Some(NonZeroU32::new(millis).unwrap_or(NonZeroU32::MIN))
}

fn without_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            canonical::trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(data) => data,
    }
}
