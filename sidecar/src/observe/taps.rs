//! Which requests people want to see. Workers ask one flag for each request; only while there is a tap they look further,
//! and what matches goes into a bounded queue. What is too much for a tap or for the queue is dropped and counted.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use http::Version;
use tokio::{sync::mpsc, time::Instant};
use weft_proto::v1::{Direction, StartTap, TapFilter, TappedRequest};

use crate::telemetry::span::{Call, HttpCall, Kind, Span};

/// Taps at once.
const TAPS: usize = 16;
/// Requests that wait for the control thread.
const QUEUE: usize = 1024;
/// Requests in one second of one tap.
const MAX_RATE: u32 = 1000;
/// The longest life of a tap of which nothing more is heard, in seconds.
const MAX_LIFE: u32 = 60;
/// Bytes of a path.
const MAX_PATH: usize = 2048;

/// The taps. Clones share them.
#[derive(Clone)]
pub struct Taps(Arc<Inner>);

struct Inner {
    active: AtomicBool,
    all: RwLock<Arc<[Arc<Tap>]>>,
    queue: mpsc::Sender<(u64, TappedRequest)>,
    /// Zero of the seconds in which requests are counted.
    start: Instant,
}

struct Tap {
    id: u64,
    filter: TapFilter,
    per_second: u64,
    query: bool,
    ends: Mutex<Instant>,
    /// The second, and how many in it: `second << 32 | count`.
    rate: AtomicU64,
    dropped: AtomicU64,
    /// As it was last told.
    told: AtomicU64,
}

impl Taps {
    /// No taps, and the queue that they will fill.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<(u64, TappedRequest)>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let all = RwLock::new(Arc::from([]));
        (Self(Arc::new(Inner { active: AtomicBool::new(false), all, queue, start: Instant::now() })), receiver)
    }

    /// Whether anybody wants to see requests.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.0.active.load(Relaxed)
    }

    /// A request has ended; `span` is as the caller saw it.
    pub fn ended(&self, span: &Span) {
        let Call::Http(call) = &span.call else { return };
        for tap in self.all().iter().filter(|tap| tap.wants(span, call)) {
            if !tap.admits(self.0.start.elapsed().as_secs())
                || self.0.queue.try_send((tap.id, request(span, call, tap.query))).is_err()
            {
                tap.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// Begins a tap, or lets one that is there live on: how many it has dropped so far. None: there are too many.
    pub fn start(&self, start: StartTap, now: Instant) -> Option<u64> {
        let ends = now + Duration::from_secs(start.lifetime_seconds.clamp(1, MAX_LIFE).into());
        if let Some(tap) = self.all().iter().find(|tap| tap.id == start.id) {
            *tap.ends.lock().unwrap_or_else(PoisonError::into_inner) = ends;
            return Some(tap.dropped.load(Relaxed));
        }
        if self.all().len() >= TAPS {
            return None;
        }
        let tap = Tap {
            id: start.id,
            filter: start.filter.unwrap_or_default(),
            per_second: start.per_second.clamp(1, MAX_RATE).into(),
            query: start.query,
            ends: Mutex::new(ends),
            rate: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            told: AtomicU64::new(0),
        };
        self.change(|taps| taps.push(Arc::new(tap)));
        Some(0)
    }

    /// Ends a tap.
    pub fn stop(&self, id: u64) {
        self.change(|taps| taps.retain(|tap| tap.id != id));
    }

    /// Ends all.
    pub fn clear(&self) {
        self.change(Vec::clear);
    }

    /// Ends those of which nothing was heard for their lifetime.
    pub fn expire(&self, now: Instant) {
        let over = |tap: &Tap| *tap.ends.lock().unwrap_or_else(PoisonError::into_inner) <= now;
        if self.all().iter().any(|tap| over(tap)) {
            self.change(|taps| taps.retain(|tap| !over(tap)));
        }
    }

    /// How many a tap has dropped; none when there is no such tap.
    #[must_use]
    pub fn dropped(&self, id: u64) -> Option<u64> {
        let tap = self.all().iter().find(|tap| tap.id == id).cloned()?;
        let dropped = tap.dropped.load(Relaxed);
        tap.told.store(dropped, Relaxed);
        Some(dropped)
    }

    /// Those that have dropped more than was told.
    #[must_use]
    pub fn news(&self) -> Vec<(u64, u64)> {
        let all = self.all();
        let news = all.iter().filter(|tap| tap.told.load(Relaxed) != tap.dropped.load(Relaxed));
        news.filter_map(|tap| Some((tap.id, self.dropped(tap.id)?))).collect()
    }

    fn all(&self) -> Arc<[Arc<Tap>]> {
        Arc::clone(&self.0.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Tap>>)) {
        let mut all = self.0.all.write().unwrap_or_else(PoisonError::into_inner);
        let mut taps = all.to_vec();
        change(&mut taps);
        *all = taps.into();
        self.0.active.store(!all.is_empty(), Relaxed);
    }
}

impl Tap {
    fn wants(&self, span: &Span, call: &HttpCall) -> bool {
        let filter = &self.filter;
        let direction = filter.direction();
        let status = u32::from(call.status.unwrap_or(0));
        (direction == Direction::Unspecified || direction == of(span.kind))
            && (filter.service.is_empty()
                || span.service.as_ref().is_some_and(|target| target.service.as_str() == filter.service))
            && (filter.method.is_empty() || call.method.as_str() == filter.method)
            && call.path.path().starts_with(&filter.path_prefix)
            && (filter.status_to == 0 || (filter.status_from..=filter.status_to).contains(&status))
            && (filter.peer.is_empty() || span.peer_id.as_ref().is_some_and(|peer| peer.as_str() == filter.peer))
    }

    /// Counts one more in this second, as long as there are not too many.
    fn admits(&self, second: u64) -> bool {
        let counted = |rate: u64| {
            let count = if rate >> 32 == second { rate & u64::from(u32::MAX) } else { 0 };
            (count < self.per_second).then_some(second << 32 | (count + 1))
        };
        self.rate.fetch_update(Relaxed, Relaxed, counted).is_ok()
    }
}

const fn of(kind: Kind) -> Direction {
    match kind {
        Kind::Server => Direction::Inbound,
        Kind::Client => Direction::Outbound,
    }
}

fn request(span: &Span, call: &HttpCall, query: bool) -> TappedRequest {
    let path = if query { call.path.as_str() } else { call.path.path() };
    let started = span.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let port = call.authority.port.map_or_else(String::new, |port| format!(":{port}"));
    TappedRequest {
        direction: of(span.kind).into(),
        service: span.service.as_ref().map_or_else(String::new, |target| format!("{}:{}", target.service, target.port)),
        method: call.method.as_str().chars().take(32).collect(),
        authority: format!("{}{port}", call.authority.host),
        path: path[..path.floor_char_boundary(MAX_PATH)].to_owned(),
        status: call.status.unwrap_or(0).into(),
        grpc_status: call.grpc_status.map(u32::from),
        reason: span.reason.map_or_else(String::new, |reason| reason.as_str().to_owned()),
        duration_us: u64::try_from(span.duration.as_micros()).unwrap_or(u64::MAX),
        peer: span.peer_id.as_ref().map_or_else(String::new, ToString::to_string),
        peer_address: span.peer.map_or_else(String::new, |peer| peer.to_string()),
        attempts: span.resend + 1,
        trace_id: span.trace.to_string(),
        route: span.route().unwrap_or_default().chars().take(256).collect(),
        http_version: if call.version == Version::HTTP_2 { 2 } else { 1 },
        started_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
pub mod tests;
