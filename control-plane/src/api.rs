//! The operator's HTTP API, so far its reads: sync state, endpoints, problems of the resources, health.

mod explain;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_proto::{ResourceType, v1};

use crate::{
    push::{
        View,
        proxies::{Proxies, Proxy},
        stream::TypeStatus,
    },
    source::Problem,
};

/// What the API reads.
#[derive(Clone)]
pub struct ApiState {
    /// Connected sidecars.
    pub proxies: Proxies,
    /// What is pushed.
    pub view: watch::Receiver<Arc<View>>,
    /// Problems of the resources, as of the last compile.
    pub problems: Arc<Mutex<Vec<Problem>>>,
}

/// The routes, with the check that keeps web pages out.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/weft/v1/proxies", get(proxies))
        .route("/weft/v1/endpoints", get(endpoints))
        .route("/weft/v1/resources/errors", get(errors))
        .route("/weft/v1/explain", get(explain::get))
        .layer(middleware::from_fn(local_only))
        .with_state(state)
}

/// A page in a browser on this machine can reach loopback: its Host or Origin gives it away.
async fn local_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if is_local(host) && !request.headers().contains_key(header::ORIGIN) {
        return next.run(request).await;
    }
    let text = format!("host {host:?} is not served here: use 127.0.0.1 or localhost, and no browser\n");
    (StatusCode::FORBIDDEN, text).into_response()
}

fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || host.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || name == "127.0.0.1"
}

async fn proxies(State(state): State<ApiState>) -> Json<Value> {
    let items: Vec<Value> = state.proxies.rows().iter().map(proxy).collect();
    Json(json!({ "revision": state.view.borrow().revision, "items": items }))
}

fn proxy(proxy: &Proxy) -> Value {
    let types: Vec<Value> = proxy.types.iter().map(type_status).collect();
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
        "types": types,
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

#[derive(serde::Deserialize)]
struct EndpointsQuery {
    service: Option<String>,
}

async fn endpoints(State(state): State<ApiState>, Query(query): Query<EndpointsQuery>) -> Json<Value> {
    let view = Arc::clone(&state.view.borrow());
    let slices = view
        .all(ResourceType::EndpointSlice)
        .filter_map(|resource| v1::EndpointSlice::decode(resource.resource.as_ref()?.value.as_ref()).ok());
    let wanted = slices.filter(|slice| query.service.as_ref().is_none_or(|service| *service == slice.service));
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
    Json(json!({ "items": items }))
}

async fn errors(State(state): State<ApiState>) -> Json<Value> {
    let problems = state.problems.lock().unwrap_or_else(PoisonError::into_inner);
    Json(json!({ "items": *problems }))
}

async fn metrics(State(state): State<ApiState>) -> String {
    let connected = state.proxies.rows().len();
    let (revision, problems) =
        (state.view.borrow().revision, state.problems.lock().unwrap_or_else(PoisonError::into_inner).len());
    format!(
        "# HELP weft_connected_proxies Sidecars connected.\n# TYPE weft_connected_proxies gauge\nweft_connected_proxies {connected}\n\
         # HELP weft_config_revision Revision of what is pushed.\n# TYPE weft_config_revision gauge\nweft_config_revision {revision}\n\
         # HELP weft_resource_problems Problems of the resources.\n# TYPE weft_resource_problems gauge\nweft_resource_problems {problems}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_loopback_hosts_are_served() {
        for host in ["127.0.0.1:15014", "localhost:15014", "localhost", "[::1]:15014"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:15014", "127.0.0.1.evil.example", "10.0.0.1:15014"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
