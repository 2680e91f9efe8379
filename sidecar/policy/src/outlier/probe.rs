//! The probe of an ejected endpoint: what its result does.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::Health;
use crate::{
    balance::Nanos,
    circuit::{Cause, Outcome, Seen, State, Transition},
    model::OutlierDetection,
};

/// The one request that an ejected endpoint gets to prove itself. Dropped without a result it gives its place back.
#[derive(Debug)]
pub struct Probe {
    pub(super) health: Arc<Health>,
    pub(super) place: Seen,
    /// Brought forward: a failure leaves things as they were.
    pub(super) early: bool,
}

impl Probe {
    /// The probe ended: anything that the app itself answered closes the circuit, a gateway failure opens it for twice
    /// the time. A result that says nothing gives the place back.
    pub fn record(self, policy: &OutlierDetection, outcome: Outcome, now: Nanos, random: u64) -> Option<Transition> {
        if outcome == Outcome::Neutral {
            return None;
        }
        let health = &self.health;
        let changing = health.all.change();
        if health.word.load() != self.place {
            // The limit let the endpoint in meanwhile.
            drop(changing);
            return health.record(policy, outcome, now, now, random);
        }
        if !outcome.is_gateway_failure() {
            health.well_since.store(now.0, Relaxed);
            let transition = health.close(self.place, Cause::ProbeSucceeded);
            health.all.healing();
            return transition;
        }
        if self.early {
            health.reopen(self.place)?;
        } else {
            health.open(self.place, policy, health.level.load(Relaxed), now, random)?;
        }
        Some(Transition { from: State::HalfOpen, to: State::Open, cause: Cause::ProbeFailed })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // After a result the word has moved on.
        if self.health.word.load() == self.place {
            let _changing = self.health.all.change();
            let _ = self.health.reopen(self.place);
        }
    }
}
