//! The engine on disk: one redb file in the data directory, `weft.redb`.
//!
//! Tables: `meta` (the format), `events` (sealed records by revision) and `snapshots` (the newest fold, written every
//! so many events within their commit; a damaged one is ignored, the log is the truth). A start reads the snapshot,
//! follows and proves the chain behind it, and proves what lies before it in the background.

mod chain;
mod disk;
mod file;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    thread::JoinHandle,
    time::Duration,
};

use redb::{Database, ReadTransaction, ReadableDatabase};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

pub use self::file::verify;
use self::{
    chain::Chain,
    tables::Fault,
    writer::{Request, Writer},
};
use super::{
    error::{AppendError, OpenError, ReadError, VerifyError},
    log::EventLog,
    model::{Batch, Event, Head, HistoryFilter, Key, Past, Revision, Stored},
    propose::Proposed,
    state::State,
};

/// Batches that may wait for the writer; beyond that, appending waits.
const QUEUE: usize = 256;
/// Events in memory for watchers that keep up, in number and bytes of their records.
const TAIL: usize = 4096;
const TAIL_BYTES: usize = 4 * 1024 * 1024;

/// What tests turn.
#[derive(Clone)]
pub(super) struct Options {
    /// A snapshot is written when so many events (and as many as there are objects) came since the last one.
    pub snapshot_every: u64,
    pub fault: disk::Fault,
}

impl Default for Options {
    fn default() -> Self {
        Self { snapshot_every: 10_000, fault: Arc::new(|_| Ok(())) }
    }
}

#[cfg(test)]
impl Options {
    /// Asks before each wait for the disk.
    pub fn on_sync(ask: impl Fn() -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let fault = move |operation: disk::Operation<'_>| match operation {
            disk::Operation::Sync => ask(),
            _ => Ok(()),
        };
        Self { fault: Arc::new(fault), ..Self::default() }
    }

    /// Asks before each write to the disk.
    pub fn on_write(ask: impl Fn() -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let fault = move |operation: disk::Operation<'_>| match operation {
            disk::Operation::Resize(_) | disk::Operation::Write(..) => ask(),
            _ => Ok(()),
        };
        Self { fault: Arc::new(fault), ..Self::default() }
    }
}

/// The log on disk. Dropping it waits for the commit that runs and closes the file.
pub(super) struct Embedded {
    shared: Arc<Shared>,
    state: watch::Receiver<Arc<State>>,
    /// None only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    pub(super) fn open(directory: &Path, options: Options) -> Result<Self, OpenError> {
        let failed = disk::Failed::default();
        let database = file::create(directory, Arc::clone(&options.fault), &failed)?;
        let recovered = file::guarded(|| {
            let txn = database.begin_read()?;
            let start = tables::snapshot(&txn, Revision::MAX)?.unwrap_or_default();
            let chain = tables::follow(&txn, start.clone(), None)?;
            let state = State::from_parts(chain.head, tables::objects(&txn, &chain)?.into_iter());
            Ok((start, state))
        });
        let (start, state) = recovered.map_err(|fault| file::cannot_open(&directory.join(file::NAME), fault))?;
        let shared = Arc::new(Shared {
            directory: directory.into(),
            database: RwLock::new(Some(database)),
            tail: Mutex::default(),
            stopped: OnceLock::new(),
        });
        let (publish, state) = watch::channel(Arc::new(state));
        let (requests, receiver) = mpsc::channel(QUEUE);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let failed = |source| OpenError::Io { path: directory.into(), what: "starting a thread", source };
            std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed)
        };
        let snapshot = start.head.revision;
        if snapshot > 0 {
            let shared = Arc::clone(&shared);
            // Nobody waits for it: it ends by itself when the file is closed.
            spawn("store-verify", Box::new(move || shared.verify_start(&start)))?;
        }
        let writer = Writer { shared: Arc::clone(&shared), publish, options, failed, snapshot, must_reopen: false };
        let writer = spawn("store-writer", Box::new(move || writer.run(receiver)))?;
        Ok(Self { shared, state, requests: Some(requests), writer: Some(writer) })
    }

    /// Size of the file.
    pub(super) fn bytes(&self) -> Option<u64> {
        Some(std::fs::metadata(self.shared.directory.join(file::NAME)).ok()?.len())
    }

    /// Why no writes are taken, if so.
    pub(super) fn stopped(&self) -> Option<Arc<str>> {
        self.shared.stopped()
    }

    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&ReadTransaction) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, ReadError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || file::guarded(|| shared.read(&read)).map_err(ReadError::from))
            .await
            .unwrap_or_else(|_| Err(ReadError::Io { why: "the reader was cancelled".into() }))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            error!("the writer of the store panicked");
        }
    }
}

impl EventLog for Embedded {
    async fn append(&self, batch: Batch) -> Result<Vec<Arc<Event>>, AppendError> {
        let ended = || AppendError::Stopped { why: "the writer ended".into() };
        let requests = self.requests.as_ref().ok_or_else(ended)?;
        let (reply, outcome) = oneshot::channel();
        requests.send(Request { batch, reply }).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }

    async fn events(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Event>>, ReadError> {
        let head = self.head().revision;
        if let Some(events) = self.shared.tail().after(after, head, limit) {
            return Ok(events);
        }
        self.read(move |txn| tables::page(txn, after, head, limit)).await
    }

    async fn history(&self, filter: HistoryFilter) -> Result<Past, ReadError> {
        let head = self.head().revision;
        self.read(move |txn| tables::history(txn, &filter, head)).await
    }

    async fn state_at(&self, revision: Revision) -> Result<BTreeMap<Key, Arc<Stored>>, ReadError> {
        let head = self.head().revision;
        if revision > head {
            return Err(ReadError::Future { revision, head });
        }
        self.read(move |txn| tables::state_at(txn, revision)).await
    }

    async fn verify(&self) -> Result<Head, VerifyError> {
        let state = Arc::clone(&self.state.borrow());
        self.read(move |txn| tables::verify(txn, &state)).await.map_err(|error| match error {
            ReadError::Damaged { revision, why } => VerifyError { revision, why },
            other => VerifyError { revision: 0, why: other.to_string() },
        })
    }

    fn state(&self) -> &watch::Receiver<Arc<State>> {
        &self.state
    }
}

/// What the writer and the readers share.
struct Shared {
    directory: PathBuf,
    /// None while the file is opened anew, and at the end. Held for as long as it takes to begin a read; the writer
    /// alone holds it longer, and only it takes the database out.
    database: RwLock<Option<Database>>,
    tail: Mutex<Tail>,
    stopped: OnceLock<Arc<str>>,
}

impl Shared {
    fn with_database<T>(&self, run: impl FnOnce(&Database) -> T) -> Result<T, Arc<str>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(run).ok_or_else(|| "the file is closed".into())
    }

    fn take(&self) -> Option<Database> {
        self.database.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, database: Database) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> Option<Arc<str>> {
        self.stopped.get().cloned()
    }

    fn stop(&self, why: String) {
        // The first reason stays.
        let _ = self.stopped.set(why.into());
    }

    /// Reads at the last commit. Tries again while the writer opens the file anew after a failure.
    fn read<T>(&self, read: impl Fn(&ReadTransaction) -> Result<T, Fault>) -> Result<T, Fault> {
        const PATIENCE: u32 = 200;
        const PAUSE: Duration = Duration::from_millis(10);
        let mut attempt = 0;
        loop {
            let txn = self.with_database(Database::begin_read);
            let result = match txn {
                Ok(Ok(txn)) => read(&txn),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(redb::Error::DatabaseClosed.into()),
            };
            attempt += 1;
            match result {
                Err(Fault::Redb(redb::Error::PreviousIo | redb::Error::DatabaseClosed)) if attempt < PATIENCE => {
                    std::thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }

    /// Proves what a start took from the snapshot. Stops the writes when it is wrong: what was read is then not what
    /// was written.
    fn verify_start(&self, start: &Chain) {
        let result =
            file::guarded(|| self.read(|txn| tables::follow(txn, Chain::default(), Some(start.head.revision))));
        let why = match result {
            Ok(chain) if chain == *start => return,
            Ok(_) => "the snapshot is not what the events lead to".into(),
            Err(Fault::Redb(redb::Error::PreviousIo | redb::Error::DatabaseClosed)) => return,
            Err(fault) => ReadError::from(fault).to_string(),
        };
        error!(directory = %self.directory.display(), why, "the event log is damaged: no writes are taken");
        self.stop(format!("the event log is damaged: {why}"));
    }
}

/// The newest events, without a gap.
#[derive(Default)]
struct Tail {
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
}

impl Tail {
    fn extend(&mut self, events: &[Proposed]) {
        for Proposed { event, record } in events {
            self.events.push_back((Arc::clone(event), record.len()));
            self.bytes += record.len();
        }
        while self.events.len() > TAIL || self.bytes > TAIL_BYTES {
            let Some((_, bytes)) = self.events.pop_front() else { break };
            self.bytes -= bytes;
        }
    }

    /// The events after a revision through another; none when they are not all here.
    fn after(&self, after: Revision, through: Revision, limit: usize) -> Option<Vec<Arc<Event>>> {
        let (first, _) = self.events.front()?;
        let skip = usize::try_from((after + 1).checked_sub(first.revision)?).ok()?;
        let through = |event: &Arc<Event>| event.revision <= through;
        Some(
            self.events.iter().skip(skip).map(|(event, _)| Arc::clone(event)).take_while(through).take(limit).collect(),
        )
    }
}
