//! A request body that can be sent again: what has passed is kept, up to a bound, so that the next try begins with it
//! and goes on with what the caller has still to send.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
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
    /// Index of the next kept frame.
    next: usize,
    /// Bytes still to come, when the length is known.
    left: Option<u64>,
    done: bool,
}

struct Kept {
    /// As the caller sends it.
    body: Body,
    frames: Vec<Bytes>,
    bytes: usize,
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
            frames: Vec::new(),
            bytes: 0,
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
        let (number, left) = (kept.current, kept.length);
        drop(kept);
        let body = Try { kept: Rc::clone(&self.0), number, next: 0, left, done: false };
        Body { kind: Kind::Try(Box::new(body)), follower: Follower::Nobody }
    }

    /// Nothing that has passed is lost: another try can be made.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let kept = self.0.borrow();
        !kept.too_large && !kept.failed
    }
}

impl Try {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let kept = &mut *self.kept.borrow_mut();
        if self.done {
            return Poll::Ready(None);
        }
        // What was not kept cannot be made up: a try with a part of the body must not look complete.
        if self.number != kept.current || self.number > 1 && (kept.too_large || kept.failed) {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(bytes) = kept.frames.get(self.next) {
            self.next += 1;
            self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
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
                    self.next += kept.keep(&bytes);
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
        let all = self.next >= kept.frames.len();
        self.done || all && (kept.ended && kept.trailers.is_none() || !kept.ended && kept.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Kept {
    /// Keeps a frame, if there is room; how many were added.
    fn keep(&mut self, bytes: &Bytes) -> usize {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > MAX_REPLAY {
            self.too_large = true;
        }
        if self.too_large {
            // The tries that are made have read them all.
            self.frames = Vec::new();
            return 0;
        }
        self.frames.push(bytes.clone());
        1
    }
}

#[cfg(test)]
mod tests;
