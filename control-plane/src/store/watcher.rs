//! Follows the log from a revision on. A slow watcher holds one page of events, whatever the log does meanwhile.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use tokio::sync::watch;

use super::{
    error::ReadError,
    log::{Engine, EventLog},
    model::{Event, Revision},
    state::State,
};

/// Most events that a watcher holds.
const PAGE: u64 = 64;

/// Every event after a revision, exactly once and in order.
pub struct Watcher {
    /// Weak, so that a forgotten watcher does not keep the store open.
    log: Weak<Engine>,
    state: watch::Receiver<Arc<State>>,
    /// The last event that was taken from the log.
    position: Revision,
    page: VecDeque<Arc<Event>>,
    failure: Option<ReadError>,
}

impl Watcher {
    pub(super) fn new(log: Weak<Engine>, state: watch::Receiver<Arc<State>>, after: Revision) -> Self {
        Self { log, state, position: after, page: VecDeque::new(), failure: None }
    }

    /// The next event, as soon as there is one and the state reflects it. None when the store was closed (its last
    /// clone dropped) or the log cannot be read, which [`failure`](Self::failure) then tells. Nothing is lost when the
    /// future is dropped.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        while self.page.is_empty() {
            if self.failure.is_some() {
                return None;
            }
            let head = self.state.borrow_and_update().revision();
            if head > self.position {
                self.read((head - self.position).min(PAGE)).await?;
            } else {
                self.state.changed().await.ok()?;
            }
        }
        self.page.pop_front()
    }

    /// Why [`next`](Self::next) ended, if not because the store was closed.
    #[must_use]
    pub fn failure(&self) -> Option<&ReadError> {
        self.failure.as_ref()
    }

    async fn read(&mut self, limit: u64) -> Option<()> {
        let log = self.log.upgrade()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        match log.events(self.position, limit).await {
            Ok(events) => {
                self.position = events.last().map_or(self.position, |event| event.revision);
                self.page = events.into();
                Some(())
            }
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
    }
}
