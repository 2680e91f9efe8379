//! Which trace a request belongs to, what the next leg is told of it, and the span that we make of our part.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderName, Method, Version};
use weft_policy::{
    model::{AccessLogFormat, AccessLogMode, Target, Telemetry},
    trace::{self, Formats, Incoming, Outgoing, SpanId, TraceId},
};

use super::{
    COUNTED,
    export::SpanSink,
    span::{Call, HttpCall, Kind, Moved, Span},
};
use crate::{
    error::{ProxyError, Reason},
    http::forward::Received,
    snapshot::EndpointState,
};

/// `1` from the own app asks that the trace is recorded whatever the sampling. It goes no further than its sidecar: what it
/// asks for travels in the trace context.
pub const FORCE: HeaderName = HeaderName::from_static("x-weft-force-trace");

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// The trace of a request.
#[derive(Clone, Copy, Debug)]
pub struct Traced {
    trace: TraceId,
    parent: Option<SpanId>,
    /// Whether spans of it are exported.
    sampled: bool,
    /// Spans go nowhere: nothing of the context is touched.
    passive: bool,
    debug: bool,
    random: bool,
    formats: Formats,
    log: Log,
    format: AccessLogFormat,
}

/// Whether a request comes into the access log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Log {
    Always,
    Failed,
    Never,
}

/// The span of an exchange that runs, or nothing where neither trace nor access log wants it. Sent when it is dropped.
#[derive(Default)]
pub struct OpenSpan(Option<Box<Running>>);

struct Running {
    span: Span,
    began: Instant,
    /// When the caller asked: before earlier tries and waits. The access log has the time from there.
    asked: Instant,
    /// When nobody waits for the answer any more.
    deadline: Option<Instant>,
    export: bool,
    log: Log,
    format: AccessLogFormat,
    /// Its answer is not the caller's: the request is sent again, or it is a copy.
    retried: bool,
    sink: Rc<SpanSink>,
    /// Another try of the same request is its line. `None`: there is none beside it.
    quiet: Option<Rc<Cell<bool>>>,
}

impl Traced {
    /// Reads the context of a request, or begins a trace, recorded in any case when it is `forced`.
    pub fn of(telemetry: &Telemetry, headers: &HeaderMap, forced: bool, mut random: impl FnMut() -> u64) -> Self {
        let mut found = if COUNTED { trace::extract(headers) } else { Incoming::default() };
        if forced {
            found.sampled = Some(true);
        }
        let Incoming { parent, debug, formats, .. } = found;
        let trace = parent.map_or_else(|| TraceId::random([random(), random()]), |parent| parent.trace);
        let passive = telemetry.endpoint.is_none() || !COUNTED;
        let sampled = !passive && telemetry.sampling.records(&found, trace);
        let log = match telemetry.access_log {
            AccessLogMode::All => Log::Always,
            AccessLogMode::Sampled if sampled => Log::Always,
            AccessLogMode::Errors | AccessLogMode::Sampled => Log::Failed,
            AccessLogMode::Off => Log::Never,
        };
        Self {
            trace,
            parent: parent.map(|parent| parent.span),
            sampled,
            passive,
            debug,
            random: parent.is_none_or(|parent| parent.random),
            formats,
            log,
            format: telemetry.format,
        }
    }

    /// Whether the request came with a context.
    #[must_use]
    pub const fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Tells the next leg that `span` causes it. A trace that nobody records and that the next leg knows of stays as it
    /// is told.
    pub fn tell(&self, headers: &mut HeaderMap, span: SpanId) {
        if self.passive || !self.sampled && self.parent.is_some() {
            return;
        }
        let Self { trace, parent, sampled, debug, random, formats, .. } = *self;
        trace::inject(headers, &Outgoing { trace, span, parent, sampled, debug, random, formats });
    }

    /// Begins the span of a request, where somebody wants it.
    #[must_use]
    pub fn begin(
        &self,
        kind: Kind,
        id: SpanId,
        (received, version): (&Received, Version),
        headers: &HeaderMap,
        sink: &Rc<SpanSink>,
    ) -> OpenSpan {
        self.open(kind, id, sink, || {
            let names = (received.authority.clone(), received.path.clone());
            let call = HttpCall::new(received.method.clone(), names, (version, received.grpc), headers);
            // A line of the access log alone has no attributes: what it does not have is not looked for.
            let baggage = if self.sampled { headers.get(BAGGAGE).cloned() } else { None };
            Call::Http(HttpCall { upgrade: received.upgrade.is_some(), baggage, ..call })
        })
    }

    /// Begins the span of an opaque connection, where somebody wants it.
    #[must_use]
    pub fn begin_bytes(&self, kind: Kind, id: SpanId, service: Option<&Target>, sink: &Rc<SpanSink>) -> OpenSpan {
        let mut span = self.open(kind, id, sink, || Call::Tcp(Moved::default()));
        span.add(|span| span.service = service.cloned());
        span
    }

    fn open(&self, kind: Kind, id: SpanId, sink: &Rc<SpanSink>, call: impl FnOnce() -> Call) -> OpenSpan {
        if !self.sampled && self.log == Log::Never && !sink.is_tapped() {
            return OpenSpan::default();
        }
        let span = Span {
            trace: self.trace,
            id,
            parent: self.parent,
            kind,
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            call: call(),
            peer: None,
            peer_id: None,
            service: None,
            route: None,
            resend: 0,
            reason: None,
            headers: Vec::new(),
            events: Vec::new(),
            events_dropped: 0,
        };
        let Self { sampled: export, log, format, .. } = *self;
        let (began, sink) = (Instant::now(), Rc::clone(sink));
        let (asked, deadline, retried) = (began, None, false);
        let running = Running { span, began, asked, deadline, export, log, format, retried, sink, quiet: None };
        OpenSpan(Some(Box::new(running)))
    }
}

impl OpenSpan {
    /// The span, to add to it.
    pub fn add(&mut self, change: impl FnOnce(&mut Span)) {
        if let Some(running) = &mut self.0 {
            change(&mut running.span);
        }
    }

    /// The trace, where its spans are exported.
    #[must_use]
    pub fn trace(&self) -> Option<weft_metrics::TraceId> {
        let running = self.0.as_ref().filter(|running| running.export)?;
        Some(weft_metrics::TraceId(running.span.trace.to_bytes()))
    }

    /// Where the connection goes.
    pub fn to_endpoint(&mut self, endpoint: &EndpointState) {
        self.add(|span| {
            let mesh = endpoint.endpoint.mesh.as_ref();
            span.peer = Some(mesh.map_or(endpoint.address, |mesh| mesh.address));
            span.peer_id = mesh.map(|mesh| mesh.identity.clone());
        });
    }

    /// Where the request goes.
    pub fn to(&mut self, endpoint: &EndpointState, address: SocketAddr, http2: bool) {
        self.add(|span| {
            span.peer = Some(address);
            span.peer_id = endpoint.endpoint.mesh.as_ref().map(|mesh| mesh.identity.clone());
            if let Call::Http(call) = &mut span.call {
                call.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
                if call.upgrade {
                    call.method = if http2 { Method::CONNECT } else { Method::GET };
                }
            }
        });
    }

    /// A try of what was asked for at this time, given up after `limit` from there.
    pub fn of_request(&mut self, asked: Instant, limit: Option<Duration>) {
        if let Some(running) = &mut self.0 {
            (running.asked, running.deadline) = (asked, limit.map(|limit| asked + limit));
        }
    }

    /// All of what was asked for at this time: it went to no endpoint.
    pub fn of_all(&mut self, asked: Instant) {
        if let Some(running) = &mut self.0 {
            (running.asked, running.began) = (asked, asked);
        }
    }

    /// This is the answer in place of the one of the other side; status 0 is none.
    pub fn answered_here(&mut self, (status, headers): (u16, &HeaderMap), reason: Option<Reason>) {
        self.add(|span| {
            span.reason = reason;
            if status > 0 {
                span.answered(status, headers);
            }
        });
        self.ended(reason, true);
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

    /// The exchange has left HTTP: the span of the handshake ends with its answer, and that of the session begins below
    /// it. The access log has one line for both, at the end.
    pub fn upgraded(&mut self) {
        let Some(running) = &mut self.0 else { return };
        let Call::Http(call) = &mut running.span.call else { return };
        call.complete = true;
        if running.span.kind == Kind::Server {
            // The app's answer was in its own version of HTTP; the caller's switch is in its own.
            call.status = Some(if call.version == Version::HTTP_2 { 200 } else { 101 });
        }
        call.session = Some(Moved::default());
        let id = running.span.id;
        let mut handshake = running.span.clone();
        running.span.events.clear();
        (running.span.parent, running.span.id) = (Some(id), SpanId::random(rand::random()));
        if running.export {
            if let Call::Http(call) = &mut handshake.call {
                call.session = None;
            }
            handshake.duration = running.began.elapsed();
            handshake.started = SystemTime::now() - handshake.duration;
            running.sink.send(handshake);
        }
        running.began = Instant::now();
    }

    /// So much has moved on a connection on which nobody looks at messages, until it ended, badly for this reason.
    pub fn moved(&mut self, sent: u64, received: u64, reason: Option<Reason>) {
        self.add(|span| {
            span.reason = reason;
            match &mut span.call {
                Call::Tcp(moved) => *moved = Moved { sent, received },
                Call::Http(call) => call.session = Some(Moved { sent, received }),
            }
        });
    }

    /// There is no connection, for this reason.
    pub fn refused(&mut self, reason: Reason) {
        self.moved(0, 0, Some(reason));
    }

    /// Notes an event; its details are made only where there is a span.
    pub fn event<const N: usize>(&mut self, name: &'static str, details: impl FnOnce() -> [(&'static str, String); N]) {
        self.add(|span| span.event(name, details()));
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

    /// Shares whether it comes into the access log with who starts other tries beside it.
    pub fn beside(&mut self, quiet: &Rc<Cell<bool>>) {
        if let Some(running) = &mut self.0 {
            running.quiet = Some(Rc::clone(quiet));
        }
    }

    /// The request is sent again after a while. What is left is for the access log alone, should the caller not wait for
    /// so long; say [`Self::retried`] of it when the next try begins.
    #[must_use]
    pub fn waits(mut self) -> Self {
        let Some(mut running) = self.0.take_if(|running| running.log != Log::Never) else { return Self(None) };
        if std::mem::take(&mut running.export) {
            let mut span = running.span.clone();
            span.duration = running.began.elapsed();
            span.started = SystemTime::now() - span.duration;
            running.sink.send(span);
        }
        running.span.reason = None;
        if let Call::Http(call) = &mut running.span.call {
            (call.status, call.grpc_status, call.complete) = (None, None, false);
        }
        Self(Some(running))
    }

    /// The request is sent again: this answer is nobody's, and the access log has the last one.
    pub fn retried(&mut self) {
        self.ended(None, true);
        self.not_logged();
    }

    /// It is not for the access log.
    pub fn not_logged(&mut self) {
        if let Some(running) = &mut self.0 {
            (running.log, running.retried) = (Log::Never, true);
        }
    }

    /// What it is about was not used: nobody is told.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let Some(running) = self.0.take() else { return };
        let Running { mut span, began, asked, deadline, export, log, format, retried, sink, quiet } = *running;
        let quiet = quiet.is_some_and(|quiet| quiet.get());
        let log = if quiet { Log::Never } else { log };
        // Nobody said how it ended: it was not waited for any longer.
        if span.reason.is_none() && matches!(&span.call, Call::Http(call) if call.status.is_none()) {
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            span.reason = Some(if late { Reason::RequestTimeout } else { Reason::ClientGone });
        }
        let log = log == Log::Always || log == Log::Failed && span.is_failure();
        let tap = !retried && !quiet && sink.is_tapped();
        if !export && !log && !tap {
            return;
        }
        span.duration = began.elapsed();
        span.started = SystemTime::now() - span.duration;
        if tap {
            sink.tap(&told(span.clone(), asked));
        }
        match (log, export) {
            (true, true) => {
                sink.log(told(span.clone(), asked), format);
                sink.send(span);
            }
            (true, false) => sink.log(told(span, asked), format),
            (false, true) => sink.send(span),
            (false, false) => {}
        }
    }
}

/// For the access log: the time that the caller waited, and the answer that it got in place of one that was not waited for.
/// No such answer came from the other side, so the span has none.
fn told(mut span: Span, asked: Instant) -> Span {
    span.started -= asked.elapsed().saturating_sub(span.duration);
    span.duration = asked.elapsed();
    if let (Some(Reason::RequestTimeout), Call::Http(call)) = (span.reason, &mut span.call)
        && call.status.is_none()
    {
        call.status = Some(if call.grpc { 200 } else { Reason::RequestTimeout.status() });
        call.grpc_status = call.grpc.then(|| u16::from(Reason::RequestTimeout.grpc_status()));
    }
    span
}
