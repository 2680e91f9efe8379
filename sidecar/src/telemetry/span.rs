//! A span while its request or connection runs: what is known, in the types that are there anyway. Made only when the
//! trace is recorded, turned into OpenTelemetry's form by `otel` on the control thread.
//!
//! What lives long: a request that leaves HTTP (WebSocket, by `Upgrade` or extended CONNECT) has two spans, one of the
//! handshake, which ends and is told with its answer, and below it one of the session, told at its end. What the app does
//! meanwhile is so below a span that is there already. A response that streams, gRPC's too, is one span to its end, as the
//! conventions want it: its status is not known before. An opaque connection is one span, told when it ends.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, uri::PathAndQuery};
use weft_policy::{
    SpiffeId,
    canonical::Authority,
    model::Target,
    trace::{SpanId, TraceId},
};

use crate::error::Reason;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Events of one span; more are only counted.
const MAX_EVENTS: usize = 32;

/// One hop of a request or connection, from our side.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// Itself.
    pub id: SpanId,
    /// What caused it.
    pub parent: Option<SpanId>,
    /// Whose side it is of.
    pub kind: Kind,
    /// When it began; set at the end.
    pub started: SystemTime,
    /// How long it took; set at the end.
    pub duration: Duration,
    /// What it is about.
    pub call: Call,
    /// The other end of the connection.
    pub peer: Option<SocketAddr>,
    /// Its SPIFFE id.
    pub peer_id: Option<SpiffeId>,
    /// Service port that was called; `None` where it is not known.
    pub service: Option<Target>,
    /// Name of the rule that decided, as sidecars tell it to each other.
    pub route: Option<HeaderValue>,
    /// Tries of the same request before this one.
    pub resend: u32,
    /// Why we answered ourselves, or why it ended badly.
    pub reason: Option<Reason>,
    /// Request headers that the policy wants as attributes.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What happened meanwhile.
    pub events: Vec<Event>,
    /// Events beyond the bound.
    pub events_dropped: u32,
}

/// Whose side of the hop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The inbound sidecar's: what its app did.
    Server,
    /// The outbound sidecar's: one try.
    Client,
}

/// What a span is about.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
#[derive(Clone, Debug)]
pub enum Call {
    /// A request.
    Http(HttpCall),
    /// An opaque connection.
    Tcp(Moved),
}

/// Bytes of a connection on which nobody looks at messages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Moved {
    /// To the called side.
    pub sent: u64,
    /// From it.
    pub received: u64,
}

/// A request and its answer.
#[derive(Clone, Debug)]
pub struct HttpCall {
    /// Method.
    pub method: Method,
    /// Whom the caller named.
    pub authority: Authority,
    /// Path and query.
    pub path: PathAndQuery,
    /// HTTP version of this hop.
    pub version: Version,
    /// It is a gRPC call.
    pub grpc: bool,
    /// `User-Agent`.
    pub user_agent: Option<HeaderValue>,
    /// `X-Request-Id`.
    pub request_id: Option<HeaderValue>,
    /// Status of the answer, once there is one.
    pub status: Option<u16>,
    /// `grpc-status` of the answer, once there is one.
    pub grpc_status: Option<u16>,
    /// `baggage`, for `saga.id`; only where the trace is recorded.
    pub baggage: Option<HeaderValue>,
    /// It asks to leave HTTP.
    pub upgrade: bool,
    /// It has left HTTP, and this is about the time from there.
    pub session: Option<Moved>,
    /// The whole answer has passed.
    pub complete: bool,
}

/// Something that happened during a span.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub time: SystemTime,
    /// What.
    pub name: &'static str,
    /// Details: names and values.
    pub details: Vec<(&'static str, String)>,
}

impl Span {
    /// The name of the rule as text.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.route.as_ref()?.to_str().ok()
    }

    /// Notes an event.
    pub fn event(&mut self, name: &'static str, details: impl IntoIterator<Item = (&'static str, String)>) {
        if self.events.len() < MAX_EVENTS {
            self.events.push(Event { time: SystemTime::now(), name, details: details.into_iter().collect() });
        } else {
            self.events_dropped += 1;
        }
    }

    /// Whether it ended badly for the caller: we answered ourselves or it broke off, or the status says so.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        let bad = match &self.call {
            Call::Http(call) => {
                let grpc = call.grpc_status.is_some_and(|code| matches!(code, 2 | 4 | 12..=15));
                grpc || call.status.is_some_and(|status| status >= 500)
            }
            Call::Tcp(_) => false,
        };
        bad || self.reason.is_some()
    }

    /// Takes what the head of an answer says.
    pub fn answered(&mut self, status: u16, headers: &HeaderMap) {
        if let Call::Http(call) = &mut self.call {
            call.status = Some(status);
            call.grpc_status = call.grpc_status.or_else(|| grpc_status(headers));
        }
    }

    /// Takes what the trailers of an answer say.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Call::Http(call) = &mut self.call {
            call.grpc_status = call.grpc_status.or_else(|| grpc_status(trailers));
        }
    }
}

impl HttpCall {
    /// A request that is about to be sent or served.
    #[must_use]
    pub fn new(
        method: Method,
        (authority, path): (Authority, PathAndQuery),
        (version, grpc): (Version, bool),
        headers: &HeaderMap,
    ) -> Self {
        let user_agent = headers.get(header::USER_AGENT).cloned();
        let request_id = headers.get(REQUEST_ID).cloned();
        Self {
            method,
            authority,
            path,
            version,
            grpc,
            user_agent,
            request_id,
            status: None,
            grpc_status: None,
            baggage: None,
            upgrade: false,
            session: None,
            complete: false,
        }
    }
}

/// The value of a key in W3C Baggage (section 3.3.1), percent-encoded as it is; without what is said of it after `;`.
#[must_use]
pub fn of_baggage<'a>(baggage: &'a str, key: &str) -> Option<&'a str> {
    let mut members = baggage.split(',').filter_map(|member| member.split(';').next()?.split_once('='));
    members.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
