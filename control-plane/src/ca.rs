//! The certificate authority: a root that signs an issuing certificate, which signs the SVIDs; or an issuing certificate
//! from files. Here is what issues and what everybody else reads; the state on disk is [`state`]'s, its changes are
//! [`rotation`]'s and [`revoking`]'s, and who may get a certificate is [`service`]'s.

pub mod audit;
pub mod enrolment;
pub mod external;
pub mod files;
pub mod fleet;
mod founding;
mod presented;
mod recent;
mod revocation;
mod revoking;
pub mod rotation;
pub mod service;
mod signer;
mod state;
mod trusted;
pub mod upkeep;
mod view;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{CertificateSigningRequestParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;
use weft_policy::SpiffeId;
use weft_proto::v1::TrustBundle;
use weft_svid::{Role, Svid, SvidReason, TrustStore};
use zeroize::Zeroizing;

pub(crate) use self::files::{open_private, read_private, write_private};
use self::{
    audit::Audit,
    enrolment::attested::{self, Attested},
    external::{External, Files},
    files::Directory,
    recent::{Recent, Recents},
    signer::{BACKDATE, Life, Signer, date, seconds},
    state::{Phase, State},
    trusted::TrustedFiles,
    upkeep::Steady,
};
pub use self::{
    files::private_dir,
    presented::{Presented, Serial},
    revocation::{Revocation, Revocations, Subject},
    signer::Leaf,
};

/// The shortest and the longest life that certificates may be given.
pub const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(90 * 86_400);
/// The record of the authority, in the data directory.
const AUDIT: &str = "ca-audit.jsonl";
/// An issuer that ends within this signs nothing of the control plane's own any more when there is another.
const ENDING: i64 = 3600;

/// The authority of one trust domain.
pub struct Ca {
    trust_domain: String,
    lifetime: Duration,
    directory: Directory,
    active: watch::Sender<Arc<Active>>,
    revocations: watch::Sender<Arc<Revocations>>,
    kept: Mutex<Kept>,
    recents: Mutex<Recents>,
    trust: TrustStore,
    trusted: Mutex<TrustedFiles>,
    steady: Mutex<Steady>,
    audit: Audit,
}

/// What issues, and what is trusted: read by everybody, replaced as a whole.
pub struct Active {
    signer: Arc<Signer>,
    /// What signs the control plane's own certificates: while the root is changed the older one, which everybody trusts.
    own: Arc<Signer>,
    roots: Vec<CertificateDer<'static>>,
    revocations: Vec<Revocation>,
    floor: i64,
    /// No certificate may begin after this: a step is under way that means all that began before its end.
    ceiling: Option<i64>,
    renew_issued_before: u64,
    phase: Phase,
}

/// What is on disk, and the keys in memory. Whoever changes it holds its lock until the change is on disk.
struct Kept {
    state: State,
    signer: Arc<Signer>,
    other: Option<Arc<Signer>>,
    external: Option<Files>,
}

impl Ca {
    /// Opens the embedded authority in `data_dir`, or makes it.
    ///
    /// # Errors
    /// When the files cannot be read, written or understood.
    pub fn open(data_dir: &Path, trust_domain: &str, lifetime: Duration) -> Result<Self> {
        Self::open_with(Directory::open(data_dir)?, trust_domain, lifetime, None)
    }

    /// Opens the authority whose issuing certificate is in these files.
    ///
    /// # Errors
    /// What is wrong with them, or with the state in `data_dir`.
    pub fn open_external(data_dir: &Path, trust_domain: &str, lifetime: Duration, files: Files) -> Result<Self> {
        Self::open_with(Directory::open(data_dir)?, trust_domain, lifetime, Some(files))
    }

    fn open_with(directory: Directory, trust_domain: &str, lifetime: Duration, files: Option<Files>) -> Result<Self> {
        let now = SystemTime::now();
        let mut state = match State::load(&directory, trust_domain)? {
            Some(state) => state,
            None => State::new(trust_domain),
        };
        let before = state.clone();
        state.longest_life = state.longest_life.max(lifetime.as_secs());
        state.revocations.retain(|entry| entry.expires > seconds(now));
        let (signer, other, roots) = match &files {
            Some(files) => {
                let External { signer, roots } = files.load(trust_domain, now)?;
                rotation::follow(&mut state, &signer, now).context("--ca-cert")?;
                (Arc::new(signer), None, roots)
            }
            None => {
                if state.current.is_none() {
                    founding::found(&directory, &mut state, now)?;
                }
                founding::revive(&directory, &mut state, now)?;
                let loaded = founding::load(&directory, &state, now)?;
                rotation::unfollow(&mut state, &loaded.0, now);
                let authorities = state.current.iter().chain(&state.other);
                let issuing = authorities.map(|of| of.issuer.der()).collect::<Result<Vec<_>>>()?;
                state.remember(&issuing, now)?;
                loaded
            }
        };
        if state != before {
            state.store(&directory)?;
        }
        state.sweep(&directory);
        let audit = Audit::open(&directory.path(AUDIT))?;
        let kept = Kept { state, signer, other, external: files };
        let active = kept.active(roots, None);
        let ca = Self {
            trust_domain: trust_domain.into(),
            lifetime,
            trusted: Mutex::new(TrustedFiles::new(directory.path("root.pem"))),
            directory,
            revocations: watch::Sender::new(Arc::new(Revocations::of(&active.revocations))),
            active: watch::Sender::new(Arc::new(active)),
            kept: Mutex::new(kept),
            recents: Mutex::default(),
            steady: Mutex::default(),
            trust: TrustStore::default(),
            audit,
        };
        ca.set_trust()?;
        Ok(ca)
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The roots, in DER, the one that issues first.
    #[must_use]
    pub fn roots(&self) -> Vec<Vec<u8>> {
        self.active.borrow().roots.iter().map(|root| root.to_vec()).collect()
    }

    /// The same in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.active.borrow().roots.iter().map(|root| trusted::pem("CERTIFICATE", root)).collect()
    }

    /// The same as rustls wants it; a handshake sees the newest.
    #[must_use]
    pub fn trust(&self) -> &TrustStore {
        &self.trust
    }

    /// As it is now.
    #[must_use]
    pub fn active(&self) -> Arc<Active> {
        Arc::clone(&self.active.borrow())
    }

    /// Wakes when whom the mesh trusts, or who issues, changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Active>> {
        self.active.subscribe()
    }

    /// What is revoked, as it changes.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<Arc<Revocations>> {
        self.revocations.subscribe()
    }

    /// The record of what it does.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// What every sidecar is to trust.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        let active = Arc::clone(&self.active.borrow());
        TrustBundle {
            trust_domain: self.trust_domain.clone(),
            roots: active.roots.iter().map(|root| root.to_vec().into()).collect(),
            revocations: revocation::wire(&active.revocations),
            renew_issued_before: active.renew_issued_before,
        }
    }

    /// Whether a peer's certificate is revoked.
    #[must_use]
    pub fn is_revoked(&self, id: &SpiffeId, presented: &Presented) -> bool {
        self.revocations.borrow().cover(id, presented, None)
    }

    /// Why a peer that had a session would not get one now: revoked, or under a root that is gone.
    #[must_use]
    pub fn refuses(&self, id: &SpiffeId, presented: &Presented) -> Option<SvidReason> {
        if self.is_revoked(id, presented) {
            return Some(SvidReason::Revoked);
        }
        self.trust.accepts(&presented.chain, Role::Client).err()
    }

    /// Signs a request: the key is the request's, everything else is ours; what is attested goes into it. Its life is the
    /// wished one, at most that of the authority, and never goes beyond the issuing certificate or the root.
    ///
    /// # Errors
    /// When the request is malformed, its signature is wrong, its key is not ECDSA on P-256 or P-384, or the issuing
    /// certificate has expired.
    pub fn issue(&self, csr: &[u8], id: &SpiffeId, attested: &Attested, lifetime: Option<Duration>) -> Result<Leaf> {
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .context("certificate signing request")?;
        let algorithm = csr.public_key.algorithm();
        if *algorithm != PKCS_ECDSA_P256_SHA256 && *algorithm != PKCS_ECDSA_P384_SHA384 {
            bail!("certificate signing request: the key must be ECDSA on P-256 or P-384");
        }
        let content = attested.extension()?;
        let extension = content.map(|content| rcgen::CustomExtension::from_oid_content(&attested::OID, content));
        let wished = lifetime.unwrap_or(self.lifetime).min(self.lifetime);
        loop {
            let active = Arc::clone(&self.active.borrow());
            let now = seconds(SystemTime::now());
            let mut life = active.life(&active.signer, wished, now)?;
            // Identity and end together tell by whom a sidecar's certificate was issued.
            let other = |recent: &Recent| recent.issuer != active.signer.key_id;
            while lock(&self.recents).ending(id, life.to).iter().any(other) && life.to > life.from + 1 {
                life.to -= 1;
            }
            let leaf = active.signer.leaf(&csr.public_key, id.as_str(), extension.clone(), life)?;
            // What changed meanwhile may mean that this one is old already.
            if Arc::ptr_eq(&active, &self.active.borrow()) {
                let recent = Recent { serial: leaf.serial.clone(), issuer: active.signer.key_id.clone() };
                lock(&self.recents).add(id, leaf.life.to, recent, now);
                return Ok(leaf);
            }
        }
    }

    /// A certificate of the control plane's own, for its discovery port.
    ///
    /// # Errors
    /// When the trust domain makes no valid id.
    pub fn own_svid(&self, lifetime: Duration) -> Result<Svid> {
        let id = weft_svid::control_plane_id(&self.trust_domain).context("trust domain")?;
        let (key, active) = (KeyPair::generate()?, Arc::clone(&self.active.borrow()));
        let life = active.life(&active.own, lifetime, seconds(SystemTime::now()))?;
        let leaf = active.own.leaf(&key, id.as_str(), None, life)?;
        self.tell_own(&leaf);
        Ok(Svid::new(leaf.chain, Zeroizing::new(key.serialize_der()))?)
    }

    /// A certificate for HTTPS with these names and addresses, and its key. It is no SVID: it has no SPIFFE id, so it
    /// proves nothing inside the mesh.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn https(
        &self,
        names: &[String],
        lifetime: Duration,
    ) -> Result<(Vec<CertificateDer<'static>>, Zeroizing<Vec<u8>>)> {
        let (key, active) = (KeyPair::generate()?, Arc::clone(&self.active.borrow()));
        let life = active.life(&active.own, lifetime, seconds(SystemTime::now()))?;
        let leaf = active.own.https(&key, names, life)?;
        self.tell_own(&leaf);
        Ok((leaf.chain, Zeroizing::new(key.serialize_der())))
    }

    fn tell_own(&self, leaf: &Leaf) {
        let Some(identity) = weft_svid::control_plane_id(&self.trust_domain) else { return };
        let (serial, not_after) = (leaf.serial.to_string(), leaf.not_after());
        let by = audit::Credential::Own;
        self.audit.issued(&audit::Issued { identity: &identity, serial: &serial, not_after, by, from: None });
    }

    /// Writes the roots to `root.pem`, for clients; gives the file. It is written anew whenever they change.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_root(&self) -> Result<PathBuf> {
        let mut trusted = lock(&self.trusted);
        trusted.write(&self.active.borrow().roots)?;
        Ok(trusted.root_file().into())
    }

    /// The development token, kept in the data directory so that it survives a restart, and where `weft run` looks for
    /// it when it calls this port on loopback, with the roots, written anew whenever they change.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn dev_token(&self, port: Option<u16>) -> Result<Zeroizing<String>> {
        let mut trusted = lock(&self.trusted);
        let token = trusted.dev_token(&self.directory, &self.trust_domain, port)?;
        trusted.write(&self.active.borrow().roots)?;
        Ok(token)
    }

    /// Lets the control plane itself trust what it tells the sidecars to.
    fn set_trust(&self) -> Result<()> {
        let bundle = weft_policy::convert::trust_bundle(self.bundle())?;
        Ok(self.trust.set(&self.trust_domain, &bundle.roots, &bundle.revocations)?)
    }

    /// Makes a changed state the one that counts.
    fn publish(&self, active: Active) {
        let active = Arc::new(active);
        // Before the bundle: a stream that is told of a revocation is one that goes on.
        self.revocations.send_replace(Arc::new(Revocations::of(&active.revocations)));
        self.active.send_replace(Arc::clone(&active));
        if let Err(error) = self.set_trust() {
            tracing::error!(
                error = format!("{error:#}"),
                "the control plane itself goes on with the trust that it had"
            );
        }
        if let Err(error) = lock(&self.trusted).write(&active.roots) {
            tracing::error!(error = format!("{error:#}"), "new sidecars cannot be told the roots; trying again");
        }
    }
}

impl Active {
    /// When a certificate is valid that is made now.
    fn life(&self, signer: &Signer, lifetime: Duration, now: i64) -> Result<Life> {
        ensure!(
            now < signer.not_after,
            "the issuing certificate has expired at {}: weft certs ca shows what to do",
            date(signer.not_after)
        );
        let back = i64::try_from(BACKDATE.as_secs())?;
        let from = (now - back).max(signer.not_before).max(self.floor);
        let from = self.ceiling.map_or(from, |ceiling| from.min(ceiling));
        let to = now.saturating_add(i64::try_from(lifetime.as_secs())?).min(signer.not_after);
        ensure!(from < to, "the clock of this machine is behind: it is {} here", date(now));
        Ok(Life { from, to })
    }
}

impl Kept {
    fn active(&self, roots: Vec<CertificateDer<'static>>, ceiling: Option<i64>) -> Active {
        let state = &self.state;
        let revocations = Revocations::of(&state.revocations);
        let usable = |signer: &&Arc<Signer>| {
            seconds(SystemTime::now()) + ENDING < signer.not_after
                && !signer.serials.iter().any(|serial| revocations.has(serial))
        };
        // Who was away while the new root was told still trusts the old one.
        let own = self.other.as_ref().filter(|_| state.phase == Phase::Switched).filter(usable);
        Active {
            own: Arc::clone(own.unwrap_or(&self.signer)),
            signer: Arc::clone(&self.signer),
            roots,
            revocations: state.revocations.clone(),
            floor: state.floor,
            ceiling,
            renew_issued_before: state.renew_issued_before,
            phase: state.phase,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
