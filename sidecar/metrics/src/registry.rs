//! Who keeps the series. A series is made once for its name and labels, with a cap on how many there are, and goes when
//! nobody has held its handle for a while.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{CounterFn, GaugeFn};

use crate::{
    histogram::Histogram,
    snapshot::{Collector, Labels, Snapshot, float},
    text::Format,
};

/// A series that nobody holds is kept for this time, so that a scraper gets its last value.
pub const IDLE: Duration = Duration::from_secs(600);
/// Sets of labels in one process; what is beyond it shares one series for each name.
pub const MAX_SERIES: usize = 8192;
/// Value of the labels of the series that is shared beyond the cap, but for those of [`CLOSED`].
pub const OVERFLOW: &str = "overflow";
/// Labels with a few values of ours, which tell series apart beyond the cap too.
const CLOSED: [&str; 2] = ["direction", "tls"];
/// Series that a reader takes at a time: who makes a series meanwhile waits for no more than that.
const TURN: usize = 64;

/// One set of labels and what is counted under it.
pub trait Series: Any + Send + Sync {
    /// Says what it holds.
    fn collect(&self, labels: &Labels, out: &mut Collector);
}

/// All metrics of a process. Clones share them.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    max: usize,
    series: Mutex<BTreeMap<Key, Entry>>,
    sources: Mutex<Vec<Source>>,
    keyed: Mutex<BTreeMap<Key, Source>>,
    overflowed: Mutex<BTreeMap<&'static str, u64>>,
}

/// Name and labels.
type Key = (&'static str, Labels);

/// Says values that are known elsewhere; false when there is no more to say, ever.
type Source = Box<dyn Fn(&mut Collector) -> bool + Send + Sync>;

struct Entry {
    series: Arc<dyn Series>,
    /// Never goes.
    pinned: bool,
    /// Since when nobody was seen to hold it.
    unheld: Option<Instant>,
}

struct Counter(&'static str, &'static str, AtomicU64);
struct Gauge(&'static str, &'static str, AtomicU64);
struct Timer(&'static str, &'static str, Histogram);

impl Default for Registry {
    fn default() -> Self {
        Self::new(MAX_SERIES)
    }
}

impl Registry {
    /// With a cap on the sets of labels.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let (series, sources, keyed, overflowed) = Default::default();
        Self(Arc::new(Inner { max, series, sources, keyed, overflowed }))
    }

    /// The series of this name and labels, made on the first call. It lives for as long as the handle is held, and
    /// [`IDLE`] longer.
    pub fn series<S: Series>(
        &self,
        name: &'static str,
        labels: &[(&'static str, &str)],
        make: impl FnOnce() -> S,
    ) -> Arc<S> {
        self.get(name, Labels::new(labels), false, make)
    }

    /// A counter, made on the first call with these labels. It stays for ever: labels must be of a closed set.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Counter {
        let make = || Counter(name, help, AtomicU64::new(0));
        metrics::Counter::from_arc(self.get(name, Labels::new(labels), true, make))
    }

    /// A counter of something that may go: it lives for as long as the handle is held, and [`IDLE`] longer.
    pub fn counter_of(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> metrics::Counter {
        let make = || Counter(name, help, AtomicU64::new(0));
        metrics::Counter::from_arc(self.get(name, Labels::new(labels), false, make))
    }

    /// A gauge, made on the first call with these labels. It stays for ever: labels must be of a closed set.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Gauge {
        let make = || Gauge(name, help, AtomicU64::new(0));
        metrics::Gauge::from_arc(self.get(name, Labels::new(labels), true, make))
    }

    /// A gauge of something that may go: it lives for as long as the handle is held, and [`IDLE`] longer.
    pub fn gauge_of(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Gauge {
        let make = || Gauge(name, help, AtomicU64::new(0));
        metrics::Gauge::from_arc(self.get(name, Labels::new(labels), false, make))
    }

    /// Durations, made on the first call with these labels. It stays for ever: labels must be of a closed set.
    pub fn timer(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Arc<dyn Timing> {
        self.get(name, Labels::new(labels), true, || Timer(name, help, Histogram::default()))
    }

    /// Values that are asked for when somebody reads, until `source` says false.
    pub fn source(&self, source: impl Fn(&mut Collector) -> bool + Send + Sync + 'static) {
        lock(&self.0.sources).push(Box::new(source));
    }

    /// The same for something that may go and come back: in place of the source of this name and labels from before.
    pub fn source_of(
        &self,
        name: &'static str,
        labels: &Labels,
        source: impl Fn(&mut Collector) -> bool + Send + Sync + 'static,
    ) {
        lock(&self.0.keyed).insert((name, labels.clone()), Box::new(source));
    }

    fn get<S: Series>(&self, name: &'static str, labels: Labels, pinned: bool, make: impl FnOnce() -> S) -> Arc<S> {
        let mut all = lock(&self.0.series);
        let mut key = (name, labels);
        if !all.contains_key(&key) && all.len() >= self.0.max {
            *lock(&self.0.overflowed).entry(name).or_default() += 1;
            key.1 = key.1.shared(OVERFLOW, &CLOSED);
        }
        // Asked for again: the time without a holder begins anew.
        if let Some(entry) = all.get_mut(&key) {
            entry.unheld = None;
            let series: Arc<dyn Any + Send + Sync> = entry.series.clone();
            if let Ok(series) = series.downcast() {
                return series;
            }
            debug_assert!(false, "{name} is registered as another kind");
        }
        let series = Arc::new(make());
        all.insert(key, Entry { series: Arc::<S>::clone(&series), pinned, unheld: None });
        series
    }

    /// Drops what nobody has held for [`IDLE`], and sources of what has gone. To be called now and then, and not while
    /// somebody reads: what is being read counts as held.
    pub fn expire(&self, now: Instant) {
        lock(&self.0.keyed).retain(|_, source| source(&mut Collector::default()));
        lock(&self.0.series).retain(|_, entry| {
            if entry.pinned || Arc::strong_count(&entry.series) > 1 {
                entry.unheld = None;
                return true;
            }
            let since = *entry.unheld.get_or_insert(now);
            now.saturating_duration_since(since) < IDLE
        });
    }

    /// The values that a label has in the series of these names.
    #[must_use]
    pub fn values_of(&self, names: &[&str], label: &str) -> BTreeSet<Box<str>> {
        let all = lock(&self.0.series);
        let labels = all.keys().filter(|(name, _)| names.contains(name)).flat_map(|(_, labels)| labels.iter());
        labels.filter(|(name, _)| *name == label).map(|(_, value)| value.into()).collect()
    }

    /// Everything, now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_with(|_| {})
    }

    /// Everything, now, with what the caller knows.
    #[must_use]
    pub fn snapshot_with(&self, more: impl FnOnce(&mut Collector)) -> Snapshot {
        let mut out = Collector::default();
        let held = self.collect(&mut out);
        lock(&self.0.sources).retain(|source| source(&mut out));
        lock(&self.0.keyed).retain(|_, source| source(&mut out));
        more(&mut out);
        let none = Labels::new(&[]);
        let help = "Sets of labels that this process keeps";
        out.gauge("weft_series", help, &none, float(u64::try_from(held).unwrap_or(u64::MAX)));
        let family = ("weft_series_overflowed_total", "Series that were not made because there are as many as may be");
        out.counter_with(family, &none, &[], lock(&self.0.overflowed).values().sum());
        out.0
    }

    /// What all series hold, and how many there are. The lock is held to take a few of them, and not while they are read:
    /// workers make series for new connections.
    fn collect(&self, out: &mut Collector) -> usize {
        let mut turn: Vec<(Key, Arc<dyn Series>)> = Vec::with_capacity(TURN);
        let mut count = 0;
        loop {
            let last = turn.last().map(|(key, _)| key.clone());
            turn.clear();
            let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let all = lock(&self.0.series);
            let next = all.range((from, Bound::Unbounded)).take(TURN);
            turn.extend(next.map(|(key, entry)| (key.clone(), Arc::clone(&entry.series))));
            drop(all);
            if turn.is_empty() {
                return count;
            }
            count += turn.len();
            turn.iter().for_each(|((_, labels), series)| series.collect(labels, out));
        }
    }

    /// Everything, now, as text.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        self.snapshot().render(format)
    }
}

/// Something that durations are told.
pub trait Timing: Send + Sync {
    /// Counts a duration.
    fn record(&self, duration: Duration);
}

impl Timing for Timer {
    fn record(&self, duration: Duration) {
        self.2.record(duration, None);
    }
}

impl Series for Timer {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        out.histogram(self.0, self.1, labels, self.2.value());
    }
}

impl Series for Counter {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        out.counter(self.0, self.1, labels, self.2.load(Ordering::Relaxed));
    }
}

impl CounterFn for Counter {
    fn increment(&self, value: u64) {
        CounterFn::increment(&self.2, value);
    }

    fn absolute(&self, value: u64) {
        CounterFn::absolute(&self.2, value);
    }
}

impl Series for Gauge {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        out.gauge(self.0, self.1, labels, f64::from_bits(self.2.load(Ordering::Relaxed)));
    }
}

impl GaugeFn for Gauge {
    fn increment(&self, value: f64) {
        GaugeFn::increment(&self.2, value);
    }

    fn decrement(&self, value: f64) {
        GaugeFn::decrement(&self.2, value);
    }

    fn set(&self, value: f64) {
        GaugeFn::set(&self.2, value);
    }
}

/// A panic elsewhere cannot leave a map of counters half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
