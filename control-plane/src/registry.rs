//! Which workloads there are: registrations as leases that live as long as their discovery stream. They are kept in a
//! file, so that a control plane that restarts does not take a service without its sidecars for an empty one: what
//! was registered counts until its sidecar is back or [`RESTORED`] has passed.

mod limits;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use tokio::sync::watch;
use weft_policy::SpiffeId;
use weft_proto::v1::Registration;

use crate::compile::Registered;

/// All registrations. Clones share them.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

/// How long a sidecar may take to come back after a restart of the control plane: more than its longest back-off.
pub const RESTORED: Duration = Duration::from_secs(20);
/// The lease of a registration that was read from the file.
const NO_LEASE: u64 = 0;

struct Shared {
    file: Option<PathBuf>,
    entries: Mutex<Entries>,
    published: watch::Sender<Arc<Vec<Registered>>>,
}

#[derive(Default)]
struct Entries {
    by_id: BTreeMap<String, (u64, Registered)>,
    last_lease: u64,
    /// The process is ending: leases that go now say nothing of their sidecars.
    stopping: bool,
}

/// One stream's registration; removed when this is dropped.
pub struct Lease {
    registry: Registry,
    id: String,
    lease: u64,
}

impl Default for Registry {
    fn default() -> Self {
        let published = watch::Sender::new(Arc::default());
        Self(Arc::new(Shared { file: None, entries: Mutex::default(), published }))
    }
}

impl Registry {
    /// The registrations of `file`, if there is one, and from now on kept there.
    #[must_use]
    pub fn open(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let read = text.lines().filter_map(|line| {
            let entry = parse(line);
            if entry.is_none() {
                tracing::warn!(file = %file.display(), "a registration that cannot be read is left out");
            }
            entry
        });
        let id =
            |registered: &Registered| format!("{}/{}", registered.registration.namespace, registered.registration.name);
        let by_id = read.map(|registered| (id(&registered), (NO_LEASE, registered))).collect();
        let entries = Entries { by_id, last_lease: NO_LEASE, stopping: false };
        let all = entries.by_id.values().map(|(_, registered)| registered.clone()).collect();
        let published = watch::Sender::new(Arc::new(all));
        Self(Arc::new(Shared { file: Some(file.into()), entries: Mutex::new(entries), published }))
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
            self.publish(&entries);
        }
    }

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
        limits::check(&registration)?;
        authorise(&registration, peer)?;
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
        let own = |(_, held): &&(u64, Registered)| held.spiffe_id == peer.as_str();
        if !entries.by_id.contains_key(&id) && entries.by_id.values().filter(own).count() >= limits::PER_IDENTITY {
            return Err(format!("{peer} has registered {} workloads, which is the limit", limits::PER_IDENTITY));
        }
        entries.last_lease += 1;
        let lease = entries.last_lease;
        entries.by_id.insert(id.clone(), (lease, Registered { registration, spiffe_id: peer.as_str().into() }));
        self.publish(&entries);
        drop(entries);
        Ok(Lease { registry: self.clone(), id, lease })
    }

    fn publish(&self, entries: &Entries) {
        let all: Vec<Registered> = entries.by_id.values().map(|(_, registered)| registered.clone()).collect();
        if let Some(file) = &self.0.file
            && !entries.stopping
            && let Err(error) = keep(file, &all)
        {
            tracing::warn!(file = %file.display(), %error, "registrations could not be kept for a restart");
        }
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
        limits::check(&registration)?;
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.by_id.get_mut(&self.id) {
            Some((lease, held)) if *lease == self.lease => {
                let peer = SpiffeId::parse(&held.spiffe_id).map_err(|error| error.to_string())?;
                authorise(&registration, &peer)?;
                // A new certificate changes nothing that is compiled.
                let end = held.registration.certificate_end_ms;
                let same = Registration { certificate_end_ms: end, ..registration.clone() } == held.registration;
                held.registration = registration;
                if same {
                    return Ok(());
                }
            }
            _ => return Err(format!("workload {}: a newer incarnation is registered", self.id)),
        }
        self.registry.publish(&entries);
        Ok(())
    }
}

/// A workload has the namespace and the service account of the identity that its sidecar proved.
fn authorise(registration: &Registration, peer: &SpiffeId) -> Result<(), String> {
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
    Ok(())
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // An old lease never removes a newer one, and the end of the process removes nothing.
        if !entries.stopping && entries.by_id.get(&self.id).is_some_and(|(lease, _)| *lease == self.lease) {
            entries.by_id.remove(&self.id);
            self.registry.publish(&entries);
        }
    }
}

/// One line for each registration: SPIFFE id, a tab, the message in hex.
fn keep(file: &Path, all: &[Registered]) -> std::io::Result<()> {
    let new = file.with_extension("new");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&new)?);
    for registered in all {
        let bytes = registered.registration.encode_to_vec();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "{}\t{hex}", registered.spiffe_id)?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    std::fs::rename(new, file)
}

fn parse(line: &str) -> Option<Registered> {
    let (spiffe_id, hex) = line.split_once('\t')?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    let registration = Registration::decode(bytes?.as_slice()).ok()?;
    Some(Registered { registration, spiffe_id: SpiffeId::parse(spiffe_id).ok()?.as_str().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_keeps_registrations_until_their_sidecars_are_back_or_late() {
        let directory = std::env::temp_dir().join(format!("weft-registry-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("registrations");
        let before = Registry::open(&file);
        let _one = before.register(registration(1), &peer()).expect("valid");
        let other = Registration { name: "catalog-2".into(), ..registration(1) };
        let two = before.register(other, &peer()).expect("valid");
        let after = Registry::open(&file);
        assert_eq!(after.watch().borrow().len(), 2);
        before.stop();
        drop(two);
        assert_eq!(Registry::open(&file).watch().borrow().len(), 2, "a stop keeps what is registered");
        let _back = after.register(registration(1), &peer()).expect("the same incarnation");
        after.forget_restored();
        let names: Vec<_> = after.watch().borrow().iter().map(|r| r.registration.name.clone()).collect();
        assert_eq!(names, ["catalog-1"]);
        std::fs::write(&file, "no registration\n").expect("writable");
        assert!(Registry::open(&file).watch().borrow().is_empty(), "a damaged line is left out");
        std::fs::remove_dir_all(&directory).expect("removable");
    }

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
    fn rule_01_a_workload_has_the_service_account_of_the_identity_that_was_proved() {
        let registry = Registry::default();
        let of = |account: &str| Registration { service_account: account.into(), ..registration(1) };
        assert!(registry.register(of("admin"), &peer()).is_err());
        let lease = registry.register(of("catalog"), &peer()).expect("its own");
        assert!(lease.update(of("admin")).is_err(), "nor later");
        assert_eq!(registry.watch().borrow()[0].registration.service_account, "catalog");
        let foreign = SpiffeId::parse("spiffe://weft.local/shop/catalog").expect("valid");
        assert!(Registry::default().register(of(""), &foreign).is_err(), "an identity of another form");
    }

    #[test]
    fn an_identity_registers_a_bounded_number_of_workloads() {
        let registry = Registry::default();
        let named = |count: usize| Registration { name: format!("catalog-{count}"), ..registration(1) };
        let leases: Vec<_> =
            (0..limits::PER_IDENTITY).map(|count| registry.register(named(count), &peer()).expect("valid")).collect();
        assert!(registry.register(named(leases.len()), &peer()).is_err());
        let _again = registry.register(named(0), &peer()).expect("one that it has");
        let colleague = SpiffeId::workload("weft.local", "shop", "orders").expect("valid");
        let other = Registration { name: "orders-1".into(), ..registration(1) };
        let _other = registry.register(other, &colleague).expect("another identity");
    }

    #[test]
    fn a_renewed_certificate_publishes_nothing() {
        let registry = Registry::default();
        let lease = registry.register(registration(1), &peer()).expect("valid");
        let mut watch = registry.watch();
        watch.mark_unchanged();
        lease.update(Registration { certificate_end_ms: 5, ..registration(1) }).expect("valid");
        assert!(!watch.has_changed().expect("open"));
        lease.update(Registration { certificate_end_ms: 5, healthy: true, ..registration(1) }).expect("valid");
        assert!(watch.has_changed().expect("open"));
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
