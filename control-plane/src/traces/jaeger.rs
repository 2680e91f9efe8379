//! Jaeger's query API over the spans in memory: the JSON of `/api/services`, `/api/traces` and the like, which Jaeger's UI
//! and Grafana's Jaeger source read, and `/api/v3`, which gives OTLP's JSON.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value as Object, json};
use weft_policy::trace::TraceId;

use super::{
    Process, Span, Traces, Value, otlp,
    query::{Query, duration},
};
use crate::api::ApiState;

/// The routes. Where this control plane keeps no traces, each answers 404 and says so.
pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/services", get(services))
        .route("/api/services/{service}/operations", get(operations_of))
        .route("/api/operations", get(operations))
        .route("/api/traces", get(search))
        .route("/api/traces/{id}", get(trace))
        .route("/api/dependencies", get(dependencies))
        .route("/api/v3/services", get(v3_services))
        .route("/api/v3/operations", get(v3_operations))
        .route("/api/v3/traces", get(v3_search))
        .route("/api/v3/traces/{id}", get(v3_trace))
        .route("/sampling", get(super::sampling::sampling))
}

/// Whether a path is one of these, for the decision who may read it.
#[must_use]
pub fn serves(path: &str) -> bool {
    let first = path.strip_prefix("/api/").and_then(|rest| rest.split('/').next());
    matches!(first, Some("services" | "operations" | "traces" | "dependencies" | "v3"))
}

/// Jaeger's own form of a failure.
struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let errors = json!([{ "code": self.0.as_u16(), "msg": self.1 }]);
        let body = json!({ "data": null, "total": 0, "limit": 0, "offset": 0, "errors": errors });
        (self.0, Json(body)).into_response()
    }
}

type Answer = Result<Json<Object>, Failure>;

/// The store, where there is one.
pub fn kept(state: &ApiState) -> Result<&Traces, String> {
    state.traces.as_ref().ok_or_else(|| {
        "this control plane keeps no traces: start it with --dev or --otlp-listen, or ask the tracing backend".into()
    })
}

fn store(state: &ApiState) -> Result<&Traces, Failure> {
    kept(state).map_err(|message| Failure(StatusCode::NOT_FOUND, message))
}

fn data(list: Vec<Object>) -> Answer {
    Ok(Json(json!({ "total": list.len(), "limit": 0, "offset": 0, "errors": null, "data": list })))
}

fn bad(message: impl Into<String>) -> Failure {
    Failure(StatusCode::BAD_REQUEST, message.into())
}

async fn services(State(state): State<ApiState>) -> Answer {
    data(store(&state)?.services().into_keys().map(Object::from).collect())
}

async fn operations_of(State(state): State<ApiState>, Path(service): Path<String>) -> Answer {
    let mut names: Vec<_> = store(&state)?.services().remove(&service).unwrap_or_default();
    names.dedup_by(|a, b| a.0 == b.0);
    data(names.into_iter().map(|(name, _)| name.into()).collect())
}

async fn operations(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Answer {
    data(operations_named(store(&state)?, &Parameters::new(query), "spanKind")?)
}

fn operations_named(traces: &Traces, query: &Parameters, kind: &str) -> Result<Vec<Object>, Failure> {
    let service = query.one("service").ok_or_else(|| bad("parameter \"service\" is required"))?;
    let kind = query.one(kind).filter(|kind| !kind.is_empty());
    let all = traces.services().remove(service).unwrap_or_default();
    let wanted = all.into_iter().filter(|(_, of)| kind.is_none_or(|kind| kind == *of));
    Ok(wanted.map(|(name, kind)| json!({ "name": name, "spanKind": kind })).collect())
}

async fn search(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Answer {
    let (traces, query) = (store(&state)?, Parameters::new(query));
    let ids: Vec<&str> = query.all("traceID").collect();
    let found: Vec<Vec<Arc<Span>>> = if ids.is_empty() {
        query.question()?.run(traces)
    } else {
        let ids = ids.into_iter().map(trace_id).collect::<Result<Vec<_>, _>>()?;
        ids.into_iter().filter_map(|id| traces.trace(id)).collect()
    };
    data(found.iter().map(|spans| trace_json(spans)).collect())
}

async fn trace(State(state): State<ApiState>, Path(id): Path<String>) -> Answer {
    data(vec![trace_json(&find(store(&state)?, &id)?)])
}

fn find(traces: &Traces, id: &str) -> Result<Vec<Arc<Span>>, Failure> {
    traces.trace(trace_id(id)?).ok_or_else(|| Failure(StatusCode::NOT_FOUND, "trace not found".into()))
}

fn trace_id(text: &str) -> Result<TraceId, Failure> {
    TraceId::parse(text).ok_or_else(|| bad(format!("trace id {text:?}: expected up to 32 hexadecimal digits")))
}

/// `endTs` and `lookback` are milliseconds; the default is the last day.
async fn dependencies(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Answer {
    let (traces, query) = (store(&state)?, Parameters::new(query));
    let end = query.number("endTs", 1_000_000)?.unwrap_or(u64::MAX);
    let back = query.number("lookback", 1_000_000)?;
    let from = back.map_or(0, |back| end.saturating_sub(back));
    let calls = traces.dependencies(from, end).into_iter();
    data(calls.map(|((from, to), count)| json!({ "parent": from, "child": to, "callCount": count })).collect())
}

async fn v3_services(State(state): State<ApiState>) -> Answer {
    Ok(Json(json!({ "services": store(&state)?.services().into_keys().collect::<Vec<_>>() })))
}

async fn v3_operations(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Answer {
    let found = operations_named(store(&state)?, &Parameters::new(query), "span_kind")?;
    Ok(Json(json!({ "operations": found })))
}

async fn v3_search(State(state): State<ApiState>, RawQuery(query): RawQuery) -> Answer {
    let found = Parameters::new(query).v3_question()?.run(store(&state)?);
    Ok(Json(json!({ "result": otlp::json(found.iter().map(Vec::as_slice)) })))
}

async fn v3_trace(State(state): State<ApiState>, Path(id): Path<String>) -> Answer {
    let spans = find(store(&state)?, &id)?;
    Ok(Json(json!({ "result": otlp::json([spans.as_slice()]) })))
}

/// Parameters of a query, each perhaps several times.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn new(query: Option<String>) -> Self {
        let query = query.unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first that is not empty: UIs send empty ones for what was left out.
    fn one<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// A whole number in units of so many nanoseconds, as nanoseconds.
    fn number(&self, name: &str, unit: u64) -> Result<Option<u64>, Failure> {
        let Some(text) = self.one(name) else { return Ok(None) };
        let number: u64 = text.parse().map_err(|_| bad(format!("{name}={text:?}: expected a whole number")))?;
        Ok(Some(number.saturating_mul(unit)))
    }

    fn time_span(&self, name: &str) -> Result<Option<Duration>, Failure> {
        self.one(name).map(|text| duration(text).map_err(|error| bad(format!("{name}: {error}")))).transpose()
    }

    /// `/api/traces`: times in microseconds, `tag=key:value` and `tags={...}`.
    fn question(&self) -> Result<Query, Failure> {
        let mut tags: Vec<(String, String)> =
            self.all("tag").filter_map(|tag| tag.split_once(':')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        for text in self.all("tags").filter(|text| !text.is_empty()) {
            let map: HashMap<String, String> = serde_json::from_str(text)
                .map_err(|error| bad(format!("tags={text:?}: expected a JSON object of texts: {error}")))?;
            tags.extend(map);
        }
        Ok(Query {
            service: self.one("service").map(str::to_owned),
            operation: self.one("operation").filter(|name| *name != "all").map(str::to_owned),
            tags,
            from: self.number("start", 1000)?,
            to: self.number("end", 1000)?,
            shortest: self.time_span("minDuration")?,
            longest: self.time_span("maxDuration")?,
            limit: self.number("limit", 1)?.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        })
    }

    /// `/api/v3/traces`: `query.service_name` and so on, times in RFC 3339.
    fn v3_question(&self) -> Result<Query, Failure> {
        let time = |name: &str| -> Result<Option<u64>, Failure> {
            let Some(text) = self.one(name) else { return Ok(None) };
            let time: Timestamp = text.parse().map_err(|error| bad(format!("{name}={text:?}: {error}")))?;
            Ok(Some(u64::try_from(time.as_nanosecond()).unwrap_or(0)))
        };
        let limit = match self.number("query.num_traces", 1)? {
            Some(limit) => Some(limit),
            None => self.number("query.search_depth", 1)?,
        };
        Ok(Query {
            service: self.one("query.service_name").map(str::to_owned),
            operation: self.one("query.operation_name").map(str::to_owned),
            tags: Vec::new(),
            from: time("query.start_time_min")?,
            to: time("query.start_time_max")?,
            shortest: self.time_span("query.duration_min")?,
            longest: self.time_span("query.duration_max")?,
            limit: limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        })
    }
}

/// One trace as Jaeger's UI reads it; times in microseconds.
fn trace_json(spans: &[Arc<Span>]) -> Object {
    let mut processes: Vec<Arc<Process>> = Vec::new();
    let list: Vec<Object> = spans
        .iter()
        .map(|span| {
            let place = processes.iter().position(|process| *process == span.process).unwrap_or_else(|| {
                processes.push(Arc::clone(&span.process));
                processes.len() - 1
            });
            span_json(span, place)
        })
        .collect();
    let processes: serde_json::Map<String, Object> = processes
        .iter()
        .enumerate()
        .map(|(index, process)| {
            (process_id(index), json!({ "serviceName": process.service, "tags": tags(&process.attributes) }))
        })
        .collect();
    let id = spans.first().map(|span| span.trace.to_string()).unwrap_or_default();
    json!({ "traceID": id, "spans": list, "processes": processes, "warnings": null })
}

fn process_id(index: usize) -> String {
    format!("p{}", index + 1)
}

fn span_json(span: &Span, process: usize) -> Object {
    let trace = span.trace.to_string();
    let mut references: Vec<Object> = span
        .parent
        .iter()
        .map(|id| json!({ "refType": "CHILD_OF", "traceID": trace, "spanID": id.to_string() }))
        .collect();
    references.extend(span.links.iter().map(
        |(trace, id)| json!({ "refType": "FOLLOWS_FROM", "traceID": trace.to_string(), "spanID": id.to_string() }),
    ));
    let logs = span.events.iter().map(|event| {
        let mut fields = vec![tag("event", &Value::Text(event.name.clone()))];
        fields.extend(tags(&event.attributes));
        json!({ "timestamp": event.time / 1000, "fields": fields })
    });
    let mut all = tags(&span.attributes);
    all.push(tag("span.kind", &Value::Text(span.kind.into())));
    if let Some(status) = &span.status {
        all.push(tag("otel.status_code", &Value::Text(if status.error { "ERROR" } else { "OK" }.into())));
        if !status.message.is_empty() {
            all.push(tag("otel.status_description", &Value::Text(status.message.clone())));
        }
        if status.error {
            all.push(tag("error", &Value::Bool(true)));
        }
    }
    if !span.scope.is_empty() {
        all.push(tag("otel.scope.name", &Value::Text(span.scope.clone())));
    }
    json!({
        "traceID": trace, "spanID": span.id.to_string(), "operationName": span.name, "references": references,
        "startTime": span.start / 1000, "duration": span.duration / 1000, "tags": all,
        "logs": logs.collect::<Vec<_>>(), "processID": process_id(process), "warnings": null,
    })
}

fn tags(attributes: &[(String, Value)]) -> Vec<Object> {
    attributes.iter().map(|(key, value)| tag(key, value)).collect()
}

fn tag(key: &str, value: &Value) -> Object {
    match value {
        Value::Text(text) => json!({ "key": key, "type": "string", "value": text }),
        Value::Bool(value) => json!({ "key": key, "type": "bool", "value": value }),
        Value::Int(value) => json!({ "key": key, "type": "int64", "value": value }),
        Value::Float(value) => json!({ "key": key, "type": "float64", "value": value }),
    }
}
