//! A request body that can be sent again: what has passed is kept, up to a bound, so that the next try begins with it
//! and goes on with what the caller has still to send.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{Body, BodyError, Follower, Kind};

/// Bytes kept of one body. Beyond it the request is not sent again.
pub const MAX_REPLAY: usize = 64 * 1024;

/// A body of which several tries may be made, one after the other.
pub struct Replay(Rc<RefCell<Kept>>);

/// The body of one try.
pub(super) struct Try {
    kept: Rc<RefCell<Kept>>,
    number: u32,
    /// How much of what is kept it has given.
    given: usize,
    /// Bytes still to come, when the length is known.
    left: Option<u64>,
    done: bool,
}

struct Kept {
    /// As the caller sends it.
    body: Body,
    /// Copied: a piece of a few bytes would keep the whole buffer that it was read into.
    bytes: BytesMut,
    length: Option<u64>,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// The caller's body failed: no try can be complete.
    failed: bool,
    too_large: bool,
    /// The try that may read; an earlier one that a connection still holds gets nothing more.
    current: u32,
}

impl Replay {
    /// Keeps what passes of a body that a peer sends, and takes it. `None`: there is nothing to be kept, or it is known
    /// to be too large.
    pub fn take(body: &mut Body) -> Option<Self> {
        let length = body.size_hint().exact();
        if !matches!(body.kind, Kind::Incoming(_)) || length.is_some_and(|length| length > MAX_REPLAY as u64) {
            return None;
        }
        // With who follows it: what is read once is seen once, however often it is sent.
        let body = std::mem::replace(body, Body::empty());
        Some(Self(Rc::new(RefCell::new(Kept {
            body,
            bytes: BytesMut::new(),
            length,
            trailers: None,
            ended: false,
            failed: false,
            too_large: false,
            current: 0,
        }))))
    }

    /// The body of the next try; earlier ones get nothing more.
    #[must_use]
    pub fn next_try(&self) -> Body {
        let mut kept = self.0.borrow_mut();
        kept.current += 1;
        // What was not kept cannot be made up: a try with a part of the body must not look complete.
        let number = if kept.current == 1 || kept.is_whole() { kept.current } else { 0 };
        let left = kept.length;
        drop(kept);
        let body = Try { kept: Rc::clone(&self.0), number, given: 0, left, done: false };
        Body { kind: Kind::Try(Box::new(body)), follower: Follower::Nobody }
    }

    /// Nothing that has passed is lost: another try can be made.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.borrow().is_whole()
    }
}

impl Try {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let kept = &mut *self.kept.borrow_mut();
        if self.done {
            return Poll::Ready(None);
        }
        if self.number != kept.current {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if self.given < kept.bytes.len() {
            let bytes = Bytes::copy_from_slice(&kept.bytes[self.given..]);
            self.given = kept.bytes.len();
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if kept.ended {
            self.done = true;
            return Poll::Ready(kept.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        match std::task::ready!(Pin::new(&mut kept.body).poll_frame(context)) {
            None => {
                kept.ended = true;
                self.done = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                kept.failed = true;
                Poll::Ready(Some(Err(error)))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    kept.keep(&bytes);
                    self.given = kept.bytes.len();
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Err(frame) => {
                    kept.ended = true;
                    self.done = true;
                    kept.trailers = frame.trailers_ref().cloned();
                    Poll::Ready(Some(Ok(frame)))
                }
            },
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let all = self.given >= kept.bytes.len();
        self.done || all && (kept.ended && kept.trailers.is_none() || !kept.ended && kept.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Kept {
    /// Keeps what the current try, which has given all that is kept, has read.
    fn keep(&mut self, bytes: &[u8]) {
        if self.too_large || self.bytes.len() + bytes.len() > MAX_REPLAY {
            self.too_large = true;
            self.bytes = BytesMut::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Nothing that has passed is lost.
    const fn is_whole(&self) -> bool {
        !self.too_large && !self.failed
    }
}

#[cfg(test)]
mod tests;
