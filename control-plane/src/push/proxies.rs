//! The connected sidecars and their sync state, for people (rule 12). Streams write, the API reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, watch};
use weft_proto::{
    ResourceType,
    v1::{Registration, Rejection},
};
use weft_svid::PeerIdentity;

use super::{Reflected, stream::TypeStatus};
use crate::{ca::Presented, compile::conditions::Refused};

/// What is known of a connected sidecar.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Identity that it proved when it connected.
    pub peer: PeerIdentity,
    /// What its certificate said then.
    pub presented: Option<Arc<Presented>>,
    /// Where it connects from.
    pub address: String,
    /// Since when.
    pub connected: Instant,
    /// What it says of its workload.
    pub registration: Registration,
    /// Services that it subscribes to; `*` for all.
    pub services: Arc<[String]>,
    /// Sync state by type.
    pub types: Vec<TypeStatus>,
    /// The newest view that it has answered all of: each resource accepted or refused.
    pub reflected: Reflected,
}

/// All connected sidecars. Clones share them.
#[derive(Clone, Default)]
pub struct Proxies(Arc<Shared>);

#[derive(Default)]
struct Shared {
    streams: Mutex<BTreeMap<u64, Proxy>>,
    /// Counts changes of what is refused.
    refusals: watch::Sender<u64>,
    /// Somebody holds more than before, or is gone.
    progress: Arc<Notify>,
}

impl Proxy {
    /// Seconds until its current certificate ends; negative when it has.
    #[must_use]
    pub fn certificate_seconds(&self, now: SystemTime) -> i64 {
        let end = match self.registration.certificate_end_ms {
            // It never said: its certificate is the one that it connected with.
            0 => self.peer.not_after,
            millis => UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(self.peer.not_after),
        };
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        end.duration_since(now).map_or_else(|past| -seconds(past.duration()), seconds)
    }
}

impl Proxy {
    /// The last event of the store that what it holds reflects, when what is pushed reflects `pushed`: events that
    /// changed nothing in the view that it holds count too. What it refused is told by [`Proxy::types`].
    #[must_use]
    pub const fn store_revision(&self, pushed: Reflected) -> u64 {
        if self.reflected.view >= pushed.view { pushed.store } else { self.reflected.store }
    }
}

impl Proxies {
    /// A stream's sidecar, when it is new or says something new of itself.
    pub fn set(&self, stream: u64, proxy: Proxy) {
        self.change(|streams| {
            let refuses = refusals(&proxy.types).next().is_some();
            let old = streams.insert(stream, proxy);
            old.is_some_and(|old| refusals(&old.types).next().is_some()) || refuses
        });
    }

    /// The sync state of a stream that has a row.
    pub fn synced(&self, stream: u64, types: Vec<TypeStatus>, reflected: Reflected) {
        self.change(|streams| {
            let Some(proxy) = streams.get_mut(&stream) else { return false };
            if std::mem::replace(&mut proxy.reflected, reflected) != reflected {
                self.0.progress.notify_one();
            }
            let old = std::mem::replace(&mut proxy.types, types);
            !refusals(&old).eq(refusals(&proxy.types))
        });
    }

    /// The stream has ended.
    pub fn remove(&self, stream: u64) {
        self.change(|streams| streams.remove(&stream).is_some_and(|old| refusals(&old.types).next().is_some()));
        self.0.progress.notify_one();
    }

    /// Changes the streams; tells those who follow refusals when there may be others now.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Proxy>) -> bool) {
        let changed = change(&mut self.lock());
        if changed {
            self.0.refusals.send_modify(|count| *count += 1);
        }
    }

    /// Wakes one waiter whenever a sidecar holds more than before or is gone, see [`Self::is_behind`].
    #[must_use]
    pub fn progress(&self) -> Arc<Notify> {
        Arc::clone(&self.0.progress)
    }

    /// Whether a sidecar that was connected at this time has not answered all of this view yet.
    #[must_use]
    pub fn is_behind(&self, view: u64, at: Instant) -> bool {
        self.lock().values().any(|proxy| proxy.connected <= at && proxy.reflected.view < view)
    }

    /// Wakes whenever what is refused may have changed, see [`Self::refused`].
    #[must_use]
    pub fn refusals(&self) -> watch::Receiver<u64> {
        self.0.refusals.subscribe()
    }

    /// What is refused at the moment, and why. Of several sidecars' reasons the first in order, so that it does not
    /// change with each sidecar that says the same.
    #[must_use]
    pub fn refused(&self) -> Refused {
        let mut found = Refused::new();
        for proxy in self.lock().values() {
            // What it is sent goes by the namespace that it has proved.
            let clients = proxy.peer.id.namespace_and_account().map_or("", |(namespace, _)| namespace);
            for (kind, Rejection { name, reason, .. }) in refusals(&proxy.types) {
                let text = format!("{} {name}: {reason}", kind.name());
                let why = found.entry((kind, name.clone(), clients.to_owned())).or_insert_with(|| text.clone());
                if text < *why {
                    *why = text;
                }
            }
        }
        found
    }

    /// One row for each workload: while a sidecar moves to a new stream, the newest epoch and then the newest stream.
    /// A peer that registered nothing has a row for each stream.
    #[must_use]
    pub fn rows(&self) -> Vec<Proxy> {
        let streams = self.lock();
        let mut newest: BTreeMap<(&str, &str, u64), &Proxy> = BTreeMap::new();
        for (stream, proxy) in streams.iter() {
            let registration = &proxy.registration;
            let anonymous = if registration.name.is_empty() { *stream } else { 0 };
            let key = (registration.namespace.as_str(), registration.name.as_str(), anonymous);
            let row = newest.entry(key).or_insert(proxy);
            // Streams come in ascending order.
            if row.registration.epoch_ms <= registration.epoch_ms {
                *row = proxy;
            }
        }
        newest.into_values().cloned().collect()
    }

    /// The newest stream on the connection from this address.
    #[must_use]
    pub fn at(&self, address: &str) -> Option<Proxy> {
        self.lock().values().rev().find(|proxy| proxy.address == address).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Proxy>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusals(types: &[TypeStatus]) -> impl Iterator<Item = (ResourceType, &Rejection)> {
    types.iter().flat_map(|of| of.refused.iter().map(|refused| (of.kind, refused)))
}

#[cfg(test)]
pub(crate) mod tests {
    use weft_policy::SpiffeId;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    pub(crate) fn proxy(name: &str, epoch_ms: u64, address: &str) -> Proxy {
        let id = SpiffeId::workload("weft.local", "shop", "catalog").expect("valid");
        Proxy {
            peer: PeerIdentity { id, not_after: at(1000) },
            presented: None,
            address: address.into(),
            connected: Instant::now(),
            registration: Registration { name: name.into(), namespace: "shop".into(), epoch_ms, ..Default::default() },
            services: Arc::default(),
            types: Vec::new(),
            reflected: Reflected::default(),
        }
    }

    fn addresses(proxies: &Proxies) -> Vec<String> {
        proxies.rows().into_iter().map(|proxy| proxy.address).collect()
    }

    #[test]
    fn rule_12_a_sidecar_that_connects_again_has_one_row() {
        let proxies = Proxies::default();
        proxies.set(1, proxy("catalog", 7, "old stream"));
        proxies.set(2, proxy("orders", 1, "orders"));
        proxies.set(3, proxy("catalog", 7, "new stream"));
        assert_eq!(addresses(&proxies), ["new stream", "orders"]);
        proxies.set(1, proxy("catalog", 7, "old stream"));
        proxies.remove(3);
        assert_eq!(addresses(&proxies), ["old stream", "orders"]);
    }

    #[test]
    fn rule_12_the_newest_incarnation_has_the_row() {
        let proxies = Proxies::default();
        proxies.set(1, proxy("catalog", 9, "new epoch"));
        proxies.set(2, proxy("catalog", 7, "old epoch"));
        assert_eq!(addresses(&proxies), ["new epoch"]);
    }

    #[test]
    fn rule_12_peers_that_register_nothing_are_all_shown() {
        let proxies = Proxies::default();
        proxies.set(1, proxy("", 0, "one"));
        proxies.set(2, proxy("", 0, "two"));
        assert_eq!(addresses(&proxies), ["one", "two"]);
    }

    #[test]
    fn rule_12_certificate_expiry_is_that_of_the_current_certificate() {
        let mut proxy = proxy("catalog", 7, "");
        assert_eq!(proxy.certificate_seconds(at(400)), 600, "of the stream's certificate");
        proxy.registration.certificate_end_ms = 5_000_000;
        assert_eq!(proxy.certificate_seconds(at(400)), 4600, "of the renewed one");
        assert_eq!(proxy.certificate_seconds(at(5010)), -10);
        proxy.registration.certificate_end_ms = u64::MAX;
        assert!(proxy.certificate_seconds(at(400)) > 0, "nonsense is no panic");
    }
}
