//! Writes: create, replace, patch, delete. Each is admitted, then appended against the revision it was made from.

use axum::{http::StatusCode, response::Response};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    ApiState,
    admit::{self, Admitted},
    body,
    objects::{Call, parse_body},
    patch::{self, PatchError},
    respond::{self, answer, shown, with_version},
    status::{ApiError, MODIFIED},
    warnings,
};
use crate::{
    source::Problem,
    store::{AppendError, Batch, Expect, Key, Stored, Write},
};

/// How often a change without a resourceVersion is made anew when others were faster.
const ATTEMPTS: usize = 8;
/// Annotation, and header, that says why a write is made.
const REASON: &str = "weft.dev/reason";
const REASON_HEADER: &str = "weft-reason";

/// POST to a collection.
///
/// # Errors
/// What the client did wrong, or why the store did not take it.
pub async fn create(state: &ApiState, call: &Call, bytes: &[u8]) -> Result<Response, ApiError> {
    let body = parse_body(call, bytes)?;
    let (target, options) = (&call.target, &call.options);
    let admitted = admit::create(target, body.value, &body.duplicates, options.field_validation, Timestamp::now())?;
    let object = admitted.object;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = target.key(&name);
    state.refuse_file(target.kind, &key)?;
    if state.store.get(&key).is_some() {
        return Err(ApiError::exists(target.kind, &name));
    }
    let mut all = admitted.warnings;
    all.extend(warnings::of(state, target.kind, &object));
    let object = if options.dry_run {
        object
    } else {
        let reason = reason(call, &Value::Null, &object);
        let write = Write { key: key.clone(), expect: Expect::Absent, object: Some(object.clone()) };
        let revision = append(state, call, &key, reason, vec![write]).await?;
        with_version(object, revision)
    };
    Ok(answer(StatusCode::CREATED, call.form.object(target.kind, object, options.include), &all))
}

/// PUT of an object or of its status.
///
/// # Errors
/// As [`create`].
pub async fn replace(state: &ApiState, call: &Call, bytes: &[u8]) -> Result<Response, ApiError> {
    let body = parse_body(call, bytes)?;
    modify(state, call, &body.duplicates, |_| Ok(body.value.clone())).await
}

/// PATCH of an object or of its status.
///
/// # Errors
/// As [`create`]; 415 for kinds of patch that are not served.
pub async fn patch(state: &ApiState, call: &Call, bytes: &[u8]) -> Result<Response, ApiError> {
    let header = call.headers.get(axum::http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = body::media_type(header);
    let kind = call.target.kind;
    let taken = "application/merge-patch+json and application/json-patch+json are taken";
    match media_type.as_str() {
        "application/json-patch+json" | "application/merge-patch+json" => {}
        "application/strategic-merge-patch+json" if kind.strategic() => {}
        "application/strategic-merge-patch+json" => {
            let message = format!("{} is no built-in kind, so it takes no strategic merge patch: {taken}", kind.kind);
            return Err(ApiError::media_type(message));
        }
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            let hint = "use client-side apply: kubectl apply without --server-side";
            return Err(ApiError::media_type(format!("server-side apply is not supported: {hint}; {taken}")));
        }
        other => return Err(ApiError::media_type(format!("the patch of type {other:?} is not supported: {taken}"))),
    }
    let body = body::json(bytes)?;
    modify(state, call, &body.duplicates, |old| {
        let patched = match media_type.as_str() {
            "application/json-patch+json" => patch::json_patch(old, &body.value),
            "application/merge-patch+json" if body.value.is_object() => Ok(patch::merge(old, body.value.clone())),
            "application/merge-patch+json" => Err(PatchError::Malformed("a merge patch is an object".into())),
            _ => patch::strategic(old, body.value.clone()),
        };
        patched.map_err(|error| match error {
            PatchError::Malformed(why) => ApiError::bad_request(format!("the patch is malformed: {why}")),
            PatchError::Failed(why) => {
                let problem = Problem { message: format!("the patch does not fit: {why}"), ..Problem::default() };
                ApiError::invalid(kind, call.target.name(), &[problem])
            }
        })
    })
    .await
}

/// Changes the object of the path. `change` gets it as clients see it; it runs anew when somebody else was faster,
/// unless the result names a resourceVersion.
async fn modify(
    state: &ApiState,
    call: &Call,
    duplicates: &[Problem],
    change: impl Fn(Value) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    let (target, options) = (&call.target, &call.options);
    let (kind, name) = (target.kind, target.name());
    let key = target.key(name);
    state.refuse_file(kind, &key)?;
    for _ in 0..ATTEMPTS {
        let old = state.store.get(&key).ok_or_else(|| ApiError::not_found(kind, name))?;
        let changed = change(shown(&old))?;
        same_version(call, &old, &changed)?;
        let mode = options.field_validation;
        let admitted = if target.status {
            admit::status(target, &old.object, changed, duplicates, mode)?
        } else {
            admit::update(target, &old.object, changed, duplicates, mode)?
        };
        let Admitted { object, warnings: mut all } = admitted;
        if !target.status {
            all.extend(warnings::of(state, kind, &object));
        }
        let unchanged = object == *old.object;
        let revision = if unchanged || options.dry_run {
            old.revision
        } else {
            let reason = reason(call, &old.object, &object);
            // The last finalizer of an object that is being deleted has gone, and so does the object.
            let object = Some(object.clone()).filter(|object| !is_done(object));
            let write = Write { key: key.clone(), expect: Expect::Revision(old.revision), object };
            match submit(state, call, reason, vec![write]).await {
                Ok(revision) => revision,
                Err(AppendError::Conflict { .. }) => continue,
                Err(error) => return Err(ApiError::append(kind, name, &error)),
            }
        };
        let object = with_version(object, revision);
        return Ok(answer(StatusCode::OK, call.form.object(kind, object, options.include), &all));
    }
    Err(ApiError::conflict(kind, name, MODIFIED))
}

/// 409 when the change names another resourceVersion than the object has.
fn same_version(call: &Call, old: &Stored, changed: &Value) -> Result<(), ApiError> {
    match &changed["metadata"]["resourceVersion"] {
        Value::Null => Ok(()),
        Value::String(given) if given.is_empty() || *given == old.revision.to_string() => Ok(()),
        Value::String(given) if given.parse::<u64>().is_err() => {
            let message = format!("metadata.resourceVersion: {given:?} is not one of this server");
            Err(ApiError::bad_request(message))
        }
        Value::String(_) => Err(ApiError::conflict(call.target.kind, call.target.name(), MODIFIED)),
        other => Err(ApiError::bad_request(format!("metadata.resourceVersion: {other} is not a text"))),
    }
}

fn is_done(object: &Value) -> bool {
    let metadata = &object["metadata"];
    metadata["deletionTimestamp"].is_string() && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// What a deletion relies on, from its body.
#[derive(Default)]
struct DeleteOptions {
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

fn delete_options(call: &Call, bytes: &[u8]) -> Result<DeleteOptions, ApiError> {
    let body = parse_body(call, bytes)?.value;
    if body.is_null() {
        return Ok(DeleteOptions { dry_run: call.options.dry_run, ..DeleteOptions::default() });
    }
    if !body.is_object() {
        return Err(ApiError::bad_request("the body of a deletion is a DeleteOptions object"));
    }
    if let Some(policy) = body["propagationPolicy"].as_str()
        && !matches!(policy, "Background" | "Foreground" | "Orphan")
    {
        let message = format!("propagationPolicy: {policy:?} is not one of Background, Foreground, Orphan");
        return Err(ApiError::bad_request(message));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let dry_run = body["dryRun"].as_array().is_some_and(|list| list.iter().any(|item| item == "All"));
    Ok(DeleteOptions {
        uid: text(&body["preconditions"]["uid"]),
        revision: text(&body["preconditions"]["resourceVersion"]),
        dry_run: dry_run || call.options.dry_run,
    })
}

/// DELETE of an object. With finalizers it is only marked, and goes with the last of them.
///
/// # Errors
/// As [`create`]; 409 when a precondition does not hold.
pub async fn delete(state: &ApiState, call: &Call, bytes: &[u8]) -> Result<Response, ApiError> {
    let wanted = delete_options(call, bytes)?;
    let (kind, name) = (call.target.kind, call.target.name());
    let key = call.target.key(name);
    // One of the store that a file hides may go.
    let hidden = state.files.borrow().place(&key).map(str::to_owned);
    if state.store.get(&key).is_none() {
        state.refuse_file(kind, &key)?;
    }
    let warnings: Vec<String> =
        hidden.map(|place| format!("the object of {place} is still there: remove it there")).into_iter().collect();
    for _ in 0..ATTEMPTS {
        let old = state.store.get(&key).ok_or_else(|| ApiError::not_found(kind, name))?;
        let uid = old.object["metadata"]["uid"].as_str().unwrap_or_default();
        if let Some(given) = wanted.uid.as_deref().filter(|given| *given != uid) {
            let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}");
            return Err(ApiError::conflict(kind, name, &why));
        }
        if let Some(given) = wanted.revision.as_deref().filter(|given| *given != old.revision.to_string()) {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {given}, ResourceVersion in object meta: {}",
                old.revision
            );
            return Err(ApiError::conflict(kind, name, &why));
        }
        let mut writes: Vec<Write> = removal(&old).into_iter().collect();
        if kind.kind == "Namespace" {
            // What is in it goes with it, in one batch.
            let inside = state.store.snapshot();
            writes.extend(inside.iter().filter(|stored| stored.key.namespace == name).filter_map(|s| removal(s)));
        }
        let revision = if wanted.dry_run || writes.is_empty() {
            old.revision
        } else {
            match submit(state, call, call.reason(), writes).await {
                Ok(revision) => revision,
                Err(AppendError::Conflict { .. }) => continue,
                Err(error) => return Err(ApiError::append(kind, name, &error)),
            }
        };
        let body = match state.store.get(&key).filter(|_| !wanted.dry_run) {
            Some(marked) if marked.object["metadata"]["deletionTimestamp"].is_string() => shown(&marked),
            _ if kind.returns_deleted() => with_version((*old.object).clone(), revision),
            _ => deleted(call, uid, revision),
        };
        return Ok(answer(StatusCode::OK, body, &warnings));
    }
    Err(ApiError::conflict(kind, name, MODIFIED))
}

/// DELETE of a collection.
///
/// # Errors
/// As [`create`].
pub async fn delete_collection(state: &ApiState, call: &Call, bytes: &[u8]) -> Result<Response, ApiError> {
    let wanted = delete_options(call, bytes)?;
    let kind = call.target.kind;
    for _ in 0..ATTEMPTS {
        let (revision, all) = state.store.list(kind.kind, call.target.namespace.as_deref());
        let chosen: Vec<_> = all.into_iter().filter(|stored| call.options.selector.matches(&stored.object)).collect();
        let writes: Vec<Write> = chosen.iter().filter_map(|stored| removal(stored)).collect();
        let revision = if wanted.dry_run || writes.is_empty() {
            revision
        } else {
            match submit(state, call, call.reason(), writes).await {
                Ok(revision) => revision,
                Err(AppendError::Conflict { .. }) => continue,
                Err(error) => return Err(ApiError::append(kind, "", &error)),
            }
        };
        let metadata = json!({ "resourceVersion": revision.to_string() });
        let chosen: Vec<_> = chosen.iter().collect();
        return Ok(respond::json(call.form.list(kind, &chosen, &metadata, call.options.include)));
    }
    Err(ApiError::conflict(kind, "", MODIFIED))
}

/// The write that removes an object, or marks it while it has finalizers; none when it is marked already.
fn removal(old: &Stored) -> Option<Write> {
    let (key, expect) = (old.key.clone(), Expect::Revision(old.revision));
    let metadata = &old.object["metadata"];
    if metadata["finalizers"].as_array().is_none_or(Vec::is_empty) {
        return Some(Write { key, expect, object: None });
    }
    if metadata["deletionTimestamp"].is_string() {
        return None;
    }
    let mut object = (*old.object).clone();
    object["metadata"]["deletionTimestamp"] = admit::timestamp(Timestamp::now()).into();
    object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    Some(Write { key, expect, object: Some(object) })
}

fn deleted(call: &Call, uid: &str, revision: u64) -> Value {
    let kind = call.target.kind;
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": { "resourceVersion": revision.to_string() },
        "status": "Success", "code": 200,
        "details": { "name": call.target.name(), "group": kind.group, "kind": kind.plural, "uid": uid },
    })
}

impl Call {
    /// Why the request is made, from its query or header.
    fn reason(&self) -> String {
        let header = self.headers.get(REASON_HEADER).and_then(|value| value.to_str().ok());
        self.options.reason.as_deref().or(header).unwrap_or_default().to_owned()
    }
}

/// Why, from query, header or the annotation, when that is new: an old one spoke of an earlier change.
fn reason(call: &Call, old: &Value, new: &Value) -> String {
    let annotation = |object: &Value| object["metadata"]["annotations"][REASON].as_str().map(str::to_owned);
    let given = call.reason();
    if given.is_empty() {
        annotation(new).filter(|_| annotation(old) != annotation(new)).unwrap_or_default()
    } else {
        given
    }
}

async fn append(state: &ApiState, call: &Call, key: &Key, reason: String, writes: Vec<Write>) -> Result<u64, ApiError> {
    submit(state, call, reason, writes).await.map_err(|error| ApiError::append(call.target.kind, &key.name, &error))
}

/// Appends and gives the revision of the first write.
async fn submit(state: &ApiState, call: &Call, reason: String, writes: Vec<Write>) -> Result<u64, AppendError> {
    let batch = Batch { author: call.caller.name.clone(), reason, writes };
    let events = state.store.append(batch).await?;
    Ok(events.first().map_or_else(|| state.store.revision(), |event| event.revision))
}
