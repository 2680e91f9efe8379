//! One trace as the collector gives it, and what must be true of every trace.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value;

use crate::{
    mesh::TestMesh,
    net::{LIMIT, eventually, get, ok},
};

/// The span of the caller, which nobody exports.
pub const CALLER: &str = "00f067aa0ba902b7";

/// A span.
#[derive(Debug)]
pub struct Span {
    pub id: String,
    pub parent: String,
    /// `service.name` of its resource.
    pub service: String,
    pub kind: Kind,
    pub name: String,
    pub start: u64,
    /// Nobody said how it ended, or it failed.
    pub failed: bool,
    pub events: Vec<(String, BTreeMap<String, String>)>,
    pub attributes: BTreeMap<String, String>,
}

impl Span {
    /// The SERVER span of a service.
    pub fn is_of(&self, service: &str) -> bool {
        self.kind == Kind::Server && self.service == service
    }
}

/// Of a span.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    Internal,
    Server,
    Client,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Internal => "INTERNAL",
            Self::Server => "SERVER",
            Self::Client => "CLIENT",
        }
    }
}

/// A new trace id.
pub fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let low = (u64::from(std::process::id()) << 24) | NEXT.fetch_add(1, Ordering::Relaxed);
    format!("4bf92f3577b34da6{low:016x}")
}

/// `traceparent` of a trace whose caller has decided.
pub fn context(trace: &str, sampled: bool) -> String {
    format!("00-{trace}-{CALLER}-{:02x}", u8::from(sampled))
}

fn body(mesh: &TestMesh, path: &str) -> Result<Value, String> {
    let text = ok(get(mesh.api, "localhost", path))?;
    let (_, json) = text.split_once("\r\n\r\n").ok_or("no body")?;
    serde_json::from_str(json).map_err(|error| format!("{error}: {json}"))
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().unwrap_or_else(|| panic!("{key} in {value}")).iter()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn pairs(value: &Value) -> BTreeMap<String, String> {
    let pair = |pair: &Value| {
        let value = pair["value"].as_object().and_then(|map| map.values().next()).expect("a value");
        (text(&pair["key"]), text(value))
    };
    list(value, "attributes").map(pair).collect()
}

/// Whether anything of a trace has come.
pub fn is_kept(mesh: &TestMesh, trace: &str) -> bool {
    let (status, text) = get(mesh.api, "localhost", &format!("/weft/v1/traces/{trace}")).expect("an answer");
    assert!(matches!(status, 200 | 404), "{text}");
    status == 200
}

/// A trace in OTLP's JSON.
pub fn otlp(mesh: &TestMesh, trace: &str) -> Result<Value, String> {
    body(mesh, &format!("/api/v3/traces/{trace}"))
}

/// The newest trace with a span of a service that has this attribute, once there is one.
pub fn by_attribute(mesh: &TestMesh, service: &str, name: &str, value: &str) -> String {
    by_attributes(mesh, service, &[(name, value)])
}

/// The newest trace with a span of a service that has all of these attributes, once there is one.
pub fn by_attributes(mesh: &TestMesh, service: &str, attributes: &[(&str, &str)]) -> String {
    let tags: Vec<_> = attributes.iter().map(|(name, value)| format!("%22{name}%22%3A%22{value}%22")).collect();
    let path = format!("/api/traces?service={service}&tags=%7B{}%7D&limit=1", tags.join("%2C"));
    eventually(&format!("a trace with {attributes:?}"), || {
        let found = body(mesh, &path)?;
        found["data"][0]["traceID"].as_str().map(str::to_owned).ok_or_else(|| found.to_string())
    })
}

/// The spans of a trace in the order in which they began, once so many have come.
pub fn spans(mesh: &TestMesh, trace: &str, count: usize) -> Vec<Span> {
    let found = eventually(&format!("{count} spans of {trace}, within {LIMIT:?}"), || {
        let ours = body(mesh, &format!("/weft/v1/traces/{trace}"))?;
        if list(&ours, "items").count() < count { Err(format!("{ours:#}")) } else { Ok(ours) }
    });
    let otlp = otlp(mesh, trace).expect("kept");
    let mut spans = Vec::new();
    for resource in list(&otlp["result"], "resourceSpans") {
        let about = pairs(&resource["resource"]);
        for key in ["service.name", "service.namespace", "service.instance.id", "host.name"] {
            assert!(about.get(key).is_some_and(|value| !value.is_empty()), "{key} in {about:?}");
        }
        assert_eq!(about["service.namespace"], "default");
        for scope in list(resource, "scopeSpans") {
            assert_eq!(scope["scope"]["name"], "weft");
            spans.extend(list(scope, "spans").map(|span| read(span, &about["service.name"], trace)));
        }
    }
    assert_eq!(spans.len(), count, "{spans:#?}");
    let failed = spans.iter().filter(|span| span.failed).count();
    assert_eq!(ours_errors(&found), Some(failed), "{found:#}");
    spans.sort_by_key(|span| span.start);
    spans
}

fn ours_errors(ours: &Value) -> Option<usize> {
    usize::try_from(ours["errors"].as_u64()?).ok()
}

fn read(span: &Value, service: &str, trace: &str) -> Span {
    assert_eq!(span["traceId"], trace);
    let code = span["status"]["code"].as_u64().unwrap_or(0);
    assert_ne!(code, 1, "OK is the application's to say: {span}");
    assert!(span["status"]["message"].as_str().is_none_or(str::is_empty), "the code says it: {span}");
    let kind = match span["kind"].as_u64() {
        Some(1) => Kind::Internal,
        Some(2) => Kind::Server,
        Some(3) => Kind::Client,
        _ => panic!("{span}"),
    };
    let time = |key: &str| text(&span[key]).parse::<u64>().expect("nanoseconds");
    assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"), "{span}");
    Span {
        id: text(&span["spanId"]),
        parent: text(&span["parentSpanId"]),
        service: service.to_owned(),
        kind,
        name: text(&span["name"]),
        start: time("startTimeUnixNano"),
        failed: code == 2,
        events: list(span, "events").map(|event| (text(&event["name"]), pairs(event))).collect(),
        attributes: pairs(span),
    }
}

/// What the spans say, a line for each thing: `SERVICE KIND N WHAT`, where N numbers the spans of a kind of a service and
/// WHAT is `name: ...`, `failed`, `event: ...`, `event NAME KEY: ...` or an attribute.
pub fn lines(spans: &[Span]) -> Vec<String> {
    let mut counts: BTreeMap<(&str, Kind), usize> = BTreeMap::new();
    let mut lines = Vec::new();
    for span in spans {
        let number = counts.entry((&span.service, span.kind)).or_default();
        *number += 1;
        let start = format!("{} {} {number}", span.service, span.kind.word());
        lines.push(format!("{start} name: {}", span.name));
        if span.failed {
            lines.push(format!("{start} failed"));
        }
        for (event, details) in &span.events {
            lines.push(format!("{start} event: {event}"));
            lines.extend(details.iter().map(|(key, value)| format!("{start} event {event} {key}: {value}")));
        }
        lines.extend(span.attributes.iter().map(|(key, value)| format!("{start} {key}: {value}")));
    }
    lines
}

/// SERVER spans are children of the CLIENT span of the hop, CLIENT spans of the SERVER span of the same workload, and what
/// comes after a handshake is below it.
pub fn check_links(spans: &[Span], root: &str) {
    for span in spans {
        let parent = spans.iter().find(|other| other.id == span.parent);
        match (span.kind, parent) {
            (Kind::Server, Some(parent)) => {
                assert!(parent.kind == Kind::Client && parent.service != span.service, "{span:#?} below {parent:#?}");
                let same = |other: &&Span| other.parent == span.parent && other.kind == Kind::Server;
                assert_eq!(spans.iter().filter(same).count(), 1, "each try has a SERVER span of its own: {spans:#?}");
            }
            (Kind::Client, Some(parent)) => {
                assert!(parent.kind == Kind::Server && parent.service == span.service, "{span:#?} {parent:#?}");
            }
            (Kind::Internal, Some(parent)) => {
                assert!(parent.kind != Kind::Internal && parent.service == span.service, "{span:#?} {parent:#?}");
            }
            (Kind::Client, None) => assert_eq!((span.service.as_str(), span.parent.as_str()), ("client", root)),
            (_, None) => panic!("without what caused it: {span:#?}"),
        }
    }
}

/// What is told of connections on whose bytes nobody looks at messages.
pub fn check_bytes(spans: &[Span]) {
    for span in spans {
        for key in ["network.transport", "weft.bytes.sent", "weft.bytes.received", "network.peer.address"] {
            assert!(span.attributes.contains_key(key), "{key} is missing: {span:#?}");
        }
        let requests = |key: &&String| ["http.", "url.", "rpc."].iter().any(|of| key.starts_with(of));
        assert_eq!(span.attributes.keys().find(requests), None, "{span:#?}");
        assert_eq!(span.failed, span.attributes.contains_key("error.type"), "{span:#?}");
    }
}

/// What the conventions require of each kind, and what they keep from it.
pub fn check_attributes(spans: &[Span], grpc: bool) {
    for span in spans {
        let has = |key: &str| span.attributes.contains_key(key);
        let server = span.kind == Kind::Server;
        let required = if server { ["url.path", "url.scheme"] } else { ["url.full", "server.address"] };
        let forbidden: &[&str] =
            if server { &["url.full", "http.request.resend_count"] } else { &["url.path", "url.query", "http.route"] };
        let call: &[&str] = if grpc { &["rpc.system.name", "rpc.method"] } else { &["http.request.method"] };
        let common = ["server.address", "server.port", "network.protocol.version", "network.peer.address"];
        for key in required.iter().chain(&common).chain(call) {
            assert!(has(key), "{key} is missing: {span:#?}");
        }
        for key in forbidden {
            assert!(!has(key), "{key} is not for this kind: {span:#?}");
        }
        assert_eq!(span.failed, has("error.type"), "error.type is there with Error and only then: {span:#?}");
        assert_ne!(span.attributes.get("network.peer.port").map(String::as_str), Some("0"), "{span:#?}");
        assert!(!span.name.contains("17") && !span.name.contains('?'), "a raw path in {:?}", span.name);
        assert!(!span.attributes.values().any(|value| value.contains("s3cr3t")), "{span:#?}");
    }
}
