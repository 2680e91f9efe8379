//! An API server for tests: it keeps objects of any kind, lists them in pages and lets them be watched, as Kubernetes does;
//! and it does to its clients what API servers do: it cuts watches off, forgets old versions, repeats itself, does not have
//! kinds, refuses, and fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State as Shared,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// The server. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    address: SocketAddr,
}

type Key = (String, String, String);

/// What it keeps, and how it behaves.
#[derive(Default)]
pub struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Version, resource and line.
    events: Vec<(u64, String, Value)>,
    /// Watches from before this version are refused.
    forgotten: u64,
    /// Watches that began before are ended.
    epoch: u64,
    /// Resources (`plural.group` or the plural) that it does not have.
    pub missing: BTreeSet<String>,
    /// Resources that it has in this version alone.
    pub versions: BTreeMap<String, String>,
    /// `VERB resource` that it refuses.
    pub refused: BTreeSet<String>,
    /// It answers 500 to everything.
    pub broken: bool,
    /// Each event is sent so many times more.
    pub repeats: usize,
    /// Most objects in an answer of a list; 0 is any number.
    pub page: usize,
    /// Bookmarks that were sent.
    pub bookmarked: usize,
    /// What was asked: `VERB resource`, or of a write with the name.
    pub asked: Vec<String>,
}

/// A path, taken apart.
struct Asked {
    resource: String,
    version: String,
    namespace: String,
    name: String,
    status: bool,
}

impl Cluster {
    /// Starts one, without objects.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let cluster = Self { state: Arc::default(), changed: watch::Sender::new(0), address };
        let router = Router::new().fallback(serve).with_state(cluster.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        cluster
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same as a kubeconfig.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": self.url() } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "users": [{ "name": "test", "user": {} }],
        })
        .to_string()
    }

    /// What it keeps, to be changed.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Creates or replaces objects.
    pub fn apply(&self, objects: impl IntoIterator<Item = Value>) {
        for object in objects {
            self.state().put(key_of(&object), object);
        }
        self.tell();
    }

    /// Removes an object that was applied like this one.
    pub fn delete(&self, object: &Value) {
        self.state().remove(&key_of(object));
        self.tell();
    }

    /// An object as it is kept.
    pub fn get(&self, object: &Value) -> Option<Value> {
        self.state().objects.get(&key_of(object)).cloned()
    }

    /// Ends all watches.
    pub fn cut(&self) {
        self.state().epoch += 1;
        self.tell();
    }

    /// Ends all watches, and none may go on from before so many versions after now.
    pub fn forget(&self, later: u64) {
        let mut state = self.state();
        state.version += later;
        (state.forgotten, state.epoch) = (state.version, state.epoch + 1);
        drop(state);
        self.tell();
    }

    /// Sends an event again as it was, to all who watch now.
    pub fn replay(&self, object: &Value, kind: &str) {
        let mut state = self.state();
        state.version += 1;
        let (version, resource) = (state.version, key_of(object).0);
        state.events.push((version, resource, json!({ "type": kind, "object": object })));
        drop(state);
        self.tell();
    }

    /// Tells all who watch the version. [`State::bookmarked`] counts whom it has reached.
    pub fn bookmark(&self) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let object =
            json!({ "kind": "Any", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() } });
        state.events.push((version, String::new(), json!({ "type": "BOOKMARK", "object": object })));
        drop(state);
        self.tell();
    }

    /// How often this was asked.
    pub fn count(&self, asked: &str) -> usize {
        self.state().asked.iter().filter(|one| *one == asked).count()
    }
}

impl State {
    fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        let old = self.objects.get(&key);
        let (kind, uid) = match old {
            Some(old) => ("MODIFIED", old["metadata"]["uid"].clone()),
            None => ("ADDED", format!("uid-{}", self.version).into()),
        };
        let before = old.and_then(|old| old["metadata"]["generation"].as_u64()).unwrap_or(0);
        let generation = before + u64::from(old.is_none_or(|old| old["spec"] != object["spec"]));
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = self.version.to_string().into();
        (metadata["uid"], metadata["generation"]) = (uid, generation.into());
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        self.events.push((self.version, key.0.clone(), json!({ "type": kind, "object": object })));
        self.objects.insert(key, object.clone());
        object
    }

    fn remove(&mut self, key: &Key) {
        let Some(mut object) = self.objects.remove(key) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.events.push((self.version, key.0.clone(), json!({ "type": "DELETED", "object": object })));
    }
}

/// The key that an object has here.
fn key_of(object: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]).to_lowercase();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    let group = text(&object["apiVersion"]).split_once('/').map_or_else(String::new, |(group, _)| format!(".{group}"));
    (plural + &group, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn parse(path: &str) -> Option<Asked> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let root = parts.first().copied()?;
    let group = match root {
        "api" => "",
        "apis" => parts.remove(1),
        _ => return None,
    };
    let version = (*parts.get(1)?).to_owned();
    let (namespace, rest) = match parts.get(2..)? {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => ((*namespace).to_owned(), rest.to_vec()),
        rest => (String::new(), rest.to_vec()),
    };
    let resource = if group.is_empty() { (*rest.first()?).to_owned() } else { format!("{}.{group}", rest.first()?) };
    let name = rest.get(1).copied().unwrap_or_default().to_owned();
    Some(Asked { resource, version, namespace, name, status: rest.get(2) == Some(&"status") })
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": reason, "message": message });
    (code, Json(status)).into_response()
}

async fn serve(Shared(cluster): Shared<Cluster>, method: Method, uri: Uri, body: Bytes) -> Response {
    let missing = || failure(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
    let Some(asked) = parse(uri.path()) else { return missing() };
    let query = uri.query().unwrap_or_default();
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next().unwrap_or_default()
    };
    let watching = parameter("watch") == "true";
    let verb = match method.as_str() {
        "GET" if watching => "watch",
        "GET" if asked.name.is_empty() => "list",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        _ => "delete",
    };
    let mut state = cluster.state();
    let sub = if asked.status { "/status" } else { "" };
    let told = format!("{verb} {}{sub}", asked.resource);
    state.asked.push(told.clone());
    if state.broken {
        return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "it is broken");
    }
    let other = state.versions.get(&asked.resource).is_some_and(|version| *version != asked.version);
    if state.missing.contains(&asked.resource) || other {
        return missing();
    }
    if state.refused.contains(&told) {
        return failure(StatusCode::FORBIDDEN, "Forbidden", &format!("User \"test\" cannot {told}"));
    }
    match verb {
        "watch" => {
            let since = parameter("resourceVersion").parse().unwrap_or(0);
            let epoch = state.epoch;
            drop(state);
            followed(cluster, asked.resource, since, epoch)
        }
        "list" => state.list(&asked, &parameter("limit"), &parameter("continue")),
        "get" => match state.objects.get(&asked.key()) {
            Some(object) => Json(object.clone()).into_response(),
            None => missing(),
        },
        _ => {
            let object = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let answer = state.write(verb, &asked, object);
            drop(state);
            cluster.tell();
            answer
        }
    }
}

impl Asked {
    fn key(&self) -> Key {
        (self.resource.clone(), self.namespace.clone(), self.name.clone())
    }
}

impl State {
    fn list(&self, asked: &Asked, limit: &str, next: &str) -> Response {
        let limit = limit.parse().unwrap_or(usize::MAX).min(if self.page == 0 { usize::MAX } else { self.page });
        let skip: usize = next.parse().unwrap_or(0);
        let all: Vec<&Value> =
            self.objects.iter().filter(|(key, _)| key.0 == asked.resource).map(|(_, one)| one).collect();
        let items: Vec<&Value> = all.iter().copied().skip(skip).take(limit).collect();
        let mut metadata = json!({ "resourceVersion": self.version.to_string() });
        if skip + items.len() < all.len() {
            metadata["continue"] = (skip + items.len()).to_string().into();
        }
        Json(json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items })).into_response()
    }

    fn write(&mut self, verb: &str, asked: &Asked, sent: Value) -> Response {
        let mut key = asked.key();
        if verb == "create" {
            key.2 = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        let old = self.objects.get(&key).cloned();
        let wanted = &sent["metadata"]["resourceVersion"];
        match (&old, verb) {
            (None, "update" | "patch") => return failure(StatusCode::NOT_FOUND, "NotFound", "it is not there"),
            (Some(_), "create") => return failure(StatusCode::CONFLICT, "AlreadyExists", "it is there"),
            (Some(old), _) if !wanted.is_null() && *wanted != old["metadata"]["resourceVersion"] => {
                return failure(StatusCode::CONFLICT, "Conflict", "it has been modified");
            }
            _ => {}
        }
        let new = match (old, verb) {
            (Some(mut object), "patch") => {
                let patch = if asked.status { json!({ "status": sent["status"] }) } else { sent };
                merge(&mut object, patch);
                object
            }
            _ => sent,
        };
        Json(self.put(key, new)).into_response()
    }
}

fn merge(object: &mut Value, patch: Value) {
    let (Value::Object(fields), Value::Object(changes)) = (&mut *object, &patch) else { return *object = patch };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change.clone());
        }
    }
}

/// The events of a resource after a version, until the watches are cut.
fn followed(cluster: Cluster, resource: String, since: u64, epoch: u64) -> Response {
    if since < cluster.state().forgotten {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
            "message": "too old resource version" });
        return format!("{}\n", json!({ "type": "ERROR", "object": status })).into_response();
    }
    let changes = cluster.changed.subscribe();
    let lines = futures_util::stream::unfold((cluster, changes, since), move |(cluster, mut changes, mut since)| {
        let resource = resource.clone();
        async move {
            loop {
                changes.mark_unchanged();
                let mut text = String::new();
                let ended = {
                    let mut state = cluster.state();
                    let ours =
                        |event: &&(u64, String, Value)| event.0 > since && (event.1 == resource || event.1.is_empty());
                    let repeats = state.repeats;
                    for (.., line) in state.events.iter().filter(ours) {
                        (0..=repeats).for_each(|_| text.push_str(&format!("{line}\n")));
                    }
                    since = state.version;
                    if state.epoch == epoch {
                        state.bookmarked += usize::from(text.contains("BOOKMARK"));
                    }
                    state.epoch != epoch
                };
                // What happened after the cut is for the next watch.
                if ended {
                    return None;
                }
                if !text.is_empty() {
                    return Some((Ok::<_, Infallible>(Bytes::from(text)), (cluster, changes, since)));
                }
                changes.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(lines).into_response()
}
