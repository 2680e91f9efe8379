//! What was seen of the cluster, into the event log: in batches by author, and what is the same already makes no event.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use crate::{
    source::stored::same_but_status,
    store::{AppendError, Batch, Expect, Key, OWN_AUTHOR, STATUS, Store, Write},
};

/// Most writes of one batch: a failure repeats as many.
const BATCH: usize = 256;
/// Bytes of an author.
const AUTHOR: usize = 256;

/// What became of it.
#[derive(Debug, Default)]
pub struct Taken {
    /// What the log has now, or cannot have.
    pub keys: Vec<Key>,
    /// Why it does not have the rest.
    pub failed: Option<String>,
}

/// Who wrote an object last, as far as it tells: the API server names programs, not people.
pub fn author(object: &Value) -> String {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let last = entries.filter(|entry| entry["subresource"].is_null()).max_by_key(|entry| entry["time"].as_str());
    let manager = last.and_then(|entry| entry["manager"].as_str()).unwrap_or("unknown");
    format!("kubernetes:{}", manager.chars().take(AUTHOR).collect::<String>())
}

/// Appends what is other than in the log.
pub async fn append(store: &Store, dirty: &BTreeMap<Key, Option<(Arc<Value>, String)>>) -> Taken {
    let state = store.snapshot();
    let mut taken = Taken::default();
    let mut batches: BTreeMap<(String, &str), Vec<Write>> = BTreeMap::new();
    for (key, wanted) in dirty {
        let held = state.get(key).map(|stored| &stored.object);
        let (by, object) = match (wanted, held) {
            (None, None) => {
                taken.keys.push(key.clone());
                continue;
            }
            (Some((object, _)), Some(held)) if object == held => {
                taken.keys.push(key.clone());
                continue;
            }
            (Some((object, _)), Some(held)) if same_but_status(held, object) => {
                ((OWN_AUTHOR.to_owned(), STATUS), Some(object))
            }
            (Some((object, author)), _) => ((author.clone(), ""), Some(object)),
            (None, Some(_)) => (("kubernetes:unknown".to_owned(), ""), None),
        };
        let object = object.map(|object| Value::clone(object));
        batches.entry(by).or_default().push(Write { key: key.clone(), expect: Expect::Any, object });
    }
    for ((author, reason), writes) in batches {
        for chunk in writes.chunks(BATCH) {
            let batch = Batch { author: author.clone(), reason: reason.into(), writes: chunk.to_vec() };
            let failed = match store.append(batch).await {
                Ok(_) => None,
                Err(AppendError::TooLarge { .. }) => one_by_one(store, &author, reason, chunk).await,
                Err(error) => Some(error),
            };
            match failed {
                None => taken.keys.extend(chunk.iter().map(|write| write.key.clone())),
                Some(error) => taken.failed = Some(error.to_string()),
            }
        }
    }
    taken
}

/// One of them is too large to be kept, and for that one there is nothing to try again.
async fn one_by_one(store: &Store, author: &str, reason: &str, writes: &[Write]) -> Option<AppendError> {
    for write in writes {
        let batch = Batch { author: author.into(), reason: reason.into(), writes: vec![write.clone()] };
        match store.append(batch).await {
            Ok(_) => {}
            Err(error @ AppendError::TooLarge { .. }) => {
                tracing::warn!(object = %write.key, %error, "an object of the cluster is left as it was");
            }
            // What was taken before is the same the next time, and makes no event.
            Err(error) => return Some(error),
        }
    }
    None
}
