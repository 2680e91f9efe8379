//! `GET /weft/v1/graph`: who is connected to what, as the control plane knows it. Traffic is not in it: that is the
//! sidecars' metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Extension, State},
};
use prost::Message as _;
use serde_json::{Value, json};
use weft_proto::{ResourceType, v1};

use super::{ApiState, Caller};
use crate::push::{View, proxies::Proxy};

/// Serves the graph to every role; what is in other namespaces than the token's is left out, except the ids at the far
/// end of edges that begin in its own.
///
/// ```json
/// {
///   "revision": 12, "storeRevision": 40,
///   "nodes": [
///     {"id": "service:shop/catalog", "type": "service", "namespace": "shop", "name": "catalog",
///      "ports": [{"port": 80, "name": "http", "protocol": "http"}], "workloads": 2,
///      "endpoints": {"total": 2, "healthy": 1, "draining": 0}},
///     {"id": "workload:shop/catalog-x1", "type": "workload", "namespace": "shop", "name": "catalog-x1",
///      "services": ["shop/catalog"], "connected": true, "healthy": true, "draining": false,
///      "spiffeId": "spiffe://weft.local/ns/shop/sa/catalog", "storeRevision": 40}
///   ],
///   "edges": [
///     {"type": "route", "from": "service:shop/catalog", "port": 80, "route": "shop/canary", "rule": "v2",
///      "to": "service:shop/catalog-v2", "toPort": 80, "weight": 1, "share": 0.25},
///     {"type": "route", "clients": "far", "from": "service:shop/catalog", "port": 80, "route": "far/mine", "rule": "0",
///      "to": "service:shop/catalog", "toPort": 80, "weight": 1, "share": 1.0},
///     {"type": "subscription", "from": "workload:shop/web-y2", "to": "service:shop/catalog"}
///   ]
/// }
/// ```
///
/// `revision` counts what was pushed since the control plane began; `storeRevision` is the event that it reflects.
/// `workloads` counts the endpoints of a service that are workloads with a sidecar; `endpoints` counts all. A workload is
/// there when its sidecar is connected, or when it is an endpoint: then `connected` is false, and what only its sidecar
/// tells is left out. `share` is the part of the rule's requests, from 0 to 1. A sidecar subscribes to the services that
/// its app has called or has declared, and to those that their routes lead to; `service:*` is all of them. `clients` is
/// there where a route is for the clients of its own namespace alone; it belongs to that namespace.
pub async fn get(State(state): State<ApiState>, Extension(caller): Extension<Caller>) -> Json<Value> {
    // Before the rows: a sidecar is never said to be further than it is.
    let pushed = *state.pushed.reflected.borrow();
    let view = Arc::clone(&state.pushed.view.borrow());
    let rows = state.proxies.rows();
    let sees = |id: &str| caller.sees(id.split('/').next().unwrap_or_default());
    let services = services(&view);
    let mut workloads: BTreeMap<String, Value> = BTreeMap::new();
    for service in &services {
        for endpoint in service.endpoints.iter().filter(|endpoint| !endpoint.workload.is_empty()) {
            let node = workloads.entry(endpoint.workload.clone()).or_insert_with(|| instance(endpoint));
            if let Some(of) = node["services"].as_array_mut() {
                of.push(service.message.id.clone().into());
            }
        }
    }
    for row in rows.iter().filter(|row| !row.registration.name.is_empty()) {
        let node = workloads.entry(workload_id(row)).or_insert_with(|| node("workload", &workload_id(row)));
        let of = node["services"].take();
        let more = json!({
            "services": if of.is_null() { json!([]) } else { of }, "connected": true,
            "healthy": row.registration.healthy, "draining": row.registration.draining,
            "spiffeId": row.peer.id.as_str(), "storeRevision": row.store_revision(pushed),
        });
        extend(node, more);
    }
    let seen = services.iter().filter(|service| sees(&service.message.id));
    let mut nodes: Vec<Value> = seen.clone().map(Service::node).collect();
    nodes.extend(workloads.into_iter().filter(|(id, _)| sees(id)).map(|(_, node)| node));
    let mut edges: Vec<Value> = seen.flat_map(|service| edges(&service.message)).collect();
    edges.extend(consumer_edges(&view, &sees));
    edges.extend(rows.iter().filter(|row| sees(&row.registration.namespace)).flat_map(subscriptions));
    Json(json!({ "revision": view.revision, "storeRevision": pushed.store, "nodes": nodes, "edges": edges }))
}

struct Service {
    message: v1::Service,
    endpoints: Vec<v1::Endpoint>,
}

fn services(view: &View) -> Vec<Service> {
    let mut endpoints: BTreeMap<String, Vec<v1::Endpoint>> = BTreeMap::new();
    for resource in view.all(ResourceType::EndpointSlice, "") {
        let bytes = resource.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        if let Ok(slice) = v1::EndpointSlice::decode(bytes) {
            endpoints.entry(slice.service).or_default().extend(slice.endpoints);
        }
    }
    let decoded = view
        .all(ResourceType::Service, "")
        .filter_map(|resource| v1::Service::decode(resource.resource.as_ref()?.value.as_ref()).ok());
    decoded.map(|message| Service { endpoints: endpoints.remove(&message.id).unwrap_or_default(), message }).collect()
}

impl Service {
    fn node(&self) -> Value {
        let ports = self
            .message
            .ports
            .iter()
            .map(|port| json!({ "port": port.port, "name": port.name, "protocol": protocol(port.protocol()) }));
        let count = |test: fn(&v1::Endpoint) -> bool| self.endpoints.iter().filter(|endpoint| test(endpoint)).count();
        let workloads: BTreeSet<&str> = self.endpoints.iter().map(|endpoint| endpoint.workload.as_str()).collect();
        let mut node = node("service", &self.message.id);
        let more = json!({
            "ports": ports.collect::<Vec<_>>(),
            "workloads": workloads.iter().filter(|workload| !workload.is_empty()).count(),
            "endpoints": {
                "total": self.endpoints.len(),
                "healthy": count(|endpoint| endpoint.healthy && !endpoint.draining),
                "draining": count(|endpoint| endpoint.draining),
            },
        });
        extend(&mut node, more);
        node
    }
}

/// To each service that a rule of a route leads to.
fn edges(service: &v1::Service) -> Vec<Value> {
    let mut edges = Vec::new();
    for port in &service.ports {
        for rule in port.routing.iter().flat_map(|routing| &routing.rules) {
            let (route, name) = rule.name.rsplit_once('#').unwrap_or((&rule.name, ""));
            let total: f64 = rule.backends.iter().map(|backend| f64::from(backend.weight)).sum();
            for backend in rule.backends.iter().filter(|backend| !backend.service.is_empty()) {
                let share = if total > 0.0 { f64::from(backend.weight) / total } else { 0.0 };
                edges.push(json!({
                    "type": "route", "from": format!("service:{}", service.id), "port": port.port,
                    "route": route, "rule": name, "to": format!("service:{}", backend.service),
                    "toPort": backend.port, "weight": backend.weight, "share": share,
                }));
            }
        }
    }
    edges
}

/// Those of routes for the clients of their own namespace, which are the namespace's and not the service's.
fn consumer_edges(view: &View, sees: &dyn Fn(&str) -> bool) -> Vec<Value> {
    let mut found = Vec::new();
    for (clients, resource) in view.instead(ResourceType::Service).filter(|(clients, _)| sees(clients)) {
        let bytes = resource.resource.as_ref().map(|any| any.value.as_ref()).unwrap_or_default();
        let Ok(service) = v1::Service::decode(bytes) else { continue };
        // The ports without routes of theirs have those of all clients, which are there already.
        let own = |edge: &Value| edge["route"].as_str().is_some_and(|route| route.split('/').next() == Some(clients));
        for mut edge in edges(&service).into_iter().filter(own) {
            edge["clients"] = clients.into();
            found.push(edge);
        }
    }
    found
}

/// The words of `weft explain`.
fn protocol(protocol: v1::Protocol) -> String {
    if protocol == v1::Protocol::Unspecified {
        return "undeclared".to_owned();
    }
    protocol.as_str_name().trim_start_matches("PROTOCOL_").to_lowercase()
}

fn workload_id(row: &Proxy) -> String {
    format!("{}/{}", row.registration.namespace, row.registration.name)
}

/// A workload of which only its endpoint is known.
fn instance(endpoint: &v1::Endpoint) -> Value {
    let mut node = node("workload", &endpoint.workload);
    let more = json!({
        "services": [], "connected": false, "healthy": endpoint.healthy, "draining": endpoint.draining,
        "spiffeId": endpoint.spiffe_id,
    });
    extend(&mut node, more);
    node
}

fn subscriptions(row: &Proxy) -> impl Iterator<Item = Value> {
    let from = format!("workload:{}", workload_id(row));
    let named = !row.registration.name.is_empty();
    let services = row.services.iter().filter(move |_| named);
    services.map(move |service| json!({ "type": "subscription", "from": from, "to": format!("service:{service}") }))
}

fn node(kind: &str, id: &str) -> Value {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    json!({ "id": format!("{kind}:{id}"), "type": kind, "namespace": namespace, "name": name })
}

fn extend(node: &mut Value, more: Value) {
    if let (Some(fields), Value::Object(more)) = (node.as_object_mut(), more) {
        fields.extend(more);
    }
}
