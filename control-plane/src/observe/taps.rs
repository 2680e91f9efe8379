//! Taps: requests that people see as they end. Each has a bounded queue to its reader; what a sidecar or a slow reader
//! does not take is dropped and counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use weft_policy::SpiffeId;
use weft_proto::v1::{StartTap, StopTap, TapFilter, Tapped, TappedRequest, observe_demand::Demand};

use super::{Observers, Workload};

/// Taps at once.
pub const TAPS: usize = 16;
/// Requests that wait for a slow reader.
const QUEUE: usize = 256;
/// A sidecar that hears nothing for this time ends a tap by itself.
const LIFETIME: Duration = Duration::from_secs(30);
/// It is told again after this.
const RENEWAL: Duration = Duration::from_secs(10);

/// What somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Which requests.
    pub filter: TapFilter,
    /// Those that sidecars of this namespace see; none for all.
    pub namespace: Option<String>,
    /// Requests in one second, of each sidecar.
    pub per_second: u32,
    /// Query strings too.
    pub query: bool,
}

/// A tap, as the streams see it.
pub(super) struct Tap {
    id: u64,
    wish: Wish,
    queue: mpsc::Sender<Seen>,
    dropped: Mutex<Dropped>,
}

#[derive(Default)]
struct Dropped {
    /// By the queue to the reader.
    here: u64,
    /// By each stream's sidecar, since the tap began there. A stream that is in it has begun.
    there: BTreeMap<u64, u64>,
}

/// A request, and whose sidecar saw it.
#[derive(Debug)]
pub struct Seen {
    /// The workload beside the sidecar.
    pub workload: Workload,
    /// The request.
    pub request: TappedRequest,
}

/// The reader's end of a tap; its drop ends it.
pub struct Reader {
    observers: Observers,
    tap: Arc<Tap>,
    queue: mpsc::Receiver<Seen>,
    pub(super) news: watch::Receiver<u64>,
    renewal: Instant,
}

impl Tap {
    /// Whether a sidecar of this identity is asked.
    pub(super) fn is_of(&self, peer: &SpiffeId) -> bool {
        let namespace = peer.namespace_and_account().map(|(namespace, _)| namespace);
        self.wish.namespace.as_deref().is_none_or(|wanted| namespace == Some(wanted))
    }

    /// Whether what it says is wanted.
    pub(super) fn sees(&self, workload: &Workload) -> bool {
        self.wish.namespace.as_ref().is_none_or(|wanted| *wanted == workload.namespace)
    }

    /// The demand for it.
    pub(super) fn start(&self) -> Demand {
        let Wish { filter, per_second, query, .. } = self.wish.clone();
        let lifetime_seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
        Demand::StartTap(StartTap { id: self.id, filter: Some(filter), per_second, lifetime_seconds, query })
    }

    /// Hands what a stream's sidecar saw to the reader.
    pub(super) fn take(&self, stream: u64, workload: &Workload, tapped: Tapped) {
        let mut lost = 0;
        for mut request in tapped.requests {
            if !self.wish.query {
                // A sidecar leaves it out; one that does not is not a reason to show it.
                let end = request.path.find('?').unwrap_or(request.path.len());
                request.path.truncate(end);
            }
            for text in [&mut request.path, &mut request.authority] {
                if text.chars().any(char::is_control) {
                    *text = text.replace(char::is_control, "\u{fffd}");
                }
            }
            lost += u64::from(self.queue.try_send(Seen { workload: workload.clone(), request }).is_err());
        }
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.here += lost;
        dropped.there.insert(stream, tapped.dropped);
    }
}

impl Observers {
    /// Begins a tap at all sidecars that it is about; none when there are [`TAPS`] already.
    #[must_use]
    pub fn tap(&self, wish: Wish) -> Option<Reader> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let tap = {
            let mut taps = self.taps();
            if taps.len() >= TAPS {
                return None;
            }
            let id = self.0.last_tap.fetch_add(1, Relaxed) + 1;
            let tap = Arc::new(Tap { id, wish, queue: sender, dropped: Mutex::default() });
            taps.insert(id, Arc::clone(&tap));
            tap
        };
        self.demand(&tap, &tap.start());
        let (news, renewal) = (self.0.news.subscribe(), Instant::now() + RENEWAL);
        Some(Reader { observers: self.clone(), tap, queue, news, renewal })
    }

    fn demand(&self, tap: &Tap, demand: &Demand) {
        for open in self.streams().open.values().filter(|open| tap.is_of(&open.peer)) {
            // One that takes nothing is asked again, and forgets the tap by itself.
            let _ = open.demand(demand.clone());
        }
    }
}

impl Reader {
    /// The next request; none for as long as nothing comes.
    pub async fn next(&mut self) -> Option<Seen> {
        loop {
            tokio::select! {
                seen = self.queue.recv() => return seen,
                () = tokio::time::sleep_until(self.renewal) => {
                    self.renewal = Instant::now() + RENEWAL;
                    self.observers.demand(&self.tap, &self.tap.start());
                }
            }
        }
    }

    /// Waits until every sidecar that was asked has begun, but not beyond this time: how many have, and how many have not.
    pub async fn begun(&mut self, patience: Duration) -> (usize, usize) {
        let deadline = Instant::now() + patience;
        loop {
            self.news.borrow_and_update();
            let counts = self.sidecars();
            if counts.1 == 0 || !matches!(tokio::time::timeout_at(deadline, self.news.changed()).await, Ok(Ok(()))) {
                return counts;
            }
        }
    }

    /// How many sidecars that are there now have begun, and how many have not.
    #[must_use]
    pub fn sidecars(&self) -> (usize, usize) {
        let streams = self.observers.streams();
        let asked: Vec<u64> =
            streams.open.iter().filter(|(_, open)| self.tap.is_of(&open.peer)).map(|(id, _)| *id).collect();
        drop(streams);
        let dropped = self.tap.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = asked.iter().filter(|id| dropped.there.contains_key(id)).count();
        (begun, asked.len() - begun)
    }

    /// Requests that matched and are not shown.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let dropped = self.tap.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.there.values().fold(dropped.here, |sum, more| sum.saturating_add(*more))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.observers.taps().remove(&self.tap.id);
        self.observers.demand(&self.tap, &Demand::StopTap(StopTap { id: self.tap.id }));
    }
}
