//! What is written, when, and how often.

mod cluster;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use weft_policy::SpiffeId;
use weft_proto::{
    ResourceType,
    v1::{Registration, Rejection},
};
use weft_svid::PeerIdentity;

use super::*;
use crate::{
    api::Pushed,
    push::{
        Reflected,
        proxies::Proxy,
        stream::{SyncState, TypeStatus},
    },
    source::stored::Current,
};

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop", "generation": 1 },
        "spec": { "ports": [{ "port": 80 }] },
    })
}

fn key(name: &str) -> Key {
    Key::new("Service", "shop", name)
}

async fn put(store: &Store, key: &Key, object: Value) {
    let write = Write { key: key.clone(), expect: Expect::Any, object: Some(object) };
    let batch = Batch { author: "test".into(), reason: String::new(), writes: vec![write] };
    store.append(batch).await.expect("taken");
}

/// A store whose statuses are written.
struct Mesh {
    store: Store,
    proxies: Proxies,
    found: watch::Sender<Arc<Found>>,
    statuses: Statuses,
    _files: watch::Sender<Arc<Resources>>,
    resources: watch::Receiver<Current>,
}

impl Mesh {
    fn of(store: Store) -> Self {
        let (files, receiver) = watch::channel(Arc::default());
        let resources = crate::source::stored::follow(receiver, store.state());
        let (found, following) = watch::channel(Arc::default());
        let proxies = Proxies::default();
        let statuses = Statuses::new(store.clone(), Sink::Store, following, proxies.clone());
        Self { store, proxies, found, statuses, _files: files, resources }
    }

    /// Compiles what is there, and writes.
    async fn pass(&mut self) {
        let resources = Arc::clone(&self.resources.borrow_and_update().resources);
        let (_, problems) = crate::compile::compile(&resources, &[]);
        self.found.send_replace(Arc::new(Found { resources, problems }));
        self.statuses.pass().await;
    }

    /// Whether there is soon something to write.
    async fn woken(&mut self) -> bool {
        tokio::time::timeout(PACE * 3, self.statuses.changed()).await == Ok(true)
    }

    fn programmed(&self, name: &str) -> Value {
        let object = Arc::clone(&self.store.get(&key(name)).expect("there").object);
        let conditions = object["status"]["conditions"].as_array().expect("conditions");
        conditions.iter().find(|condition| condition["type"] == "Programmed").expect("Programmed").clone()
    }
}

fn refusing(name: &str, reason: &str) -> Proxy {
    let refused = (!name.is_empty())
        .then(|| Rejection { name: name.into(), reason: reason.into(), ..Rejection::default() })
        .into_iter()
        .collect();
    let status = TypeStatus {
        kind: ResourceType::Service,
        state: SyncState::Error,
        sent: 1,
        acked: 0,
        sent_revision: 1,
        acked_revision: 0,
        error: String::new(),
        holds: None,
        refused,
    };
    let id = SpiffeId::workload("weft.local", "shop", "cart").expect("valid");
    Proxy {
        peer: PeerIdentity { id, not_after: std::time::UNIX_EPOCH },
        presented: None,
        address: String::new(),
        connected: std::time::Instant::now(),
        registration: Registration::default(),
        services: Arc::default(),
        types: vec![status],
        reflected: Reflected::default(),
    }
}

#[tokio::test]
async fn a_status_is_written_once_and_again_when_it_is_overwritten() {
    let store = Store::memory();
    let mut object = service("cart");
    let theirs = json!({
        "type": "Theirs", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    object["status"] = json!({ "loadBalancer": {}, "conditions": [theirs] });
    put(&store, &key("cart"), object).await;
    let mut mesh = Mesh::of(store.clone());
    mesh.pass().await;
    let status = store.get(&key("cart")).expect("there").object["status"].clone();
    assert_eq!(status["loadBalancer"], json!({}), "what others say stays");
    assert_eq!(status["conditions"][2]["type"], "Theirs");
    assert_eq!(mesh.programmed("cart")["status"], "True");
    assert_eq!(mesh.programmed("cart")["observedGeneration"], 1);
    let revision = store.revision();
    mesh.pass().await;
    assert_eq!(store.revision(), revision, "the same again appends nothing");
    put(&store, &key("cart"), service("cart")).await;
    mesh.pass().await;
    assert_eq!(mesh.programmed("cart")["status"], "True", "written by hand, and now as it is again");
}

#[tokio::test]
async fn what_was_found_of_another_generation_is_not_written() {
    let store = Store::memory();
    put(&store, &key("cart"), service("cart")).await;
    let mut mesh = Mesh::of(store.clone());
    let mut newer = service("cart");
    newer["metadata"]["generation"] = 2.into();
    put(&store, &key("cart"), newer).await;
    // It compiles what it saw before.
    mesh.pass().await;
    assert_eq!(store.get(&key("cart")).expect("there").object["status"], Value::Null);
    mesh.resources.changed().await.expect("alive");
    mesh.pass().await;
    assert_eq!(mesh.programmed("cart")["observedGeneration"], 2);
}

#[tokio::test]
async fn two_thousand_statuses_wait_for_the_disk_a_few_times() {
    let directory = tempfile::tempdir().expect("a directory");
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    let count = move || {
        counted.fetch_add(1, Relaxed);
        Ok(())
    };
    let store = Store::open_on_sync(directory.path(), count).expect("a store");
    let write = |k: usize| Write {
        key: key(&format!("s{k}")),
        expect: Expect::Absent,
        object: Some(service(&format!("s{k}"))),
    };
    let batch = Batch { author: "test".into(), reason: String::new(), writes: (0..2000).map(write).collect() };
    store.append(batch).await.expect("taken");
    let mut mesh = Mesh::of(store.clone());
    let before = syncs.load(Relaxed);
    mesh.pass().await;
    assert_eq!(store.revision(), 4000);
    let waited = syncs.load(Relaxed) - before;
    assert!(waited < 200, "{waited} times");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_shows_and_goes_and_however_often_it_changes_it_is_written_at_its_pace() {
    let store = Store::memory();
    put(&store, &key("cart"), service("cart")).await;
    let mut mesh = Mesh::of(store.clone());
    mesh.pass().await;
    mesh.proxies.set(1, refusing("shop/cart", "ports[0]: bad"));
    assert!(mesh.woken().await, "wakes");
    mesh.pass().await;
    let programmed = mesh.programmed("cart");
    assert_eq!((&programmed["status"], &programmed["reason"]), (&json!("False"), &json!("RefusedBySidecar")));
    assert!(programmed["message"].as_str().expect("text").contains("ports[0]: bad"), "{programmed}");
    mesh.proxies.synced(1, refusing("shop/cart", "again").types, Reflected::default());
    assert!(mesh.woken().await, "wakes");
    assert!(!mesh.woken().await, "once for each change");
    mesh.pass().await;
    let revision = store.revision();
    for k in 0..10 {
        mesh.proxies.synced(1, refusing("shop/cart", &format!("another reason {k}")).types, Reflected::default());
        mesh.pass().await;
    }
    assert_eq!(store.revision(), revision);
    mesh.proxies.synced(1, refusing("", "").types, Reflected::default());
    let start = Instant::now();
    assert!(mesh.woken().await);
    assert!(start.elapsed() > PACE / 2, "{:?}", start.elapsed());
    mesh.pass().await;
    assert_eq!(mesh.programmed("cart")["status"], "True");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_does_not_fit_on_the_disk_is_tried_again_until_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let full = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&full);
    let room = move || if asked.load(Relaxed) { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) };
    let store = Store::open_on_write(directory.path(), room).expect("a store");
    put(&store, &key("cart"), service("cart")).await;
    let mut mesh = Mesh::of(store.clone());
    full.store(true, Relaxed);
    let mut waited = Vec::new();
    for _ in 0..8 {
        mesh.pass().await;
        let start = Instant::now();
        assert!(tokio::time::timeout(MAX_RETRY * 2, mesh.statuses.changed()).await.is_ok(), "wakes");
        waited.push(start.elapsed().as_secs());
    }
    assert_eq!(waited, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(store.get(&key("cart")).expect("there").object["status"], Value::Null);
    full.store(false, Relaxed);
    mesh.statuses.pass().await;
    assert_eq!(mesh.programmed("cart")["status"], "True", "without a compile");
    assert!(!mesh.woken().await, "nothing is left to do");
}

/// The API of a mesh that compiles, and a policy that it shows.
struct Served {
    router: axum::Router,
    states: watch::Receiver<Arc<crate::store::State>>,
}

impl Served {
    async fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        use tower::ServiceExt;
        let request = axum::http::Request::builder().method(method).uri(path).header("host", "127.0.0.1:1");
        let request = request.header("content-type", "application/json");
        let request = request.body(axum::body::Body::from(body.to_string())).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        assert!(response.status().is_success(), "{method} {path}: {}", response.status());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// Reads the object after each write until a condition of its first target is as expected.
    async fn eventually(&mut self, path: &str, expected: [&str; 3]) {
        let reading = async {
            loop {
                let object = self.request("GET", path, &Value::Null).await;
                let conditions = entries(&object["status"]["ancestors"][0]["conditions"]);
                let told = conditions.map(|of| [&of["type"], &of["status"], &of["reason"]]);
                if told.into_iter().any(|told| told == expected) {
                    return;
                }
                self.states.changed().await.expect("alive");
            }
        };
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, reading).await.unwrap_or_else(|_| panic!("{expected:?} in time"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_a_policy_reads_what_became_of_it() {
    let directory = tempfile::tempdir().expect("a directory");
    crate::ca::private_dir(directory.path()).expect("private");
    let ca = crate::ca::Ca::open(directory.path(), "weft.local", Duration::from_secs(60)).expect("an authority");
    let Mesh { store, proxies, found, statuses, _files, resources } = Mesh::of(Store::memory());
    tokio::spawn(statuses.run());
    let registry =
        crate::registry::Registry::open(&directory.path().join("registrations"), crate::registry::Claims::Free);
    let (view, reflected) = (watch::Sender::new(Arc::default()), watch::Sender::default());
    let problems = Arc::default();
    let (mut reflecting, pushed) = (
        reflected.subscribe(),
        Pushed {
            view: view.subscribe(),
            resources: watch::Sender::default().subscribe(),
            registered: registry.watch(),
            reflected: reflected.subscribe(),
            problems: Arc::clone(&problems),
        },
    );
    let state = crate::api::ApiState::new(
        store.clone(),
        watch::Sender::default().subscribe(),
        proxies,
        pushed,
        crate::api::access::Access::dev(),
    );
    let compiling = crate::app::compiling::Compiling {
        secret: crate::sessions::Secret::default(),
        resources,
        resources_ended: false,
        source: None,
        registered: registry.watch(),
        sets: watch::Sender::default().subscribe(),
        trust: ca.watch(),
        ca: Arc::new(ca),
        view,
        reflected,
        found,
        problems,
        metrics: crate::metrics::Metrics::default(),
    };
    tokio::spawn(compiling.run());
    let mut served = Served { router: crate::api::router(state), states: store.state() };
    let policies = "/apis/weft.dev/v1alpha1/namespaces/shop/trafficpolicies";
    let policy = json!({
        "metadata": { "name": "p" },
        "spec": { "targetRefs": [{ "kind": "Service", "name": "cart" }], "retries": { "attempts": 2 } },
    });
    served.request("POST", policies, &policy).await;
    let path = format!("{policies}/p");
    served.eventually(&path, ["Accepted", "False", "TargetNotFound"]).await;
    served.request("POST", "/api/v1/namespaces/shop/services", &service("cart")).await;
    served.eventually(&path, ["Accepted", "True", "Accepted"]).await;
    served.eventually(&path, ["Programmed", "True", "Programmed"]).await;
    served.request("DELETE", "/api/v1/namespaces/shop/services/cart", &Value::Null).await;
    served.eventually(&path, ["Accepted", "False", "TargetNotFound"]).await;
    let all = |reflected: &Reflected| reflected.store == store.revision();
    let waiting = tokio::time::timeout(Duration::from_secs(20), reflecting.wait_for(all));
    waiting.await.expect("statuses are reflected too").expect("alive");
}
