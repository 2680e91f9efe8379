//! What an author should know of an object: that its kind is not acted upon and, from [`beside`], what is odd beside
//! those that are in force. No reason to refuse it, because the other half may be on its way.

use std::sync::Arc;

use serde_json::Value;
use weft_proto::ResourceType;

use super::{ApiState, admit, held, kinds::Kind};
use crate::{
    beside::{self, Others},
    push::View,
    source::{Files, Origin},
    store::{Key, State},
};

/// Most warnings of one write.
const MOST: usize = 8;

/// Texts for `Warning` headers.
pub fn of(state: &ApiState, kind: &Kind, object: &Value) -> Vec<String> {
    let mut object = object.clone();
    object["kind"] = kind.kind.into();
    let in_force = InForce {
        objects: state.store.snapshot(),
        files: Arc::clone(&state.files.borrow()),
        view: Arc::clone(&state.pushed.view.borrow()),
    };
    let found = beside::find(&object, &Origin::default(), &in_force);
    found.iter().map(admit::warning).take(MOST).collect()
}

/// Objects of the store and of files, and services that were made for their workloads.
struct InForce {
    objects: Arc<State>,
    files: Arc<Files>,
    view: Arc<View>,
}

impl Others for InForce {
    const MISSING: &'static str = "does not exist (yet)";
    const REFERENCES: bool = true;

    fn exists(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let key = Key::new(kind, namespace, name);
        let pushed = || !self.view.named(ResourceType::Service, &format!("{namespace}/{name}"), "").is_empty();
        self.objects.get(&key).is_some() || self.files.get(&key).is_some() || kind == "Service" && pushed()
    }

    fn names(&self, kind: &str, namespace: &str) -> Vec<String> {
        let held = held::list(&self.objects, &self.files, kind, Some(namespace));
        let mut names: Vec<String> = held.iter().map(|stored| stored.key.name.clone()).collect();
        if kind == "Service" {
            let pushed = self.view.all(ResourceType::Service, "").filter_map(|resource| resource.name.split_once('/'));
            names.extend(pushed.filter(|(of, _)| *of == namespace).map(|(_, name)| name.to_owned()));
        }
        names
    }

    fn of_kind<'a>(&'a self, kind: &'a str, namespace: &'a str) -> impl Iterator<Item = &'a Value> {
        held::list(&self.objects, &self.files, kind, Some(namespace)).into_iter().map(|stored| &*stored.object)
    }

    fn workloads<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a Value> {
        // Most register themselves, and are no objects.
        std::iter::empty()
    }
}
