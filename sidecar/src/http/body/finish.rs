//! The books of one answer: what is counted and released when it ends, well or badly.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::Frame;
use weft_policy::limits::Permit;

use crate::{
    app::worker::Clock,
    error::{ProxyError, Reason},
    inbound,
    snapshot::EndpointState,
    telemetry::{Ended, HttpMetrics, trace::OpenSpan},
};

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
    /// Why we answered ourselves, if we did.
    pub reason: Option<Reason>,
    /// Where the exchange goes.
    pub leg: Leg,
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

    /// What of the body is on its way to the caller: its bytes are counted, its trailers may have a status.
    pub(super) fn sees(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.grpc = self.grpc.or_else(|| grpc_status(trailers));
            self.span.add(|span| span.trailers(trailers));
            return;
        }
        if let (Some(data), Some(metrics)) = (frame.data_ref(), &self.metrics) {
            metrics.response_bytes(u64::try_from(data.len()).unwrap_or(u64::MAX));
        }
    }

    /// Waits until the exchange is not allowed any more.
    pub async fn revoked(&self) {
        match &self.leg {
            Leg::App(permit) => _ = permit.revoked().await,
            Leg::Endpoint(_) => std::future::pending().await,
        }
    }

    /// Why the exchange is not allowed any more, when that is so.
    #[must_use]
    pub fn why_revoked(&self) -> Option<Reason> {
        match &self.leg {
            Leg::App(permit) => permit.why_revoked(),
            Leg::Endpoint(_) => None,
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        // What ends a connection may end the exchange before its body is asked once more.
        let cut = || self.why_revoked().unwrap_or(Reason::ClientGone);
        let reason = if self.complete { self.reason } else { self.reason.or_else(|| Some(cut())) };
        if let Some(metrics) = &self.metrics {
            let (trace, grpc) = (self.span.trace(), self.grpc);
            metrics.record(&Ended { reason, grpc, trace, ..Ended::new(self.status, self.version, self.started) });
        }
        self.span.ended(reason, self.complete);
    }
}

/// The gRPC status that trailers, or the head of an answer without messages, give.
pub fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}
