//! Watches: the log as one kind of object, one JSON document per line, for as long as the client stays. Objects of the
//! resource directory join in: their changes are no events, and have the revision of the last one.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch as channel},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    ApiState, held,
    objects::Call,
    respond::{shown, with_version},
    status::ApiError,
};
use crate::{
    source::Files,
    store::{Event, Key, Revision, State, Stored, Watcher},
};

/// How long a watch lasts that does not say.
const DEFAULT_TIMEOUT: u64 = 3600;
/// The longest watch.
const MAX_TIMEOUT: u64 = 24 * 3600;
/// How often a client is told of revisions that brought it nothing.
const BOOKMARKS: Duration = Duration::from_secs(30);
/// Lines that wait for a slow client; the log waits behind them.
const WAITING: usize = 16;

/// Begins a watch.
///
/// # Errors
/// 429 when there are too many.
pub fn start(state: &ApiState, mut call: Call) -> Result<Response, ApiError> {
    let permit = Arc::clone(&state.watches).try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::too_many("watches"))?;
    let options = &call.options;
    let seconds = options.timeout.unwrap_or(DEFAULT_TIMEOUT).clamp(1, MAX_TIMEOUT);
    let from = options.resource_version.filter(|revision| *revision > 0);
    let initial = options.send_initial_events.unwrap_or(from.is_none());
    let snapshot = state.store.snapshot();
    let after = if initial { snapshot.revision() } else { from.unwrap_or_else(|| snapshot.revision()) };
    let mut files = state.files.clone();
    let known = Arc::clone(&files.borrow_and_update());
    // Shared with all other watches: what waits for a slow client is no copy.
    let mut present = Vec::new();
    if initial {
        let all = held::list(&snapshot, &known, call.target.kind.kind, call.target.namespace.as_deref());
        present.extend(all.into_iter().filter(|stored| selected(&call, Some(&stored.object))).cloned());
    }
    let events = state.store.watch(after).map_err(|error| ApiError::expired(error.to_string()));
    // The headers of the request are no longer of use, and may be large.
    call.headers.clear();
    let (sender, receiver) = mpsc::channel(WAITING);
    let until = Instant::now() + Duration::from_secs(seconds);
    let files = FromFiles { files: Some(files), known, objects: state.store.state() };
    let following = Following { call, sender, after, until, files, _permit: permit };
    tokio::spawn(following.run(present, events));
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

struct Following {
    call: Call,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    after: Revision,
    until: Instant,
    files: FromFiles,
    _permit: OwnedSemaphorePermit,
}

/// The objects of the resource directory, as the client knows them and as they become.
struct FromFiles {
    /// None once they change no more.
    files: Option<channel::Receiver<Arc<Files>>>,
    known: Arc<Files>,
    /// What appears again when a file lets go of it.
    objects: channel::Receiver<Arc<State>>,
}

impl FromFiles {
    async fn changed(&mut self) {
        if let Some(files) = &mut self.files
            && files.changed().await.is_ok()
        {
            return;
        }
        self.files = None;
        std::future::pending().await
    }

    /// What their change is to this watch.
    fn lines(&mut self, call: &Call, after: Revision) -> Vec<Bytes> {
        let Some(files) = &mut self.files else { return Vec::new() };
        let new = Arc::clone(&files.borrow_and_update());
        let old = std::mem::replace(&mut self.known, Arc::clone(&new));
        let (kind, namespace) = (call.target.kind.kind, call.target.namespace.as_deref());
        let keys: BTreeSet<&Key> =
            old.list(kind, namespace).chain(new.list(kind, namespace)).map(|stored| &stored.key).collect();
        let objects = self.objects.borrow();
        let held = |files: &Files, key: &Key| files.get(key).or_else(|| objects.get(key)).cloned();
        let changes = keys.into_iter().filter_map(|key| {
            let (before, now) = (held(&old, key), held(&new, key));
            if before.as_ref().map(|stored| &stored.object) == now.as_ref().map(|stored| &stored.object) {
                return None;
            }
            let (name, object) = told(call, before.as_ref().map(|s| &s.object), now.as_ref().map(|s| &s.object))?;
            Some(line(call, name, with_version((**object).clone(), after)))
        });
        changes.collect()
    }
}

impl Following {
    /// Until the client goes, the time is over or the store is closed.
    async fn run(mut self, present: Vec<Arc<Stored>>, events: Result<Watcher, ApiError>) {
        let mut events = match events {
            Ok(events) => events,
            Err(error) => {
                _ = self.send(error_line(&error)).await;
                return;
            }
        };
        for stored in present {
            if self.send(line(&self.call, "ADDED", at(&stored, self.after))).await.is_err() {
                return;
            }
        }
        if self.call.options.send_initial_events == Some(true)
            && self.send(bookmark(&self.call, self.after, true)).await.is_err()
        {
            return;
        }
        let mut bookmarks = interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let line = tokio::select! {
                event = events.next() => match event {
                    Some(event) => {
                        self.after = event.revision;
                        // A file has one of this name: nothing of the store's is seen.
                        if self.files.known.get(&event.key).is_some() { None } else { change(&self.call, &event) }
                    }
                    None => {
                        if let Some(failure) = events.failure() {
                            let code = StatusCode::INTERNAL_SERVER_ERROR;
                            let error = ApiError::new(code, "InternalError", failure.to_string());
                            _ = self.send(error_line(&error)).await;
                        }
                        return;
                    }
                },
                () = self.files.changed() => {
                    for line in self.files.lines(&self.call, self.after) {
                        if self.send(line).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                _ = bookmarks.tick(), if self.call.options.bookmarks => Some(bookmark(&self.call, self.after, false)),
                () = sleep_until(self.until) => {
                    if self.call.options.bookmarks {
                        _ = self.send(bookmark(&self.call, self.after, false)).await;
                    }
                    return;
                }
                () = self.sender.closed() => return,
            };
            if let Some(line) = line
                && self.send(line).await.is_err()
            {
                return;
            }
        }
    }

    /// Waits for a slow client, but not beyond the end of the watch.
    async fn send(&self, line: Bytes) -> Result<(), ()> {
        tokio::select! {
            sent = self.sender.send(Ok(line)) => sent.map_err(drop),
            () = sleep_until(self.until + BOOKMARKS) => Err(()),
        }
    }
}

fn selected(call: &Call, object: Option<&Value>) -> bool {
    let Some(object) = object else { return false };
    let named = call.target.name.as_ref().is_none_or(|name| object["metadata"]["name"] == name.as_str());
    named && call.options.selector.matches(object)
}

/// What the event is to this watch: an object that begins or ceases to be selected is added or deleted.
fn change(call: &Call, event: &Event) -> Option<Bytes> {
    let wanted = *event.key.kind == *call.target.kind.kind
        && call.target.namespace.as_ref().is_none_or(|namespace| event.key.namespace == *namespace);
    if !wanted {
        return None;
    }
    let (name, object) = told(call, event.before.as_ref().map(|before| &before.object), event.object.as_ref())?;
    Some(line(call, name, with_version((**object).clone(), event.revision)))
}

fn told<'a>(
    call: &Call,
    before: Option<&'a Arc<Value>>,
    after: Option<&'a Arc<Value>>,
) -> Option<(&'static str, &'a Arc<Value>)> {
    let was = selected(call, before.map(AsRef::as_ref));
    let is = selected(call, after.map(AsRef::as_ref));
    Some(match (was, is) {
        (false, false) => return None,
        (false, true) => ("ADDED", after?),
        (true, true) => ("MODIFIED", after?),
        (true, false) => ("DELETED", before?),
    })
}

/// The object at its revision; one of a file is as of `after`.
fn at(stored: &Stored, after: Revision) -> Value {
    if stored.revision == 0 { with_version((*stored.object).clone(), after) } else { shown(stored) }
}

fn line(call: &Call, name: &str, object: Value) -> Bytes {
    encode(&json!({ "type": name, "object": call.form.object(call.target.kind, object, call.options.include) }))
}

fn bookmark(call: &Call, revision: Revision, initial_end: bool) -> Bytes {
    let kind = call.target.kind;
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if initial_end {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    line(call, "BOOKMARK", json!({ "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata }))
}

fn error_line(error: &ApiError) -> Bytes {
    encode(&json!({ "type": "ERROR", "object": error.to_json() }))
}

fn encode(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}
