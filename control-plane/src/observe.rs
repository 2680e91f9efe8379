//! What the sidecars count and see while somebody looks: streams that sidecars open, on which nothing is said until the
//! API asks. Whose a report is, is told by the connection that it came on: its certificate and its discovery stream.
//! Nothing is kept when nobody asks. `server` is the gRPC around it, `report` the bounds of what comes in, `taps` the
//! requests that are shown as they end, `table` makes numbers of reports.

pub mod histogram;
mod report;
pub mod server;
pub mod table;
pub mod taps;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tonic::Status;
use weft_policy::SpiffeId;
use weft_proto::v1::{CollectStatistics, ObserveDemand, Tapped, observe_demand::Demand};

pub use self::report::Report;
use self::{report::Parts, taps::Tap};
use crate::push::proxies::{Proxies, Proxy};

/// A sidecar that has not answered after this time is left out of an answer.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Sidecars are asked again no sooner than this, however many people ask.
const GAP: Duration = Duration::from_millis(200);
/// Demands that wait for a slow sidecar; more are not sent.
const DEMANDS: usize = 64;

/// The streams of all sidecars, and who looks. Clones share them.
#[derive(Clone, Default)]
pub struct Observers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    proxies: Proxies,
    streams: Mutex<Streams>,
    /// Held while a round waits to begin.
    round: tokio::sync::Mutex<Round>,
    /// Changes when a stream has reported or ended.
    news: watch::Sender<u64>,
    taps: Mutex<BTreeMap<u64, Arc<Tap>>>,
    last_tap: AtomicU64,
    asking: AtomicU64,
}

#[derive(Default)]
struct Round {
    number: u64,
    began: Option<Instant>,
}

#[derive(Default)]
struct Streams {
    last: u64,
    open: BTreeMap<u64, Open>,
}

/// One sidecar's stream. When it goes, the stream ends.
struct Open {
    address: String,
    peer: SpiffeId,
    demands: mpsc::Sender<Result<ObserveDemand, Status>>,
    _end: oneshot::Sender<()>,
    asked: u64,
    answered: u64,
    parts: Parts,
    report: Option<Arc<Report>>,
}

/// The task's side of a stream; its drop is the end of it.
struct Stream {
    observers: Observers,
    id: u64,
}

/// Whose a report is, as its certificate and its registration have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// Its namespace, that of its certificate.
    pub namespace: String,
    /// Name of the instance.
    pub name: String,
    /// Its label `app`, or its name.
    pub app: String,
    /// SPIFFE id that it proved.
    pub identity: String,
    /// Tells this start of it from those before.
    pub epoch_ms: u64,
}

impl Workload {
    /// `namespace/name`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn of(row: &Proxy) -> Self {
        let registration = &row.registration;
        let app = registration.labels.get("app").unwrap_or(&registration.name);
        Self {
            namespace: registration.namespace.clone(),
            name: registration.name.clone(),
            app: app.clone(),
            identity: row.peer.id.to_string(),
            epoch_ms: registration.epoch_ms,
        }
    }
}

/// What all sidecars had counted at one time.
#[derive(Clone)]
pub struct Collected {
    /// When they were asked.
    pub at: Instant,
    /// Those that answered.
    pub reports: Vec<(Workload, Arc<Report>)>,
    /// How many did not, or cannot: sidecars of older versions.
    pub silent: usize,
}

/// Somebody waits for reports; when nobody does any more, they are forgotten.
struct Asking<'a>(&'a Observers);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.0.0.asking.fetch_sub(1, Relaxed) == 1 {
            for open in self.0.streams().open.values_mut() {
                (open.report, open.parts) = (None, Parts::default());
            }
        }
    }
}

impl Observers {
    /// Those of these sidecars.
    #[must_use]
    pub fn new(proxies: Proxies) -> Self {
        Self(Arc::new(Shared { proxies, ..Shared::default() }))
    }

    /// Asks every sidecar what it has counted until now: whatever was counted before this call is in the answer.
    pub async fn collect(&self) -> Collected {
        self.0.asking.fetch_add(1, Relaxed);
        let _asking = Asking(self);
        let (number, at) = self.round().await;
        let mut news = self.0.news.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            news.borrow_and_update();
            let waits = |open: &Open| open.asked >= number && open.answered < number;
            if !self.streams().open.values().any(waits) {
                break;
            }
            if !matches!(timeout_at(deadline, news.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        let rows = self.0.proxies.rows();
        let streams = self.streams();
        let by_address: HashMap<&str, &Open> =
            streams.open.values().map(|open| (open.address.as_str(), open)).collect();
        let registered = rows.iter().filter(|row| !row.registration.name.is_empty());
        let mut collected = Collected { at, reports: Vec::new(), silent: 0 };
        for row in registered {
            let open = by_address.get(row.address.as_str()).filter(|open| open.peer == row.peer.id);
            match open.filter(|open| open.answered >= number).and_then(|open| open.report.clone()) {
                Some(report) => collected.reports.push((Workload::of(row), report)),
                None => collected.silent += 1,
            }
        }
        collected
    }

    /// The number of a round that begins after this call, and when it began. Who comes while one waits shares it.
    async fn round(&self) -> (u64, Instant) {
        let came = Instant::now();
        let mut round = self.0.round.lock().await;
        if let Some(began) = round.began {
            if began > came {
                return (round.number, began);
            }
            tokio::time::sleep_until(began + GAP).await;
        }
        let now = Instant::now();
        (round.number, round.began) = (round.number + 1, Some(now));
        let number = round.number;
        let rows = self.0.proxies.rows();
        let known: HashMap<&str, &SpiffeId> = rows
            .iter()
            .filter(|row| !row.registration.name.is_empty())
            .map(|row| (row.address.as_str(), &row.peer.id))
            .collect();
        for open in self.streams().open.values_mut() {
            // Of others nobody knows whose the numbers are: nobody waits for them.
            let known = known.get(open.address.as_str()) == Some(&&open.peer);
            if known && open.demand(Demand::Collect(CollectStatistics { number })) {
                open.asked = number;
                open.parts.begin(number);
            }
        }
        (number, now)
    }

    /// A stream of `peer` has been opened on the connection from `address`, of which it is the only one.
    fn open(
        &self,
        peer: SpiffeId,
        address: String,
    ) -> (Stream, mpsc::Receiver<Result<ObserveDemand, Status>>, oneshot::Receiver<()>) {
        let (demands, receiver) = mpsc::channel(DEMANDS);
        let (end, ended) = oneshot::channel();
        let (asked, answered, parts, report) = (0, 0, Parts::default(), None);
        let open = Open { address, peer, demands, _end: end, asked, answered, parts, report };
        let taps: Vec<Arc<Tap>> = self.taps().values().cloned().collect();
        let mut streams = self.streams();
        streams.open.retain(|_, other| other.address != open.address);
        for tap in taps.iter().filter(|tap| tap.is_of(&open.peer)) {
            open.demand(tap.start());
        }
        streams.last += 1;
        let id = streams.last;
        streams.open.insert(id, open);
        (Stream { observers: self.clone(), id }, receiver, ended)
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taps(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Tap>>> {
        self.0.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sidecar of a stream, when its discovery stream is there.
    fn whose(&self, id: u64) -> Option<Workload> {
        let (address, peer) = {
            let streams = self.streams();
            let open = streams.open.get(&id)?;
            (open.address.clone(), open.peer.clone())
        };
        let row = self.0.proxies.at(&address)?;
        (row.peer.id == peer && !row.registration.name.is_empty()).then(|| Workload::of(&row))
    }

    fn tell(&self) {
        self.0.news.send_modify(|count| *count += 1);
    }
}

impl Open {
    /// Leaves a demand; false when the sidecar takes none at the moment.
    fn demand(&self, demand: Demand) -> bool {
        self.demands.try_send(Ok(ObserveDemand { demand: Some(demand) })).is_ok()
    }
}

impl Stream {
    /// A part of a report has come.
    fn statistics(&self, part: weft_proto::v1::Statistics) -> Result<(), String> {
        let nobody = self.observers.0.asking.load(Relaxed) == 0;
        {
            let mut streams = self.observers.streams();
            let Some(open) = streams.open.get_mut(&self.id) else { return Ok(()) };
            if nobody {
                open.parts = Parts::default();
                return Ok(());
            }
            let Some(report) = open.parts.add(part)? else { return Ok(()) };
            open.answered = report.number;
            open.report = Some(Arc::new(report));
        }
        self.observers.tell();
        Ok(())
    }

    /// Requests have come for a tap. Those for taps that it was not asked for are nobody's.
    fn tapped(&self, tapped: Tapped) -> Result<(), String> {
        report::check_tapped(&tapped)?;
        let Some(tap) = self.observers.taps().get(&tapped.tap).cloned() else { return Ok(()) };
        let Some(workload) = self.observers.whose(self.id) else { return Ok(()) };
        if tap.sees(&workload) {
            tap.take(self.id, &workload, tapped);
            self.observers.tell();
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.observers.streams().open.remove(&self.id);
        self.observers.tell();
    }
}

#[cfg(test)]
pub(crate) mod tests;
