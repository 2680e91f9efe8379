//! What the API tells of the mesh: the sidecars and what they hold, and who is connected to what.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;
use weft_policy::SpiffeId;
use weft_proto::v1::Registration;
use weft_svid::PeerIdentity;

use super::common::Reply;
use crate::{
    api::{
        ApiState, Caller, Pushed,
        access::{Access, rules::Role},
        explain, graph, router,
    },
    compile::compile,
    push::{
        Reflected, View,
        proxies::{Proxies, Proxy},
    },
    source::Resources,
    store::Store,
};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: beta, namespace: bank}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: catalog-1, namespace: shop, labels: {app: catalog}}
spec: {address: 127.0.0.1, serviceAccount: catalog}
---
apiVersion: v1
kind: Service
metadata: {name: catalog-v2, namespace: shop}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: catalog}]
  rules:
  - name: split
    backendRefs: [{name: catalog, port: 80, weight: 3}, {name: catalog-v2, port: 8080, weight: 1}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: bank}
spec:
  parentRefs: [{kind: Service, group: '', name: catalog, namespace: shop}]
  rules: [{backendRefs: [{name: beta, port: 8080}]}]
";

fn proxy(namespace: &str, name: &str, services: &[&str], reflected: Reflected) -> Proxy {
    let id = SpiffeId::workload("weft.local", namespace, "x").expect("valid");
    let (name, namespace) = (name.to_owned(), namespace.to_owned());
    Proxy {
        peer: PeerIdentity { id, not_after: SystemTime::now() },
        presented: None,
        address: String::new(),
        connected: Instant::now(),
        registration: Registration { name, namespace, healthy: true, ..Default::default() },
        services: services.iter().map(|name| (*name).to_owned()).collect(),
        types: Vec::new(),
        reflected,
    }
}

/// The shop at event 40, which is in view 1; and two sidecars, of which one is still at event 30 and view 0.
fn shop() -> ApiState {
    let (resources, problems) = Resources::from_text("shop.yaml", SHOP);
    assert!(problems.is_empty(), "{problems:?}");
    let view = View::default().next(&compile(&resources, &[]).0, 39);
    let proxies = Proxies::default();
    let (current, old) = (Reflected { view: 1, store: 39 }, Reflected { view: 0, store: 30 });
    proxies.set(1, proxy("shop", "web-1", &["shop/catalog", "bank/beta"], current));
    proxies.set(2, proxy("bank", "till-1", &["shop/catalog"], old));
    let view = watch::Sender::new(Arc::new(view)).subscribe();
    let reflected = watch::Sender::new(Reflected { view: 1, store: 40 }).subscribe();
    let resources = watch::Sender::default().subscribe();
    let registered = watch::Sender::default().subscribe();
    let pushed = Pushed { view, resources, registered, reflected, problems: Arc::default() };
    ApiState::new(Store::memory(), watch::Sender::default().subscribe(), proxies, pushed, Access::dev())
}

async fn told(path: &str) -> Value {
    let request = Request::get(path).header(header::HOST, "localhost").body(Body::empty()).expect("a request");
    let reply = Reply::read(router(shop()).oneshot(request).await.expect("infallible")).await;
    assert_eq!(reply.code, 200, "{reply:?}");
    reply.body
}

#[tokio::test]
async fn a_sidecar_reflects_the_newest_event_when_it_has_answered_the_newest_view() {
    let answer = told("/weft/v1/proxies").await;
    assert_eq!((&answer["revision"], &answer["storeRevision"]), (&1.into(), &40.into()));
    let of = |name: &str| {
        let items = answer["items"].as_array().expect("items").iter();
        items.clone().find(|item| item["name"] == name).expect("there")["storeRevision"].clone()
    };
    assert_eq!(of("web-1"), 40, "event 40 changed nothing in the view that it holds");
    assert_eq!(of("till-1"), 30);
}

#[tokio::test]
async fn the_graph_has_services_workloads_routes_and_subscriptions() {
    let graph = told("/weft/v1/graph").await;
    assert_eq!((&graph["revision"], &graph["storeRevision"]), (&1.into(), &40.into()));
    let nodes = graph["nodes"].as_array().expect("nodes");
    let node = |id: &str| nodes.iter().find(|node| node["id"] == id).unwrap_or_else(|| panic!("{id} in {graph}"));
    assert_eq!(
        *node("service:shop/catalog"),
        json!({
            "id": "service:shop/catalog", "type": "service", "namespace": "shop", "name": "catalog", "workloads": 1,
            "ports": [{ "port": 80, "name": "http", "protocol": "http" }],
            "endpoints": { "total": 1, "healthy": 1, "draining": 0 },
        })
    );
    let (declared, connected) = (node("workload:shop/catalog-1"), node("workload:shop/web-1"));
    assert_eq!(declared["services"], json!(["shop/catalog"]));
    assert_eq!((&declared["connected"], &connected["connected"]), (&false.into(), &true.into()));
    assert_eq!(connected["storeRevision"], 40);
    let edges = graph["edges"].as_array().expect("edges");
    let route = |to: &str, port: u16, weight: u32, share: f64| {
        json!({
            "type": "route", "from": "service:shop/catalog", "port": 80, "route": "shop/canary", "rule": "split",
            "to": to, "toPort": port, "weight": weight, "share": share,
        })
    };
    let subscription = |from: &str, to: &str| json!({ "type": "subscription", "from": from, "to": to });
    let expected = [
        route("service:shop/catalog", 80, 3, 0.75),
        route("service:shop/catalog-v2", 8080, 1, 0.25),
        json!({
            "type": "route", "clients": "bank", "from": "service:shop/catalog", "port": 80, "route": "bank/mine",
            "rule": "0", "to": "service:bank/beta", "toPort": 8080, "weight": 1, "share": 1.0,
        }),
        subscription("workload:bank/till-1", "service:shop/catalog"),
        subscription("workload:shop/web-1", "service:shop/catalog"),
        subscription("workload:shop/web-1", "service:bank/beta"),
    ];
    assert_eq!(edges.as_slice(), expected, "{graph}");
}

#[tokio::test]
async fn the_graph_of_a_token_for_one_namespace_has_nothing_of_others_but_where_its_own_edges_end() {
    let caller = Caller { name: "x".into(), role: Role::Viewer, namespace: Some("bank".into()) };
    let axum::Json(graph) = graph::get(axum::extract::State(shop()), axum::Extension(caller)).await;
    let ids = |list: &str, field: &str| {
        let items = graph[list].as_array().expect("a list").iter();
        items.map(|item| item[field].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("nodes", "id"), ["service:bank/beta", "workload:bank/till-1"]);
    assert_eq!(
        (ids("edges", "from"), ids("edges", "to")),
        (
            vec!["service:shop/catalog".into(), "workload:bank/till-1".into()],
            vec!["service:bank/beta".into(), "service:shop/catalog".into()]
        ),
        "its own consumer route, and what its own workload calls"
    );
    let caller = Caller { name: "x".into(), role: Role::Viewer, namespace: Some("shop".into()) };
    let axum::Json(graph) = graph::get(axum::extract::State(shop()), axum::Extension(caller)).await;
    assert!(!graph["edges"].to_string().contains("bank/mine"), "{graph}");
}

#[tokio::test]
async fn a_token_for_one_namespace_may_not_ask_about_services_of_others_and_does_not_learn_which_there_are() {
    let ask = async |host: &str| {
        let caller = Caller { name: "x".into(), role: Role::Viewer, namespace: Some("shop".into()) };
        let query = axum::extract::RawQuery(Some(format!("from=shop/web&url=http://{host}/")));
        let answer = explain::get(axum::extract::State(shop()), axum::Extension(caller), query).await;
        answer.map_or_else(|error| error.to_json(), |answer| answer.0)
    };
    let there = ask("beta.bank").await;
    assert_eq!((&there["code"], &there["details"]["name"]), (&403.into(), &"beta".into()));
    let text = "User \"x\" (role viewer in namespace \"shop\") cannot get resource \"services\" in namespace \"bank\"";
    assert_eq!(there["message"], text);
    assert_eq!(there.to_string().replace("beta", "nobody"), ask("nobody.bank").await.to_string());
    assert_eq!(ask("catalog").await["service"], "shop/catalog");
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_answered_with_a_status() {
    let api = super::common::Api::new();
    for (path, code, reason, part) in [
        ("endpoints?service=a&service=b", 400, "BadRequest", "service"),
        ("endpoints?servce=a", 400, "BadRequest", "servce"),
        ("explain?methud=GET", 400, "BadRequest", "methud"),
        ("explain?url=/items", 400, "BadRequest", "URL with a host"),
        ("explain?url=http://nobody/", 404, "NotFound", "nobody"),
    ] {
        let reply = api.get(&format!("/weft/v1/{path}")).await;
        let message = reply.failed(code, reason);
        assert!(message.contains(part), "{path}: {message}");
    }
}
