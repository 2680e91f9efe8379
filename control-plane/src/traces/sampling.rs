//! Jaeger's remote sampling, `GET /sampling?service=NAME`: an app that traces itself
//! (`OTEL_TRACES_SAMPLER=parentbased_jaeger_remote`) begins as large a share of traces as its sidecar does.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::{Extension, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use prost::Message;
use serde_json::{Value, json};
use weft_proto::{ResourceType, v1};

use crate::api::{ApiError, ApiState, Caller};

/// Query of `/sampling`.
#[derive(serde::Deserialize)]
pub struct SamplingQuery {
    service: String,
}

/// The share of a service, by the name that its spans have. Where instances have different shares it is the largest.
pub async fn sampling(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<SamplingQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(SamplingQuery { service }) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let rows = state.proxies.rows();
    let own = rows.iter().map(|row| &row.registration).filter(|registration| {
        let name = registration.labels.get("app").unwrap_or(&registration.name);
        *name == service && caller.sees(&registration.namespace)
    });
    let ids: BTreeSet<String> = own.map(|of| format!("{}/{}", of.namespace, of.name)).collect();
    let view = std::sync::Arc::clone(&state.pushed.view.borrow());
    let configs = view
        .all(ResourceType::WorkloadConfig, "")
        .filter(|resource| ids.contains(&resource.name))
        .filter_map(|resource| v1::WorkloadConfig::decode(resource.resource.as_ref()?.value.as_ref()).ok());
    let share = configs.filter_map(|config| config.telemetry).map(|telemetry| telemetry.sampled_per_million).max();
    let share = share.ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", format!("no sidecar of a service {service:?} is connected"))
    })?;
    Ok(Json(json!({
        "strategyType": "PROBABILISTIC",
        "probabilisticSampling": { "samplingRate": f64::from(share) / 1e6 },
    })))
}
