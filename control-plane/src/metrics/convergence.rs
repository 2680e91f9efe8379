//! How long a change takes to reach everybody: from the view that has it to the moment when every sidecar that was
//! connected then has answered all of it.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use tokio::sync::watch;

use super::Metrics;
use crate::push::{View, proxies::Proxies};

/// Changes that are followed at once. While one sidecar does not answer, more of them say nothing new.
const FOLLOWED: usize = 256;

/// Follows the views for as long as there are some to come.
pub async fn follow(mut view: watch::Receiver<Arc<View>>, proxies: Proxies, metrics: Metrics) {
    let mut open: VecDeque<(u64, Instant)> = VecDeque::new();
    let progress = proxies.progress();
    loop {
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
                let revision = view.borrow_and_update().revision;
                let now = Instant::now();
                // Without sidecars there is nothing to wait for.
                if open.len() < FOLLOWED && proxies.is_behind(revision, now) {
                    open.push_back((revision, now));
                }
            }
            () = progress.notified(), if !open.is_empty() => {}
        }
        while let Some((revision, made)) = open.front()
            && !proxies.is_behind(*revision, *made)
        {
            metrics.converged(made.elapsed());
            open.pop_front();
        }
    }
}
