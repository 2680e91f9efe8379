//! How fast new streams are let in (rule 10), so that all sidecars coming back at once do not starve those that are
//! served: a token bucket whose waiting line is bounded. Who finds the line full comes again after its back-off.

use std::{
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The longest wait in the line; with the rate it bounds how many wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The line is full.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many new streams at once: come again later")]
pub struct Busy;

/// Lets streams in at a rate, after a burst of two seconds' worth of them.
pub struct Admission {
    /// Between two streams.
    interval: Duration,
    /// What the bucket holds, as time.
    burst: Duration,
    /// When the bucket will be full again (the generic cell rate algorithm's theoretical arrival time).
    full: Mutex<Option<Instant>>,
}

impl Admission {
    /// `rate` streams per second and twice as many in a burst.
    #[must_use]
    pub fn new(rate: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / rate.get();
        Self { interval, burst: interval * rate.get().saturating_mul(2), full: Mutex::new(None) }
    }

    /// Takes a place; how long to wait for it.
    ///
    /// # Errors
    /// When the wait would be longer than [`LONGEST_WAIT`]; no place is taken then.
    pub fn place(&self, now: Instant) -> Result<Duration, Busy> {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let next = full.map_or(now, |full| full.max(now)) + self.interval;
        let wait = next.saturating_duration_since(now).saturating_sub(self.burst);
        if wait > LONGEST_WAIT {
            return Err(Busy);
        }
        *full = Some(next);
        Ok(wait)
    }

    /// Returns when the caller may go on.
    ///
    /// # Errors
    /// At once when the line is full.
    pub async fn admit(&self) -> Result<(), Busy> {
        let wait = self.place(Instant::now())?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(rate: u32) -> Admission {
        Admission::new(NonZeroU32::new(rate).expect("positive"))
    }

    #[tokio::test(start_paused = true)]
    async fn rule_10_a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let (admission, now) = (admission(100), Instant::now());
        let waits: Vec<_> = (0..203).map(|_| admission.place(now).expect("a place").as_millis()).collect();
        assert!(waits[..200].iter().all(|wait| *wait == 0));
        assert_eq!(waits[200..], [10, 20, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_10_the_line_is_bounded_and_a_refusal_takes_no_place() {
        let (admission, now) = (admission(100), Instant::now());
        let admitted = (0..5000).filter(|_| admission.place(now).is_ok()).count();
        assert_eq!(admitted, 200 + 1000, "the burst, and ten seconds of the rate");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..5000).filter(|_| admission.place(later).is_ok()).count(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn rule_10_the_bucket_fills_again() {
        let (admission, start) = (admission(100), Instant::now());
        for _ in 0..200 {
            admission.admit().await.expect("a place");
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        admission.admit().await.expect("a place");
        assert_eq!(start.elapsed(), Duration::from_millis(10));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let now = Instant::now();
        assert_eq!((0..5000).filter(|_| admission.place(now) == Ok(Duration::ZERO)).count(), 200);
    }
}
