//! Writes what holds for the objects of the store into their statuses, as the author `weft`: only where it differs, never
//! what was found of another version, and many at once, so that they share commits.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep_until},
};

use crate::{
    api::{
        admit::timestamp,
        kinds::{self, StatusShape},
    },
    compile::conditions::{self, Condition, Conditions, Refused, Verdict},
    kubernetes::status::Writer,
    push::{
        debounce::{Changes, Debounce},
        proxies::Proxies,
    },
    source::{Problem, Resources},
    store::{AppendError, Batch, Expect, Key, OWN_AUTHOR, Revision, STATUS, Store, Stored, Write},
};

/// `controllerName` of the entries that Weft writes.
const CONTROLLER: &str = "weft.dev/control-plane";
/// Writes at once: as many as share a commit.
const AT_ONCE: usize = 256;
/// How often a status is made anew when somebody else was faster.
const ATTEMPTS: usize = 8;
/// What sidecars refuse is written no more often: they must not fill the log, whatever they say.
const PACE: Duration = Duration::from_secs(5);
/// Statuses that could not be written, as on a full disk, are tried again after this, and then after twice as long.
const RETRY: Duration = Duration::from_secs(1);
/// But never later.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// What a compile found.
#[derive(Default)]
pub struct Found {
    /// Of what.
    pub resources: Arc<Resources>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Where statuses are written.
pub enum Sink {
    /// Into the store, which has the objects.
    Store,
    /// To the API server of the cluster that has them; the store reflects it.
    Cluster(Writer),
}

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] AppendError),
    /// The API server did not.
    #[error("{0}")]
    Cluster(String),
}

/// The task that writes, and what it follows.
pub struct Statuses {
    store: Store,
    sink: Sink,
    found: watch::Receiver<Arc<Found>>,
    proxies: Proxies,
    /// Whether this control plane was the one that writes to the cluster.
    led: bool,
    refusals: watch::Receiver<u64>,
    refused: Refused,
    /// They are to be read anew.
    refused_due: bool,
    /// When [`PACE`] is over.
    refused_next: Instant,
    /// What the statuses say, and of which revision that is known.
    settled: BTreeMap<Key, (Verdict, Revision)>,
    /// When what could not be written is tried again.
    again: Option<Instant>,
    /// How long to wait the next time.
    retry: Duration,
}

impl Statuses {
    /// Of the objects of this store.
    #[must_use]
    pub fn new(store: Store, sink: Sink, found: watch::Receiver<Arc<Found>>, proxies: Proxies) -> Self {
        let (refusals, refused_next) = (proxies.refusals(), Instant::now());
        let (refused, settled) = (Refused::new(), BTreeMap::new());
        let (refused_due, again, retry, led) = (false, None, RETRY, false);
        Self { store, sink, found, proxies, led, refusals, refused, refused_due, refused_next, settled, again, retry }
    }

    /// Writes for as long as there are compiles to come.
    pub async fn run(mut self) {
        let mut debounce = Debounce::default();
        while debounce.settled(&mut self).await {
            self.pass().await;
            debounce.pushed(Instant::now());
        }
    }

    async fn pass(&mut self) {
        let is_time = Instant::now() >= self.refused_next && self.refusals.has_changed().unwrap_or(false);
        if std::mem::take(&mut self.refused_due) || is_time {
            self.refusals.mark_unchanged();
            self.refused = self.proxies.refused();
            self.refused_next = Instant::now() + PACE;
        }
        let found = Arc::clone(&self.found.borrow_and_update());
        if matches!(&self.sink, Sink::Cluster(writer) if !writer.leads()) {
            // Who writes now may write other things: what was settled is not any more.
            self.settled.clear();
            return;
        }
        let state = self.store.snapshot();
        let (mut settled, mut wanted) = (BTreeMap::new(), Vec::new());
        for (key, verdict) in conditions::of(&found.resources, &found.problems, &self.refused) {
            let Some(stored) = state.get(&key) else { continue };
            match self.settled.remove(&key) {
                Some(old) if old.0 == verdict && old.1 == stored.revision => _ = settled.insert(key, old),
                _ => wanted.push((key, verdict)),
            }
        }
        let (store, sink) = (&self.store, &self.sink);
        let mut writing = stream::iter(wanted)
            .map(async |(key, verdict)| (write(store, sink, &key, &verdict).await, key, verdict))
            .buffer_unordered(AT_ONCE);
        let mut failed: Option<(usize, WriteError)> = None;
        while let Some((result, key, verdict)) = writing.next().await {
            match result {
                Ok(revision) => settled.extend(revision.map(|revision| (key, (verdict, revision)))),
                Err(error) => failed = Some((failed.map_or(1, |(count, _)| count + 1), error)),
            }
        }
        if let Some((statuses, error)) = &failed {
            tracing::warn!(statuses, %error, "statuses could not be written; trying again");
        }
        drop(writing);
        (self.again, self.retry) = match failed {
            Some(_) => (Some(Instant::now() + self.retry), (self.retry * 2).min(MAX_RETRY)),
            None => (None, RETRY),
        };
        self.settled = settled;
    }
}

impl Changes for Statuses {
    async fn changed(&mut self) -> bool {
        // A clone sees the same changes, and this one stays unseen until it is used.
        let (mut refusals, next) = (self.refusals.clone(), self.refused_next);
        let refused = async {
            match refusals.changed().await {
                Ok(()) => sleep_until(next).await,
                Err(_) => std::future::pending().await,
            }
        };
        let again = async {
            match self.again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let led = self.led;
        let leading = async {
            let Sink::Cluster(writer) = &self.sink else { return std::future::pending().await };
            if writer.leading().wait_for(|leads| *leads != led).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let (changed, refused, again, turned) = tokio::select! {
            () = leading => (true, false, false, true),
            changed = self.found.changed() => (changed.is_ok(), false, false, false),
            () = refused => (true, true, false, false),
            () = again => (true, false, true, false),
        };
        self.led ^= turned;
        // Told once: the next pass looks.
        if refused {
            self.refusals.mark_unchanged();
            self.refused_due = true;
        }
        if again {
            self.again = None;
        }
        changed
    }
}

/// Writes one status. The revision at which it says so; none when the object is another or gone.
async fn write(store: &Store, sink: &Sink, key: &Key, verdict: &Verdict) -> Result<Option<Revision>, WriteError> {
    if let Sink::Cluster(writer) = sink {
        return write_to_cluster(store, writer, key, verdict).await;
    }
    let mut attempt = 0;
    loop {
        attempt += 1;
        let Some(stored) = store.get(key).filter(|stored| is_of(stored, verdict)) else { return Ok(None) };
        let Some(object) = with_status(&stored, &verdict.conditions, Timestamp::now()) else {
            return Ok(Some(stored.revision));
        };
        let write = Write { key: key.clone(), expect: Expect::Revision(stored.revision), object: Some(object) };
        let batch = Batch { author: OWN_AUTHOR.into(), reason: STATUS.into(), writes: vec![write] };
        match store.append(batch).await {
            Ok(events) => return Ok(events.last().map(|event| event.revision)),
            // Somebody was faster, perhaps with another part of the status.
            Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The same to the API server, of what is not Kubernetes' own. What it has then comes by its watch.
async fn write_to_cluster(
    store: &Store,
    writer: &Writer,
    key: &Key,
    verdict: &Verdict,
) -> Result<Option<Revision>, WriteError> {
    if kinds::by_kind(&key.kind).is_none_or(|kind| kind.strategic()) {
        return Ok(None);
    }
    let Some(stored) = store.get(key).filter(|stored| is_of(stored, verdict)) else { return Ok(None) };
    let conditions = of_services(&verdict.conditions, &stored.object);
    let Some(object) = with_status(&stored, &conditions, Timestamp::now()) else { return Ok(Some(stored.revision)) };
    writer.write(key, &object["status"]).await.map_err(WriteError::Cluster)?;
    Ok(None)
}

/// Of a route's parents those that are Services: the others are gateways, whose status others write.
fn of_services(conditions: &Conditions, object: &Value) -> Conditions {
    let parents = &object["spec"]["parentRefs"];
    if parents.is_null() {
        return conditions.clone();
    }
    let is_service = |reference: &Value| reference["kind"] == "Service";
    Conditions::Each(match conditions {
        Conditions::Each(each) => each.iter().filter(|(reference, _)| is_service(reference)).cloned().collect(),
        Conditions::Whole(all) => {
            entries(parents).filter(|parent| is_service(parent)).map(|parent| (parent.clone(), all.clone())).collect()
        }
    })
}

/// Whether the verdict was found of this very object and generation.
fn is_of(stored: &Stored, verdict: &Verdict) -> bool {
    let (uid, generation) = &verdict.of;
    let metadata = &stored.object["metadata"];
    metadata["uid"].as_str() == uid.as_deref() && metadata["generation"].as_i64() == *generation
}

/// The object with its new status, or `None` when that says so already.
fn with_status(stored: &Stored, conditions: &Conditions, now: Timestamp) -> Option<Value> {
    let object = &*stored.object;
    let generation = &object["metadata"]["generation"];
    let (list, new) = match (kinds::by_kind(&stored.key.kind)?.status, conditions) {
        (StatusShape::None, _) => return None,
        (StatusShape::Conditions, Conditions::Whole(own)) => {
            let old = &object["status"]["conditions"];
            let others = entries(old).filter(|held| own.iter().all(|condition| held["type"] != condition.name));
            ("conditions", written(own, old, generation, now).into_iter().chain(others.cloned()).collect())
        }
        (StatusShape::Parents, of) => ("parents", each(object, ["parents", "parentRef", "parentRefs"], of, now)),
        (_, of) => ("ancestors", each(object, ["ancestors", "ancestorRef", "targetRefs"], of, now)),
    };
    let old = &object["status"][list];
    if *old == Value::Array(new.clone()) || old.is_null() && new.is_empty() {
        return None;
    }
    let mut object = object.clone();
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    object["status"][list] = new.into();
    Some(object)
}

/// One entry for each reference, and those of other controllers.
fn each(object: &Value, [list, name, references]: [&str; 3], conditions: &Conditions, now: Timestamp) -> Vec<Value> {
    let old = &object["status"][list];
    let generation = &object["metadata"]["generation"];
    let entry = |reference: &Value, conditions: &[Condition]| {
        let ours = |entry: &&Value| entry[name] == *reference && entry["controllerName"] == CONTROLLER;
        let before = entries(old).find(ours).map_or(&Value::Null, |entry| &entry["conditions"]);
        let conditions = written(conditions, before, generation, now);
        json!({ name: reference, "controllerName": CONTROLLER, "conditions": conditions })
    };
    let own: Vec<Value> = match conditions {
        Conditions::Each(each) => each.iter().map(|(reference, conditions)| entry(reference, conditions)).collect(),
        Conditions::Whole(all) => entries(&object["spec"][references]).map(|reference| entry(reference, all)).collect(),
    };
    let others = entries(old).filter(|entry| entry["controllerName"] != CONTROLLER).cloned();
    own.into_iter().chain(others).collect()
}

/// Conditions with their times: one that is as it was has been so since then.
fn written(conditions: &[Condition], before: &Value, generation: &Value, now: Timestamp) -> Vec<Value> {
    let one = |condition: &Condition| {
        let state = if condition.holds { "True" } else { "False" };
        let same = entries(before).find(|old| old["type"] == condition.name && old["status"] == state);
        let since = same.map_or_else(|| timestamp(now).into(), |old| old["lastTransitionTime"].clone());
        json!({
            "type": condition.name, "status": state, "reason": condition.reason, "message": condition.message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    };
    conditions.iter().map(one).collect()
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests;
