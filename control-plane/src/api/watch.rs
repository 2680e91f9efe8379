//! Watches: the log as one kind of object, one JSON document per line, for as long as the client stays.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    ApiState,
    objects::Call,
    respond::{shown, with_version},
    status::ApiError,
};
use crate::store::{Event, Revision, Stored, Watcher};

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
    // Shared with all other watches: what waits for a slow client is no copy.
    let mut present = Vec::new();
    if initial {
        let all = snapshot.list(call.target.kind.kind, call.target.namespace.as_deref());
        present.extend(all.filter(|stored| selected(&call, Some(&stored.object))).cloned());
    }
    let events = state.store.watch(after).map_err(|error| ApiError::expired(error.to_string()));
    // The headers of the request are no longer of use, and may be large.
    call.headers.clear();
    let (sender, receiver) = mpsc::channel(WAITING);
    let until = Instant::now() + Duration::from_secs(seconds);
    let following = Following { call, sender, after, until, _permit: permit };
    tokio::spawn(following.run(present, events));
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

struct Following {
    call: Call,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    after: Revision,
    until: Instant,
    _permit: OwnedSemaphorePermit,
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
            if self.send(line(&self.call, "ADDED", shown(&stored))).await.is_err() {
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
                        change(&self.call, &event)
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
    let before = event.before.as_ref().map(|before| &before.object);
    let after = event.object.as_ref();
    let was = selected(call, before.map(AsRef::as_ref));
    let is = selected(call, after.map(AsRef::as_ref));
    let (name, object) = match (was, is) {
        (false, false) => return None,
        (false, true) => ("ADDED", after),
        (true, true) => ("MODIFIED", after),
        (true, false) => ("DELETED", before),
    };
    Some(line(call, name, with_version((**object?).clone(), event.revision)))
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
