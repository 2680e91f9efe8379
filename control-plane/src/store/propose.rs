//! Compare-and-append, without I/O: what a batch would make of a state, or why it may not.

use std::sync::Arc;

use serde_json::Value;

use super::{
    codec,
    error::AppendError,
    model::{Action, Batch, Event, Expect, Key, Revision, Write},
    state::State,
};

/// Largest object, in bytes of JSON. Kubernetes' own limit is about the same (etcd takes 1.5 MiB).
pub const MAX_OBJECT: usize = 1024 * 1024;
/// Largest kind, namespace or name, in bytes. Kubernetes allows 253.
pub const MAX_NAME: usize = 512;
/// Largest author or reason, in bytes.
pub const MAX_REASON: usize = 4096;
/// Deepest nesting of an object. What serde_json reads back ends at 127.
pub const MAX_DEPTH: usize = 100;
/// Most writes in a batch.
pub const MAX_WRITES: usize = 10_000;
/// Largest batch, in bytes of its events.
pub const MAX_BATCH: usize = 64 * 1024 * 1024;

/// An event and its record in the log.
pub(super) struct Proposed {
    pub event: Arc<Event>,
    pub record: Vec<u8>,
}

/// What becomes of `state` by `batch`, and the events that do it. `state` is untouched.
pub(super) fn propose(state: &State, batch: Batch, time_ms: u64) -> Result<(State, Vec<Proposed>), AppendError> {
    limit(|| "a batch with writes".into(), batch.writes.len(), MAX_WRITES)?;
    limit(|| "an author".into(), batch.author.len(), MAX_REASON)?;
    limit(|| "a reason".into(), batch.reason.len(), MAX_REASON)?;
    let mut state = state.clone();
    let mut proposed = Vec::with_capacity(batch.writes.len());
    let mut size = 0;
    let Batch { author, reason, writes } = batch;
    for write in writes {
        let event = next(&state, (&author, &reason), write, time_ms)?;
        size += event.record.len();
        limit(|| "a batch".into(), size, MAX_BATCH)?;
        state.apply(&event.event);
        proposed.push(event);
    }
    Ok((state, proposed))
}

fn next(state: &State, (author, reason): (&str, &str), write: Write, time_ms: u64) -> Result<Proposed, AppendError> {
    let Key { kind, namespace, name } = &write.key;
    limit(|| format!("{}: a name", write.key), kind.len().max(namespace.len()).max(name.len()), MAX_NAME)?;
    if let Some(object) = &write.object {
        limit(|| format!("{}: a nesting", write.key), depth(object, MAX_DEPTH + 1), MAX_DEPTH)?;
    }
    let before = state.get(&write.key).cloned();
    let action = check(&write, before.as_ref().map(|stored| stored.revision))?;
    let mut event = Event {
        revision: state.revision() + 1,
        time_ms,
        author: author.into(),
        reason: reason.into(),
        action,
        key: write.key,
        before,
        object: write.object.map(Arc::new),
        previous_hash: state.head().hash,
        hash: [0; 32],
    };
    let record = codec::encode(&event);
    // All that is not the object is bounded far below this.
    limit(|| format!("{}: an event", event.key), record.len(), MAX_OBJECT + 16 * 1024)?;
    event.hash = codec::hash(&record);
    Ok(Proposed { event: Arc::new(event), record })
}

/// What the write does, if the object is as it expects.
fn check(write: &Write, actual: Option<Revision>) -> Result<Action, AppendError> {
    let met = match write.expect {
        Expect::Absent => actual.is_none(),
        Expect::Any => true,
        Expect::Revision(revision) => actual == Some(revision),
    };
    match (&write.object, actual) {
        (Some(_), None) if met => Ok(Action::Create),
        (Some(_), Some(_)) if met => Ok(Action::Update),
        (None, Some(_)) if met => Ok(Action::Delete),
        // Also the deletion of what does not exist, whatever it expects.
        _ => Err(AppendError::Conflict { key: write.key.clone(), expected: write.expect, actual }),
    }
}

/// How deep a value is nested, looked at down to `most`: a value may be deeper than our stack.
fn depth(value: &Value, most: usize) -> usize {
    if most == 0 {
        return 0;
    }
    let deepest = |values: &mut dyn Iterator<Item = &Value>| values.map(|value| depth(value, most - 1)).max();
    match value {
        Value::Array(items) => 1 + deepest(&mut items.iter()).unwrap_or(0),
        Value::Object(fields) => 1 + deepest(&mut fields.values()).unwrap_or(0),
        _ => 0,
    }
}

fn limit(what: impl FnOnce() -> String, size: usize, limit: usize) -> Result<(), AppendError> {
    if size <= limit { Ok(()) } else { Err(AppendError::TooLarge { what: what(), size, limit }) }
}
