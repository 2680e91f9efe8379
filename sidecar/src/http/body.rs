//! The one concrete body type of the data path. A response body carries a [`Finish`], whose end writes metrics,
//! releases limits and gives an HTTP/1.1 connection back to its pool.

mod paced;
mod replay;
mod tee;

use std::{
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;
use weft_policy::{canonical, limits::Permit};

use self::paced::Paced;
pub use self::{
    replay::{MAX_REPLAY, Replay},
    tee::{Copied, Tee},
};
use crate::{
    app::worker::Clock,
    error::{ProxyError, Reason},
    inbound,
    snapshot::EndpointState,
    telemetry::{Ended, HttpMetrics, trace::OpenSpan},
    upstream::Lease,
};

/// A body on which nothing moves for this time ends with [`BodyError::Idle`], unless a policy has another time.
pub const IDLE: Duration = Duration::from_secs(300);

/// A request or response body.
pub struct Body {
    kind: Kind,
    follower: Follower,
}

/// Who wants to know how it goes: of an answer's body its end, of a request's body all of it.
enum Follower {
    Nobody,
    Finish(Finish),
    /// Counts the bytes of a request.
    Count(HttpMetrics),
    Tee(Box<(Tee, Option<HttpMetrics>)>),
}

enum Kind {
    Empty,
    Full(Bytes),
    Incoming(FromPeer),
    Paced(Box<Paced>),
    Try(Box<replay::Try>),
}

/// A body that a peer sends.
struct FromPeer {
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
    /// HTTP/1.1: the framing says where the body ends, and hyper checks it.
    Framed,
    /// HTTP/2, a body that only its sender can end: without END_STREAM it was cut.
    Stream,
    /// HTTP/2, the response to a request whose body may still be on its way: RFC 9113 section 8.1 lets a server reset
    /// that with NO_ERROR after a complete response. Only a Content-Length tells whether the response was cut.
    EarlyResponse,
}

/// Why a body did not end well.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection or the stream failed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
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

/// What happens when a response has ended, well or badly. Runs once, on drop.
pub struct Finish {
    /// Handles of this direction, target and kind of hop; `None` when this answer is not the caller's, as with a retry.
    pub metrics: Option<HttpMetrics>,
    /// When the request began.
    pub started: Instant,
    /// Status sent downstream.
    pub status: u16,
    /// What the caller speaks.
    pub version: Version,
    /// gRPC status, once it is known.
    pub grpc: Option<u8>,
    /// Of the body that have passed and are not counted yet.
    pub bytes: u32,
    /// Why we answered ourselves, if we did.
    pub reason: Option<Reason>,
    /// Where the exchange goes.
    pub leg: Leg,
    /// The upstream connection or stream; given back when the exchange is complete.
    pub lease: Option<Lease>,
    /// Request limit of the target.
    pub permit: Option<Permit>,
    /// Its place among the retries in flight.
    pub place: Option<Permit>,
    /// The whole body has passed.
    pub complete: bool,
    /// For trace and access log.
    pub span: OpenSpan,
}

/// Where an exchange goes, and what lives as long as it.
pub enum Leg {
    /// To an endpoint: its books.
    Endpoint(LoadGuard),
    /// To the app: what lets it in, until it is revoked.
    App(inbound::Permit),
}

/// One request in an endpoint's books, from its start to its end.
pub struct LoadGuard {
    endpoint: Arc<EndpointState>,
    clock: Clock,
    /// Microseconds; 0: the response head has not come. Small, since it is in every body.
    latency: u32,
    failed: bool,
}

impl LoadGuard {
    /// Begins a request.
    #[must_use]
    pub fn new(endpoint: Arc<EndpointState>, clock: Clock) -> Self {
        endpoint.load.begin();
        Self { endpoint, clock, latency: 0, failed: false }
    }

    /// The try ended, after this time to the response head; a failure keeps requests away for a moment.
    pub fn observe(&mut self, latency: Duration, failed: bool) {
        self.latency = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX).max(1);
        self.failed = failed;
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        let latency = (self.latency > 0).then(|| Duration::from_micros(self.latency.into()));
        self.endpoint.load.end(self.clock.now(), latency, self.failed);
    }
}

impl Finish {
    /// The caller gets another answer, for this reason; it is counted where it is made.
    pub fn discard(&mut self, error: ProxyError, grpc: bool) -> ProxyError {
        self.metrics = None;
        self.reason = Some(error.reason);
        self.span.failed(&error, grpc);
        error
    }

    /// So many bytes of the body are on their way to the caller. They are counted at the end, and in between before they
    /// are too many to remember.
    fn passed(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.bytes.checked_add(bytes) {
            Some(sum) => self.bytes = sum,
            None => {
                if let Some(metrics) = &self.metrics {
                    metrics.response_bytes(self.bytes.into());
                }
                self.bytes = bytes;
            }
        }
    }

    /// Waits until the exchange is not allowed any more.
    pub async fn revoked(&self) {
        match &self.leg {
            Leg::App(permit) => {
                permit.revoked().await;
            }
            Leg::Endpoint(_) => std::future::pending().await,
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let reason = if self.complete { self.reason } else { self.reason.or(Some(Reason::ClientGone)) };
        if let Some(metrics) = &self.metrics {
            metrics.response_bytes(self.bytes.into());
            let (trace, grpc) = (self.span.trace(), self.grpc);
            metrics.record(&Ended { reason, grpc, trace, ..Ended::new(self.status, self.version, self.started) });
        }
        self.span.ended(reason, self.complete);
        if self.complete
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
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
        let waiting = times.deadline.map(|deadline| Box::new(Waiting::new(Some(deadline))));
        let from_peer = FromPeer { incoming, waiting, idle: millis(times.idle), ends, grpc: times.grpc, over: false };
        Self { kind: Kind::Incoming(from_peer), follower: Follower::Nobody }
    }

    /// Changes how long a peer's body may be silent, unless it may be for ever.
    pub fn set_idle(&mut self, idle: Option<Duration>) {
        if let Kind::Incoming(from_peer) = &mut self.kind
            && from_peer.idle.is_some()
        {
            from_peer.idle = millis(idle);
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
        let frame = ready!(this.kind.poll(context));
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
                let Some(Ok(frame)) = frame else { return };
                if let Some(data) = frame.data_ref() {
                    finish.passed(data.len());
                } else if let Some(trailers) = frame.trailers_ref() {
                    finish.grpc = finish.grpc.or_else(|| grpc_status(trailers));
                    finish.span.add(|span| span.trailers(trailers));
                }
            }
            Self::Count(metrics) => count(metrics, frame),
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
            Self::Incoming(from_peer) => from_peer.incoming.is_end_stream(),
            Self::Paced(paced) => paced.is_end_stream(),
            Self::Try(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Self::Incoming(from_peer) => from_peer.incoming.size_hint(),
            Self::Paced(paced) => paced.size_hint(),
            Self::Try(body) => body.size_hint(),
        }
    }
}

impl FromPeer {
    /// That nothing was asked for in a while says nothing of the peer.
    const fn moved(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.busy = true;
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
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

/// Counts the bytes of a frame of a request.
fn count(metrics: &HttpMetrics, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
    if let Some(Ok(frame)) = frame
        && let Some(data) = frame.data_ref()
    {
        metrics.request_bytes(u64::try_from(data.len()).unwrap_or(u64::MAX));
    }
}

/// The gRPC status that trailers, or the head of an answer without messages, give.
pub fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
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

#[cfg(test)]
mod tests;
