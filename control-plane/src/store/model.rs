//! What the store holds and takes: keys, objects, writes, events. No behaviour beyond names and order.

use std::{fmt, sync::Arc};

use serde_json::Value;

/// Number of an event: 1 is the first one, 0 means that there is none. Dense and increasing.
pub type Revision = u64;

/// SHA-256 of an event.
pub type Hash = [u8; 32];

/// Names one object. Sorts by kind, then namespace, then name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Such as `HTTPRoute`. Unique across the groups that the API serves.
    pub kind: Arc<str>,
    /// Empty for what belongs to no namespace.
    pub namespace: String,
    /// Unique in its namespace and kind.
    pub name: String,
}

impl Key {
    /// A key of its three parts.
    #[must_use]
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// An object as it is, or was, in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub key: Key,
    /// The event that created it.
    pub created: Revision,
    /// Its last event.
    pub revision: Revision,
    pub object: Arc<Value>,
}

/// What a write relies on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    /// The object does not exist.
    Absent,
    /// Nothing (but what is deleted must exist).
    Any,
    /// The object exists and its last event is this one.
    Revision(Revision),
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: Key,
    pub expect: Expect,
    /// The object from now on; none deletes it.
    pub object: Option<Value>,
}

/// Changes that are made together or not at all. Each makes one event; they are checked in order, each seeing those
/// before it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who asked for it.
    pub author: String,
    /// Why, in words; may be empty.
    pub reason: String,
    pub writes: Vec<Write>,
}

/// What an event did to its object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    Create,
    Delete,
    Update,
}

/// One accepted write.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub revision: Revision,
    /// Wall clock of the control plane, in milliseconds since 1970. It may go backwards when that clock does.
    pub time_ms: u64,
    pub author: String,
    pub reason: String,
    pub action: Action,
    pub key: Key,
    /// The object as it was: none for a creation.
    pub before: Option<Arc<Stored>>,
    /// The object as it is: none for a deletion.
    pub object: Option<Arc<Value>>,
    /// Hash of the event before; zeros for the first one.
    pub previous_hash: Hash,
    /// SHA-256 over the previous hash and all fields, see [`super::codec`].
    pub hash: Hash,
}

impl Event {
    /// The same without objects.
    pub(super) fn bare(self) -> Self {
        let null = |before: Arc<Stored>| {
            let (key, object) = (self.key.clone(), Arc::default());
            Arc::new(Stored { key, created: before.created, revision: before.revision, object })
        };
        Self { before: self.before.map(null), object: None, ..self }
    }

    /// The object as this event left it: none for a deletion.
    #[must_use]
    pub fn after(&self) -> Option<Stored> {
        let object = Arc::clone(self.object.as_ref()?);
        let created = self.before.as_ref().map_or(self.revision, |before| before.created);
        Some(Stored { key: self.key.clone(), created, revision: self.revision, object })
    }
}

/// The end of the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// The last event; 0 when there is none.
    pub revision: Revision,
    /// Its hash; zeros when there is none. Kept elsewhere, it proves that nothing up to here was changed.
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.revision)?;
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which events [`super::Store::history`] gives. The default gives the newest 100 of all.
#[derive(Clone, Debug)]
pub struct HistoryFilter {
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// Only events before this one: the next page starts at the last revision of this one.
    pub before_revision: Option<Revision>,
    /// At most so many.
    pub limit: usize,
    /// Also those that change nothing but what holds for an object, see [`STATUS`].
    pub statuses: bool,
    /// With the objects, and about so many bytes of them at most: at least one event, and of the last one all. `None`
    /// leaves them null, and reads nothing of them.
    pub objects: Option<usize>,
}

/// Some past events, newest first.
#[derive(Debug)]
pub struct Past {
    /// The events.
    pub events: Vec<Event>,
    /// There may be older ones that are asked for.
    pub more: bool,
}

/// Author of what the control plane writes by itself. No caller has this name.
pub const OWN_AUTHOR: &str = "weft";
/// The reason that it gives when it writes what holds for an object.
pub const STATUS: &str = "status";

impl Default for HistoryFilter {
    fn default() -> Self {
        Self {
            kind: None,
            namespace: None,
            name: None,
            before_revision: None,
            limit: 100,
            statuses: true,
            objects: Some(usize::MAX),
        }
    }
}

impl HistoryFilter {
    /// Whether this event of this object, by kind, namespace and name, is asked for.
    pub(super) fn matches(&self, [kind, namespace, name]: [&str; 3], author: &str, reason: &str) -> bool {
        let is = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|wanted| wanted == have);
        let is_status = || author == OWN_AUTHOR && reason == STATUS;
        is(&self.kind, kind)
            && is(&self.namespace, namespace)
            && is(&self.name, name)
            && (self.statuses || !is_status())
    }

    /// Whether an answer of so many events, with so many bytes of objects, is long enough.
    pub(super) fn is_enough(&self, events: usize, bytes: usize) -> bool {
        events >= self.limit || events > 0 && self.objects.is_some_and(|most| bytes >= most)
    }

    /// The last revision that may be given, of a log that ends at `head`.
    pub(super) fn last(&self, head: Revision) -> Revision {
        self.before_revision.map_or(head, |before| head.min(before.saturating_sub(1)))
    }
}
