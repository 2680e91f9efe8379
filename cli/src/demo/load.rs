//! A closed loop of callers, about 200 requests a second together.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use weft_examples::client::Client;

use super::checks::Window;

const CALLERS: usize = 8;
const PACE: Duration = Duration::from_millis(40);
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Tally {
    window: Window,
    replicas: BTreeMap<String, u64>,
    latencies: Vec<Duration>,
    last_failure: Option<String>,
}

/// Load that runs until it is stopped, and what it saw.
#[derive(Clone, Debug, Default)]
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stopped: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    /// Requests on their way.
    busy: Arc<AtomicUsize>,
}

impl Load {
    /// Starts to call the storefront at `address`.
    pub fn start(address: SocketAddr) -> Self {
        let load = Self::default();
        for _ in 0..CALLERS {
            tokio::spawn(load.clone().call(Client::new(address, "storefront")));
        }
        load
    }

    /// No request starts after this.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Sends nothing until [`Self::resume`]; what was on its way is answered and counted when this returns.
    pub async fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Goes on.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// What happened so far.
    pub fn window(&self) -> Window {
        self.tally().window
    }

    /// How many answers the catalog's `replica` gave.
    pub fn answers_of(&self, replica: &str) -> u64 {
        self.tally().replicas.get(replica).copied().unwrap_or(0)
    }

    /// The latency that `percent` of the requests stay below, in milliseconds.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        percentile(&mut self.tally().latencies.clone(), percent).as_secs_f64() * 1000.0
    }

    /// Why the last failed request failed.
    pub fn last_failure(&self) -> Option<String> {
        self.tally().last_failure.clone()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(self, client: Client) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stopped.load(Ordering::Relaxed) {
            pace.tick().await;
            // Before the look at the flag: a pause that begins after it waits for this request.
            self.busy.fetch_add(1, Ordering::SeqCst);
            if self.paused.load(Ordering::SeqCst) {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let start = Instant::now();
            let answer = storefront(&client).await;
            self.record(answer, start.elapsed());
            self.busy.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn record(&self, answer: Result<Value, String>, latency: Duration) {
        let mut tally = self.tally();
        tally.window.requests += 1;
        tally.latencies.push(latency);
        match answer {
            Ok(body) => {
                tally.window.v2 += u64::from(body["catalog_version"] == "v2");
                let replica = body["catalog_replica"].as_str().unwrap_or_default().to_owned();
                *tally.replicas.entry(replica).or_default() += 1;
            }
            Err(why) => {
                tally.window.failed += 1;
                tally.last_failure = Some(why);
            }
        }
    }
}

/// Whether the storefront answers.
pub async fn probe(address: SocketAddr) -> bool {
    storefront(&Client::new(address, "storefront")).await.is_ok()
}

/// Sends `count` requests for `path` at once: how many were answered, refused with 429, and anything else.
pub async fn burst(address: SocketAddr, path: &'static str, count: u32) -> (u64, u64, u64) {
    let client = Client::new(address, "storefront");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..count {
        let client = client.clone();
        calls.spawn(async move { timeout(TIMEOUT, client.call(Method::GET, path, Bytes::new())).await });
    }
    let mut seen = (0, 0, 0);
    for answer in calls.join_all().await {
        match answer.map(|answer| answer.map(|answer| answer.status().as_u16())) {
            Ok(Ok(200)) => seen.0 += 1,
            Ok(Ok(429)) => seen.1 += 1,
            _ => seen.2 += 1,
        }
    }
    seen
}

async fn storefront(client: &Client) -> Result<Value, String> {
    let call = timeout(TIMEOUT, client.call(Method::GET, "/", Bytes::new())).await;
    let response = call.map_err(|_| "no answer in 5 s".to_owned())?.map_err(|error| format!("{error:#}"))?;
    if !response.status().is_success() {
        return Err(format!("status {}: {}", response.status(), String::from_utf8_lossy(response.body())));
    }
    serde_json::from_slice(response.body()).map_err(|error| error.to_string())
}

fn percentile(latencies: &mut [Duration], percent: usize) -> Duration {
    latencies.sort_unstable();
    let rank = (latencies.len() * percent).div_ceil(100).max(1);
    latencies.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let mut latencies: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut latencies, 50), Duration::from_millis(50));
        assert_eq!(percentile(&mut latencies, 99), Duration::from_millis(99));
        assert_eq!(percentile(&mut [], 99), Duration::ZERO);
    }

    #[test]
    fn answers_and_failures_are_told_apart() {
        let load = Load::default();
        load.record(Ok(serde_json::json!({"catalog_version": "v2", "catalog_replica": "c"})), Duration::ZERO);
        load.record(Err("no".into()), Duration::ZERO);
        assert_eq!(load.window(), Window { requests: 2, failed: 1, v2: 1 });
        assert_eq!((load.answers_of("c"), load.last_failure().as_deref()), (1, Some("no")));
    }
}
