//! Signals that come to this process: taken over from the system's defaults, and passed on to the app.

use std::{future::poll_fn, io::IsTerminal as _, task::Poll};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Child,
    signal::unix::{self, SignalKind},
};

/// The signals that end us.
const ENDING: [Signal; 3] = [Signal::HUP, Signal::INT, Signal::TERM];
/// Those that mean something to an app, and would end us.
const OTHERS: [Signal; 4] = [Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];

/// Taken over from the system's default.
pub struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// Those that end us.
    pub fn new() -> anyhow::Result<Self> {
        Self::take(&ENDING)
    }

    /// These, and those that are the app's business.
    pub fn all() -> anyhow::Result<Self> {
        Self::take(&[&ENDING[..], &OTHERS].concat())
    }

    fn take(signals: &[Signal]) -> anyhow::Result<Self> {
        let take = |signal: &Signal| {
            let taken = unix::signal(SignalKind::from_raw(signal.as_raw())).context("take over signals")?;
            Ok((*signal, taken))
        };
        signals.iter().map(take).collect::<anyhow::Result<_>>().map(Self)
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let came = self.0.iter_mut().find_map(|(signal, taken)| {
                matches!(taken.poll_recv(context), Poll::Ready(Some(()))).then_some(*signal)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next one that ends us; others are forgotten.
    pub async fn next_end(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if ENDING.contains(&signal) {
                return signal;
            }
        }
    }
}

/// Sends a signal to a child.
pub fn send(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // It may have ended just now, which is what we want.
        kill_process(pid, signal).ok();
    }
}

/// Passes a signal on, unless the app has it already.
pub fn forward(app: &Child, signal: Signal) {
    if !by_terminal(signal) {
        send(app, signal);
    }
}

/// A terminal sends what comes from its keys and its size to all of the processes in its foreground, and the app, which
/// is in our process group, is one of them when we are.
pub fn by_terminal(signal: Signal) -> bool {
    let stdin = std::io::stdin();
    [Signal::INT, Signal::QUIT, Signal::WINCH].contains(&signal)
        && stdin.is_terminal()
        && rustix::termios::tcgetpgrp(&stdin).is_ok_and(|group| group == rustix::process::getpgrp())
}

/// Its number, for an exit code.
pub fn number(signal: Signal) -> u8 {
    u8::try_from(signal.as_raw()).unwrap_or(0)
}
