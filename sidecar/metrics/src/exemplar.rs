//! One example for each bucket of a histogram: the trace of a request that fell into it. Written without waiting: who
//! finds another writer leaves it at that.

use std::{
    sync::atomic::{AtomicU64, Ordering, fence},
    time::{SystemTime, UNIX_EPOCH},
};

/// Id of a trace, as W3C has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceId(pub [u8; 16]);

/// A request that fell into a bucket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exemplar {
    /// Its trace.
    pub trace: TraceId,
    /// Its value in microseconds.
    pub micros: u64,
    /// When, in milliseconds since the Unix epoch.
    pub millis: u64,
}

/// Room for one exemplar. `version` is odd while somebody writes, and 0 before the first one.
#[derive(Default)]
pub struct Slot {
    version: AtomicU64,
    trace: [AtomicU64; 2],
    micros: AtomicU64,
    millis: AtomicU64,
}

impl Slot {
    /// Takes the place of what was there.
    pub fn set(&self, trace: TraceId, micros: u64) {
        let version = self.version.load(Ordering::Relaxed);
        let taken = version & 1 == 0
            && self
                .version
                .compare_exchange(version, version.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if !taken {
            return;
        }
        // A reader that sees one of the fields sees the odd version, too.
        fence(Ordering::Release);
        let [high, low] = halves(trace);
        self.trace[0].store(high, Ordering::Relaxed);
        self.trace[1].store(low, Ordering::Relaxed);
        self.micros.store(micros, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.millis.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// What is there; `None` when there is nothing yet, or it is being written.
    pub fn get(&self) -> Option<Exemplar> {
        let before = self.version.load(Ordering::Acquire);
        if before == 0 || before & 1 == 1 {
            return None;
        }
        let [high, low] = [0, 1].map(|half| self.trace[half].load(Ordering::Relaxed).to_be_bytes());
        let (micros, millis) = (self.micros.load(Ordering::Relaxed), self.millis.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if self.version.load(Ordering::Relaxed) != before {
            return None;
        }
        let mut trace = [0; 16];
        trace[..8].copy_from_slice(&high);
        trace[8..].copy_from_slice(&low);
        Some(Exemplar { trace: TraceId(trace), micros, millis })
    }
}

fn halves(TraceId(bytes): TraceId) -> [u64; 2] {
    let number = u128::from_be_bytes(bytes);
    [number >> 64, number & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or_default())
}
