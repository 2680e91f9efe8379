//! The engine without a disk: for tests, `--dev` without a data directory, and as the model of the others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{
    codec,
    error::{AppendError, ReadError, VerifyError},
    log::EventLog,
    model::{Batch, Event, Head, HistoryFilter, Key, Past, Revision, Stored},
    now_ms,
    propose::propose,
    state::State,
};

/// All events, in memory. They are gone with it.
pub(super) struct Memory {
    /// Held while a batch is checked and published, so that batches follow each other.
    events: Mutex<Vec<Arc<Event>>>,
    publish: watch::Sender<Arc<State>>,
    state: watch::Receiver<Arc<State>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let (publish, state) = watch::channel(Arc::default());
        Self { events: Mutex::default(), publish, state }
    }

    /// A panic while it was held left it whole: nothing is pushed before all is checked.
    fn events(&self) -> MutexGuard<'_, Vec<Arc<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events up to a revision.
    fn through(&self, revision: Revision) -> Result<Vec<Arc<Event>>, ReadError> {
        let events = self.events();
        let head = index(events.len());
        let through = events.get(..position(revision)).ok_or(ReadError::Future { revision, head })?;
        Ok(through.to_vec())
    }
}

impl EventLog for Memory {
    async fn append(&self, batch: Batch) -> Result<Vec<Arc<Event>>, AppendError> {
        let mut events = self.events();
        let before = Arc::clone(&self.state.borrow());
        let (state, proposed) = propose(&before, batch, now_ms())?;
        let appended: Vec<_> = proposed.into_iter().map(|proposed| proposed.event).collect();
        events.extend(appended.iter().cloned());
        if !appended.is_empty() {
            self.publish.send_replace(Arc::new(state));
        }
        Ok(appended)
    }

    async fn events(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Event>>, ReadError> {
        let events = self.events();
        Ok(events.iter().skip(position(after)).take(limit).cloned().collect())
    }

    async fn history(&self, filter: HistoryFilter) -> Result<Past, ReadError> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for event in self.through(filter.last(self.head().revision))?.iter().rev() {
            if filter.is_enough(found.len(), bytes) {
                return Ok(Past { events: found, more: true });
            }
            let Key { kind, namespace, name } = &event.key;
            if !filter.matches([kind, namespace, name], &event.author, &event.reason) {
                continue;
            }
            let event = Event::clone(event);
            if filter.objects.is_none() {
                found.push(event.bare());
                continue;
            }
            let objects = event.object.iter().chain(event.before.iter().map(|before| &before.object));
            bytes += objects.map(|object| object.to_string().len()).sum::<usize>();
            found.push(event);
        }
        Ok(Past { events: found, more: false })
    }

    async fn state_at(&self, revision: Revision) -> Result<BTreeMap<Key, Arc<Stored>>, ReadError> {
        let mut state = State::default();
        self.through(revision)?.iter().for_each(|event| state.apply(event));
        Ok(state.iter().map(|stored| (stored.key.clone(), Arc::clone(stored))).collect())
    }

    async fn verify(&self) -> Result<Head, VerifyError> {
        let head = self.head();
        let mut previous = Head::default();
        let events = self.through(head.revision).map_err(|e| VerifyError { revision: 0, why: e.to_string() })?;
        for event in events {
            let follows = event.revision == previous.revision + 1 && event.previous_hash == previous.hash;
            if !follows || codec::hash(&codec::encode(&event)) != event.hash {
                return Err(VerifyError { revision: event.revision, why: "the hash does not match".into() });
            }
            previous = Head { revision: event.revision, hash: event.hash };
        }
        Ok(previous)
    }

    fn state(&self) -> &watch::Receiver<Arc<State>> {
        &self.state
    }
}

/// How many events there are up to a revision.
fn position(revision: Revision) -> usize {
    usize::try_from(revision).unwrap_or(usize::MAX)
}

fn index(length: usize) -> Revision {
    Revision::try_from(length).unwrap_or(Revision::MAX)
}
