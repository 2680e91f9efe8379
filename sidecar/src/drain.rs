//! Stopping without breaking anything: running, lame duck (still accepting, not ready), draining (GOAWAY, `Connection:
//! close`), stopped. `app` drives it; listeners and connections watch it.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

/// How far the stop has come.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// Serving.
    Running,
    /// Readiness is false and discovery says draining; new connections are still served, since peers learn it late.
    LameDuck,
    /// Inbound connections end after what they are doing; those of the app go on, since it may still need them.
    Draining,
    /// The end.
    Stopped,
}

/// The shared signal.
#[derive(Clone)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    /// One receiver for each open connection.
    open: Arc<watch::Sender<()>>,
    /// One receiver for each of those that others have opened.
    inbound: Arc<watch::Sender<()>>,
    /// Somebody on this machine wants the drain to begin, before there is a signal.
    asked: watch::Sender<bool>,
}

/// Held by a connection while it is open.
pub struct DrainGuard(
    #[expect(dead_code, reason = "held for its count")] watch::Receiver<()>,
    #[expect(dead_code, reason = "held for its count")] Option<watch::Receiver<()>>,
);

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
            open: Arc::new(watch::Sender::new(())),
            inbound: Arc::new(watch::Sender::new(())),
            asked: watch::Sender::new(false),
        }
    }
}

impl Drain {
    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Anything but running.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase() > Phase::Running
    }

    /// Asks for the drain to begin: the app will be stopped next, and may call others until it has ended.
    pub fn ask(&self) {
        self.asked.send_replace(true);
    }

    /// Returns once the drain was asked for.
    pub async fn asked(&self) {
        // The sender is in `self`: the wait cannot fail.
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }

    /// Turns callers away and keeps going: lame duck, then the end of inbound connections, and no more than that. `gone`
    /// is called when the last of them has ended: the app has nothing to do any more.
    pub async fn quiesce(&self, lame_duck: Duration, gone: impl FnOnce()) {
        self.advance(Phase::LameDuck);
        tokio::time::sleep(lame_duck).await;
        self.advance(Phase::Draining);
        self.inbound.closed().await;
        gone();
        std::future::pending().await
    }

    /// A connection is open until the guard is dropped.
    #[must_use]
    pub fn guard(&self) -> DrainGuard {
        DrainGuard(self.open.subscribe(), None)
    }

    /// The same for a connection that somebody else has opened to the app.
    #[must_use]
    pub fn inbound_guard(&self) -> DrainGuard {
        DrainGuard(self.open.subscribe(), Some(self.inbound.subscribe()))
    }

    /// Returns when the process is to end.
    pub async fn stopped(&self) {
        self.reached(Phase::Stopped).await;
    }

    /// Returns once the phase is at least this.
    pub async fn reached(&self, phase: Phase) {
        // The sender is in `self`: the wait cannot fail.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Moves forward, never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = phase > *now;
            if forward {
                *now = phase;
            }
            forward
        });
    }

    /// The whole stop: lame duck, then drain until the last connection or `limit` after the start.
    pub async fn run(&self, lame_duck: Duration, limit: Duration) {
        self.advance(Phase::LameDuck);
        let deadline = tokio::time::Instant::now() + limit;
        tokio::time::sleep(lame_duck.min(limit)).await;
        self.advance(Phase::Draining);
        if tokio::time::timeout_at(deadline, self.open.closed()).await.is_err() {
            tracing::warn!(open = self.open.receiver_count(), ?limit, "connections were still open at the drain limit");
        }
        self.advance(Phase::Stopped);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const LAME: Duration = Duration::from_secs(5);
    const LIMIT: Duration = Duration::from_secs(25);

    #[tokio::test(start_paused = true)]
    async fn without_connections_the_stop_takes_the_lame_duck_time() {
        let (drain, start) = (Drain::default(), Instant::now());
        drain.run(LAME, LIMIT).await;
        assert_eq!(start.elapsed(), LAME);
        assert_eq!(drain.phase(), Phase::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_connection_holds_the_stop_until_it_ends() {
        let (drain, start) = (Drain::default(), Instant::now());
        let guard = drain.guard();
        let other = drain.clone();
        tokio::spawn(async move {
            other.reached(Phase::Draining).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(guard);
        });
        drain.run(LAME, LIMIT).await;
        assert_eq!(start.elapsed(), Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_ends_what_does_not_end_by_itself() {
        let (drain, start) = (Drain::default(), Instant::now());
        let _guard = drain.guard();
        drain.run(LAME, LIMIT).await;
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_was_asked_for_turns_callers_away_and_does_not_stop() {
        let drain = Drain::default();
        let asked = drain.clone();
        let waiting = tokio::spawn(async move { asked.asked().await });
        drain.ask();
        waiting.await.expect("it was asked");
        let (guard, outbound) = (drain.inbound_guard(), drain.guard());
        let (gone, when) = tokio::sync::oneshot::channel();
        let (start, quiet) = (Instant::now(), drain.clone());
        let quiesce =
            tokio::spawn(async move { quiet.quiesce(LAME, || gone.send(Instant::now()).expect("waited for")).await });
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(drain.phase(), Phase::Draining);
        drop(guard);
        let when = when.await.expect("the last caller has gone");
        assert_eq!(when - start, Duration::from_secs(9), "not with the lame duck's end, and not the app's own calls");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!quiesce.is_finished());
        drop(outbound);
    }

    #[test]
    fn a_phase_never_goes_back() {
        let drain = Drain::default();
        drain.advance(Phase::Draining);
        drain.advance(Phase::LameDuck);
        assert_eq!(drain.phase(), Phase::Draining);
    }
}
