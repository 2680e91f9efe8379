//! OTLP messages to the spans that are kept: ids checked, everything within limits, and back to OTLP's JSON.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{Span as OtlpSpan, span::SpanKind, status::StatusCode},
};
use serde_json::json;
use weft_policy::trace::{SpanId, TraceId};

use super::{Event, Process, Span, Status, Value};

/// Characters of a text.
const MAX_TEXT: usize = 4096;
/// Attributes of a span or an event, events of a span, links of a span.
const MAX_LIST: usize = 128;

/// The spans of an export, and how many had no valid ids.
pub fn spans(request: ExportTraceServiceRequest) -> (Vec<Span>, usize) {
    let (mut taken, mut refused) = (Vec::new(), 0);
    for from in request.resource_spans {
        let process = Arc::new(process(from.resource.unwrap_or_default()));
        for scope in from.scope_spans {
            let name = text(scope.scope.map(|scope| scope.name).unwrap_or_default());
            for found in scope.spans {
                match span(found, &process, &name) {
                    Some(span) => taken.push(span),
                    None => refused += 1,
                }
            }
        }
    }
    (taken, refused)
}

fn process(resource: Resource) -> Process {
    let mut attributes = attributes(resource.attributes);
    let service = attributes.iter().position(|(key, _)| key == "service.name").map(|index| attributes.remove(index).1);
    Process { service: service.map_or_else(|| "unknown_service".to_owned(), |name| name.to_string()), attributes }
}

fn span(from: OtlpSpan, process: &Arc<Process>, scope: &str) -> Option<Span> {
    let kind = match SpanKind::try_from(from.kind).unwrap_or_default() {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
        SpanKind::Internal | SpanKind::Unspecified => "internal",
    };
    let status = from.status.and_then(|status| {
        let code = StatusCode::try_from(status.code).unwrap_or_default();
        (code != StatusCode::Unset).then(|| Status { error: code == StatusCode::Error, message: text(status.message) })
    });
    let events = from.events.into_iter().take(MAX_LIST).map(|event| Event {
        time: event.time_unix_nano,
        name: text(event.name),
        attributes: attributes(event.attributes),
    });
    let links = from.links.iter().take(MAX_LIST);
    Some(Span {
        trace: trace_id(&from.trace_id)?,
        id: span_id(&from.span_id)?,
        parent: span_id(&from.parent_span_id),
        kind,
        name: text(from.name),
        start: from.start_time_unix_nano,
        duration: from.end_time_unix_nano.saturating_sub(from.start_time_unix_nano),
        status,
        attributes: attributes(from.attributes),
        events: events.collect(),
        links: links.filter_map(|link| Some((trace_id(&link.trace_id)?, span_id(&link.span_id)?))).collect(),
        process: Arc::clone(process),
        scope: scope.to_owned(),
    })
}

fn trace_id(bytes: &[u8]) -> Option<TraceId> {
    TraceId::from_bytes(bytes.try_into().ok()?)
}

fn span_id(bytes: &[u8]) -> Option<SpanId> {
    SpanId::from_bytes(bytes.try_into().ok()?)
}

fn attributes(from: Vec<KeyValue>) -> Vec<(String, Value)> {
    from.into_iter().take(MAX_LIST).filter_map(|entry| Some((text(entry.key), value(entry.value?)?))).collect()
}

fn value(from: AnyValue) -> Option<Value> {
    use any_value::Value as Any;
    Some(match from.value? {
        Any::StringValue(value) => Value::Text(text(value)),
        Any::BoolValue(value) => Value::Bool(value),
        Any::IntValue(value) => Value::Int(value),
        Any::DoubleValue(value) => Value::Float(value),
        other => Value::Text(text(plain(&other, 0).to_string())),
    })
}

/// Lists and maps as JSON, to a depth that no honest one reaches.
fn plain(from: &any_value::Value, depth: usize) -> serde_json::Value {
    use any_value::Value as Any;
    let inner = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(value) if depth < 8 => plain(value, depth + 1),
        _ => serde_json::Value::Null,
    };
    match from {
        Any::StringValue(value) => json!(value),
        Any::BoolValue(value) => json!(value),
        Any::IntValue(value) => json!(value),
        Any::DoubleValue(value) => json!(value),
        Any::BytesValue(value) => json!(value.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        Any::ArrayValue(list) => list.values.iter().map(|value| inner(&Some(value.clone()))).collect(),
        Any::KvlistValue(map) => map.values.iter().map(|entry| (entry.key.clone(), inner(&entry.value))).collect(),
        // A reference into a table of strings, which traces do not have.
        _ => serde_json::Value::Null,
    }
}

fn text(mut from: String) -> String {
    if from.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&index| from.is_char_boundary(index)).unwrap_or(0);
        from.truncate(end);
    }
    from
}

/// Traces in OTLP's JSON (`TracesData`), spans of one process together.
pub fn json<'a>(traces: impl IntoIterator<Item = &'a [Arc<Span>]>) -> serde_json::Value {
    let mut resources: Vec<(&Arc<Process>, &str, Vec<serde_json::Value>)> = Vec::new();
    for span in traces.into_iter().flatten() {
        let (process, scope) = (&span.process, span.scope.as_str());
        let place = resources.iter().position(|(of, by, _)| *of == process && *by == scope).unwrap_or_else(|| {
            resources.push((process, scope, Vec::new()));
            resources.len() - 1
        });
        resources[place].2.push(span_json(span));
    }
    let resources = resources.into_iter().map(|(process, scope, spans)| {
        let mut attributes = pairs(&process.attributes);
        attributes.insert(0, pair("service.name", &Value::Text(process.service.clone())));
        let scoped = json!([{ "scope": { "name": scope }, "spans": spans }]);
        json!({ "resource": { "attributes": attributes }, "scopeSpans": scoped })
    });
    json!({ "resourceSpans": resources.collect::<Vec<_>>() })
}

fn span_json(span: &Span) -> serde_json::Value {
    let kind = match span.kind {
        "server" => 2,
        "client" => 3,
        "producer" => 4,
        "consumer" => 5,
        _ => 1,
    };
    let events = span.events.iter().map(|event| {
        json!({ "timeUnixNano": event.time.to_string(), "name": event.name, "attributes": pairs(&event.attributes) })
    });
    let links =
        span.links.iter().map(|(trace, span)| json!({ "traceId": trace.to_string(), "spanId": span.to_string() }));
    let status = span.status.as_ref().map_or_else(
        || json!({}),
        |status| json!({ "code": if status.error { 2 } else { 1 }, "message": status.message }),
    );
    json!({
        "traceId": span.trace.to_string(), "spanId": span.id.to_string(),
        "parentSpanId": span.parent.map(|id| id.to_string()).unwrap_or_default(),
        "name": span.name, "kind": kind,
        "startTimeUnixNano": span.start.to_string(), "endTimeUnixNano": span.end().to_string(),
        "attributes": pairs(&span.attributes), "events": events.collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(), "status": status,
    })
}

fn pairs(attributes: &[(String, Value)]) -> Vec<serde_json::Value> {
    attributes.iter().map(|(key, value)| pair(key, value)).collect()
}

fn pair(key: &str, value: &Value) -> serde_json::Value {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": text }),
        Value::Bool(value) => json!({ "boolValue": value }),
        Value::Int(value) => json!({ "intValue": value.to_string() }),
        Value::Float(value) => json!({ "doubleValue": value }),
    };
    json!({ "key": key, "value": value })
}
