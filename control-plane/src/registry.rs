//! Which workloads there are: registrations as leases that live as long as their discovery stream.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use weft_policy::SpiffeId;
use weft_proto::v1::Registration;

use crate::compile::Registered;

/// All registrations. Clones share them.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    entries: Mutex<Entries>,
    published: watch::Sender<Arc<Vec<Registered>>>,
}

#[derive(Default)]
struct Entries {
    by_id: BTreeMap<String, (u64, Registered)>,
    last_lease: u64,
}

/// One stream's registration; removed when this is dropped.
pub struct Lease {
    registry: Registry,
    id: String,
    lease: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self(Arc::new(Shared { entries: Mutex::default(), published: watch::Sender::new(Arc::default()) }))
    }
}

impl Registry {
    /// The registrations, as they change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<Registered>>> {
        self.0.published.subscribe()
    }

    /// Takes a lease for a workload of `peer`.
    ///
    /// # Errors
    /// When the registration is not this peer's to make, is malformed, or a newer incarnation holds the name.
    pub fn register(&self, registration: Registration, peer: &SpiffeId) -> Result<Lease, String> {
        let namespace = peer.namespace_and_account().map(|(namespace, _)| namespace);
        if namespace != Some(registration.namespace.as_str()) {
            return Err(format!("{peer} may not register a workload in namespace {:?}", registration.namespace));
        }
        let id = format!("{}/{}", registration.namespace, registration.name);
        if weft_policy::model::ObjectName::parse(&id).is_none() {
            return Err(format!("workload id {id:?}: must be namespace/name in lower-case DNS labels"));
        }
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, held)) = entries.by_id.get(&id) {
            if held.spiffe_id != peer.as_str() {
                return Err(format!("workload {id} belongs to {}", held.spiffe_id));
            }
            if held.registration.epoch_ms > registration.epoch_ms {
                return Err(format!("workload {id}: a newer incarnation is registered"));
            }
        }
        entries.last_lease += 1;
        let lease = entries.last_lease;
        entries.by_id.insert(id.clone(), (lease, Registered { registration, spiffe_id: peer.as_str().into() }));
        self.publish(&entries);
        drop(entries);
        Ok(Lease { registry: self.clone(), id, lease })
    }

    fn publish(&self, entries: &Entries) {
        let all = entries.by_id.values().map(|(_, registered)| registered.clone()).collect();
        self.0.published.send_replace(Arc::new(all));
    }
}

impl Lease {
    /// The workload id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The same workload says something new of itself.
    ///
    /// # Errors
    /// When it now names another workload, or a newer incarnation has taken the name.
    pub fn update(&self, registration: Registration) -> Result<(), String> {
        if format!("{}/{}", registration.namespace, registration.name) != self.id {
            return Err(format!("a stream registers one workload, {}", self.id));
        }
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.by_id.get_mut(&self.id) {
            Some((lease, held)) if *lease == self.lease => held.registration = registration,
            _ => return Err(format!("workload {}: a newer incarnation is registered", self.id)),
        }
        self.registry.publish(&entries);
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // An old lease never removes a newer one.
        if entries.by_id.get(&self.id).is_some_and(|(lease, _)| *lease == self.lease) {
            entries.by_id.remove(&self.id);
            self.registry.publish(&entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> SpiffeId {
        SpiffeId::workload("weft.local", "shop", "catalog").expect("valid")
    }

    fn registration(epoch_ms: u64) -> Registration {
        Registration { name: "catalog-1".into(), namespace: "shop".into(), epoch_ms, ..Registration::default() }
    }

    #[test]
    fn a_registration_goes_with_its_lease() {
        let registry = Registry::default();
        let lease = registry.register(registration(1), &peer()).expect("valid");
        assert_eq!(registry.watch().borrow().len(), 1);
        drop(lease);
        assert!(registry.watch().borrow().is_empty());
    }

    #[test]
    fn an_old_lease_never_removes_a_newer_registration() {
        let registry = Registry::default();
        let old = registry.register(registration(1), &peer()).expect("valid");
        let _new = registry.register(registration(2), &peer()).expect("newer");
        drop(old);
        assert_eq!(registry.watch().borrow()[0].registration.epoch_ms, 2);
    }

    #[test]
    fn an_older_incarnation_does_not_replace_a_newer() {
        let registry = Registry::default();
        let _new = registry.register(registration(2), &peer()).expect("valid");
        assert!(registry.register(registration(1), &peer()).is_err());
    }

    #[test]
    fn a_peer_registers_in_its_own_namespace_only() {
        let registry = Registry::default();
        let other = SpiffeId::workload("weft.local", "other", "catalog").expect("valid");
        assert!(registry.register(registration(1), &other).is_err());
        let _held = registry.register(registration(1), &peer()).expect("valid");
        let colleague = SpiffeId::workload("weft.local", "shop", "orders").expect("valid");
        assert!(registry.register(registration(9), &colleague).is_err(), "the name is another identity's");
    }
}
