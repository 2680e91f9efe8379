//! Which trace a request belongs to, what the next leg is told of it, and the span that we make of our part.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, Version};
use weft_policy::{
    model::Telemetry,
    trace::{self, Formats, Incoming, Outgoing, SpanId, TraceId},
};

use super::{
    export::SpanSink,
    span::{Call, HttpCall, Kind, Span},
};
use crate::{
    error::{ProxyError, Reason},
    http::forward::Received,
    snapshot::EndpointState,
};

/// `1` asks that the trace is recorded whatever the sampling. The own app and callers in the mesh may; it goes no
/// further than the sidecar that it reaches, since what it asks for travels in the trace context.
pub const FORCE: HeaderName = HeaderName::from_static("x-weft-force-trace");

/// The trace of a request.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    trace: TraceId,
    parent: Option<SpanId>,
    /// Whether spans of it are made.
    pub sampled: bool,
    debug: bool,
    random: bool,
    formats: Formats,
}

/// A span whose request runs; sent when it is dropped.
pub struct OpenSpan {
    span: Option<Box<Span>>,
    began: Instant,
    /// When nobody waits for the answer any more.
    deadline: Option<Instant>,
    sink: SpanSink,
}

impl Traced {
    /// Reads the context of a request, or begins a trace. `None` when spans go nowhere: then nothing of the context is
    /// touched. `trusted` callers may force a trace.
    pub fn of(
        telemetry: &Telemetry,
        headers: &mut HeaderMap,
        trusted: bool,
        mut random: impl FnMut() -> u64,
    ) -> Option<Self> {
        let forced = headers.remove(FORCE).is_some_and(|value| trusted && value == "1");
        telemetry.endpoint.as_ref()?;
        let mut found = trace::extract(headers);
        if forced {
            found.sampled = Some(true);
        }
        let Incoming { parent, debug, formats, .. } = found;
        let trace = parent.map_or_else(|| TraceId::random([random(), random()]), |parent| parent.trace);
        Some(Self {
            trace,
            parent: parent.map(|parent| parent.span),
            sampled: telemetry.sampling.records(&found, trace),
            debug,
            random: parent.is_none_or(|parent| parent.random),
            formats,
        })
    }

    /// Whether the request came with a context.
    #[must_use]
    pub const fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Tells the next leg that `span` causes it. A trace that nobody records and that the next leg knows of stays as it
    /// is told.
    pub fn tell(&self, headers: &mut HeaderMap, span: SpanId) {
        if !self.sampled && self.parent.is_some() {
            return;
        }
        let Self { trace, parent, sampled, debug, random, formats } = *self;
        trace::inject(headers, &Outgoing { trace, span, parent, sampled, debug, random, formats });
    }

    /// Begins a span of a request.
    #[must_use]
    pub fn begin(
        &self,
        kind: Kind,
        id: SpanId,
        (received, version): (&Received, Version),
        headers: &HeaderMap,
        sink: &SpanSink,
    ) -> Box<OpenSpan> {
        let names = (received.authority.clone(), received.path.clone());
        let call = HttpCall::new(received.method.clone(), names, (version, received.grpc), headers);
        self.open(kind, id, Call::Http(Box::new(call)), sink)
    }

    /// Begins a span of an opaque connection.
    #[must_use]
    pub fn begin_tcp(&self, kind: Kind, id: SpanId, sink: &SpanSink) -> Box<OpenSpan> {
        self.open(kind, id, Call::Tcp { sent: 0, received: 0 }, sink)
    }

    fn open(&self, kind: Kind, id: SpanId, call: Call, sink: &SpanSink) -> Box<OpenSpan> {
        let span = Span {
            trace: self.trace,
            id,
            parent: self.parent,
            kind,
            started: SystemTime::now(),
            duration: Duration::ZERO,
            call,
            peer: None,
            peer_id: None,
            service: None,
            route: None,
            resend: 0,
            reason: None,
            events: Vec::new(),
            events_dropped: 0,
        };
        Box::new(OpenSpan { span: Some(Box::new(span)), began: Instant::now(), deadline: None, sink: sink.clone() })
    }
}

impl OpenSpan {
    /// The span, to add to it.
    pub fn add(&mut self, change: impl FnOnce(&mut Span)) {
        if let Some(span) = &mut self.span {
            change(span);
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Option<SpanId> {
        self.span.as_ref().map(|span| span.id)
    }

    /// Where the request goes.
    pub fn to(&mut self, endpoint: &EndpointState, address: SocketAddr, http2: bool) {
        self.add(|span| {
            span.peer = Some(address);
            span.peer_id = endpoint.endpoint.mesh.as_ref().map(|mesh| mesh.identity.as_str().into());
            if let Call::Http(call) = &mut span.call {
                call.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
            }
        });
    }

    /// Given up at this time.
    pub const fn until(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// The peer, where its port is not known.
    pub fn from_ip(&mut self, address: IpAddr) {
        self.add(|span| span.peer = Some(SocketAddr::new(address, 0)));
    }

    /// We answered ourselves.
    pub fn failed(&mut self, error: &ProxyError, grpc: bool) {
        self.add(|span| {
            span.reason = Some(error.reason);
            if let Call::Http(call) = &mut span.call {
                call.status = Some(if grpc { 200 } else { error.reason.status() });
                call.grpc_status = grpc.then(|| u16::from(error.reason.grpc_status()));
                call.complete = true;
            }
        });
    }

    /// The exchange has left HTTP.
    pub fn upgraded(&mut self) {
        self.add(|span| {
            if let Call::Http(call) = &mut span.call {
                call.upgraded = true;
            }
        });
    }

    /// The answer has ended.
    pub fn ended(&mut self, reason: Option<Reason>, complete: bool) {
        self.add(|span| {
            span.reason = span.reason.or(reason);
            if let Call::Http(call) = &mut span.call {
                call.complete = complete;
            }
        });
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if let Some(mut span) = self.span.take() {
            span.duration = self.began.elapsed();
            // Nobody said how it ended: it was not waited for any longer.
            if span.reason.is_none() && matches!(&span.call, Call::Http(call) if call.status.is_none()) {
                let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
                span.reason = Some(if late { Reason::RequestTimeout } else { Reason::ClientGone });
            }
            self.sink.send(span);
        }
    }
}
