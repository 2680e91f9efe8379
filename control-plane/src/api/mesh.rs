//! Reads of what the mesh does: sync state of the sidecars, endpoints, problems of the resources, metrics.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use axum::{
    Json,
    extract::{Extension, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use prost::Message;
use serde_json::{Value, json};
use weft_metrics::Format;
use weft_proto::{ResourceType, v1};

use super::{ApiState, Caller, status::ApiError};
use crate::push::{Reflected, proxies::Proxy, stream::TypeStatus};

/// GET `/weft/v1/proxies`: `storeRevision` is the last event of the store that what is pushed reflects, and that of an
/// item the last one that the sidecar has acknowledged, or refused, all of. A write is in force everywhere when all of
/// them have come to its revision.
pub async fn proxies(State(state): State<ApiState>, Extension(caller): Extension<Caller>) -> Json<Value> {
    // Before the rows: a sidecar is never said to be further than it is.
    let pushed = *state.pushed.reflected.borrow();
    let rows = state.proxies.rows();
    let seen = rows.iter().filter(|row| caller.sees(&row.registration.namespace));
    let items: Vec<Value> = seen.map(|row| proxy(row, pushed)).collect();
    Json(json!({ "revision": state.pushed.view.borrow().revision, "storeRevision": pushed.store, "items": items }))
}

/// GET `/weft/v1/prometheus/targets`: where the connected sidecars are scraped, as Prometheus' discovery by HTTP has it.
pub async fn targets(State(state): State<ApiState>, Extension(caller): Extension<Caller>) -> Json<Value> {
    let rows = state.proxies.rows();
    let seen = rows.iter().filter(|row| caller.sees(&row.registration.namespace));
    let targets = seen.filter_map(|row| {
        let registration = &row.registration;
        // Nothing but an address: a scraper goes where it is sent.
        let address: SocketAddr = registration.admin_address.parse().ok()?;
        let workload = format!("{}/{}", registration.namespace, registration.name);
        let app = registration.labels.get("app").map_or("", String::as_str);
        let labels = json!({ "workload": workload, "workload_namespace": registration.namespace, "app": app });
        Some(json!({ "targets": [address.to_string()], "labels": labels }))
    });
    Json(targets.collect())
}

fn proxy(proxy: &Proxy, pushed: Reflected) -> Value {
    let types: Vec<Value> = proxy.types.iter().map(type_status).collect();
    let port = |of: &v1::PortConnections| json!({ "port": of.port, "plaintext": of.plaintext, "mtls": of.mtls, "strict": of.strict });
    json!({
        "name": proxy.registration.name,
        "namespace": proxy.registration.namespace,
        "spiffeId": proxy.peer.id.as_str(),
        "address": proxy.address,
        "connectedSeconds": proxy.connected.elapsed().as_secs(),
        "sidecarVersion": proxy.registration.sidecar_version,
        "healthy": proxy.registration.healthy,
        "draining": proxy.registration.draining,
        "certExpirySeconds": proxy.certificate_seconds(SystemTime::now()),
        "storeRevision": proxy.store_revision(pushed),
        "connections": proxy.registration.connections.iter().map(port).collect::<Vec<_>>(),
        "tracePropagation": proxy.registration.trace_propagation.as_ref().map(propagation),
        "types": types,
    })
}

fn propagation(of: &v1::TracePropagation) -> Value {
    json!({
        "served": of.served, "passedOn": of.passed_on, "orphans": of.orphans, "orphansMeanwhile": of.orphans_meanwhile,
    })
}

fn type_status(of: &TypeStatus) -> Value {
    let rejection =
        |of: &v1::Rejection| json!({ "name": of.name, "version": of.version, "field": of.field, "reason": of.reason });
    json!({
        "type": of.kind.name(),
        "state": of.state.as_str(),
        "sent": of.sent,
        "acked": of.acked,
        "sentRevision": of.sent_revision,
        "ackedRevision": of.acked_revision,
        "error": of.error,
        "refused": of.refused.iter().map(rejection).collect::<Vec<_>>(),
    })
}

/// Query of `/weft/v1/endpoints`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointsQuery {
    service: Option<String>,
}

/// GET `/weft/v1/endpoints`.
pub async fn endpoints(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<EndpointsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let view = Arc::clone(&state.pushed.view.borrow());
    let slices = view
        .all(ResourceType::EndpointSlice, "")
        .filter_map(|resource| v1::EndpointSlice::decode(resource.resource.as_ref()?.value.as_ref()).ok());
    let seen = slices.filter(|slice| caller.sees(slice.service.split('/').next().unwrap_or_default()));
    let wanted = seen.filter(|slice| query.service.as_ref().is_none_or(|service| *service == slice.service));
    let items: Vec<Value> = wanted
        .flat_map(|slice| {
            slice.endpoints.into_iter().map(move |endpoint| {
                json!({
                    "service": slice.service, "address": endpoint.address, "ports": endpoint.ports,
                    "mesh": endpoint.mesh_address, "spiffeId": endpoint.spiffe_id, "healthy": endpoint.healthy,
                    "draining": endpoint.draining, "workload": endpoint.workload,
                })
            })
        })
        .collect();
    Ok(Json(json!({ "items": items })))
}

/// GET `/weft/v1/resources/errors`.
pub async fn errors(State(state): State<ApiState>) -> Json<Value> {
    let problems = state.pushed.problems.lock().unwrap_or_else(PoisonError::into_inner);
    Json(json!({ "items": *problems }))
}

/// GET `/readyz`: whether everything is served. Everybody may ask, so why it is not is in the log and the metrics.
pub async fn ready(State(state): State<ApiState>) -> (StatusCode, &'static str) {
    match state.store.stopped() {
        None => (StatusCode::OK, "ok\n"),
        Some(_) => {
            let text = "the store takes no writes until a restart: the log of the control plane says why\n";
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

/// GET `/metrics`: in the form that the scraper asks for.
pub async fn metrics(State(state): State<ApiState>, headers: HeaderMap) -> impl IntoResponse {
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()));
    let text = crate::metrics::snapshot(&state).render(format);
    ([(header::CONTENT_TYPE, format.content_type())], text)
}
