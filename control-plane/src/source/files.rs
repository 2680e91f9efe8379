//! The objects of the resource directory as the API shows them: as they were written, with their place. Read-only; a
//! file wins over an object of the store with the same name.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use serde_json::{Map, Value};

use crate::store::{Key, Stored};

/// Annotation that says which file and line an object comes from.
pub const SOURCE: &str = "weft.dev/source";

/// All objects of the files. Unchanged objects are shared with the set before.
#[derive(Clone, Debug, Default)]
pub struct Files(BTreeMap<Key, Arc<Stored>>);

impl Files {
    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.0.get(key)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `FILE:LINE` of an object.
    #[must_use]
    pub fn place(&self, key: &Key) -> Option<&str> {
        self.get(key)?.object["metadata"]["annotations"][SOURCE].as_str()
    }

    /// The objects of one kind, in one namespace or in all, by namespace and name.
    pub fn list<'a>(&'a self, kind: &'a str, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Stored>> {
        let first = Key::new(kind, namespace.unwrap_or_default(), "");
        self.0.range((Bound::Included(first), Bound::Unbounded)).map(|(_, stored)| stored).take_while(move |stored| {
            *stored.key.kind == *kind && namespace.is_none_or(|ns| stored.key.namespace == ns)
        })
    }

    /// Adds an object; of two with the same name the first stays, as it does for the mesh.
    pub(super) fn add(&mut self, object: &Arc<Stored>) {
        self.0.entry(object.key.clone()).or_insert_with(|| Arc::clone(object));
    }
}

impl FromIterator<Arc<Stored>> for Files {
    fn from_iter<T: IntoIterator<Item = Arc<Stored>>>(objects: T) -> Self {
        let mut files = Self::default();
        objects.into_iter().for_each(|object| files.add(&object));
        files
    }
}

/// An object of a file as the API shows it: with its namespace and its place. No event made it, so its revision is 0.
pub(crate) fn written(key: Key, mut object: Value, place: &str) -> Arc<Stored> {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if !key.namespace.is_empty() {
            metadata.insert("namespace".into(), key.namespace.as_str().into());
        }
        let annotations = metadata.entry("annotations").or_insert_with(|| Map::new().into());
        if !annotations.is_object() {
            *annotations = Map::new().into();
        }
        annotations[SOURCE] = place.into();
    }
    Arc::new(Stored { key, created: 0, revision: 0, object: Arc::new(object) })
}
