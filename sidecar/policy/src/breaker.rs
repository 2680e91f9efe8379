//! The circuit breaker of a service port as a whole: when it cannot be reached (or, by policy, fails) requests fail
//! fast, and one at a time looks for recovery. It is what protects a service of one replica, whose only endpoint outlier
//! detection never ejects.
//!
//! Opens after failures in a row *of all endpoints together*: any endpoint that is reached ends the row. A closed
//! breaker costs a request one relaxed load before and one after.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::{
    balance::Nanos,
    circuit::{self, Cause, Outcome, Seen, State, Transition, Word},
    model::{BreakOn, CircuitBreaker},
};

/// The breaker of one service port.
#[derive(Debug, Default)]
pub struct Breaker {
    word: Word,
    /// When an open breaker may be probed.
    until: AtomicU64,
    /// Failures in a row.
    row: AtomicU32,
    /// When it last closed.
    well_since: AtomicU64,
    /// Doublings of the next time.
    level: AtomicU32,
    changing: Mutex<()>,
}

/// Whether a try may be sent.
#[derive(Debug)]
pub enum Entry {
    /// Yes; its result goes to [`Breaker::record`].
    Pass,
    /// Yes, as the one that looks for recovery; its result goes to [`Probe::record`].
    Probe(Probe, Transition),
    /// No; not before this time.
    Refused(Nanos),
}

/// The one request that passes an open breaker. Dropped without a result it gives its place back.
#[derive(Debug)]
pub struct Probe {
    breaker: Arc<Breaker>,
    place: Seen,
}

/// What a result means under a policy.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Verdict {
    Bad,
    Good,
    Nothing,
}

fn verdict(policy: &CircuitBreaker, outcome: Outcome) -> Verdict {
    let bad = match policy.break_on {
        BreakOn::ConnectFailures => outcome == Outcome::ConnectFailure,
        BreakOn::Failures => outcome.is_gateway_failure(),
        BreakOn::Never => false,
    };
    match outcome {
        Outcome::Neutral => Verdict::Nothing,
        _ if bad => Verdict::Bad,
        _ => Verdict::Good,
    }
}

impl Breaker {
    /// Before each try.
    #[must_use]
    pub fn enter(self: &Arc<Self>, policy: &CircuitBreaker, now: Nanos) -> Entry {
        // A policy that never breaks lets everything through, whatever happened before it came.
        if self.word.is_closed() || policy.break_on == BreakOn::Never {
            return Entry::Pass;
        }
        let seen = self.word.load();
        let until = Nanos(self.until.load(Relaxed));
        match seen.state() {
            State::Closed => Entry::Pass,
            State::Open if until <= now => match self.word.change(seen, State::HalfOpen) {
                Some(place) => self.probe(policy, State::Open, place, now),
                None => Entry::Refused(now),
            },
            // A probe that takes long does not keep everybody away: another one takes its place.
            State::HalfOpen if until <= now => match self.word.change(seen, State::HalfOpen) {
                Some(place) => self.probe(policy, State::HalfOpen, place, now),
                None => Entry::Refused(now),
            },
            State::Open | State::HalfOpen => Entry::Refused(until.max(now)),
        }
    }

    fn probe(self: &Arc<Self>, policy: &CircuitBreaker, from: State, place: Seen, now: Nanos) -> Entry {
        self.until.store(circuit::after(now, policy.base_open), Relaxed);
        let transition = Transition { from, to: State::HalfOpen, cause: Cause::Probe };
        Entry::Probe(Probe { breaker: Arc::clone(self), place }, transition)
    }

    /// A connection to some endpoint is there, new or pooled. Unless any failure counts, that ends a row of failures at
    /// once, so that an endpoint that answers slowly is not taken for one that cannot be reached.
    pub fn reached(&self, policy: &CircuitBreaker) {
        if policy.break_on == BreakOn::ConnectFailures {
            self.end_row();
        }
    }

    /// A try that was no probe, begun at `begun`, ended. A failure from before the breaker last closed says nothing new.
    pub fn record(
        &self,
        policy: &CircuitBreaker,
        outcome: Outcome,
        begun: Nanos,
        now: Nanos,
        random: u64,
    ) -> Option<Transition> {
        match verdict(policy, outcome) {
            Verdict::Nothing => None,
            Verdict::Good => {
                self.end_row();
                // Sent before the breaker opened, answered now: the service is alive.
                let answered = matches!(outcome, Outcome::Success | Outcome::ServerError);
                (answered && !self.word.is_closed()).then(|| self.close(None, Cause::LateSuccess, now))?
            }
            Verdict::Bad if begun.0 < self.well_since.load(Relaxed) => None,
            Verdict::Bad => {
                let row = self.row.fetch_add(1, Relaxed).saturating_add(1);
                if row < policy.consecutive_failures.max(1) || !self.word.is_closed() {
                    return None;
                }
                let _changing = self.change();
                let seen = self.word.load();
                if seen.state() != State::Closed {
                    return None;
                }
                self.open(seen, policy, 0, now, random)?;
                Some(Transition { from: State::Closed, to: State::Open, cause: Cause::ConsecutiveFailures })
            }
        }
    }

    /// Another endpoint has come: whatever the breaker has learnt is of others, so the next request looks.
    pub fn endpoint_came(&self, now: Nanos) {
        if !self.word.is_closed() {
            let _changing = self.change();
            self.until.fetch_min(now.0, Relaxed);
            self.level.store(0, Relaxed);
        }
    }

    /// Its state, for metrics and reports.
    #[must_use]
    pub fn state(&self) -> State {
        self.word.load().state()
    }

    fn end_row(&self) {
        // A load first: a write would move the line between workers with every request.
        if self.row.load(Relaxed) != 0 {
            self.row.store(0, Relaxed);
        }
    }

    /// Under the lock.
    fn open(&self, seen: Seen, policy: &CircuitBreaker, level: u32, now: Nanos, random: u64) -> Option<Seen> {
        let time = circuit::open_time(policy.base_open, policy.max_open, level, random);
        // Before the state: who sees it open must see until when.
        self.until.store(circuit::after(now, time), Relaxed);
        self.level.store(level.saturating_add(1), Relaxed);
        self.word.change(seen, State::Open)
    }

    /// From `place`, or from whatever it is.
    fn close(&self, place: Option<Seen>, cause: Cause, now: Nanos) -> Option<Transition> {
        let _changing = self.change();
        let seen = place.unwrap_or_else(|| self.word.load());
        if seen.state() == State::Closed {
            return None;
        }
        self.row.store(0, Relaxed);
        self.level.store(0, Relaxed);
        self.well_since.store(now.0, Relaxed);
        self.word.change(seen, State::Closed)?;
        Some(Transition { from: seen.state(), to: State::Closed, cause })
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe {
    /// The probe ended: what does not count as a failure closes the breaker, a failure opens it for twice the time, and
    /// a result that says nothing gives the place back.
    pub fn record(self, policy: &CircuitBreaker, outcome: Outcome, now: Nanos, random: u64) -> Option<Transition> {
        let breaker = &self.breaker;
        match verdict(policy, outcome) {
            Verdict::Nothing => None,
            Verdict::Good => breaker.close(Some(self.place), Cause::ProbeSucceeded, now),
            Verdict::Bad => {
                let _changing = breaker.change();
                if breaker.word.load() != self.place {
                    return None;
                }
                breaker.open(self.place, policy, breaker.level.load(Relaxed), now, random)?;
                Some(Transition { from: State::HalfOpen, to: State::Open, cause: Cause::ProbeFailed })
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // After a result the word has moved on, and this changes nothing.
        if self.breaker.word.change(self.place, State::Open).is_some() {
            self.breaker.until.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
