//! Outlier detection: the circuit of each endpoint of a service port, and how many of them may be out at once.
//!
//! Closed, open, half-open with one probe at a time. A circuit opens on gateway failures in a row, on so many among the
//! latest requests that it can be no chance (`run`), or on a low share of successes; each ejection is twice as long as the one before, and time spent healthy takes that back. What an endpoint
//! that may be tried again needs is a request: [`Ejections::take_probe`] gives it one before the balancer is asked.
//!
//! Common causes end together, so every sign of healing (a probe that succeeds; an answer from an endpoint that would be
//! out if more could be) brings two probes forward. They spread over a healed service in a few round trips, whatever the
//! ejection times have grown to, and stop at the first endpoint that is still ill, which loses nothing by it.
//!
//! A request to a healthy endpoint costs two relaxed loads before and one counted result after. All changes of state
//! are made under one lock per service port; they are rare.

mod probe;
mod run;
mod window;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use self::probe::Probe;
use self::{run::Run, window::Window};
use crate::{
    balance::Nanos,
    circuit::{self, Cause, Outcome, Seen, State, Transition, Word},
    model::OutlierDetection,
};

/// A request that cannot be repeated is a probe only when none that can came for this long.
const GRACE: Duration = Duration::from_secs(1);
/// While some are out, the endpoints are looked through at least this often.
const RESCAN: Duration = Duration::from_secs(1);
/// Probes that one sign of healing brings forward.
const FORWARD: u32 = 2;

/// The endpoints of one service port that are out, shared by their circuits.
#[derive(Debug)]
pub struct Ejections {
    /// Endpoints as of the last [`Self::sync`].
    members: AtomicU32,
    /// Of them open or half-open.
    out: AtomicU32,
    /// No probe is due before this.
    next: AtomicU64,
    /// Probes that need not wait until they are due.
    forward: AtomicU32,
    /// Number of the last `sync`; a circuit with another number belongs to an endpoint that has left.
    generation: AtomicU64,
    changing: Mutex<()>,
}

/// The circuit of one endpoint. Keep it as long as the endpoint keeps its address and identity.
#[derive(Debug)]
pub struct Health {
    all: Arc<Ejections>,
    word: Word,
    /// When an open circuit may be probed.
    until: AtomicU64,
    /// Gateway failures in a row.
    row: AtomicU32,
    window: Window,
    run: Run,
    /// Ejections that the next one's time is doubled by, before healthy time is taken off.
    level: AtomicU32,
    /// When the endpoint last got well.
    well_since: AtomicU64,
    generation: AtomicU64,
}

/// A probe that is to be sent now.
#[derive(Debug)]
pub struct Taken {
    /// Which of the endpoints that were offered.
    pub index: usize,
    /// Its place.
    pub probe: Probe,
    /// Open to half-open.
    pub transition: Transition,
}

/// How many of `members` endpoints may be out: a share, but of two or more at least one and never all.
#[must_use]
pub fn may_be_out(policy: &OutlierDetection, members: u32) -> u32 {
    let off = policy.consecutive_failures == 0 && policy.success_ppm == 0;
    if off || members < 2 {
        return 0;
    }
    let share = u64::from(members) * u64::from(policy.max_ejected_ppm) / 1_000_000;
    u32::try_from(share).unwrap_or(u32::MAX).clamp(1, members - 1)
}

impl Default for Ejections {
    fn default() -> Self {
        Self {
            members: AtomicU32::new(0),
            out: AtomicU32::new(0),
            next: AtomicU64::new(u64::MAX),
            forward: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            changing: Mutex::new(()),
        }
    }
}

impl Ejections {
    /// Endpoints that are out, half-open ones too.
    #[must_use]
    pub fn out(&self) -> u32 {
        self.out.load(Relaxed)
    }

    /// These, and no others, are the endpoints now, under this policy. To be called whenever either changes, before the
    /// snapshot is published. The places of endpoints that left are free again; when more are out than may be, those
    /// that would return first are let in, with their index among `members`.
    pub fn sync<'a>(
        &self,
        policy: &OutlierDetection,
        members: impl IntoIterator<Item = &'a Arc<Health>>,
    ) -> Vec<(usize, Transition)> {
        let _changing = self.change();
        let generation = self.generation.fetch_add(1, Relaxed) + 1;
        let mut count = 0_u32;
        let mut ejected = Vec::new();
        for (index, health) in members.into_iter().enumerate() {
            count = count.saturating_add(1);
            health.generation.store(generation, Relaxed);
            if !health.word.is_closed() {
                ejected.push((health.until.load(Relaxed), index, health));
            }
        }
        self.members.store(count, Relaxed);
        let out = u32::try_from(ejected.len()).unwrap_or(u32::MAX);
        let surplus = out.saturating_sub(may_be_out(policy, count));
        self.out.store(out, Relaxed);
        ejected.sort_unstable_by_key(|&(until, index, _)| (until, index));
        let first = ejected.iter().take(usize::try_from(surplus).unwrap_or(usize::MAX));
        let released = first.filter_map(|&(_, index, health)| {
            let seen = health.word.load();
            health.close(seen, Cause::Limit).map(|transition| (index, transition))
        });
        let released = released.collect();
        let earliest = ejected.iter().map(|&(until, ..)| until).min();
        self.next.store(earliest.unwrap_or(u64::MAX), Relaxed);
        released
    }

    /// The probe that this request should be, if one is to be sent. `repeatable`: a failure of it costs nobody anything,
    /// because the request can be sent again elsewhere; others are taken only when no such request comes.
    pub fn take_probe<'a>(
        &self,
        now: Nanos,
        repeatable: bool,
        endpoints: impl IntoIterator<Item = &'a Arc<Health>>,
    ) -> Option<Taken> {
        if self.out() == 0 {
            return None;
        }
        let limit = if repeatable { now.0 } else { now.0.saturating_sub(circuit::nanos(GRACE)) };
        let early = repeatable && self.forward.load(Relaxed) > 0;
        if !early && self.next.load(Relaxed) > limit {
            return None;
        }
        // Somebody else is at it; this request need not wait.
        let _changing = self.changing.try_lock().ok()?;
        let mut first: Option<(u64, usize, &Arc<Health>, Seen)> = None;
        for (index, health) in endpoints.into_iter().enumerate() {
            let seen = health.word.load();
            let until = health.until.load(Relaxed);
            if seen.state() == State::Open && first.is_none_or(|(earliest, ..)| until < earliest) {
                first = Some((until, index, health, seen));
            }
        }
        // Endpoints of another snapshot, or half-open now, may be due before the first that is seen here.
        let again = circuit::after(now, RESCAN);
        self.next.store(first.map_or(again, |(until, ..)| until.min(again)), Relaxed);
        let (until, index, health, seen) = first?;
        let due = until <= limit;
        if !due {
            let forward = self.forward.load(Relaxed);
            if !repeatable || forward == 0 {
                return None;
            }
            self.forward.store(forward - 1, Relaxed);
        }
        let place = health.word.change(seen, State::HalfOpen)?;
        let transition = Transition { from: State::Open, to: State::HalfOpen, cause: Cause::Probe };
        Some(Taken { index, probe: Probe { health: Arc::clone(health), place, early: !due }, transition })
    }

    /// A sign of healing.
    fn healing(&self) {
        let out = self.out();
        if out > 0 {
            // Never more than there are to probe. A race loses or adds one at most.
            self.forward.store(self.forward.load(Relaxed).saturating_add(FORWARD).min(out), Relaxed);
        }
    }

    fn is_full(&self, policy: &OutlierDetection) -> bool {
        self.out() >= may_be_out(policy, self.members.load(Relaxed))
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// The circuit of a new endpoint, closed. It cannot open before the first [`Ejections::sync`] with it.
    #[must_use]
    pub fn new(all: &Arc<Ejections>) -> Self {
        Self {
            all: Arc::clone(all),
            word: Word::default(),
            until: AtomicU64::new(0),
            row: AtomicU32::new(0),
            window: Window::default(),
            run: Run::default(),
            level: AtomicU32::new(0),
            well_since: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }

    /// Takes no requests but probes. One relaxed load.
    #[must_use]
    pub fn is_out(&self) -> bool {
        !self.word.is_closed()
    }

    /// Its state, for metrics and reports.
    #[must_use]
    pub fn state(&self) -> State {
        self.word.load().state()
    }

    /// The last that was heard of it was a gateway failure.
    pub fn is_failing(&self) -> bool {
        self.row.load(Relaxed) != 0
    }

    /// When an ejected endpoint may be probed; `None` when it is not out.
    #[must_use]
    pub fn out_until(&self) -> Option<Nanos> {
        self.is_out().then(|| Nanos(self.until.load(Relaxed)))
    }

    /// A request that was no probe, sent at `begun`, ended. One from before an ejection says nothing new and is not
    /// counted, also when it ends after it: what hung with a sick endpoint must not eject it once more when it is well.
    pub fn record(
        &self,
        policy: &OutlierDetection,
        outcome: Outcome,
        begun: Nanos,
        now: Nanos,
        random: u64,
    ) -> Option<Transition> {
        if self.is_out() || outcome == Outcome::Neutral || begun.0 < self.well_since.load(Relaxed) {
            return None;
        }
        if !outcome.is_gateway_failure() {
            self.answered(policy, begun);
        }
        let failed = outcome != Outcome::Success;
        self.window.add(policy.window, now, failed);
        if !failed {
            return None;
        }
        let gateway = outcome.is_gateway_failure();
        let row = if gateway { self.row.fetch_add(1, Relaxed).saturating_add(1) } else { 0 };
        let both = policy.consecutive_failures > 0 && policy.success_ppm > 0;
        let sudden = gateway && both && self.run.failed(policy, &self.window, now);
        if self.all.is_full(policy) {
            return None;
        }
        if policy.consecutive_failures > 0 && row >= policy.consecutive_failures {
            return self.eject(policy, Cause::ConsecutiveFailures, now, random);
        }
        if sudden {
            return self.eject(policy, Cause::SuddenFailures, now, random);
        }
        self.is_below_share(policy, now).then(|| self.eject(policy, Cause::SuccessShare, now, random))?
    }

    /// The endpoint is there: a row of failures ends. When it would have been out but for the limit, this is what a
    /// probe that succeeds is to one that is.
    fn answered(&self, policy: &OutlierDetection, begun: Nanos) {
        // A load first: healthy endpoints are recorded by all workers, and a write would move the line each time.
        let row = self.row.load(Relaxed);
        if row == 0 {
            return;
        }
        self.row.store(0, Relaxed);
        if policy.consecutive_failures > 0 && row >= policy.consecutive_failures {
            self.forget();
            self.well_since.store(begun.0, Relaxed);
            self.all.healing();
        }
    }

    fn forget(&self) {
        self.window.clear();
        self.run.clear();
    }

    fn is_below_share(&self, policy: &OutlierDetection, now: Nanos) -> bool {
        let (total, failed) = self.window.sum(policy.window, now);
        let good = u64::from(total - failed) * 1_000_000;
        total > 0 && total >= policy.minimum_requests && good < u64::from(total) * u64::from(policy.success_ppm)
    }

    fn eject(&self, policy: &OutlierDetection, cause: Cause, now: Nanos, random: u64) -> Option<Transition> {
        let _changing = self.all.change();
        let seen = self.word.load();
        if seen.state() != State::Closed || !self.is_member() || self.all.is_full(policy) {
            return None;
        }
        // One level less for each window (or first ejection, when that is longer) spent healthy.
        let step = circuit::nanos(policy.window.max(policy.base_ejection)).max(1);
        let healthy = now.0.saturating_sub(self.well_since.load(Relaxed)) / step;
        let level = self.level.load(Relaxed).saturating_sub(u32::try_from(healthy).unwrap_or(u32::MAX));
        self.open(seen, policy, level, now, random)?;
        self.all.out.fetch_add(1, Relaxed);
        Some(Transition { from: State::Closed, to: State::Open, cause })
    }

    /// Under the lock.
    fn open(&self, seen: Seen, policy: &OutlierDetection, level: u32, now: Nanos, random: u64) -> Option<Seen> {
        let time = circuit::open_time(policy.base_ejection, policy.max_ejection, level, random);
        let until = circuit::after(now, time);
        self.until.store(until, Relaxed);
        self.level.store(level.saturating_add(1), Relaxed);
        let open = self.word.change(seen, State::Open)?;
        self.all.next.fetch_min(until, Relaxed);
        Some(open)
    }

    /// Gives back the place of a probe, to be taken when it was due before. Under the lock.
    fn reopen(&self, place: Seen) -> Option<Seen> {
        let open = self.word.change(place, State::Open)?;
        self.all.next.fetch_min(self.until.load(Relaxed), Relaxed);
        Some(open)
    }

    /// Under the lock.
    fn close(&self, seen: Seen, cause: Cause) -> Option<Transition> {
        self.row.store(0, Relaxed);
        self.forget();
        self.word.change(seen, State::Closed)?;
        if self.is_member() {
            self.all.out.fetch_sub(1, Relaxed);
        }
        Some(Transition { from: seen.state(), to: State::Closed, cause })
    }

    fn is_member(&self) -> bool {
        self.generation.load(Relaxed) == self.all.generation.load(Relaxed)
    }
}

#[cfg(test)]
mod tests;
