//! The one concrete body type of the data path. A response body carries a [`Finish`], whose end writes metrics,
//! releases limits and gives an HTTP/1.1 connection back to its pool.

mod finish;
mod incoming;
mod paced;
mod replay;
mod tee;

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

pub use self::{
    finish::{Finish, Leg, LoadGuard, grpc_status},
    incoming::{Ends, Incoming, Times},
    replay::{MAX_REPLAY, Replay},
    tee::{Copied, Tee},
};
use self::{incoming::FromPeer, paced::Paced};
use crate::{error::Reason, inbound, telemetry::HttpMetrics, upstream::Http1Error};

/// A body on which nothing moves for this time ends with [`BodyError::Idle`], unless a policy has another time.
pub const IDLE: Duration = Duration::from_secs(300);

/// A request or response body.
pub struct Body {
    kind: Kind,
    follower: Follower,
}

/// Who wants to know how it goes: of an answer's body its end, of a request's body all of it or its trailers.
enum Follower {
    Nobody,
    Finish(Finish),
    /// Counts the bytes of a request.
    Count(HttpMetrics),
    Tee(Box<(Tee, Option<HttpMetrics>)>),
    /// The port of the app to which the request goes: counts its bytes, and leaves out trailers that it may not have.
    App(Rc<inbound::App>),
}

enum Kind {
    Empty,
    Full(Bytes),
    Incoming(FromPeer),
    Paced(Box<Paced>),
    Try(Box<replay::Try>),
}

/// Why a body did not end well.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection or the stream failed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The connection to the application failed, or what came on it was no HTTP.
    #[error(transparent)]
    Http1(Http1Error),
    /// The stream was reset before its end.
    #[error("the peer reset the stream before the end of the body")]
    Cut,
    /// Nothing moved.
    #[error("nothing of the body moved for {0:?}")]
    Idle(Duration),
    /// The deadline of the request passed.
    #[error("the body did not end before the deadline of the request")]
    Deadline,
    /// A policy does not allow it any more.
    #[error("the exchange is not allowed any more")]
    Revoked,
    /// The request is sent again elsewhere.
    #[error("another try of the request has begun")]
    Superseded,
}

impl Body {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { kind: Kind::Empty, follower: Follower::Nobody }
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Full(bytes.into()), follower: Follower::Nobody }
    }

    /// What a peer sends.
    #[must_use]
    pub fn incoming(incoming: Incoming, ends: Ends, times: Times) -> Self {
        Self { kind: Kind::Incoming(FromPeer::new(incoming, ends, times)), follower: Follower::Nobody }
    }

    /// Changes how long a peer's body may be silent, unless it may be for ever.
    pub fn set_idle(&mut self, idle: Option<Duration>) {
        if let Kind::Incoming(from_peer) = &mut self.kind {
            from_peer.set_idle(idle);
        }
    }

    /// Attaches what happens at the end.
    #[must_use]
    pub fn with_finish(mut self, mut finish: Finish) -> Self {
        finish.complete = self.is_end_stream();
        self.follower = Follower::Finish(finish);
        self
    }

    /// Gives at most this many bytes in a second.
    pub fn pace(&mut self, bytes_per_second: u64) {
        let kind = std::mem::replace(&mut self.kind, Kind::Empty);
        self.kind = Kind::Paced(Box::new(Paced::new(kind, bytes_per_second)));
    }

    /// Says in the books of an answer why it is not as it would have been, where nothing else is said.
    pub fn note(&mut self, reason: Reason) {
        if let Follower::Finish(finish) = &mut self.follower {
            finish.reason = finish.reason.or(Some(reason));
        }
    }

    /// Lets `tee` see everything that this body gives. For the body of a request.
    pub fn tee(&mut self, tee: Tee) {
        let counted = match std::mem::replace(&mut self.follower, Follower::Nobody) {
            Follower::Count(metrics) => Some(metrics),
            _ => None,
        };
        self.follower = Follower::Tee(Box::new((tee, counted)));
    }

    /// Counts what passes of the body of a request, if there is one.
    pub fn count(&mut self, metrics: &HttpMetrics) {
        if let Kind::Incoming(_) = self.kind {
            self.follower = Follower::Count(metrics.clone());
        }
    }

    /// Counts what passes of the body of a request to a port of the app, and leaves out the trailers that it may not have.
    pub fn for_app(&mut self, app: &Rc<inbound::App>) {
        if let Kind::Incoming(_) = self.kind {
            self.follower = Follower::App(Rc::clone(app));
        }
    }

    fn ended(&mut self) {
        if let Follower::Finish(finish) = &mut self.follower {
            finish.complete = true;
            self.follower = Follower::Nobody;
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Follower::Finish(finish) = &mut this.follower
            && let Leg::App(permit) = &finish.leg
            && let Poll::Ready(reason) = permit.poll_revoked(context)
        {
            finish.reason = Some(reason);
            return Poll::Ready(Some(Err(BodyError::Revoked)));
        }
        let mut frame = ready!(this.kind.poll(context));
        if let Follower::App(app) = &this.follower
            && let Some(reserved) = &app.reserved
            && let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            reserved.strip_trailers(trailers);
        }
        this.follower.sees(frame.as_ref(), &this.kind);
        match &frame {
            None => this.ended(),
            // With a length the last byte is the end, even where END_STREAM comes in a frame of its own.
            Some(Ok(_)) if this.kind.is_end_stream() || this.size_hint().exact() == Some(0) => this.ended(),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                if let Follower::Finish(finish) = &mut this.follower {
                    finish.reason = Some(match error {
                        BodyError::Idle(_) => Reason::IdleTimeout,
                        BodyError::Deadline => Reason::RequestTimeout,
                        _ => Reason::ConnectionTerminated,
                    });
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.kind.size_hint()
    }
}

impl Follower {
    /// `kind` has given a frame, its end or an error.
    fn sees(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>, kind: &Kind) {
        match self {
            Self::Nobody => {}
            Self::Finish(finish) => {
                if let Some(Ok(frame)) = frame {
                    finish.sees(frame);
                }
            }
            Self::Count(metrics) => count(metrics, frame),
            Self::App(app) => count(&app.metrics.http, frame),
            Self::Tee(both) => {
                let (tee, metrics) = &mut **both;
                if let Some(metrics) = metrics {
                    count(metrics, frame);
                }
                let last = kind.is_end_stream() || kind.size_hint().exact() == Some(0);
                if !tee.sees(frame, last) {
                    *self = metrics.take().map_or(Self::Nobody, Self::Count);
                }
            }
        }
    }
}

impl Kind {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(if bytes.is_empty() { None } else { Some(Ok(Frame::data(bytes))) })
            }
            Self::Incoming(from_peer) => from_peer.poll(context),
            Self::Paced(paced) => paced.poll(context),
            Self::Try(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(from_peer) => from_peer.is_end_stream(),
            Self::Paced(paced) => paced.is_end_stream(),
            Self::Try(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::Incoming(from_peer) => from_peer.size_hint(),
            Self::Paced(paced) => paced.size_hint(),
            Self::Try(body) => body.size_hint(),
        }
    }
}

/// Counts the bytes of a frame of a request.
fn count(metrics: &HttpMetrics, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
    if let Some(Ok(frame)) = frame
        && let Some(data) = frame.data_ref()
    {
        metrics.request_bytes(u64::try_from(data.len()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests;
