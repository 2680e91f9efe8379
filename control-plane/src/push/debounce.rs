//! When a burst of changes is over (rule 9): at once while it is quiet, after up to 100 ms of quiet in a storm, and
//! never later than 1 s after the first change. Time is an argument; [`Debounce::settled`] puts tokio's clock around it.

use std::time::Duration;

use tokio::time::Instant;

/// The first step of the quiet time in a burst; it doubles with each further change.
const STEP: Duration = Duration::from_millis(5);
/// The longest quiet time. Changes further apart than this are no storm.
const MAX_QUIET: Duration = Duration::from_millis(100);
/// A change waits no longer than this, however the storm goes on.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How fast changes come, and since when one waits.
#[derive(Debug, Default)]
pub struct Debounce {
    /// The last change, or the end of the last push if that is later: a slow push is no quiet time.
    last: Option<Instant>,
    quiet: Duration,
    pending: Option<Pending>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    first: Instant,
    last: Instant,
}

impl Debounce {
    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        let storm = self.last.is_some_and(|last| now.saturating_duration_since(last) < MAX_QUIET);
        self.quiet = if storm { (self.quiet * 2).clamp(STEP, MAX_QUIET) } else { Duration::ZERO };
        self.last = Some(now);
        let first = self.pending.map_or(now, |pending| pending.first);
        self.pending = Some(Pending { first, last: now });
    }

    /// When what waits is due; `None` when nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.pending.map(|pending| (pending.last + self.quiet).min(pending.first + MAX_WAIT))
    }

    /// Everything that waited has been pushed.
    pub fn pushed(&mut self, now: Instant) {
        self.last = Some(now);
        self.pending = None;
    }

    /// Waits for a change and then until its burst is over; false when there will be no more.
    pub async fn settled(&mut self, changes: &mut impl Changes) -> bool {
        if !changes.changed().await {
            return false;
        }
        self.changed(Instant::now());
        while let Some(due) = self.due().filter(|due| *due > Instant::now()) {
            tokio::select! {
                more = changes.changed() => {
                    if !more {
                        return false;
                    }
                    self.changed(Instant::now());
                }
                () = tokio::time::sleep_until(due) => return true,
            }
        }
        true
    }
}

/// Where changes come from.
pub trait Changes {
    /// Waits for the next change; false when there will be no more. May be dropped and called again.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    impl Changes for watch::Receiver<u32> {
        async fn changed(&mut self) -> bool {
            Self::changed(self).await.is_ok()
        }
    }

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn rule_09_a_single_change_is_pushed_at_once() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        debounce.changed(start);
        assert_eq!(debounce.due(), Some(start));
        debounce.pushed(start);
        assert_eq!(debounce.due(), None);
        debounce.changed(start + ms(100));
        assert_eq!(debounce.due(), Some(start + ms(100)), "100 ms later is no storm");
    }

    #[tokio::test(start_paused = true)]
    async fn rule_09_quiet_time_grows_in_a_storm_to_100_ms_and_ends_with_it() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        let mut quiet = Vec::new();
        for count in 0..8 {
            let now = start + ms(count);
            debounce.changed(now);
            quiet.push((debounce.due().expect("pending") - now).as_millis());
            debounce.pushed(now);
        }
        assert_eq!(quiet, [0, 5, 10, 20, 40, 80, 100, 100]);
        debounce.changed(start + ms(500));
        assert_eq!(debounce.due(), Some(start + ms(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn rule_09_a_change_waits_for_a_second_at_most() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        debounce.pushed(start);
        for count in 0..200 {
            debounce.changed(start + ms(10 * count));
            let due = debounce.due().expect("pending");
            assert!(due <= start + ms(1000), "{:?}", due - start);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rule_09_a_slow_push_is_no_quiet_time() {
        let (mut debounce, start) = (Debounce::default(), Instant::now());
        debounce.changed(start);
        debounce.pushed(start + ms(700));
        debounce.changed(start + ms(701));
        assert_eq!(debounce.due(), Some(start + ms(706)));
    }

    /// Sends a change every `gap` until `end` and counts the pushes; also the longest wait of a change.
    async fn pushes(gap: Duration, end: Duration) -> usize {
        let sender = watch::Sender::new(0_u32);
        let mut receiver = sender.subscribe();
        tokio::spawn(async move {
            let start = Instant::now();
            while start.elapsed() < end {
                sender.send_modify(|count| *count += 1);
                tokio::time::sleep(gap).await;
            }
        });
        let (mut debounce, mut count) = (Debounce::default(), 0);
        while debounce.settled(&mut receiver).await {
            count += 1;
            debounce.pushed(Instant::now());
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn rule_09_a_storm_becomes_one_push_a_second_and_calm_changes_one_each() {
        let storm = pushes(ms(1), Duration::from_secs(10)).await;
        assert!((10..20).contains(&storm), "{storm} pushes of 10,000 changes in 10 s");
        assert_eq!(pushes(ms(200), Duration::from_secs(10)).await, 50);
    }
}
