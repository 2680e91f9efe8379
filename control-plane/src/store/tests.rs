//! What every engine must do, run against each: `contract` by example, `model` against a naive store.

mod contract;
mod model;

use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{AppendError, Batch, Event, Expect, Key, Store, Write, embedded::Options};

/// A store, and the directory that it may live in.
pub(super) struct Fixture {
    pub store: Store,
    pub directory: Option<TempDir>,
}

impl Fixture {
    pub(super) fn memory() -> Self {
        Self { store: Store::memory(), directory: None }
    }

    /// On disk, with a snapshot every 7 events.
    pub(super) fn embedded() -> Self {
        let directory = TempDir::new().unwrap();
        let store = Store::open_with(directory.path(), options()).unwrap();
        Self { store, directory: Some(directory) }
    }
}

pub(super) fn options() -> Options {
    Options { snapshot_every: 7, ..Options::default() }
}

pub(super) fn key(name: &str) -> Key {
    Key::new("HTTPRoute", "default", name)
}

pub(super) fn put(name: &str, expect: Expect, value: u64) -> Write {
    Write { key: key(name), expect, object: Some(json!({ "value": value })) }
}

pub(super) fn delete(name: &str, expect: Expect) -> Write {
    Write { key: key(name), expect, object: None }
}

pub(super) fn batch(writes: impl Into<Vec<Write>>) -> Batch {
    Batch { author: "ada".into(), reason: "because".into(), writes: writes.into() }
}

/// Appends one write.
pub(super) async fn write(store: &Store, write: Write) -> Result<Arc<Event>, AppendError> {
    store.append(batch([write])).await.map(|events| {
        assert_eq!(events.len(), 1);
        Arc::clone(&events[0])
    })
}

pub(super) fn value(store: &Store, name: &str) -> Option<Value> {
    store.get(&key(name)).map(|stored| Value::clone(&stored.object))
}
