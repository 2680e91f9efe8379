//! Which workloads there are: registrations as leases that live as long as their discovery stream. They are kept in a
//! file, so that a control plane that restarts does not take a service without its sidecars for an empty one: what
//! was registered counts until its sidecar is back or [`RESTORED`] has passed.

mod file;
mod limits;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use weft_policy::SpiffeId;
use weft_proto::v1::Registration;

use self::file::RegistryFile;
use crate::{ca::enrolment::attested::Attested, compile::Registered};

/// All registrations. Clones share them.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

/// How long a sidecar may take to come back after a restart of the control plane: more than its longest back-off.
pub const RESTORED: Duration = Duration::from_secs(20);
/// The lease of a registration that was read from the file.
const NO_LEASE: u64 = 0;

/// All registrations, by name.
pub type All = Arc<Vec<Arc<Registered>>>;

/// What workloads may say of themselves.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Claims {
    /// Whatever their certificates do not contradict.
    #[default]
    Free,
    /// The name and the labels that their certificates attest, and no others.
    Attested,
}

struct Shared {
    claims: Claims,
    entries: Mutex<Entries>,
    published: watch::Sender<All>,
}

/// Lease and registration by workload id.
type Entered = BTreeMap<String, (u64, Arc<Registered>)>;

#[derive(Default)]
struct Entries {
    by_id: Entered,
    last_lease: u64,
    file: Option<RegistryFile>,
    /// The process is ending: leases that go now say nothing of their sidecars.
    stopping: bool,
}

/// One stream's registration; removed when this is dropped.
pub struct Lease {
    registry: Registry,
    id: String,
    lease: u64,
    /// What its certificate lets it say of itself.
    attested: Attested,
}

impl Default for Registry {
    fn default() -> Self {
        let published = watch::Sender::new(Arc::default());
        Self(Arc::new(Shared { claims: Claims::default(), entries: Mutex::default(), published }))
    }
}

impl Registry {
    /// The registrations of `file`, if there is one, and from now on kept there.
    #[must_use]
    pub fn open(file: &Path, claims: Claims) -> Self {
        let (file, read) = RegistryFile::open(file);
        let entry = |registered: Registered| (id(&registered.registration), (NO_LEASE, Arc::new(registered)));
        let by_id = read.into_iter().map(entry).collect();
        let entries = Entries { by_id, last_lease: NO_LEASE, file: Some(file), stopping: false };
        let published = watch::Sender::new(entries.all());
        Self(Arc::new(Shared { claims, entries: Mutex::new(entries), published }))
    }

    /// From now on the file stays as it is, for the next process.
    pub fn stop(&self) {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
    }

    /// How many were read from the file and have not come back.
    #[must_use]
    pub fn restored(&self) -> usize {
        let entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.by_id.values().filter(|(lease, _)| *lease == NO_LEASE).count()
    }

    /// Drops what was restored and has not come back.
    pub fn forget_restored(&self) {
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.by_id.len();
        entries.by_id.retain(|_, (lease, _)| *lease != NO_LEASE);
        if entries.by_id.len() != before {
            entries.keep(|file, all| file.replace(all));
            self.publish(&entries);
        }
    }

    /// The registrations, as they change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<All> {
        self.0.published.subscribe()
    }

    /// Takes a lease for a workload of `peer`.
    ///
    /// # Errors
    /// When the registration is not this peer's to make, says what was not attested, is malformed, or a newer
    /// incarnation holds the name.
    pub fn register(&self, registration: Registration, peer: &SpiffeId, attested: &Attested) -> Result<Lease, String> {
        limits::check(&registration)?;
        authorise(&registration, peer, attested, self.0.claims)?;
        let id = id(&registration);
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
        let own = |(_, held): &&(u64, Arc<Registered>)| held.spiffe_id == peer.as_str();
        if !entries.by_id.contains_key(&id) && entries.by_id.values().filter(own).count() >= limits::PER_IDENTITY {
            return Err(format!("{peer} has registered {} workloads, which is the limit", limits::PER_IDENTITY));
        }
        entries.last_lease += 1;
        let lease = entries.last_lease;
        let new = Arc::new(Registered { registration, spiffe_id: peer.as_str().into() });
        entries.by_id.insert(id.clone(), (lease, Arc::clone(&new)));
        entries.keep(|file, all| file.put(&new, all));
        self.publish(&entries);
        drop(entries);
        Ok(Lease { registry: self.clone(), id, lease, attested: attested.clone() })
    }

    fn publish(&self, entries: &Entries) {
        self.0.published.send_replace(entries.all());
    }
}

/// The workload id of a registration.
fn id(registration: &Registration) -> String {
    format!("{}/{}", registration.namespace, registration.name)
}

impl Entries {
    fn all(&self) -> All {
        Arc::new(self.by_id.values().map(|(_, registered)| Arc::clone(registered)).collect())
    }

    /// Writes a change to the file, if there is one and it is still to follow.
    fn keep(&mut self, write: impl FnOnce(&mut RegistryFile, &Entered)) {
        if let Some(file) = self.file.as_mut().filter(|_| !self.stopping) {
            write(file, &self.by_id);
        }
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
        if id(&registration) != self.id {
            return Err(format!("a stream registers one workload, {}", self.id));
        }
        limits::check(&registration)?;
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let new = match entries.by_id.get_mut(&self.id) {
            Some((lease, held)) if *lease == self.lease => {
                let peer = SpiffeId::parse(&held.spiffe_id).map_err(|error| error.to_string())?;
                authorise(&registration, &peer, &self.attested, self.registry.0.claims)?;
                // A new certificate changes nothing that is compiled, nor does what was seen of the traffic.
                let told = &held.registration;
                let same = Registration {
                    certificate_end_ms: told.certificate_end_ms,
                    connections: told.connections.clone(),
                    trace_propagation: told.trace_propagation,
                    ..registration.clone()
                } == *told;
                *held = Arc::new(Registered { registration, spiffe_id: held.spiffe_id.clone() });
                if same {
                    return Ok(());
                }
                Arc::clone(held)
            }
            _ => return Err(format!("workload {}: a newer incarnation is registered", self.id)),
        };
        entries.keep(|file, all| file.put(&new, all));
        self.registry.publish(&entries);
        Ok(())
    }
}

/// A workload has the namespace and the service account of the identity that its sidecar proved, and the name and the
/// labels that were attested with it.
fn authorise(registration: &Registration, peer: &SpiffeId, attested: &Attested, claims: Claims) -> Result<(), String> {
    let (namespace, account) = peer
        .namespace_and_account()
        .ok_or_else(|| format!("{peer} may not register a workload: its path is not ns/<namespace>/sa/<account>"))?;
    if registration.namespace != namespace {
        return Err(format!("{peer} may not register a workload in namespace {:?}", registration.namespace));
    }
    if !registration.service_account.is_empty() && registration.service_account != account {
        return Err(format!(
            "{peer} may not register a workload of service account {:?}",
            registration.service_account
        ));
    }
    let proved = attested.allows(registration).and_then(|()| match claims {
        Claims::Free => Ok(()),
        Claims::Attested => attested.proves(registration),
    });
    proved.map_err(|why| format!("{peer} may not register this workload: {why}"))
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // An old lease never removes a newer one, and the end of the process removes nothing.
        if !entries.stopping && entries.by_id.get(&self.id).is_some_and(|(lease, _)| *lease == self.lease) {
            entries.by_id.remove(&self.id);
            entries.keep(|file, all| file.remove(&self.id, all));
            self.registry.publish(&entries);
        }
    }
}

#[cfg(test)]
mod tests;
