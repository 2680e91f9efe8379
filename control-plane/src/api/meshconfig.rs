//! `MeshConfig default`: a store that never had one begins with the defaults, so that they can be seen and edited.

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::jiff::Timestamp;

use super::{
    admit,
    target::{FieldValidation, Target},
};
use crate::{
    source::{self, Files},
    store::{AppendError, Batch, Expect, HistoryFilter, OWN_AUTHOR, Store, Write},
};

const PATH: &str = "/apis/weft.dev/v1alpha1/meshconfigs";
const NAME: &str = "default";
const DEFAULTS: &str = include_str!("meshconfig.yaml");

/// Writes the defaults, as the author `weft`, unless there are some, or somebody deleted them. With `dev` every trace is
/// kept.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn ensure(store: &Store, files: &Files, dev: bool) -> Result<()> {
    let wanted = || "write MeshConfig default";
    let target = Target::parse(PATH).map_err(|error| anyhow!("{:?}", error.to_json())).with_context(wanted)?;
    let key = target.key(NAME);
    let past = HistoryFilter {
        kind: Some(key.kind.to_string()),
        name: Some(NAME.into()),
        limit: 1,
        ..HistoryFilter::default()
    };
    if files.get(&key).is_some()
        || store.get(&key).is_some()
        || !store.history(past).await.with_context(wanted)?.events.is_empty()
    {
        return Ok(());
    }
    let mut documents = source::yaml_to_json(DEFAULTS).map_err(|problem| anyhow!("{problem}")).with_context(wanted)?;
    let mut object = documents.pop().unwrap_or_default();
    if dev {
        object["spec"]["tracing"]["samplingPercent"] = 100.into();
    }
    let admitted = admit::create(&target, object, &[], FieldValidation::Strict, Timestamp::now());
    let object = admitted.map_err(|error| anyhow!("{:?}", error.to_json())).with_context(wanted)?.object;
    let write = Write { key, expect: Expect::Absent, object: Some(object) };
    let batch = Batch { author: OWN_AUTHOR.into(), reason: "defaults".into(), writes: vec![write] };
    match store.append(batch).await {
        // Somebody was faster.
        Ok(_) | Err(AppendError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error).with_context(wanted),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::store::Key;

    fn held(store: &Store) -> Option<Arc<Value>> {
        store.get(&Key::new("MeshConfig", "", NAME)).map(|stored| Arc::clone(&stored.object))
    }

    #[tokio::test]
    async fn a_new_store_begins_with_the_defaults_and_one_that_had_them_keeps_what_it_has() {
        let (store, none) = (Store::memory(), Files::default());
        for _ in 0..2 {
            ensure(&store, &none, false).await.expect("written");
            assert_eq!(store.revision(), 1);
        }
        let object = held(&store).expect("there");
        for (path, value) in [
            ("/spec/peerMode", Value::from("Permissive")),
            ("/spec/traffic/timeouts/connect", "2s".into()),
            ("/spec/traffic/retries/attempts", 2.into()),
            ("/spec/traffic/limits/requests", 4096.into()),
            ("/spec/traffic/outlierDetection/consecutiveFailures", 5.into()),
            ("/spec/tracing/samplingPercent", 1.into()),
        ] {
            assert_eq!(object.pointer(path), Some(&value), "{path}");
        }
        let events =
            store.history(HistoryFilter { limit: 1, ..HistoryFilter::default() }).await.expect("readable").events;
        assert_eq!((events[0].author.as_str(), events[0].reason.as_str()), ("weft", "defaults"));

        let key = Key::new("MeshConfig", "", NAME);
        let gone = Write { key, expect: Expect::Any, object: None };
        store.append(Batch { author: "ann".into(), reason: String::new(), writes: vec![gone] }).await.expect("taken");
        ensure(&store, &none, false).await.expect("nothing to do");
        assert!(held(&store).is_none(), "what was deleted stays deleted");
    }

    #[tokio::test]
    async fn a_developer_keeps_every_trace_and_a_file_is_left_alone() {
        let store = Store::memory();
        ensure(&store, &Files::default(), true).await.expect("written");
        assert_eq!(held(&store).expect("there")["spec"]["tracing"]["samplingPercent"], 100);

        let directory = tempfile::TempDir::new().expect("a directory");
        std::fs::write(directory.path().join("mesh.yaml"), DEFAULTS).expect("writable");
        let source = source::Source::open(directory.path(), "weft.local").expect("readable");
        assert!(source.problems().is_empty(), "{:?}", source.problems());
        let (store, files) = (Store::memory(), Arc::clone(&source.files().borrow()));
        ensure(&store, &files, false).await.expect("nothing to do");
        assert_eq!(store.revision(), 0);
    }
}
