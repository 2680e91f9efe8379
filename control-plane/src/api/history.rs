//! Weft's own reads and writes over the log: `/weft/v1/history`, `/weft/v1/history/verify`, `/weft/v1/rollback`.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Extension, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiState, Caller,
    access::Peer,
    admit,
    body::Sent,
    kinds::{self, KINDS},
    status::ApiError,
};
use crate::store::{Action, AppendError, Batch, Event, Expect, HistoryFilter, Key, ReadError, Stored, Write};

/// Most events of one answer.
const MAX_EVENTS: usize = 1000;
/// Bytes of objects after which an answer ends.
const PAGE_BYTES: usize = 8 * 1024 * 1024;
/// How often a rollback is made anew when others were faster.
const ATTEMPTS: usize = 16;

/// Query of `/weft/v1/history`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryQuery {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    limit: Option<usize>,
    before: Option<u64>,
    objects: Option<bool>,
    statuses: Option<bool>,
}

/// GET `/weft/v1/history`: past events, newest first. `kind` is any name of a kind, `objects=true` adds the objects (and
/// ends the page after [`PAGE_BYTES`] of them), `statuses=false` leaves out what the control plane writes into statuses.
pub async fn history(
    State(state): State<ApiState>,
    query: Result<Query<HistoryQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return ApiError::bad_request(error.body_text()).into_response(),
    };
    let kind = match query.kind.as_deref().map(kind_named).transpose() {
        Ok(kind) => kind,
        Err(error) => return error.into_response(),
    };
    let with = query.objects.unwrap_or(false);
    // What is written meanwhile is newer than the revision that the answer is of.
    let head = state.store.head();
    let beyond = head.revision.saturating_add(1);
    let filter = HistoryFilter {
        kind: kind.map(str::to_owned),
        namespace: query.namespace,
        name: query.name,
        before_revision: Some(query.before.map_or(beyond, |before| before.min(beyond))),
        limit: query.limit.unwrap_or(100).clamp(1, MAX_EVENTS),
        statuses: query.statuses.unwrap_or(true),
        objects: with.then_some(PAGE_BYTES),
    };
    let Ok(_permit) = state.log_reads.try_acquire() else { return busy().into_response() };
    match state.store.history(filter).await {
        Ok(past) => {
            let next = past.events.last().filter(|_| past.more).map(|last| last.revision);
            let items: Vec<Value> = past.events.iter().map(|event| event_json(event, with)).collect();
            Json(json!({ "revision": head.revision, "head": head.to_string(), "items": items, "nextBefore": next }))
                .into_response()
        }
        Err(error) => read_failed(&error).into_response(),
    }
}

fn kind_named(name: &str) -> Result<&'static str, ApiError> {
    let lower = name.to_lowercase();
    let known = |kind: &&kinds::Kind| {
        kind.kind.to_lowercase() == lower || kind.plural == lower || kind.short.contains(&lower.as_str())
    };
    KINDS.iter().find(known).map(|kind| kind.kind).ok_or_else(|| {
        let names = KINDS.iter().map(|kind| kind.kind);
        let hint = crate::source::did_you_mean(name, names.clone());
        let hint = if hint.is_empty() { format!("one of {}", names.collect::<Vec<_>>().join(", ")) } else { hint };
        ApiError::bad_request(format!("kind: unknown kind {name:?} ({hint})"))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn event_json(event: &Event, objects: bool) -> Value {
    let time = i64::try_from(event.time_ms).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    let action = match event.action {
        Action::Create => "create",
        Action::Delete => "delete",
        Action::Update => "update",
    };
    let mut value = json!({
        "revision": event.revision, "time": time.map(|time| time.to_string()), "author": event.author,
        "reason": event.reason, "action": action, "kind": &*event.key.kind, "namespace": event.key.namespace,
        "name": event.key.name, "before": event.before.as_ref().map(|before| before.revision),
        "previousHash": hex(&event.previous_hash), "hash": hex(&event.hash),
    });
    if objects {
        value["object"] = event.object.as_deref().cloned().unwrap_or_default();
        value["beforeObject"] = event.before.as_ref().map(|before| (*before.object).clone()).unwrap_or_default();
    }
    value
}

/// Each reads the log from end to end.
fn busy() -> ApiError {
    ApiError::too_many("reads of the history")
}

fn read_failed(error: &ReadError) -> ApiError {
    match error {
        ReadError::Future { .. } => ApiError::bad_request(error.to_string()),
        _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string()),
    }
}

/// GET `/weft/v1/history/verify`: whether the chain of hashes is whole.
pub async fn verify(State(state): State<ApiState>) -> Response {
    let Ok(_permit) = state.log_reads.try_acquire() else { return busy().into_response() };
    match state.store.verify().await {
        Ok(head) => {
            Json(json!({ "verified": true, "revision": head.revision, "head": head.to_string() })).into_response()
        }
        Err(error) => {
            let body = json!({ "verified": false, "revision": error.revision, "message": error.to_string() });
            (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
        }
    }
}

/// Body of POST `/weft/v1/rollback`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollback {
    to_revision: u64,
    /// Only what is in this namespace.
    namespace: Option<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    dry_run: bool,
}

/// POST `/weft/v1/rollback`: new events that make the objects what they were right after `toRevision`; with
/// `namespace`, those in it.
pub async fn rollback(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    peer: Option<Extension<Peer>>,
    Sent(body): Sent,
) -> Response {
    match rolled_back(&state, caller, peer.map(|Extension(peer)| peer), &body).await {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn rolled_back(state: &ApiState, caller: Caller, peer: Option<Peer>, body: &[u8]) -> Result<Value, ApiError> {
    let wanted: Rollback = serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!(
            "the body is not {{\"toRevision\": N, \"reason\": \"...\", \"namespace\": \"...\"}}: {error}"
        ))
    })?;
    if caller.namespace.is_some() && caller.namespace != wanted.namespace {
        return Err(state.access.refuse_rollback(&caller, peer, wanted.namespace));
    }
    if !wanted.dry_run {
        state.refuse_elsewhere()?;
    }
    let within = |key: &Key| wanted.namespace.as_ref().is_none_or(|namespace| key.namespace == *namespace);
    let revision = wanted.to_revision;
    let _permit = state.log_reads.try_acquire().map_err(|_| busy())?;
    let mut past = state.store.state_at(revision).await.map_err(|error| read_failed(&error))?;
    past.retain(|key, _| within(key));
    let reason = if wanted.reason.is_empty() { format!("rollback to revision {revision}") } else { wanted.reason };
    let mut attempt = 1;
    let writes = loop {
        let present = state.store.snapshot();
        let writes = changes(&past, present.iter().filter(|stored| within(&stored.key)));
        still_valid(revision, &writes)?;
        if wanted.dry_run || writes.is_empty() {
            break writes;
        }
        let batch = Batch { author: caller.name.clone(), reason: reason.clone(), writes: writes.clone() };
        match state.store.append(batch).await {
            Ok(_) => break writes,
            // Somebody was faster, most likely with a status.
            Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(append_failed(&error)),
        }
    };
    let items: Vec<Value> = writes.iter().map(write_json).collect();
    Ok(json!({
        "toRevision": revision, "revision": state.store.revision(), "dryRun": wanted.dry_run, "items": items,
    }))
}

/// What was valid once may break the rules of this version: all that does is named, and nothing is restored.
fn still_valid(revision: u64, writes: &[Write]) -> Result<(), ApiError> {
    let mut refused = Vec::new();
    for (key, object) in writes.iter().filter_map(|write| Some((&write.key, write.object.as_ref()?))) {
        if kinds::by_kind(&key.kind).is_none() {
            refused.push(format!("{key}: this version of Weft does not know the kind"));
            continue;
        }
        let loaded = crate::source::from_json(object);
        let problems = loaded.unknown.iter().chain(&loaded.wrong);
        refused.extend(problems.map(|problem| format!("{key}: {}", admit::warning(problem))));
    }
    if refused.is_empty() {
        return Ok(());
    }
    let message = format!(
        "revision {revision} has what is refused today, so nothing was restored: {}; restore the rest object by object",
        refused.join("; ")
    );
    Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message))
}

fn write_json(write: &Write) -> Value {
    let action = match (&write.object, write.expect) {
        (None, _) => "delete",
        (Some(_), Expect::Absent) => "create",
        _ => "update",
    };
    let Key { kind, namespace, name } = &write.key;
    json!({ "action": action, "kind": &**kind, "namespace": namespace, "name": name })
}

fn append_failed(error: &AppendError) -> ApiError {
    match error {
        AppendError::Conflict { .. } => {
            ApiError::new(StatusCode::CONFLICT, "Conflict", format!("somebody else wrote meanwhile: {error}"))
        }
        AppendError::TooLarge { .. } => ApiError::too_large(error.to_string()),
        error => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string()),
    }
}

/// The writes that lead from the present to the past. Deletions come first, so that names are free. Statuses say what is
/// now: they are no part of it.
fn changes<'a>(
    past: &BTreeMap<Key, std::sync::Arc<Stored>>,
    present: impl Iterator<Item = &'a std::sync::Arc<Stored>>,
) -> Vec<Write> {
    let (mut gone, mut changed, mut seen) = (Vec::new(), Vec::new(), std::collections::BTreeSet::new());
    for stored in present {
        let (key, expect) = (stored.key.clone(), Expect::Revision(stored.revision));
        seen.insert(key.clone());
        match past.get(&key) {
            None => gone.push(Write { key, expect, object: None }),
            Some(old) if old.object == stored.object => {}
            Some(old) => {
                let mut object = (*old.object).clone();
                // Observers compare generations, so they never go back; the identity is that of the living object.
                let generation = stored.object["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
                object["metadata"]["generation"] = generation.into();
                for field in ["uid", "creationTimestamp"] {
                    object["metadata"][field] = stored.object["metadata"][field].clone();
                }
                set_status(&mut object, stored.object.get("status"));
                // A rollback twice over is no change.
                let mut held = (*stored.object).clone();
                held["metadata"]["generation"] = generation.into();
                if held != object {
                    changed.push(Write { key, expect, object: Some(object) });
                }
            }
        }
    }
    for (key, old) in past.iter().filter(|(key, _)| !seen.contains(*key)) {
        let mut object = (*old.object).clone();
        set_status(&mut object, None);
        // It is another object now: nobody may take it for the one that was deleted. Its time stays: the older of two
        // routes or policies precedes, and that shall be as it was.
        object["metadata"]["uid"] = admit::uid().into();
        changed.push(Write { key: key.clone(), expect: Expect::Absent, object: Some(object) });
    }
    gone.extend(changed);
    gone
}

fn set_status(object: &mut Value, status: Option<&Value>) {
    let Some(fields) = object.as_object_mut() else { return };
    match status {
        Some(status) => _ = fields.insert("status".into(), status.clone()),
        None => _ = fields.remove("status"),
    }
}
