//! Our spans in OpenTelemetry's form (OTLP), to the letter of the semantic conventions 1.44 (HTTP spans, RPC spans): names
//! without raw paths, attributes, status. Runs on the control thread.

use std::{
    borrow::Cow,
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{Method, Version, uri::PathAndQuery};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
    trace::v1::{
        Span as OtlpSpan, SpanFlags, Status,
        span::{Event as OtlpEvent, SpanKind},
        status::StatusCode,
    },
};

use super::span::{Call, Event, HttpCall, Kind, Moved, Span, of_baggage};
use crate::error::{Blame, Reason};

/// Query parameters whose values are secrets (HTTP spans, `url.query`).
const SECRETS: [&str; 5] = ["AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature", "X-Amz-Signature"];
/// Flags of a span (OTLP, `SpanFlags`; W3C trace context level 2 section 3.2.2.5 for the first).
const SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = SpanFlags::ContextHasIsRemoteMask as u32;
const IS_REMOTE: u32 = SpanFlags::ContextIsRemoteMask as u32;
/// Characters of a path or query.
const MAX_TEXT: usize = 1024;

/// The span as OTLP has it.
pub fn data(span: &Span) -> OtlpSpan {
    let (name, mut attributes, status) = match &span.call {
        Call::Http(HttpCall { session: Some(moved), .. }) => session(span, *moved),
        Call::Http(call) if call.grpc => rpc(span, call),
        Call::Http(call) => http(span, call),
        Call::Tcp(moved) => tcp(span, *moved),
    };
    let session = matches!(&span.call, Call::Http(HttpCall { session: Some(_), .. }));
    common(span, &mut attributes);
    let kind = match span.kind {
        // Below the handshake of the same sidecar.
        _ if session => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    };
    let remote = if span.parent.is_some() && !session { IS_REMOTE } else { 0 };
    OtlpSpan {
        trace_id: span.trace.to_bytes().to_vec(),
        span_id: span.id.to_bytes().to_vec(),
        parent_span_id: span.parent.map_or_else(Vec::new, |id| id.to_bytes().to_vec()),
        flags: SAMPLED | HAS_IS_REMOTE | remote,
        name: name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(span.started),
        end_time_unix_nano: nanos(span.started + span.duration),
        attributes,
        events: span.events.iter().map(event).collect(),
        dropped_events_count: span.events_dropped,
        status: Some(status),
        ..OtlpSpan::default()
    }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn value(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

/// An attribute with a text.
pub fn text(key: &'static str, text: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value(Value::StringValue(text.into())), ..KeyValue::default() }
}

fn number(key: &'static str, number: impl Into<i64>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value(Value::IntValue(number.into())), ..KeyValue::default() }
}

type Parts = (Cow<'static, str>, Vec<KeyValue>, Status);

/// `error.type` and Error, or nothing.
fn outcome(error: Option<String>, attributes: &mut Vec<KeyValue>) -> Status {
    match error {
        Some(kind) => {
            attributes.push(text("error.type", kind));
            Status { code: StatusCode::Error.into(), message: String::new() }
        }
        None => Status::default(),
    }
}

fn http(span: &Span, call: &HttpCall) -> Parts {
    let mut attributes = head(span, call);
    let known = known(&call.method);
    let method = known.unwrap_or("_OTHER");
    attributes.push(text("http.request.method", method));
    if known.is_none() {
        attributes.push(text("http.request.method_original", cut(call.method.as_str())));
    }
    if span.kind == Kind::Client && span.resend > 0 {
        attributes.push(number("http.request.resend_count", span.resend));
    }
    if let Some(status) = call.status {
        attributes.push(number("http.response.status_code", status));
    }
    // The route's name belongs to SERVER spans alone (HTTP spans, section on names).
    let route = span.route().filter(|_| span.kind == Kind::Server);
    if let Some(route) = route {
        attributes.push(text("http.route", route.to_owned()));
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
    attributes.push(text("rpc.system.name", "grpc"));
    let code = call.grpc_status;
    // We do not know the methods of a service. What it answered with anything but UNIMPLEMENTED is one of them, so names
    // stay as few as the methods that it has.
    let named = call.path.path().trim_start_matches('/');
    let exists = code.is_some_and(|code| code != 12) && span.reason.is_none();
    let method = if exists { cut(named) } else { Cow::Borrowed("_OTHER") };
    attributes.push(text("rpc.method", method.clone().into_owned()));
    if !exists {
        attributes.push(text("rpc.method_original", cut(named).into_owned()));
    }
    if let Some(code) = code {
        attributes.push(text("rpc.response.status_code", code_name(code)));
    }
    if span.kind == Kind::Client && span.resend > 0 {
        attributes.push(number("http.request.resend_count", span.resend));
    }
    if let Some(status) = call.status {
        attributes.push(number("http.response.status_code", status));
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
    let mut attributes = vec![text("network.transport", "tcp")];
    if let Some(service) = &span.service {
        let name = format!("{}.{}", service.service.name(), service.service.namespace());
        attributes.push(text("server.address", name));
        attributes.push(number("server.port", service.port));
    }
    if let Some(peer) = span.peer {
        attributes.push(text("network.type", if peer.is_ipv4() { "ipv4" } else { "ipv6" }));
        if span.kind == Kind::Server {
            attributes.push(text("client.address", peer.ip().to_string()));
        }
    }
    let status = ended(span, moved, &mut attributes);
    (Cow::Borrowed("TCP"), attributes, status)
}

/// What comes after the handshake of a WebSocket.
fn session(span: &Span, moved: Moved) -> Parts {
    let mut attributes = vec![text("network.protocol.name", "websocket"), text("network.transport", "tcp")];
    let status = ended(span, moved, &mut attributes);
    (Cow::Borrowed("WebSocket"), attributes, status)
}

/// The bytes of a connection, and whether it ended well. What the caller did wrong is no error of the server.
fn ended(span: &Span, moved: Moved, attributes: &mut Vec<KeyValue>) -> Status {
    let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    attributes.push(number("weft.bytes.sent", bytes(moved.sent)));
    attributes.push(number("weft.bytes.received", bytes(moved.received)));
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
            attributes.push(text("url.path", cut(call.path.path()).into_owned()));
            attributes.push(text("url.scheme", "http"));
            if let Some(query) = call.path.query() {
                attributes.push(text("url.query", redacted(query)));
            }
            if let Some(agent) = call.user_agent.as_ref().and_then(|value| value.to_str().ok()) {
                attributes.push(text("user_agent.original", cut(agent).into_owned()));
            }
            if let Some(peer) = span.peer {
                attributes.push(text("client.address", peer.ip().to_string()));
            }
        }
        Kind::Client => attributes.push(text("url.full", url(call, &call.path))),
    }
    if !host.is_empty() {
        attributes.push(text("server.address", host));
        attributes.push(number("server.port", port(span, call)));
    }
    let version = match call.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    attributes.push(text("network.protocol.version", version));
    let baggage = call.baggage.as_ref().and_then(|value| value.to_str().ok());
    if let Some(saga) = baggage.and_then(|baggage| of_baggage(baggage, "saga.id")) {
        attributes.push(text("saga.id", cut(saga).into_owned()));
    }
    attributes
}

/// The port that the caller named, or that of the service.
fn port(span: &Span, call: &HttpCall) -> u16 {
    call.authority.port.or(span.service.as_ref().map(|service| service.port)).unwrap_or(80)
}

fn common(span: &Span, attributes: &mut Vec<KeyValue>) {
    if let Some(peer) = span.peer {
        attributes.push(text("network.peer.address", peer.ip().to_string()));
        // Of an inbound request the port is not known (`OpenSpan::from_ip`).
        if peer.port() != 0 {
            attributes.push(number("network.peer.port", peer.port()));
        }
    }
    attributes.push(text("weft.direction", if span.kind == Kind::Server { "inbound" } else { "outbound" }));
    if let Some(id) = &span.peer_id {
        attributes.push(text("weft.peer.id", id.to_string()));
    }
    if let Some(service) = &span.service {
        attributes.push(text("weft.service", service.to_string()));
    }
    if let Some(route) = span.route().filter(|_| span.kind == Kind::Client) {
        attributes.push(text("weft.route", route.to_owned()));
    }
    for (name, header) in &span.headers {
        let shown = cut(&String::from_utf8_lossy(header.as_bytes())).into_owned();
        let list = ArrayValue { values: value(Value::StringValue(shown)).into_iter().collect() };
        let key = format!("http.request.header.{name}");
        attributes.push(KeyValue { key, value: value(Value::ArrayValue(list)), ..KeyValue::default() });
    }
    if let Some(reason) = span.reason {
        attributes.push(text("weft.reason", reason.as_str()));
    }
}

fn event(from: &Event) -> OtlpEvent {
    let attributes = from.details.iter().map(|(key, detail)| text(key, detail.as_str())).collect();
    let (time_unix_nano, name) = (nanos(from.time), from.name.to_owned());
    OtlpEvent { time_unix_nano, name, attributes, dropped_attributes_count: 0 }
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
