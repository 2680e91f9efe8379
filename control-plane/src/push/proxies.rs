//! The connected sidecars and their sync state, for people (rule 12). Streams write, the API reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use weft_proto::v1::Registration;
use weft_svid::PeerIdentity;

use super::{Reflected, stream::TypeStatus};

/// What is known of a connected sidecar.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Identity that it proved when it connected.
    pub peer: PeerIdentity,
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
pub struct Proxies(Arc<Mutex<BTreeMap<u64, Proxy>>>);

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
        self.lock().insert(stream, proxy);
    }

    /// The sync state of a stream that has a row.
    pub fn synced(&self, stream: u64, types: Vec<TypeStatus>, reflected: Reflected) {
        if let Some(proxy) = self.lock().get_mut(&stream) {
            (proxy.types, proxy.reflected) = (types, reflected);
        }
    }

    /// The stream has ended.
    pub fn remove(&self, stream: u64) {
        self.lock().remove(&stream);
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Proxy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use weft_policy::SpiffeId;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn proxy(name: &str, epoch_ms: u64, address: &str) -> Proxy {
        let id = SpiffeId::workload("weft.local", "shop", "catalog").expect("valid");
        Proxy {
            peer: PeerIdentity { id, not_after: at(1000) },
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
