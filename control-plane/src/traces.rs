//! Spans of the last while, for development and the demo: a bounded ring in memory that OTLP fills (`receiver`) and that
//! Jaeger's query API (`jaeger`) and `weft trace` (`api`) read. It is no tracing backend: nothing is written to disk, and
//! whole traces, oldest first, make room for new ones.

pub mod api;
pub mod jaeger;
mod otlp;
pub mod query;
pub mod receiver;
mod sampling;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_policy::trace::{SpanId, TraceId};

/// Spans that are kept.
const MAX_SPANS: usize = 20_000;
/// Bytes of them, roughly.
const MAX_BYTES: usize = 48 << 20;
/// Spans of one trace, and bytes of them.
const MAX_TRACE: usize = 2_000;
const MAX_TRACE_BYTES: usize = 8 << 20;

/// The spans. Clones share them.
#[derive(Clone, Default)]
pub struct Traces(Arc<Mutex<Ring>>);

/// One span, as OTLP brought it, within limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub id: SpanId,
    /// What caused it.
    pub parent: Option<SpanId>,
    /// `internal`, `server`, `client`, `producer` or `consumer`.
    pub kind: &'static str,
    /// Operation.
    pub name: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds.
    pub duration: u64,
    /// How it ended; `None`: nobody said.
    pub status: Option<Status>,
    /// In the order in which they came.
    pub attributes: Vec<(String, Value)>,
    /// What happened meanwhile.
    pub events: Vec<Event>,
    /// Other spans that it has to do with.
    pub links: Vec<(TraceId, SpanId)>,
    /// Who made it.
    pub process: Arc<Process>,
    /// Name of the library that made it.
    pub scope: String,
}

/// How a span ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Whether it failed.
    pub error: bool,
    /// What was said of it.
    pub message: String,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// What.
    pub name: String,
    /// Details.
    pub attributes: Vec<(String, Value)>,
}

/// Who made a span: OTLP's resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// `service.name`.
    pub service: String,
    /// The rest.
    pub attributes: Vec<(String, Value)>,
}

/// Value of an attribute. Lists and maps are JSON text.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
}

#[derive(Default)]
struct Ring {
    traces: HashMap<TraceId, Held>,
    /// By their first span, oldest first.
    order: VecDeque<TraceId>,
    spans: usize,
    bytes: usize,
    received: u64,
    dropped: u64,
}

#[derive(Default)]
struct Held {
    spans: Vec<Arc<Span>>,
    ids: HashSet<SpanId>,
    bytes: usize,
}

/// How many spans have come, and how many are not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counts {
    /// Since the start.
    pub received: u64,
    /// Of these, not taken, because their trace is too large or has it already.
    pub dropped: u64,
    /// In memory now.
    pub held: usize,
}

impl Traces {
    /// Takes spans in; the oldest traces go where there is no room.
    pub fn add(&self, spans: impl IntoIterator<Item = Span>) {
        let mut ring = self.ring();
        for span in spans {
            ring.add(span);
        }
    }

    /// All spans of a trace, by their start.
    #[must_use]
    pub fn trace(&self, id: TraceId) -> Option<Vec<Arc<Span>>> {
        let mut spans = self.ring().traces.get(&id)?.spans.clone();
        spans.sort_by_key(|span| (span.start, span.parent.is_some()));
        Some(spans)
    }

    /// The newest `limit` traces of which `wanted` says yes, each with all its spans.
    #[must_use]
    pub fn search(&self, limit: usize, wanted: impl Fn(&[Arc<Span>]) -> bool) -> Vec<Vec<Arc<Span>>> {
        // What is found is looked at without the lock: spans that come meanwhile do not wait.
        let all: Vec<Vec<Arc<Span>>> = {
            let ring = self.ring();
            ring.order.iter().rev().filter_map(|id| ring.traces.get(id)).map(|held| held.spans.clone()).collect()
        };
        let mut found: Vec<_> = all.into_iter().filter(|spans| wanted(spans)).take(limit).collect();
        for spans in &mut found {
            spans.sort_by_key(|span| (span.start, span.parent.is_some()));
        }
        found
    }

    /// The operations of each service, each with its kind.
    #[must_use]
    pub fn services(&self) -> BTreeMap<String, Vec<(String, &'static str)>> {
        let mut services: BTreeMap<String, std::collections::BTreeSet<(String, &'static str)>> = BTreeMap::new();
        for span in self.ring().traces.values().flat_map(|held| &held.spans) {
            services.entry(span.process.service.clone()).or_default().insert((span.name.clone(), span.kind));
        }
        services.into_iter().map(|(service, operations)| (service, operations.into_iter().collect())).collect()
    }

    /// How often one service called another: a span whose parent is another service's, within `from..to` (nanoseconds).
    #[must_use]
    pub fn dependencies(&self, from: u64, to: u64) -> BTreeMap<(String, String), u64> {
        let mut calls = BTreeMap::new();
        let ring = self.ring();
        for held in ring.traces.values() {
            let by_id: HashMap<SpanId, &Arc<Span>> = held.spans.iter().map(|span| (span.id, span)).collect();
            for span in held.spans.iter().filter(|span| (from..to).contains(&span.start)) {
                let parent = span.parent.and_then(|parent| by_id.get(&parent));
                if let Some(parent) = parent.filter(|parent| parent.process.service != span.process.service) {
                    *calls.entry((parent.process.service.clone(), span.process.service.clone())).or_insert(0) += 1;
                }
            }
        }
        calls
    }

    /// What has come and gone.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let ring = self.ring();
        Counts { received: ring.received, dropped: ring.dropped, held: ring.spans }
    }

    /// Nothing that panics runs under the lock.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn add(&mut self, span: Span) {
        self.received += 1;
        let (id, bytes) = (span.trace, span.bytes());
        let held = self.traces.entry(id).or_default();
        if held.spans.is_empty() {
            self.order.push_back(id);
        }
        // An exporter that heard no answer sends again.
        let full = held.spans.len() >= MAX_TRACE || held.bytes + bytes > MAX_TRACE_BYTES;
        if full || !held.ids.insert(span.id) {
            self.dropped += 1;
            return;
        }
        held.spans.push(Arc::new(span));
        held.bytes += bytes;
        self.spans += 1;
        self.bytes += bytes;
        while (self.spans > MAX_SPANS || self.bytes > MAX_BYTES) && self.order.len() > 1 {
            let Some(gone) = self.order.pop_front().and_then(|oldest| self.traces.remove(&oldest)) else { return };
            self.spans -= gone.spans.len();
            self.bytes -= gone.bytes;
        }
    }
}

impl Span {
    /// When it ended, in nanoseconds since 1970.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.duration)
    }

    /// Whether it failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.error)
    }

    /// An attribute as text.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<String> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_string())
    }

    /// Roughly what it takes in memory.
    fn bytes(&self) -> usize {
        let attributes = |list: &[(String, Value)]| -> usize {
            list.iter().map(|(key, value)| key.len() + value.bytes() + 2 * size_of::<String>()).sum()
        };
        let events: usize =
            self.events.iter().map(|event| size_of::<Event>() + event.name.len() + attributes(&event.attributes)).sum();
        // The process is shared by the spans of one export. Counted for each: an export may have one span for each process.
        let process = self.process.service.len() + attributes(&self.process.attributes);
        let texts = self.name.len() + self.scope.len() + self.status.as_ref().map_or(0, |status| status.message.len());
        size_of::<Self>() + texts + attributes(&self.attributes) + events + self.links.len() * 24 + process
    }
}

impl Value {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bool(_) | Self::Int(_) | Self::Float(_) => 8,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bool(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
        }
    }
}
