//! The access log: a line for each request and opaque connection that is wanted, written by a thread of its own. A reader that is slow or gone
//! costs requests nothing: the queue fills, and what does not fit is dropped and counted. What callers and apps say is
//! escaped, so that no line can be forged.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, Result};
use http::{HeaderValue, Version};
use metrics::Counter;
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};
use weft_policy::{SpiffeId, model::AccessLogFormat};

use super::{
    Telemetry,
    span::{Call, HttpCall, Kind, Moved, Span},
};

/// Lines that wait for the writer.
const QUEUE: usize = 4096;
/// Characters of one value.
const MAX_TEXT: usize = 2048;

/// Where lines are left. Clones share the queue.
#[derive(Clone)]
pub struct AccessLog {
    queue: SyncSender<(Span, AccessLogFormat)>,
    dropped: Counter,
}

impl AccessLog {
    /// Starts the writer: to the file, appended, or to standard error.
    ///
    /// # Errors
    /// When the file cannot be opened or no thread can be started.
    pub fn start(telemetry: &Telemetry, file: Option<&Path>) -> Result<(Self, JoinHandle<()>)> {
        let out: Box<dyn Write + Send> = match file {
            None => Box::new(io::stderr()),
            Some(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                Box::new(file.with_context(|| format!("--access-log {}", path.display()))?)
            }
        };
        let (queue, lines) = sync_channel(QUEUE);
        let name = "weft_access_log_dropped_total";
        let dropped =
            telemetry.counter(name, "Lines of the access log that were dropped because the writer was slow", &[]);
        let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || write(&lines, out))?;
        Ok((Self { queue, dropped }, writer))
    }

    /// Leaves a line; never waits.
    pub fn send(&self, span: Span, format: AccessLogFormat) {
        if self.queue.try_send((span, format)).is_err() {
            self.dropped.increment(1);
        }
    }
}

/// Writes until all senders are gone. A line that cannot be written is lost: there is nowhere to say so.
fn write(lines: &Receiver<(Span, AccessLogFormat)>, out: impl Write) {
    let mut out = BufWriter::new(out);
    while let Ok((span, format)) = lines.recv() {
        let mut next = Some((span, format));
        while let Some((span, format)) = next {
            let _ = out.write_all(line(&span, format).as_bytes());
            next = lines.try_recv().ok();
        }
        let _ = out.flush();
    }
}

/// One line, with its end.
#[must_use]
pub fn line(span: &Span, format: AccessLogFormat) -> String {
    let call = match &span.call {
        Call::Http(call) => Some(call),
        Call::Tcp(_) => None,
    };
    match (format, call) {
        (AccessLogFormat::Json, Some(call)) => json_line(span, call),
        (AccessLogFormat::Json, None) => json_of_connection(span),
        (AccessLogFormat::Envoy, _) => envoy(span, call),
        (AccessLogFormat::Common, _) => common(span, call),
    }
}

/// Bytes of a connection, or of a session.
const fn moved(span: &Span) -> Option<Moved> {
    match &span.call {
        Call::Http(call) => call.session,
        Call::Tcp(moved) => Some(*moved),
    }
}

/// What requests and connections have in common. Envoy counts bytes from its downstream as received.
fn json_of_hop(span: &Span) -> serde_json::Value {
    let (peer, other) = (span.peer.map(address), span.peer_id.as_ref().map(SpiffeId::as_str));
    let (inbound, moved) = (span.kind == Kind::Server, moved(span));
    json!({
        "start_time": started(span),
        "direction": if inbound { "inbound" } else { "outbound" },
        "response_flags": flags(span),
        "reason": span.reason.map(|reason| reason.as_str()),
        "duration": u64::try_from(span.duration.as_millis()).unwrap_or(u64::MAX),
        "duration_us": u64::try_from(span.duration.as_micros()).unwrap_or(u64::MAX),
        "bytes_received": moved.map(|moved| moved.sent),
        "bytes_sent": moved.map(|moved| moved.received),
        "upstream_cluster": span.service.as_ref().map(ToString::to_string),
        "upstream_host": peer.clone().filter(|_| !inbound),
        "downstream_remote_address": peer.filter(|_| inbound),
        "attempts": span.resend + 1,
        "peer_identity": other,
        "trace_id": span.trace.to_string(),
        "span_id": span.id.to_string(),
    })
}

fn json_of_connection(span: &Span) -> String {
    let mut value = json_of_hop(span);
    value["protocol"] = "TCP".into();
    format!("{value}\n")
}

fn json_line(span: &Span, call: &HttpCall) -> String {
    let text =
        |value: &Option<HeaderValue>| value.as_ref().map(|value| cut(&String::from_utf8_lossy(value.as_bytes())));
    let denied =
        span.events.iter().find(|event| event.name == "weft.not_retried").and_then(|event| event.details.first());
    let mut value = json_of_hop(span);
    let of_request = json!({
        "method": call.method.as_str(),
        "path": cut(call.path.as_str()),
        "authority": authority(call),
        "protocol": protocol(call.version),
        "response_code": call.status.unwrap_or(0),
        "grpc_status": call.grpc_status,
        "route_name": span.route(),
        "not_retried": denied.map(|(_, reason)| reason),
        "user_agent": text(&call.user_agent),
        "request_id": text(&call.request_id),
    });
    if let (Some(all), serde_json::Value::Object(own)) = (value.as_object_mut(), of_request) {
        all.extend(own);
    }
    format!("{value}\n")
}

/// Envoy's default format; what is not known here is `-`.
fn envoy(span: &Span, call: Option<&HttpCall>) -> String {
    let host = span.peer.filter(|_| span.kind == Kind::Client).map_or_else(|| "-".to_owned(), address);
    let (received, sent) = match moved(span) {
        Some(moved) => (moved.sent.to_string(), moved.received.to_string()),
        None => ("-".to_owned(), "-".to_owned()),
    };
    format!(
        "[{}] \"{}\" {} {} {received} {sent} {} - \"-\" \"{}\" \"{}\" \"{}\" \"{host}\"\n",
        started(span),
        request_line(call),
        call.and_then(|call| call.status).unwrap_or(0),
        flags(span),
        span.duration.as_millis(),
        field(call.and_then(|call| call.user_agent.as_ref())),
        field(call.and_then(|call| call.request_id.as_ref())),
        call.map_or_else(|| "-".to_owned(), |call| escaped(&authority(call))),
    )
}

/// Method, path and version; of a connection none is known.
fn request_line(call: Option<&HttpCall>) -> String {
    let Some(call) = call else { return "- - -".to_owned() };
    format!("{} {} {}", call.method, escaped(call.path.as_str()), protocol(call.version))
}

/// The port of a caller is not known, and is left out.
fn address(peer: SocketAddr) -> String {
    if peer.port() == 0 { peer.ip().to_string() } else { peer.to_string() }
}

/// The Common Log Format of the first HTTP servers; the peer's identity is the user.
fn common(span: &Span, call: Option<&HttpCall>) -> String {
    let format = format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
    let time = time(span).format(format).unwrap_or_default();
    format!(
        "{} - {} [{time}] \"{}\" {} {}\n",
        span.peer.map_or_else(|| "-".to_owned(), |peer| peer.ip().to_string()),
        span.peer_id.as_ref().map_or("-", SpiffeId::as_str),
        request_line(call),
        call.and_then(|call| call.status).unwrap_or(0),
        moved(span).map_or_else(|| "-".to_owned(), |moved| moved.received.to_string()),
    )
}

fn time(span: &Span) -> OffsetDateTime {
    let nanos = span.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    i128::try_from(nanos)
        .ok()
        .and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// RFC 3339 to the millisecond.
fn started(span: &Span) -> String {
    let time = time(span);
    time.replace_millisecond(time.millisecond()).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

fn flags(span: &Span) -> &'static str {
    span.reason.map_or("-", |reason| reason.flag())
}

fn authority(call: &HttpCall) -> String {
    match call.authority.port {
        Some(port) => format!("{}:{port}", call.authority.host),
        None => call.authority.host.to_string(),
    }
}

const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn field(value: Option<&HeaderValue>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| escaped(&String::from_utf8_lossy(value.as_bytes())))
}

/// Within quotes of a text format: control characters, quotes and backslashes as `\xNN`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(MAX_TEXT) {
        if c.is_control() || matches!(c, '"' | '\\') {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| _ = write!(out, "\\x{byte:02X}"));
        } else {
            out.push(c);
        }
    }
    out
}

/// JSON escapes the control characters of ASCII alone; terminals obey others too.
fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() && !c.is_ascii() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests;
