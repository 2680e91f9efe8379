//! The one concrete body type of the data path. A response body carries a [`Finish`], whose end writes metrics,
//! releases limits and gives an HTTP/1.1 connection back to its pool.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use weft_policy::{canonical, limits::Permit};

use crate::{
    app::worker::Clock,
    error::Reason,
    snapshot::EndpointState,
    telemetry::HttpMetrics,
    upstream::{Lease, Pools},
};

/// A request or response body.
pub struct Body {
    kind: Kind,
    finish: Option<Finish>,
}

enum Kind {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
}

/// What happens when a response has ended, well or badly. Runs once, on drop.
pub struct Finish {
    /// Handles of this direction, target and kind of hop; `None` when this answer is not the caller's, as with a retry.
    pub metrics: Option<HttpMetrics>,
    /// When the request began.
    pub started: Instant,
    /// Status sent downstream.
    pub status: u16,
    /// Why we answered ourselves, if we did.
    pub reason: Option<Reason>,
    /// The endpoint's books.
    pub load: Option<LoadGuard>,
    /// The upstream connection or stream.
    pub lease: Option<Lease>,
    /// Where an HTTP/1.1 lease goes back to.
    pub pools: Option<Rc<Pools>>,
    /// Request limit of the target.
    pub permit: Option<Permit>,
    /// The whole body has passed.
    pub complete: bool,
}

/// One request in an endpoint's books, from its start to its end.
pub struct LoadGuard {
    endpoint: Arc<EndpointState>,
    clock: Clock,
    latency: Option<Duration>,
    failed: bool,
}

impl LoadGuard {
    /// Begins a request.
    #[must_use]
    pub fn new(endpoint: Arc<EndpointState>, clock: Clock) -> Self {
        endpoint.load.begin();
        Self { endpoint, clock, latency: None, failed: false }
    }

    /// The response head came, after this time; a failure counts as latency.
    pub fn observe(&mut self, latency: Duration, failed: bool) {
        self.latency = Some(latency);
        self.failed = failed;
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.endpoint.load.end(self.clock.now(), self.latency, self.failed);
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let reason = if self.complete { self.reason } else { self.reason.or(Some(Reason::ClientGone)) };
        if let Some(metrics) = &self.metrics {
            metrics.record(self.status, reason, self.started.elapsed());
        }
        if let (true, Some(pools), Some(lease)) = (self.complete, self.pools.take(), self.lease.take()) {
            pools.give_back(lease);
        }
    }
}

impl Body {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { kind: Kind::Empty, finish: None }
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Full(bytes.into()), finish: None }
    }

    /// What a peer sends.
    #[must_use]
    pub const fn incoming(incoming: Incoming) -> Self {
        Self { kind: Kind::Incoming(incoming), finish: None }
    }

    /// Attaches what happens at the end.
    #[must_use]
    pub fn with_finish(mut self, mut finish: Finish) -> Self {
        finish.complete = self.is_end_stream();
        self.finish = Some(finish);
        self
    }

    fn ended(&mut self) {
        if let Some(mut finish) = self.finish.take() {
            finish.complete = true;
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.kind {
            Kind::Empty => None,
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                if bytes.is_empty() { None } else { Some(Ok(Frame::data(bytes))) }
            }
            Kind::Incoming(incoming) => match Pin::new(incoming).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => Some(Ok(without_forbidden_trailers(frame))),
                Poll::Ready(other) => other,
            },
        };
        match &frame {
            None => this.ended(),
            Some(Ok(_)) if this.kind.is_end_stream() => this.ended(),
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                if let Some(finish) = &mut this.finish {
                    finish.reason = Some(Reason::ConnectionTerminated);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Kind::Incoming(incoming) => incoming.size_hint(),
        }
    }
}

impl Kind {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
        }
    }
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
