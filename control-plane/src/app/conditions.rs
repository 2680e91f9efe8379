//! Writes what compiling found into the status of the objects in the store, as the author `weft`: only where it differs,
//! and never over a newer object.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    api::{admit::timestamp, conditions::CONTROLLER},
    compile::conditions::Parent,
    store::{AppendError, Batch, Expect, Key, Store, Stored, Write},
};

/// What the statuses should say, as of the last compile.
pub type Conditions = Arc<BTreeMap<Key, Vec<Parent>>>;

/// Follows what compiling finds for as long as it goes on.
pub async fn write(store: Store, mut wanted: watch::Receiver<Conditions>) {
    while wanted.changed().await.is_ok() {
        let conditions = Arc::clone(&wanted.borrow_and_update());
        let now = Timestamp::now();
        let writes = conditions.iter().filter_map(|(key, parents)| {
            let stored = store.get(key)?;
            let object = with_status(&stored, parents, now)?;
            Some(Write { key: key.clone(), expect: Expect::Revision(stored.revision), object: Some(object) })
        });
        for write in writes.collect::<Vec<_>>() {
            let key = write.key.clone();
            let batch = Batch { author: "weft".into(), reason: "status".into(), writes: vec![write] };
            match store.append(batch).await {
                // Somebody was faster: what they wrote is compiled next.
                Ok(_) | Err(AppendError::Conflict { .. }) => {}
                Err(error) => tracing::warn!(%key, %error, "the status could not be written"),
            }
        }
    }
}

/// The object with its new status, or `None` when that says so already.
fn with_status(stored: &Stored, parents: &[Parent], now: Timestamp) -> Option<Value> {
    let old = &stored.object["status"]["parents"];
    let held = || old.as_array().into_iter().flatten();
    let generation = &stored.object["metadata"]["generation"];
    let own = parents.iter().map(|(reference, conditions)| {
        let before = held().find(|entry| entry["parentRef"] == *reference && entry["controllerName"] == CONTROLLER);
        let conditions = conditions.iter().map(|condition| {
            let state = if condition.holds { "True" } else { "False" };
            let same = before
                .and_then(|entry| entry["conditions"].as_array())
                .and_then(|list| list.iter().find(|old| old["type"] == condition.name && old["status"] == state));
            let since = same.map_or_else(|| timestamp(now).into(), |old| old["lastTransitionTime"].clone());
            json!({
                "type": condition.name, "status": state, "reason": condition.reason, "message": condition.message,
                "observedGeneration": generation, "lastTransitionTime": since,
            })
        });
        json!({ "parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions.collect::<Vec<_>>() })
    });
    // What other controllers say stays.
    let others = held().filter(|entry| entry["controllerName"] != CONTROLLER).cloned();
    let new: Vec<Value> = own.chain(others).collect();
    if *old == Value::Array(new.clone()) || old.is_null() && new.is_empty() {
        return None;
    }
    let mut object = (*stored.object).clone();
    object["status"] = json!({ "parents": new });
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::conditions::Condition;

    fn accepted(holds: bool) -> Vec<Parent> {
        let condition = Condition { name: "Accepted", holds, reason: "Accepted", message: String::new() };
        vec![(json!({ "name": "web" }), vec![condition])]
    }

    #[tokio::test]
    async fn a_status_is_written_once_and_again_when_it_changes() {
        let store = Store::memory();
        let key = Key::new("HTTPRoute", "default", "r");
        let object = json!({ "metadata": { "generation": 3 }, "spec": {}, "status": { "parents": [{ "controllerName": "other" }] } });
        let write_ = Write { key: key.clone(), expect: Expect::Absent, object: Some(object) };
        let batch = Batch { author: "test".into(), reason: String::new(), writes: vec![write_] };
        store.append(batch).await.expect("taken");
        let (sender, receiver) = watch::channel(Conditions::default());
        let writing = tokio::spawn(write(store.clone(), receiver));
        let mut states = store.state();
        let mut revision = store.revision();
        for holds in [true, false] {
            sender.send_replace(Arc::new(BTreeMap::from([(key.clone(), accepted(holds))])));
            states.wait_for(|state| state.revision() > revision).await.expect("alive");
            revision += 1;
            let stored = store.get(&key).expect("there");
            let parents = stored.object["status"]["parents"].clone();
            assert_eq!(parents[0]["conditions"][0]["status"], if holds { "True" } else { "False" });
            assert_eq!(parents[0]["conditions"][0]["observedGeneration"], 3);
            assert_eq!(parents[1]["controllerName"], "other", "what others say stays");
        }
        // The same again appends nothing: the next event is that of another change.
        sender.send_replace(Arc::new(BTreeMap::from([(key.clone(), accepted(false))])));
        drop(sender);
        writing.await.expect("ends with its source");
        assert_eq!(store.revision(), revision);
    }
}
