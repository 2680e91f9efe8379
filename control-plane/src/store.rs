//! The durable state of the control plane: an append-only log of events, and the objects that it folds to.
//!
//! [`Store`] is what everybody uses. [`EventLog`] is what an engine below it does: `Memory` and `Embedded` (one
//! redb file), later etcd. Every accepted write is one event, hashed together with the event before it; nothing is
//! ever rewritten, and a rollback is new events. The store knows no kinds and validates no objects: that is the API's
//! work, before it appends. Written objects that equal the current one still make an event.

mod codec;
mod embedded;
mod error;
mod log;
mod memory;
mod model;
mod propose;
mod state;
#[cfg(test)]
mod tests;
mod watcher;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

pub use self::{
    embedded::verify,
    error::{AppendError, OpenError, ReadError, VerifyError, WatchError},
    log::EventLog,
    model::{
        Action, Batch, Event, Expect, Hash, Head, HistoryFilter, Key, OWN_AUTHOR, Past, Revision, STATUS, Stored, Write,
    },
    propose::{MAX_BATCH, MAX_DEPTH, MAX_NAME, MAX_OBJECT, MAX_REASON, MAX_WRITES},
    state::State,
    watcher::Watcher,
};
use self::{
    embedded::{Embedded, Options},
    log::Engine,
    memory::Memory,
};

/// The store. Clones are handles of the same one; it is closed when the last of them is dropped.
#[derive(Clone)]
pub struct Store {
    engine: Arc<Engine>,
    observer: Arc<OnceLock<Observer>>,
}

/// Is told how long a write took and what became of it.
type Observer = Box<dyn Fn(Duration, &'static str) + Send + Sync>;

impl Store {
    /// A store that lives in memory only.
    #[must_use]
    pub fn memory() -> Self {
        Self { engine: Arc::new(Engine::Memory(Memory::new())), observer: Arc::default() }
    }

    /// The store in a data directory, made where it is missing. Blocks while it reads the log: well under a second for
    /// 100,000 events. Call it inside or outside of a runtime.
    ///
    /// # Errors
    /// When it is in use, damaged, of a newer version, or the file system refuses.
    pub fn open(data_dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(data_dir, Options::default())
    }

    /// The same, and asks before each wait for the disk.
    #[cfg(test)]
    pub(crate) fn open_on_sync(
        data_dir: &Path,
        ask: impl Fn() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        Self::open_with(data_dir, Options::on_sync(ask))
    }

    /// The same, and asks before each write to the disk.
    #[cfg(test)]
    pub(crate) fn open_on_write(
        data_dir: &Path,
        ask: impl Fn() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        Self::open_with(data_dir, Options::on_write(ask))
    }

    fn open_with(data_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let engine = Arc::new(Engine::Embedded(Embedded::open(data_dir, options)?));
        Ok(Self { engine, observer: Arc::default() })
    }

    /// Why no writes are taken until a restart, if so: a commit failed or the log is damaged. Belongs into readiness.
    #[must_use]
    pub fn stopped(&self) -> Option<Arc<str>> {
        match &*self.engine {
            Engine::Embedded(log) => log.stopped(),
            Engine::Memory(_) => None,
        }
    }

    /// The last event that reads reflect; 0 when there is none.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.head().revision
    }

    /// The last event that reads reflect, with its hash.
    #[must_use]
    pub fn head(&self) -> Head {
        self.engine.head()
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.snapshot().get(key).cloned()
    }

    /// The objects of one kind, in one namespace or in all, by namespace and name, and the revision that the list
    /// reflects: a watch after it misses nothing.
    #[must_use]
    pub fn list(&self, kind: &str, namespace: Option<&str>) -> (Revision, Vec<Arc<Stored>>) {
        let state = self.snapshot();
        (state.revision(), state.list(kind, namespace).cloned().collect())
    }

    /// All objects, at one revision.
    #[must_use]
    pub fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.engine.state().borrow())
    }

    /// All objects, anew after every commit (not every event: commits take several).
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.engine.state().clone()
    }

    /// Appends a batch: all of it or nothing, one event per write. On return it is on the disk, and reads show it.
    /// When the future is dropped before, the batch may or may not be appended.
    ///
    /// # Errors
    /// When a write's expectation is not met, the batch is too large, or the log cannot be written.
    pub async fn append(&self, batch: Batch) -> Result<Vec<Arc<Event>>, AppendError> {
        let started = Instant::now();
        let result = self.engine.append(batch).await;
        if let Some(told) = self.observer.get() {
            told(started.elapsed(), result.as_ref().map_or_else(AppendError::word, |_| "ok"));
        }
        result
    }

    /// Has writes told from now on; only the first observer counts.
    pub fn observe(&self, told: impl Fn(Duration, &'static str) + Send + Sync + 'static) {
        let _ = self.observer.set(Box::new(told));
    }

    /// Size of its file, if it has one.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        match &*self.engine {
            Engine::Embedded(log) => log.bytes(),
            Engine::Memory(_) => None,
        }
    }

    /// Every event after a revision, exactly once and in order: 0 for all, [`Self::revision`] for the new ones.
    ///
    /// # Errors
    /// When that revision does not exist.
    pub fn watch(&self, after: Revision) -> Result<Watcher, WatchError> {
        let head = self.revision();
        if after > head {
            return Err(WatchError::Future { after, head });
        }
        Ok(Watcher::new(Arc::downgrade(&self.engine), self.state(), after))
    }

    /// Past events, newest first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn history(&self, filter: HistoryFilter) -> Result<Past, ReadError> {
        self.engine.history(filter).await
    }

    /// All objects as they were right after an event, for a rollback. Reads the whole log up to there.
    ///
    /// # Errors
    /// When there is no such event, or the log cannot be read.
    pub async fn state_at(&self, revision: Revision) -> Result<BTreeMap<Key, Arc<Stored>>, ReadError> {
        self.engine.state_at(revision).await
    }

    /// Computes the hash chain anew from the first event and compares the fold with what reads show.
    ///
    /// # Errors
    /// When an event is not what was written.
    pub async fn verify(&self) -> Result<Head, VerifyError> {
        self.engine.verify().await
    }
}

/// Milliseconds since 1970. A clock before that counts as 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
