//! The fold of the log: all objects at one revision. Copies share structure, so that every commit can publish one.

use std::{ops::Bound, sync::Arc};

use rpds::RedBlackTreeMapSync;

use super::model::{Event, Head, Key, Revision, Stored};

/// All objects as they were right after one event. Cheap to clone.
#[derive(Clone, Default)]
pub struct State {
    head: Head,
    objects: RedBlackTreeMapSync<Key, Arc<Stored>>,
}

impl State {
    /// The last event that this reflects.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The last event that this reflects; 0 when there is none.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.head.revision
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.size()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.objects.get(key)
    }

    /// All objects, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.values()
    }

    /// The objects of one kind, in one namespace or in all, by namespace and name.
    pub fn list<'a>(&'a self, kind: &'a str, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Stored>> {
        let first = Key::new(kind, namespace.unwrap_or_default(), "");
        self.objects.range((Bound::Included(first), Bound::Unbounded)).map(|(_, stored)| stored).take_while(
            move |stored| *stored.key.kind == *kind && namespace.is_none_or(|ns| stored.key.namespace == ns),
        )
    }

    /// The fold: what one more event makes of this.
    pub(super) fn apply(&mut self, event: &Event) {
        match event.after() {
            Some(stored) => self.objects.insert_mut(event.key.clone(), Arc::new(stored)),
            None => _ = self.objects.remove_mut(&event.key),
        }
        self.head = Head { revision: event.revision, hash: event.hash };
    }

    /// A state read from elsewhere than events.
    pub(super) fn from_parts(head: Head, objects: impl Iterator<Item = Arc<Stored>>) -> Self {
        Self { head, objects: objects.map(|stored| (stored.key.clone(), stored)).collect() }
    }
}
