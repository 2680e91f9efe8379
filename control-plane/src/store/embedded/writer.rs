//! The one thread that commits. Batches that arrive while a commit runs share the next one: one sync for all.

use std::{path::PathBuf, sync::Arc};

use redb::{Database, ReadableDatabase};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, warn};

use super::{
    Options, Shared,
    disk::{Failed, Failure},
    file, tables,
};
use crate::store::{
    error::AppendError,
    model::{Batch, Event, Revision},
    now_ms,
    propose::{Proposed, propose},
    state::State,
};

/// Most batches that share a commit.
const GROUP: usize = 256;
/// No more batches join a commit that has so many bytes.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// What a commit needs on the disk beside twice its records: pages of the trees, and growth of the file.
const ROOM: u64 = 1024 * 1024;

type Outcome = Result<Vec<Arc<Event>>, AppendError>;

/// A batch that somebody waits for.
pub(super) struct Request {
    pub batch: Batch,
    pub reply: oneshot::Sender<Outcome>,
}

/// What the thread owns.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub publish: watch::Sender<Arc<State>>,
    pub options: Options,
    pub failed: Failed,
    /// The revision of the last snapshot.
    pub snapshot: Revision,
    /// The disk was full, and so full that the file could not even be opened anew.
    pub must_reopen: bool,
}

impl Writer {
    /// Serves until nobody can ask any more, then closes the file.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            self.serve(first, &mut requests);
        }
        if let Some(Err(error)) = self.shared.take().map(Database::close) {
            warn!(%error, "closing the store: the next start recovers it");
        }
    }

    /// Commits a request, and those that wait behind it.
    fn serve(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        let before = Arc::clone(&self.publish.borrow());
        let mut state = State::clone(&before);
        let (mut events, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(Request { batch, reply }) = next.take() {
            // Each is checked against the state that those before it leave.
            let outcome = propose(&state, batch, now_ms()).map(|(after, proposed)| {
                state = after;
                let start = events.len();
                bytes += proposed.iter().map(|event| event.record.len()).sum::<usize>();
                events.extend(proposed);
                start..events.len()
            });
            waiting.push((outcome, reply));
            if waiting.len() < GROUP && bytes < GROUP_BYTES {
                next = requests.try_recv().ok();
            }
        }
        let committed = if events.is_empty() { Ok(()) } else { self.commit(&before, &state, &events, bytes) };
        if committed.is_ok() && !events.is_empty() {
            self.shared.tail().extend(&events);
            self.publish.send_replace(Arc::new(state));
        }
        for (outcome, reply) in waiting {
            // A conflict may be with a write of this very commit: it says so only if that was made.
            let outcome = match &committed {
                Ok(()) => outcome.map(|range| events[range].iter().map(|event| Arc::clone(&event.event)).collect()),
                Err(error) => Err(error.clone()),
            };
            // Whoever asked may have gone: the events stay.
            let _ = reply.send(outcome);
        }
    }

    fn commit(&mut self, before: &State, after: &State, events: &[Proposed], bytes: usize) -> Result<(), AppendError> {
        if let Some(why) = self.shared.stopped() {
            return Err(AppendError::Stopped { why });
        }
        if !self.has_room(bytes) {
            return Err(self.full());
        }
        if self.must_reopen {
            self.reopen(before)?;
        }
        let interval = self.options.snapshot_every.max(after.len() as u64);
        let snapshot = (after.revision() - self.snapshot >= interval).then_some(after);
        let written = self.shared.with_database(|database| tables::write(database, events, snapshot));
        match written {
            Ok(Ok(())) => {
                self.snapshot = snapshot.map_or(self.snapshot, State::revision);
                Ok(())
            }
            Ok(Err(error)) => Err(self.recover(before, &error)),
            Err(why) => Err(AppendError::Stopped { why }),
        }
    }

    /// Whether the commit fits on the disk. Asked first because redb takes no more of anything after an I/O error.
    fn has_room(&self, bytes: usize) -> bool {
        let Ok(disk) = rustix::fs::statvfs(&self.shared.directory) else { return true };
        // Some file systems do not tell: zero blocks in all.
        disk.f_blocks == 0 || disk.f_bavail.saturating_mul(disk.f_frsize) >= 2 * bytes as u64 + ROOM
    }

    fn full(&self) -> AppendError {
        AppendError::Full { path: self.path() }
    }

    fn path(&self) -> PathBuf {
        self.shared.directory.join(file::NAME)
    }

    /// After a failed commit. If there was just no room, writes go on from the last commit; else they stop.
    fn recover(&mut self, before: &State, error: &redb::Error) -> AppendError {
        match self.failed.get().cloned() {
            Some(failure) if failure.is_full() => {
                warn!(file = %self.path().display(), "the disk is full: writes are rejected until there is room");
                self.reopen(before).err().unwrap_or_else(|| self.full())
            }
            Some(failure) => self.stop(failure.error),
            None => self.stop(Arc::new(std::io::Error::other(error.to_string()))),
        }
    }

    /// Opens the file anew, at the last commit. Where even that needs room (a file system that never overwrites), it
    /// is only read until the next attempt.
    fn reopen(&mut self, before: &State) -> Result<(), AppendError> {
        // Dropped first: it holds the lock of the file.
        drop(self.shared.take());
        let failed = Failed::default();
        let opened = file::guarded(|| {
            let database = file::open(&self.path(), Arc::clone(&self.options.fault), &failed)?;
            if tables::head(&database.begin_read()?)? != before.head() {
                return Err(redb::Error::Corrupted("it does not end with the last commit".into()).into());
            }
            Ok(database)
        });
        let is_full = failed.get().is_some_and(Failure::is_full);
        self.must_reopen = opened.is_err();
        match opened {
            Ok(database) => {
                self.shared.put(database);
                self.failed = failed;
                Ok(())
            }
            Err(_) if is_full => {
                self.read_only();
                Err(self.full())
            }
            Err(fault) => Err(self.stop(Arc::new(std::io::Error::other(format!("opened anew: {fault:?}"))))),
        }
    }

    /// Takes no more writes. Reads go on.
    fn stop(&mut self, why: Arc<std::io::Error>) -> AppendError {
        error!(file = %self.path().display(), %why, "a commit failed: no writes are taken until a restart");
        self.shared.stop(format!("a commit failed: {why}"));
        self.read_only();
        AppendError::Io { source: why }
    }

    fn read_only(&self) {
        drop(self.shared.take());
        match file::guarded(|| file::open_overlay(&self.path())) {
            Ok(database) => self.shared.put(database),
            Err(fault) => error!(file = %self.path().display(), ?fault, "the log cannot be read until a restart"),
        }
    }
}
