//! What an engine of the store does, and the choice of one.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::{
    embedded::Embedded,
    error::{AppendError, ReadError, VerifyError},
    memory::Memory,
    model::{Batch, Event, Head, HistoryFilter, Key, Past, Revision, Stored},
    state::State,
};

/// An event log with compare-and-append. The log is the truth; an engine folds it with [`State::apply`] and publishes
/// the result. One that shares its log with other control planes (etcd) folds what its watch of the log brings.
pub trait EventLog: Send + Sync {
    /// Appends all of a batch or nothing. On return the events are durable and `state` reflects them.
    fn append(&self, batch: Batch) -> impl Future<Output = Result<Vec<Arc<Event>>, AppendError>> + Send;

    /// The events after a revision, oldest first: at least one if there is one, at most `limit`, in bounded memory.
    fn events(&self, after: Revision, limit: usize) -> impl Future<Output = Result<Vec<Arc<Event>>, ReadError>> + Send;

    /// The events that a filter asks for, newest first.
    fn history(&self, filter: HistoryFilter) -> impl Future<Output = Result<Past, ReadError>> + Send;

    /// All objects as they were right after a revision.
    fn state_at(
        &self,
        revision: Revision,
    ) -> impl Future<Output = Result<BTreeMap<Key, Arc<Stored>>, ReadError>> + Send;

    /// Computes the hash chain anew from the first event, and compares the fold with the current state.
    fn verify(&self) -> impl Future<Output = Result<Head, VerifyError>> + Send;

    /// The fold of the log, anew after every commit.
    fn state(&self) -> &watch::Receiver<Arc<State>>;

    /// The end of the log, as far as the fold reflects it.
    fn head(&self) -> Head {
        self.state().borrow().head()
    }
}

/// The engines that there are.
pub(super) enum Engine {
    Embedded(Embedded),
    Memory(Memory),
}

/// Calls the engine that it is.
macro_rules! on {
    ($self:ident, $log:ident => $call:expr) => {
        match $self {
            Self::Embedded($log) => $call,
            Self::Memory($log) => $call,
        }
    };
}

impl EventLog for Engine {
    async fn append(&self, batch: Batch) -> Result<Vec<Arc<Event>>, AppendError> {
        on!(self, log => log.append(batch).await)
    }

    async fn events(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Event>>, ReadError> {
        on!(self, log => log.events(after, limit).await)
    }

    async fn history(&self, filter: HistoryFilter) -> Result<Past, ReadError> {
        on!(self, log => log.history(filter).await)
    }

    async fn state_at(&self, revision: Revision) -> Result<BTreeMap<Key, Arc<Stored>>, ReadError> {
        on!(self, log => log.state_at(revision).await)
    }

    async fn verify(&self) -> Result<Head, VerifyError> {
        on!(self, log => log.verify().await)
    }

    fn state(&self) -> &watch::Receiver<Arc<State>> {
        on!(self, log => log.state())
    }
}
