//! Our spans in OpenTelemetry's form, to the letter of the semantic conventions 1.44 (HTTP spans, RPC spans): names
//! without raw paths, attributes, status. Runs on the control thread.

use std::{borrow::Cow, fmt::Write as _};

use http::{Method, Version, uri::PathAndQuery};
use opentelemetry::{
    Array, InstrumentationScope, KeyValue, Value,
    trace::{Event as OtelEvent, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents};

use super::span::{Call, Event, HttpCall, Kind, Moved, Span, of_baggage};
use crate::error::{Blame, Reason};

/// Query parameters whose values are secrets (HTTP spans, `url.query`).
const SECRETS: [&str; 5] = ["AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature", "X-Amz-Signature"];
/// Characters of a path or query.
const MAX_TEXT: usize = 1024;

/// The span as the exporter takes it.
pub fn data(span: Span) -> SpanData {
    let (name, mut attributes, status) = match &span.call {
        Call::Http(HttpCall { session: Some(moved), .. }) => session(&span, *moved),
        Call::Http(call) if call.grpc => rpc(&span, call),
        Call::Http(call) => http(&span, call),
        Call::Tcp(moved) => tcp(&span, *moved),
    };
    let session = matches!(&span.call, Call::Http(HttpCall { session: Some(_), .. }));
    common(&span, &mut attributes);
    let context = SpanContext::new(
        TraceId::from_bytes(span.trace.to_bytes()),
        SpanId::from_bytes(span.id.to_bytes()),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    let mut events = SpanEvents::default();
    events.dropped_count = span.events_dropped;
    events.events = span.events.iter().map(event).collect();
    SpanData {
        span_context: context,
        parent_span_id: span.parent.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_bytes())),
        parent_span_is_remote: span.parent.is_some() && !session,
        span_kind: match span.kind {
            // Below the handshake of the same sidecar.
            _ if session => SpanKind::Internal,
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        },
        name,
        start_time: span.started,
        end_time: span.started + span.duration,
        attributes,
        dropped_attributes_count: 0,
        events,
        links: opentelemetry_sdk::trace::SpanLinks::default(),
        status,
        instrumentation_scope: InstrumentationScope::builder("weft").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

type Parts = (Cow<'static, str>, Vec<KeyValue>, Status);

/// `error.type` and Error, or nothing.
fn outcome(error: Option<String>, attributes: &mut Vec<KeyValue>) -> Status {
    match error {
        Some(kind) => {
            attributes.push(KeyValue::new("error.type", kind));
            Status::error("")
        }
        None => Status::Unset,
    }
}

fn http(span: &Span, call: &HttpCall) -> Parts {
    let mut attributes = head(span, call);
    let known = known(&call.method);
    let method = known.unwrap_or("_OTHER");
    attributes.push(KeyValue::new("http.request.method", method));
    if known.is_none() {
        attributes.push(KeyValue::new("http.request.method_original", cut(call.method.as_str())));
    }
    if span.kind == Kind::Client && span.resend > 0 {
        attributes.push(KeyValue::new("http.request.resend_count", i64::from(span.resend)));
    }
    if let Some(status) = call.status {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
    }
    // The route's name belongs to SERVER spans alone (HTTP spans, section on names).
    let route = span.route().filter(|_| span.kind == Kind::Server);
    if let Some(route) = route {
        attributes.push(KeyValue::new("http.route", route.to_owned()));
    }
    let verb = known.unwrap_or("HTTP");
    let name = route.map_or(Cow::Borrowed(verb), |route| Cow::Owned(format!("{verb} {route}")));
    let from = if span.kind == Kind::Server { 500 } else { 400 };
    let error = match (call.status, span.reason) {
        // A deliberate cancel is no error.
        (_, Some(Reason::ClientGone)) => None,
        (_, Some(reason)) if call.status.is_none_or(|status| status >= from) || !call.complete => {
            Some(reason.as_str().to_owned())
        }
        (Some(status), _) if status >= from => Some(status.to_string()),
        _ => None,
    };
    let status = outcome(error, &mut attributes);
    (name, attributes, status)
}

fn rpc(span: &Span, call: &HttpCall) -> Parts {
    let mut attributes = head(span, call);
    attributes.push(KeyValue::new("rpc.system.name", "grpc"));
    let code = call.grpc_status;
    // We do not know the methods of a service. What it answered with anything but UNIMPLEMENTED is one of them, so names
    // stay as few as the methods that it has.
    let named = call.path.path().trim_start_matches('/');
    let exists = code.is_some_and(|code| code != 12) && span.reason.is_none();
    let method = if exists { cut(named) } else { Cow::Borrowed("_OTHER") };
    attributes.push(KeyValue::new("rpc.method", method.clone().into_owned()));
    if !exists {
        attributes.push(KeyValue::new("rpc.method_original", cut(named).into_owned()));
    }
    if let Some(code) = code {
        attributes.push(KeyValue::new("rpc.response.status_code", code_name(code)));
    }
    if span.kind == Kind::Client && span.resend > 0 {
        attributes.push(KeyValue::new("http.request.resend_count", i64::from(span.resend)));
    }
    if let Some(status) = call.status {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
    }
    let failed = match (span.kind, code) {
        (_, Some(0) | None) => false,
        (Kind::Client, Some(_)) => true,
        // What the caller did wrong is no error of the server (RPC spans, table of gRPC codes).
        (Kind::Server, Some(code)) => matches!(code, 2 | 4 | 12 | 13 | 14 | 15),
    };
    let error = match span.reason {
        Some(Reason::ClientGone) => None,
        Some(reason) if failed || code.is_none() => Some(reason.as_str().to_owned()),
        _ if failed => code.map(|code| code_name(code).into_owned()),
        _ => None,
    };
    let status = outcome(error, &mut attributes);
    (method, attributes, status)
}

/// The conventions have no span of a connection: the general attributes of network spans, and what we know besides.
fn tcp(span: &Span, moved: Moved) -> Parts {
    let mut attributes = vec![KeyValue::new("network.transport", "tcp")];
    if let Some(service) = &span.service {
        let name = format!("{}.{}", service.service.name(), service.service.namespace());
        attributes.push(KeyValue::new("server.address", name));
        attributes.push(KeyValue::new("server.port", i64::from(service.port)));
    }
    if let Some(peer) = span.peer {
        attributes.push(KeyValue::new("network.type", if peer.is_ipv4() { "ipv4" } else { "ipv6" }));
        if span.kind == Kind::Server {
            attributes.push(KeyValue::new("client.address", peer.ip().to_string()));
        }
    }
    let status = ended(span, moved, &mut attributes);
    (Cow::Borrowed("TCP"), attributes, status)
}

/// What comes after the handshake of a WebSocket.
fn session(span: &Span, moved: Moved) -> Parts {
    let mut attributes =
        vec![KeyValue::new("network.protocol.name", "websocket"), KeyValue::new("network.transport", "tcp")];
    let status = ended(span, moved, &mut attributes);
    (Cow::Borrowed("WebSocket"), attributes, status)
}

/// The bytes of a connection, and whether it ended well. What the caller did wrong is no error of the server.
fn ended(span: &Span, moved: Moved, attributes: &mut Vec<KeyValue>) -> Status {
    let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    attributes.push(KeyValue::new("weft.bytes.sent", bytes(moved.sent)));
    attributes.push(KeyValue::new("weft.bytes.received", bytes(moved.received)));
    let fault = |reason: &Reason| span.kind == Kind::Client || reason.blame() != Blame::Downstream;
    let error = span.reason.filter(|reason| *reason != Reason::ClientGone && fault(reason));
    outcome(error.map(|reason| reason.as_str().to_owned()), attributes)
}

/// What HTTP and RPC have in common: who was called, and how.
fn head(span: &Span, call: &HttpCall) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(20);
    let host = call.authority.host.to_string();
    match span.kind {
        Kind::Server => {
            attributes.push(KeyValue::new("url.path", cut(call.path.path()).into_owned()));
            attributes.push(KeyValue::new("url.scheme", "http"));
            if let Some(query) = call.path.query() {
                attributes.push(KeyValue::new("url.query", redacted(query)));
            }
            if let Some(agent) = call.user_agent.as_ref().and_then(|value| value.to_str().ok()) {
                attributes.push(KeyValue::new("user_agent.original", cut(agent).into_owned()));
            }
            if let Some(peer) = span.peer {
                attributes.push(KeyValue::new("client.address", peer.ip().to_string()));
            }
        }
        Kind::Client => attributes.push(KeyValue::new("url.full", url(call, &call.path))),
    }
    if !host.is_empty() {
        attributes.push(KeyValue::new("server.address", host));
        attributes.push(KeyValue::new("server.port", i64::from(port(span, call))));
    }
    let version = match call.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    attributes.push(KeyValue::new("network.protocol.version", version));
    let baggage = call.baggage.as_ref().and_then(|value| value.to_str().ok());
    if let Some(saga) = baggage.and_then(|baggage| of_baggage(baggage, "saga.id")) {
        attributes.push(KeyValue::new("saga.id", cut(saga).into_owned()));
    }
    attributes
}

/// The port that the caller named, or that of the service.
fn port(span: &Span, call: &HttpCall) -> u16 {
    call.authority.port.or(span.service.as_ref().map(|service| service.port)).unwrap_or(80)
}

fn common(span: &Span, attributes: &mut Vec<KeyValue>) {
    if let Some(peer) = span.peer {
        attributes.push(KeyValue::new("network.peer.address", peer.ip().to_string()));
        // Of an inbound request the port is not known (`OpenSpan::from_ip`).
        if peer.port() != 0 {
            attributes.push(KeyValue::new("network.peer.port", i64::from(peer.port())));
        }
    }
    attributes.push(KeyValue::new("weft.direction", if span.kind == Kind::Server { "inbound" } else { "outbound" }));
    if let Some(id) = &span.peer_id {
        attributes.push(KeyValue::new("weft.peer.id", id.to_string()));
    }
    if let Some(service) = &span.service {
        attributes.push(KeyValue::new("weft.service", service.to_string()));
    }
    if let Some(route) = span.route().filter(|_| span.kind == Kind::Client) {
        attributes.push(KeyValue::new("weft.route", route.to_owned()));
    }
    for (name, value) in &span.headers {
        let text = cut(&String::from_utf8_lossy(value.as_bytes())).into_owned();
        let list = Value::Array(Array::String(vec![text.into()]));
        attributes.push(KeyValue::new(format!("http.request.header.{name}"), list));
    }
    if let Some(reason) = span.reason {
        attributes.push(KeyValue::new("weft.reason", reason.as_str()));
    }
}

fn event(from: &Event) -> OtelEvent {
    let details = from.details.iter().map(|(key, value)| KeyValue::new(*key, value.clone())).collect();
    OtelEvent::new(from.name, from.time, details, 0)
}

/// A method of RFC 9110 or PATCH (RFC 5789); others could be anything.
fn known(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

fn url(call: &HttpCall, path: &PathAndQuery) -> String {
    let mut text = format!("http://{}", call.authority.host);
    if let Some(port) = call.authority.port {
        let _ = write!(text, ":{port}");
    }
    text.push_str(&cut(path.path()));
    if let Some(query) = path.query() {
        let _ = write!(text, "?{}", redacted(query));
    }
    text
}

/// The query with the values of signatures and keys replaced.
fn redacted(query: &str) -> String {
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, _)) if SECRETS.contains(&key) => Cow::Owned(format!("{key}=REDACTED")),
        _ => Cow::Borrowed(pair),
    });
    cut(&pairs.collect::<Vec<_>>().join("&")).into_owned()
}

fn cut(text: &str) -> Cow<'static, str> {
    let end = text.char_indices().map(|(index, _)| index).nth(MAX_TEXT).unwrap_or(text.len());
    Cow::Owned(text[..end].to_owned())
}

/// The name of a gRPC status code; an unknown number as it is.
fn code_name(code: u16) -> Cow<'static, str> {
    weft_policy::grpc::name(code.into()).map_or_else(|| Cow::Owned(code.to_string()), Cow::Borrowed)
}

#[cfg(test)]
mod tests;
