//! Keeps the sidecar of an app alive: one that ends is started again with the same flags, later and later, until it is
//! told to stop.

use std::{
    ffi::OsString,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{process::Child, sync::watch, task::JoinHandle};

use super::{
    sidecar::{self, Said},
    signals::send,
};

/// Back-off between restarts of a sidecar.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A sidecar that has lived so long has not failed to start.
const SOUND: Duration = Duration::from_secs(30);
/// What a sidecar without an app may take to take leave of the control plane and to send its last spans.
const FAREWELL: Duration = Duration::from_millis(900);

/// What the keeper is to do.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Order {
    /// Keep it alive.
    Keep,
    /// It drains: one that ends is not started again.
    Drain,
    /// End it.
    End,
}

/// The task that keeps one sidecar.
pub struct Keeper {
    orders: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Keeps `child`; a later one is started with `flags`.
    pub fn start(child: Child, flags: Vec<OsString>, said: watch::Sender<Said>) -> Self {
        let (orders, orders_here) = watch::channel(Order::Keep);
        Self { orders, task: tokio::spawn(keep(child, flags, said, orders_here)) }
    }

    /// It is about to end: no other one is started.
    pub fn drains(&self) {
        self.orders.send_replace(Order::Drain);
    }

    /// The app has ended: so does the sidecar.
    pub async fn end(self) {
        self.orders.send_replace(Order::End);
        let _ = self.task.await;
    }
}

async fn keep(mut child: Child, flags: Vec<OsString>, said: watch::Sender<Said>, mut orders: watch::Receiver<Order>) {
    let mut backoff = BACKOFF.0;
    let mut since = Instant::now();
    loop {
        let status = tokio::select! {
            status = child.wait() => status,
            () = reached(&mut orders, Order::End) => return end(child).await,
        };
        said.send_modify(|said| said.up = false);
        if *orders.borrow() > Order::Keep {
            return;
        }
        if since.elapsed() > SOUND {
            backoff = BACKOFF.0;
        }
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        eprintln!(
            "weft run: sidecar ended ({status}); starting it again in {} ms, the app goes on",
            backoff.as_millis()
        );
        child = loop {
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = reached(&mut orders, Order::Drain) => return,
            }
            backoff = next_backoff(backoff);
            tokio::select! {
                started = sidecar::start(&flags, None, &said) => match started {
                    Ok(started) => break started.child,
                    Err(error) => eprintln!("weft run: {error:#}; next try in {} ms", backoff.as_millis()),
                },
                () = reached(&mut orders, Order::Drain) => return,
            }
        };
        since = Instant::now();
        eprintln!("weft run: the sidecar is ready again");
    }
}

/// Waits for this order, or a later one.
async fn reached(orders: &mut watch::Receiver<Order>, order: Order) {
    // Without the keeper's owner there is nobody to keep it for.
    let _ = orders.wait_for(|now| *now >= order).await;
}

fn next_backoff(backoff: Duration) -> Duration {
    (backoff * 2).min(BACKOFF.1)
}

/// One signal begins the sidecar's end, another one hurries it: without an app it has nobody to serve.
async fn end(mut child: Child) {
    send(&child, Signal::TERM);
    send(&child, Signal::INT);
    if tokio::time::timeout(FAREWELL, child.wait()).await.is_err() {
        child.kill().await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_and_is_capped() {
        assert_eq!(next_backoff(BACKOFF.0), Duration::from_millis(200));
        assert_eq!(next_backoff(Duration::from_secs(9)), BACKOFF.1);
    }
}
