//! `/weft/v1/traces`, for `weft trace`: the newest traces in a line each, and one with all its spans.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query as Parameters, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde_json::{Value as Object, json};
use weft_policy::trace::TraceId;

use super::{
    Span, Value, jaeger,
    query::{Query, duration},
};
use crate::api::{ApiError, ApiState};

/// Query of `/weft/v1/traces`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ListQuery {
    service: Option<String>,
    min_duration: Option<String>,
    errors: Option<bool>,
    limit: Option<usize>,
}

fn none(message: String) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
}

/// GET `/weft/v1/traces`: newest first.
pub async fn list(
    State(state): State<ApiState>,
    query: Result<Parameters<ListQuery>, QueryRejection>,
) -> Result<Json<Object>, ApiError> {
    let Parameters(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let traces = jaeger::kept(&state).map_err(none)?;
    let shortest = query.min_duration.as_deref().map(duration).transpose().map_err(ApiError::bad_request)?;
    let tags = query.errors.map(|errors| ("error".to_owned(), errors.to_string())).into_iter().collect();
    let question = Query { service: query.service, tags, shortest, limit: query.limit, ..Query::default() };
    let items: Vec<Object> = question.run(traces).iter().map(|spans| summary(spans)).collect();
    let counts = traces.counts();
    let counts = json!({ "received": counts.received, "dropped": counts.dropped, "held": counts.held });
    Ok(Json(json!({ "items": items, "spans": counts })))
}

/// GET `/weft/v1/traces/{id}`: the spans by their start.
pub async fn get(State(state): State<ApiState>, Path(id): Path<String>) -> Result<Json<Object>, ApiError> {
    let wanted = TraceId::parse(&id).ok_or_else(|| {
        ApiError::bad_request(format!(
            "trace id {id:?}: expected up to 32 hexadecimal digits, as weft trace lists them"
        ))
    })?;
    let spans = jaeger::kept(&state).map_err(none)?.trace(wanted);
    let spans = spans.ok_or_else(|| none(format!("trace {id:?} is not in memory: it never came, or has made room")))?;
    let mut object = summary(&spans);
    object["items"] = spans.iter().map(|span| span_json(span)).collect();
    Ok(Json(object))
}

fn summary(spans: &[Arc<Span>]) -> Object {
    let start = spans.iter().map(|span| span.start).min().unwrap_or(0);
    let end = spans.iter().map(|span| span.end()).max().unwrap_or(0);
    let services: BTreeSet<&str> = spans.iter().map(|span| span.process.service.as_str()).collect();
    let first = spans.iter().find(|span| span.parent.is_none()).or_else(|| spans.first());
    json!({
        "id": first.map(|span| span.trace.to_string()),
        "service": first.map(|span| span.process.service.as_str()),
        "name": first.map(|span| span.name.as_str()),
        "startUnixNano": start.to_string(),
        "durationNanos": end.saturating_sub(start),
        "spans": spans.len(),
        "errors": spans.iter().filter(|span| span.failed()).count(),
        "services": services,
    })
}

fn span_json(span: &Span) -> Object {
    let events = span.events.iter().map(|event| {
        json!({ "timeUnixNano": event.time.to_string(), "name": event.name, "attributes": map(&event.attributes) })
    });
    json!({
        "id": span.id.to_string(), "parent": span.parent.map(|id| id.to_string()), "kind": span.kind,
        "service": span.process.service, "name": span.name, "scope": span.scope,
        "startUnixNano": span.start.to_string(), "durationNanos": span.duration,
        "error": span.failed(), "attributes": map(&span.attributes), "events": events.collect::<Vec<_>>(),
    })
}

fn map(attributes: &[(String, Value)]) -> Object {
    let value = |value: &Value| match value {
        Value::Text(text) => json!(text),
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float(value) => json!(value),
    };
    attributes.iter().map(|(key, held)| (key.clone(), value(held))).collect()
}
