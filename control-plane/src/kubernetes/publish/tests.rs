//! What is written, by an API server that holds the objects and counts writes.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone)]
struct Server {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Namespaces; a change is an event.
    namespaces: watch::Sender<Vec<String>>,
    writes: Arc<Mutex<Vec<String>>>,
    /// Answer watches with 410.
    gone: Arc<Mutex<bool>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    async fn start(namespaces: &[&str]) -> (Self, Publisher, tempfile::TempDir) {
        let server = Self {
            objects: Arc::default(),
            namespaces: watch::Sender::new(namespaces.iter().map(|name| (*name).to_owned()).collect()),
            writes: Arc::default(),
            gone: Arc::default(),
        };
        let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "weft", "resourceVersion": "1"},
            "webhooks": [{"name": "pods.weft.dev", "clientConfig": {"service": {"name": "w", "namespace": "n"}},
                "admissionReviewVersions": ["v1"], "sideEffects": "None"}]});
        lock(&server.objects).insert(CONFIGURATION.into(), configuration);
        let routes = Router::new()
            .route("/api/v1/namespaces", get(list))
            .route("/{*path}", get(read).put(write).post(write))
            .with_state(server.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("free");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let client = Client::try_from(kube::Config::new(url.parse().expect("a URL"))).expect("a client");
        let directory = tempfile::tempdir().expect("a directory");
        let ca = Ca::open(directory.path(), "weft.local", Duration::from_secs(3600)).expect("an authority");
        (server, Publisher::new(client, "weft".into(), Arc::new(ca)), directory)
    }

    fn object(&self, path: &str) -> Option<Value> {
        lock(&self.objects).get(path).cloned()
    }

    async fn eventually(&self, what: impl Fn(&Self) -> bool) {
        let wait = async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.expect("in time");
    }
}

const CONFIGURATION: &str = "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weft";

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": name}})
}

async fn list(State(server): State<Server>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let names = server.namespaces.borrow().clone();
    if !query.contains_key("watch") {
        let items: Vec<_> = names.iter().map(|name| namespace(name)).collect();
        return Json(json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": {"resourceVersion": names.len().to_string()}, "items": items}))
        .into_response();
    }
    if std::mem::take(&mut *lock(&server.gone)) {
        let status = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": 410, "reason": "Expired", "message": "too old resource version"}});
        return format!("{status}\n").into_response();
    }
    let seen: usize = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
    let mut changes = server.namespaces.subscribe();
    let names = changes.wait_for(|names| names.len() > seen).await.expect("the server lives").clone();
    // Each twice: a watch may repeat what was listed.
    let events = names[seen..].iter().flat_map(|name| [name, name]);
    events
        .map(|name| format!("{}\n", json!({"type": "ADDED", "object": namespace(name)})))
        .collect::<String>()
        .into_response()
}

async fn read(State(server): State<Server>, Path(path): Path<String>) -> Response {
    let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
        "message": "not found"});
    match server.object(&path) {
        Some(object) => Json(object).into_response(),
        None => (StatusCode::NOT_FOUND, Json(missing)).into_response(),
    }
}

async fn write(State(server): State<Server>, Path(path): Path<String>, Json(object): Json<Value>) -> Response {
    let path = if path.ends_with("configmaps") { format!("{path}/{ROOTS}") } else { path };
    lock(&server.writes).push(path.clone());
    lock(&server.objects).insert(path, object.clone());
    Json(object).into_response()
}

fn roots(namespace: &str) -> String {
    format!("api/v1/namespaces/{namespace}/configmaps/{ROOTS}")
}

#[tokio::test]
async fn the_bundle_is_written_once_and_again_when_somebody_changes_it() {
    let (server, publisher, _directory) = Server::start(&[]).await;
    assert!(publisher.write_bundle().await.expect("written"));
    assert!(!publisher.write_bundle().await.expect("read"), "it is right");
    let written = server.object(CONFIGURATION).expect("there");
    let bundle: ByteString =
        serde_json::from_value(written["webhooks"][0]["clientConfig"]["caBundle"].clone()).expect("base64");
    assert_eq!(bundle.0, publisher.ca.roots_pem().into_bytes());
    assert_eq!(written["metadata"]["resourceVersion"], "1", "a change in between would be a conflict");
    let mut emptied = written;
    emptied["webhooks"][0]["clientConfig"].as_object_mut().expect("an object").remove("caBundle");
    lock(&server.objects).insert(CONFIGURATION.into(), emptied);
    assert!(publisher.write_bundle().await.expect("written"));
    assert_eq!(lock(&server.writes).len(), 2);
}

#[tokio::test]
async fn the_bundle_follows_a_rotation_of_the_root() {
    let (server, publisher, _directory) = Server::start(&[]).await;
    let ca = Arc::clone(&publisher.ca);
    tokio::spawn(publisher.bundle());
    server.eventually(|server| lock(&server.writes).len() == 1).await;
    let rotating = Arc::clone(&ca);
    let step = move || rotating.step(crate::ca::rotation::Step::RootPrepare, "test", "");
    let began = tokio::task::spawn_blocking(step).await;
    began.expect("it ends").expect("prepared");
    assert!(ca.roots().len() > 1);
    server.eventually(|server| lock(&server.writes).len() == 2).await;
    let written = server.object(CONFIGURATION).expect("there");
    let bundle: ByteString =
        serde_json::from_value(written["webhooks"][0]["clientConfig"]["caBundle"].clone()).expect("base64");
    assert_eq!(bundle.0, ca.roots_pem().into_bytes());
}

#[tokio::test]
async fn every_namespace_has_the_roots_and_new_ones_get_them() {
    let (server, publisher, _directory) = Server::start(&["default", "shop"]).await;
    let pem = publisher.ca.roots_pem();
    lock(&server.objects).insert(
        roots("shop"),
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": ROOTS}, "data": {"roots.pem": "old"}}),
    );
    *lock(&server.gone) = true;
    tokio::spawn(publisher.roots());
    server.eventually(|server| lock(&server.writes).len() == 2).await;
    for namespace in ["default", "shop"] {
        assert_eq!(server.object(&roots(namespace)).expect("there")["data"]["roots.pem"], pem.as_str(), "{namespace}");
    }
    server.namespaces.send_modify(|names| names.push("bank".into()));
    server.eventually(|server| server.object(&roots("bank")).is_some()).await;
    server.namespaces.send_modify(|names| names.push("late".into()));
    server.eventually(|server| server.object(&roots("late")).is_some()).await;
    assert_eq!(lock(&server.writes).len(), 4, "once each, though lists and watches repeat");
}
