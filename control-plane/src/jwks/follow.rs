//! When sets are fetched: each URL that a policy names at once, then every few minutes, and sooner after a failure. A set
//! that cannot be fetched any more counts for a day; then its issuer's tokens are refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::Rng as _;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{Client, Kept, KeySet, KeySets, MAX_URLS, kept::File, keys};
use crate::source::{Resources, stored::Current};

/// Fetches at once.
const AT_ONCE: usize = 8;

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From one fetch to the next, with a fifth of jitter.
    pub refresh: Duration,
    /// After a failure; doubles up to `refresh`.
    pub retry: Duration,
    /// One fetch.
    pub fetch: Duration,
    /// For how long a set counts that cannot be fetched again.
    pub keep: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(300),
            retry: Duration::from_secs(5),
            fetch: Duration::from_secs(10),
            keep: Duration::from_secs(24 * 3600),
        }
    }
}

/// The task that fetches.
pub struct Fetching {
    resources: watch::Receiver<Current>,
    running: BTreeMap<String, JoinHandle<()>>,
    each: Each,
}

/// What the task of one URL needs.
#[derive(Clone)]
struct Each {
    client: Arc<Client>,
    sets: watch::Sender<Arc<KeySets>>,
    kept: Kept,
    times: Times,
    turns: Arc<Semaphore>,
}

impl Fetching {
    /// Fetches what these resources name. The sets that were kept count from the beginning.
    #[must_use]
    pub fn new(resources: watch::Receiver<Current>, client: Client, kept: Kept, times: Times) -> Self {
        let mut sets = KeySets::default();
        for file in kept.read() {
            let old = file.fetched().and_then(|fetched| SystemTime::now().duration_since(fetched).ok());
            match keys::parse(&file.text) {
                Ok(parsed) if old.is_some_and(|old| old < times.keep) => {
                    let set = KeySet { keys: Some(parsed.keys.into()), trouble: None };
                    sets.0.insert(file.url, set);
                }
                _ => kept.remove(&file.url),
            }
        }
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let each = Each { client: Arc::new(client), sets: watch::Sender::new(Arc::new(sets)), kept, times, turns };
        Self { resources, running: BTreeMap::new(), each }
    }

    /// The sets as they change.
    #[must_use]
    pub fn sets(&self) -> watch::Receiver<Arc<KeySets>> {
        self.each.sets.subscribe()
    }

    /// Runs for as long as the resources can change.
    pub async fn run(mut self) {
        loop {
            let resources = Arc::clone(&self.resources.borrow_and_update().resources);
            self.follow(&urls(&resources)).await;
            if self.resources.changed().await.is_err() {
                return;
            }
        }
    }

    async fn follow(&mut self, wanted: &BTreeSet<&str>) {
        let gone: Vec<String> = self.running.keys().filter(|url| !wanted.contains(url.as_str())).cloned().collect();
        for url in gone {
            if let Some(task) = self.running.remove(&url) {
                task.abort();
                // What it was about to keep is kept by now, or never.
                let _ = task.await;
            }
            self.each.kept.remove(&url);
            self.each.sets.send_if_modified(|sets| Arc::make_mut(sets).0.remove(&url).is_some());
        }
        // Kept from an earlier process, or never fetched because there were too many.
        let stale: Vec<String> =
            self.each.sets.borrow().0.keys().filter(|url| !wanted.contains(url.as_str())).cloned().collect();
        for url in stale {
            self.each.kept.remove(&url);
            self.each.sets.send_if_modified(|sets| Arc::make_mut(sets).0.remove(&url).is_some());
        }
        for url in wanted {
            if self.running.contains_key(*url) {
                continue;
            }
            if self.running.len() >= MAX_URLS {
                let trouble = Some(format!("there are more than {MAX_URLS} URLs of key sets"));
                self.each.publish(url, KeySet { keys: None, trouble });
                continue;
            }
            let task = tokio::spawn(self.each.clone().keep((*url).to_owned()));
            self.running.insert((*url).to_owned(), task);
        }
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.running.values().for_each(JoinHandle::abort);
    }
}

/// When a set was fetched, by the clock and by the time that has passed since: a clock that is set back makes no set
/// younger.
#[derive(Clone, Copy, Debug)]
struct Fetched {
    at: SystemTime,
    /// How old it was when this process learned of it.
    old: Duration,
    learned: Instant,
}

impl Fetched {
    fn at(at: SystemTime) -> Self {
        let old = SystemTime::now().duration_since(at).unwrap_or_default();
        Self { at, old, learned: Instant::now() }
    }

    fn age(self, now: SystemTime) -> Duration {
        now.duration_since(self.at).unwrap_or_default().max(self.old.saturating_add(self.learned.elapsed()))
    }
}

/// The URLs that policies name.
fn urls(resources: &Resources) -> BTreeSet<&str> {
    let policies = resources.request_authentications.values();
    policies.flat_map(|policy| &policy.value.spec.jwt).filter_map(|rule| rule.jwks_uri.as_deref()).collect()
}

impl Each {
    /// Keeps one set.
    async fn keep(self, url: String) {
        let mut fetched = self.kept.fetched(&url).map(Fetched::at);
        let mut failures: u32 = 0;
        loop {
            let turn = self.turns.acquire().await;
            let result = tokio::time::timeout(self.times.fetch, self.client.fetch(&url)).await;
            drop(turn);
            let result = result.unwrap_or_else(|_| Err(format!("no key set within {:?}", self.times.fetch)));
            let parsed = result.and_then(|text| {
                let parsed = keys::parse(&text).map_err(|why| format!("what was fetched is not used: {why}"))?;
                Ok((text, parsed))
            });
            match parsed {
                Ok((text, parsed)) => {
                    failures = 0;
                    fetched = Some(Fetched::at(SystemTime::now()));
                    for (index, why) in &parsed.broken {
                        tracing::warn!(url, "key {index} of the set {why}: it is left out");
                    }
                    self.publish(&url, KeySet { keys: Some(parsed.keys.into()), trouble: None });
                    // Small, rare and not synced: no thread of its own, which could outlive this task.
                    self.kept.write(&File::new(&url, &text, SystemTime::now()));
                }
                Err(why) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(url, why, failures, "a key set could not be fetched");
                    self.fail(&url, why, fetched);
                }
            }
            tokio::time::sleep(self.pause(failures)).await;
        }
    }

    /// The set stays until it is too old.
    fn fail(&self, url: &str, why: String, fetched: Option<Fetched>) {
        let fresh = fetched.is_some_and(|fetched| fetched.age(SystemTime::now()) < self.times.keep);
        let held = self.sets.borrow().0.get(url).and_then(|set| set.keys.clone()).filter(|_| fresh);
        self.publish(url, KeySet { keys: held, trouble: Some(why) });
    }

    fn publish(&self, url: &str, set: KeySet) {
        self.sets.send_if_modified(|sets| {
            let same = sets.0.get(url) == Some(&set);
            if !same {
                Arc::make_mut(sets).0.insert(url.to_owned(), set);
            }
            !same
        });
    }

    fn pause(&self, failures: u32) -> Duration {
        let Times { refresh, retry, .. } = self.times;
        let time = match failures {
            0 => refresh,
            _ => retry.saturating_mul(1 << (failures - 1).min(16)).min(refresh),
        };
        time.mul_f64(rand::rng().random_range(0.8..1.2))
    }
}

#[cfg(test)]
mod tests;
