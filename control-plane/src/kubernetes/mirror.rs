//! What the watches saw, as the sources that the compiler knows: what people write goes into the event log, so that history
//! and statuses are as they are elsewhere; endpoints and pods, which change by themselves and are many, stay in memory
//! beside it. Nobody is told anything before every kind was listed once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::Client;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    follow::{Change, Follower},
    record,
    watched::{self, POD, Watched},
};
use crate::{
    source::{
        self, Files, Problem, Resources,
        pods::{Pod, Pods},
    },
    store::{Key, Store, Stored},
};

/// Kind that stays in memory.
const SLICE: &str = "EndpointSlice";
/// Where the objects come from, for people.
const PLACE: &str = "the cluster's API server";
/// Changes that wait to be taken.
const WAITING: usize = 256;
/// What the log did not take is tried again after this, and then after twice as long.
const RETRY: Duration = Duration::from_secs(1);
/// But never later.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Who waits for the API server is told why as often.
const IMPATIENT: Duration = Duration::from_secs(10);

/// Uid and resourceVersion of the objects that the log reflects, for those who write to the API server.
pub type Versions = Arc<Mutex<HashMap<Key, (String, String)>>>;

/// A cluster that is followed.
pub struct Mirror {
    /// Endpoints and pods, with what keeps kinds from being followed as problems.
    pub resources: watch::Receiver<Arc<Resources>>,
    /// The endpoints as they were written.
    pub written: watch::Receiver<Arc<Files>>,
    /// The versions of what is in the log.
    pub versions: Versions,
    waiting: watch::Receiver<BTreeMap<&'static str, String>>,
}

impl Mirror {
    /// Follows everything, into this store.
    #[must_use]
    pub fn follow(client: &Client, store: Store, trust_domain: &str) -> Self {
        let (told, seen) = mpsc::channel(WAITING);
        for watched in watched::all() {
            tokio::spawn(Follower { client: client.clone(), watched, told: told.clone() }.run());
        }
        let never = watched::all().map(|watched| (watched.kind, "not listed yet".to_owned()));
        let (waiting, still) = watch::channel(never.collect());
        let first = Resources { pods: Some(Arc::default()), ..Resources::of(trust_domain) };
        let (resources, following) = watch::channel(Arc::new(first));
        let (written, as_written) = watch::channel(Arc::default());
        let versions = Versions::default();
        let collector = Collector {
            store,
            seen: Seen::default(),
            troubles: BTreeMap::new(),
            listed: BTreeSet::new(),
            endpoints_changed: false,
            versions: Arc::clone(&versions),
            again: None,
            retry: RETRY,
            waiting,
            resources,
            written,
        };
        tokio::spawn(collector.run(seen));
        Self { resources: following, written: as_written, versions, waiting: still }
    }

    /// Returns once every kind was listed, and what is in the log is what is in the cluster.
    pub async fn complete(&mut self) {
        loop {
            let all = self.waiting.wait_for(BTreeMap::is_empty);
            if let Ok(all) = tokio::time::timeout(IMPATIENT, all).await {
                if all.is_err() {
                    // It ended, which it does with the process.
                    std::future::pending::<()>().await;
                }
                return;
            }
            for (kind, why) in self.waiting.borrow().iter() {
                tracing::warn!(kind, why, "waiting for the cluster's API server; no sidecar is served until then");
            }
        }
    }
}

/// One object as it was seen last.
struct Held {
    uid: String,
    version: String,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    held: HashMap<Key, Held>,
    /// What the log does not have yet; `None` is gone.
    dirty: BTreeMap<Key, Option<(Arc<Value>, String)>>,
    slices: BTreeMap<Key, Slice>,
    pods: Pods,
    /// The newest resourceVersion of each kind.
    newest: HashMap<&'static str, u128>,
}

struct Slice {
    loaded: Arc<source::Loaded>,
    written: Arc<Stored>,
}

struct Collector {
    store: Store,
    seen: Seen,
    troubles: BTreeMap<&'static str, String>,
    /// Kinds of which all is known.
    listed: BTreeSet<&'static str>,
    endpoints_changed: bool,
    versions: Versions,
    /// When what the log did not take is tried again.
    again: Option<Instant>,
    retry: Duration,
    waiting: watch::Sender<BTreeMap<&'static str, String>>,
    resources: watch::Sender<Arc<Resources>>,
    written: watch::Sender<Arc<Files>>,
}

impl Collector {
    async fn run(mut self, mut seen: mpsc::Receiver<(Watched, Change)>) {
        loop {
            let again = self.again;
            let due = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = seen.recv() => match told {
                    Some((watched, change)) => self.take(watched, change),
                    None => return,
                },
                () = due => {}
                () = self.resources.closed() => return,
            }
            // What has come meanwhile shares the commit.
            for _ in 0..WAITING {
                let Ok((watched, change)) = seen.try_recv() else { break };
                self.take(watched, change);
            }
            self.record().await;
            self.publish();
            if self.again.is_none() {
                self.waiting.send_if_modified(|waiting| {
                    let before = waiting.len();
                    waiting.retain(|kind, _| !self.listed.contains(kind));
                    before != waiting.len()
                });
            }
        }
    }

    fn take(&mut self, watched: Watched, change: Change) {
        match change {
            Change::All(objects) => {
                self.all(&watched, objects);
                self.listed.insert(watched.kind);
            }
            Change::One(object) => {
                if let Some((key, held)) = named(&watched, &object)
                    && self.seen.is_news(watched.kind, &held.version)
                    && self.seen.held.get(&key).is_none_or(|known| known.version != held.version)
                {
                    self.put(&watched, key, held, object);
                }
            }
            Change::Gone(object) => {
                if let Some((key, gone)) = named(&watched, &object)
                    && self.seen.is_news(watched.kind, &gone.version)
                {
                    self.remove(&key);
                }
            }
            // What is held, and what the log has of a time before this process, stays.
            Change::Absent => _ = self.listed.insert(watched.kind),
            Change::Trouble(why) => self.trouble(&watched, why),
        }
    }

    /// What was not in the list is gone, also what the log has of a time before this process.
    fn all(&mut self, watched: &Watched, objects: Vec<Value>) {
        self.seen.newest.remove(watched.kind);
        let mut there = BTreeSet::new();
        for object in objects {
            let Some((key, held)) = named(watched, &object) else { continue };
            there.insert(key.clone());
            self.seen.is_news(watched.kind, &held.version);
            // A list is the truth, whatever came before: the server may have been restored from a backup.
            if self.seen.held.get(&key).is_none_or(|known| (&known.uid, &known.version) != (&held.uid, &held.version)) {
                self.put(watched, key, held, object);
            }
        }
        let held = self.seen.held.keys().filter(|key| *key.kind == *watched.kind).cloned();
        let (_, stored) = self.store.list(watched.kind, None);
        let all: BTreeSet<Key> = held.chain(stored.iter().map(|stored| stored.key.clone())).collect();
        all.difference(&there).for_each(|key| self.remove(key));
        if watched.kind == SLICE {
            // Of a time when the log had all kinds.
            self.seen.dirty.extend(stored.iter().map(|stored| (stored.key.clone(), None)));
        }
    }

    fn put(&mut self, watched: &Watched, key: Key, held: Held, object: Value) {
        match watched.kind {
            POD => {
                let (id, pod) = (id(&key), Arc::new(Pod::of(&object)));
                self.endpoints_changed |= self.seen.pods.get(&id) != Some(&pod);
                self.seen.pods.insert(id, pod);
            }
            SLICE => {
                let new = watched.kept(object).map(|object| Slice::of(key.clone(), object));
                let old = self.seen.slices.get(&key).map(|old| &old.written.object);
                if new.as_ref().map(|new| &new.written.object) != old {
                    self.endpoints_changed = true;
                    match new {
                        Some(new) => _ = self.seen.slices.insert(key.clone(), new),
                        None => _ = self.seen.slices.remove(&key),
                    }
                }
            }
            _ => {
                let author = record::author(&object);
                let kept = watched.kept(object).map(|object| (Arc::new(object), author));
                self.seen.dirty.insert(key.clone(), kept);
            }
        }
        self.seen.held.insert(key, held);
    }

    fn remove(&mut self, key: &Key) {
        self.seen.held.remove(key);
        match &*key.kind {
            POD => self.endpoints_changed |= self.seen.pods.remove(&id(key)).is_some(),
            SLICE => self.endpoints_changed |= self.seen.slices.remove(key).is_some(),
            _ => _ = self.seen.dirty.insert(key.clone(), None),
        }
    }

    fn trouble(&mut self, watched: &Watched, why: Option<String>) {
        let before = self.troubles.get(watched.kind);
        if before == why.as_ref() {
            return;
        }
        match &why {
            Some(why) => tracing::warn!(kind = watched.kind, why, "the cluster is not followed in full"),
            None => tracing::info!(kind = watched.kind, "the kind is followed again"),
        }
        // It is a problem like those of objects.
        self.endpoints_changed = true;
        if let Some(why) = &why {
            let still = |waiting: &mut BTreeMap<_, _>| {
                waiting.get_mut(watched.kind).map(|told: &mut String| why.clone_into(told)).is_some()
            };
            self.waiting.send_if_modified(still);
        }
        match why {
            Some(why) => _ = self.troubles.insert(watched.kind, why),
            None => _ = self.troubles.remove(watched.kind),
        }
    }

    /// Brings the log up to date; what it does not take stays for later.
    async fn record(&mut self) {
        if self.seen.dirty.is_empty() {
            (self.again, self.retry) = (None, RETRY);
            return;
        }
        if self.again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let taken = record::append(&self.store, &self.seen.dirty).await;
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &taken.keys {
            // Only now: a status that was made of what the log had before must not pass for one of this.
            match self.seen.held.get(key) {
                Some(held) => _ = versions.insert(key.clone(), (held.uid.clone(), held.version.clone())),
                None => _ = versions.remove(key),
            }
            self.seen.dirty.remove(key);
        }
        drop(versions);
        if let Some(why) = taken.failed {
            let objects = self.seen.dirty.len();
            tracing::warn!(objects, why, "the event log does not take what the cluster has; trying again");
            self.again = Some(Instant::now() + self.retry);
            self.retry = (self.retry * 2).min(MAX_RETRY);
        } else {
            (self.again, self.retry) = (None, RETRY);
        }
    }

    /// Publishes endpoints and pods, if they have changed.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.endpoints_changed) {
            return;
        }
        let mut now = Resources::of(&self.resources.borrow().trust_domain);
        let mut problems = Vec::new();
        for slice in self.seen.slices.values() {
            problems.extend(slice.loaded.wrong.iter().cloned());
            if let Some(object) = slice.loaded.object.clone() {
                object.insert(&mut now, &mut problems);
            }
        }
        problems.extend(self.troubles.iter().map(|(kind, why)| Problem {
            file: format!("cluster {kind}"),
            message: why.clone(),
            ..Problem::default()
        }));
        (now.problems, now.pods) = (problems, Some(Arc::new(self.seen.pods.clone())));
        let written = self.seen.slices.values().map(|slice| Arc::clone(&slice.written)).collect();
        self.written.send_replace(Arc::new(written));
        self.resources.send_replace(Arc::new(now));
    }
}

impl Slice {
    fn of(key: Key, object: Value) -> Self {
        let loaded = Arc::new(source::from_json_at(&key.to_string(), &object));
        Self { loaded, written: source::files::written(key, object, PLACE) }
    }
}

impl Seen {
    /// Whether a version is newer than all that were seen of the kind: what is not is a repetition. Watches tell in
    /// order; a version that is no number says nothing of it.
    fn is_news(&mut self, kind: &'static str, version: &str) -> bool {
        let Ok(version) = version.parse::<u128>() else { return true };
        let newest = self.newest.entry(kind).or_default();
        let news = version > *newest;
        *newest = version.max(*newest);
        news
    }
}

/// The key of an object, and which version of it this is.
fn named(watched: &Watched, object: &Value) -> Option<(Key, Held)> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    Some((watched.key(object)?, Held { uid: text("uid"), version: text("resourceVersion") }))
}

fn id(key: &Key) -> String {
    format!("{}/{}", key.namespace, key.name)
}

#[cfg(test)]
mod tests;
