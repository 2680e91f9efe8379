//! Whom each trust domain trusts: its roots without its revocations. The one place that judges a chain, for handshakes
//! (`verify`) and for connections that already stand.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, TrustAnchor, UnixTime},
};
use tokio::sync::watch;
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};
use weft_policy::{SpiffeId, model::Revocation};

use crate::{
    SvidError,
    certificate::{has_weak_key, leaf, may_sign, not_after, significant},
    reason::SvidReason,
};

/// Longer chains are refused before they cost anything.
pub(crate) const MAX_CHAIN: usize = 8;
/// Roots of one trust domain.
const MAX_ROOTS: usize = 16;
/// Revocations of one trust domain.
const MAX_REVOCATIONS: usize = 4096;
/// Trust domains.
const MAX_DOMAINS: usize = 64;

/// On which side of the session the owner of a chain is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// It called us.
    Client,
    /// We called it.
    Server,
}

/// The roots and revocations of every trust domain that is trusted. Clones share it; a handshake sees the newest.
#[derive(Clone)]
pub struct TrustStore(Arc<Shared>);

struct Shared {
    domains: RwLock<HashMap<Box<str>, Arc<Domain>>>,
    version: watch::Sender<u64>,
}

/// Roots and revocations, replaced together.
#[derive(Eq, PartialEq)]
struct Domain {
    /// Those that live longest come first, so that a renewed root is found before its expired namesake.
    anchors: Vec<TrustAnchor<'static>>,
    /// When each anchor's life ends.
    ends: Vec<SystemTime>,
    serials: HashSet<Box<[u8]>>,
    /// The notBefore in milliseconds since the Unix epoch from which on certificates of an id are trusted.
    identities: HashMap<SpiffeId, u128>,
}

impl Default for TrustStore {
    fn default() -> Self {
        Self(Arc::new(Shared { domains: RwLock::default(), version: watch::Sender::new(0) }))
    }
}

impl TrustStore {
    /// Replaces what one trust domain trusts, at once. Without roots nobody in it is trusted.
    ///
    /// # Errors
    /// When a root is no certificate or has a weak key, or there is too much of something; nothing is changed then.
    pub fn set(&self, trust_domain: &str, roots: &[Vec<u8>], revocations: &[Revocation]) -> Result<(), SvidError> {
        let domain = Domain::new(roots, revocations)?;
        self.replace(trust_domain, |_| domain)
    }

    /// Replaces the roots of one trust domain and keeps its revocations: for who learns roots and nothing else.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn set_roots(&self, trust_domain: &str, roots: &[Vec<u8>]) -> Result<(), SvidError> {
        let mut domain = Domain::new(roots, &[])?;
        self.replace(trust_domain, |held| {
            if let Some(held) = held {
                (domain.serials, domain.identities) = (held.serials.clone(), held.identities.clone());
            }
            domain
        })
    }

    /// Whether [`Self::set`] would take these.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn takes(roots: &[Vec<u8>], revocations: &[Revocation]) -> Result<(), SvidError> {
        Domain::new(roots, revocations).map(|_| ())
    }

    /// Forgets a trust domain: nobody in it is trusted from now on.
    pub fn withdraw(&self, trust_domain: &str) {
        let known = self.0.domains.write().unwrap_or_else(PoisonError::into_inner).remove(trust_domain);
        if known.is_some() {
            self.0.version.send_modify(|version| *version += 1);
        }
    }

    /// A number that grows with every change of what is trusted. Whoever holds a connection asks [`Self::accepts`] again
    /// when it has changed; a subscription made before the handshake misses nothing.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// Judges a chain as a handshake would judge it now: the leaf's rules, dates, revocations, the way to a root.
    ///
    /// # Errors
    /// Why its owner is not trusted, or not any more.
    pub fn accepts(&self, chain: &[CertificateDer<'_>], role: Role) -> Result<(), SvidReason> {
        let (leaf, rest) = chain.split_first().ok_or(SvidReason::NoCertificate)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        self.check(leaf, rest, UnixTime::since_unix_epoch(now), role, &algorithms)
    }

    pub(crate) fn check(
        &self,
        der: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), SvidReason> {
        if rest.len() >= MAX_CHAIN {
            return Err(SvidReason::ChainTooLong);
        }
        let leaf = leaf(der)?;
        let domain = self.domain(leaf.identity.id.trust_domain()).ok_or(SvidReason::ForeignTrustDomain)?;
        let began = leaf.not_before.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        if domain.revoked(leaf.serial)
            || (!domain.identities.is_empty()
                && domain.identities.get(&leaf.identity.id).is_some_and(|before| began < *before))
        {
            return Err(SvidReason::Revoked);
        }
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let certificate = EndEntityCert::try_from(der).map_err(|error| unreadable(&error))?;
        // webpki has no errors for what is asked of a path beyond its own rules, so the word goes beside it.
        let refused = Cell::new(None);
        let path = |path: &VerifiedPath<'_>| {
            domain.judge(path, now).map_err(|reason| {
                refused.set(Some(reason));
                Error::CertRevoked
            })
        };
        let built = certificate.verify_for_usage(algorithms.all, &domain.anchors, rest, now, usage, None, Some(&path));
        match built {
            Ok(_) => Ok(()),
            Err(Error::CertRevoked) => Err(refused.get().unwrap_or(SvidReason::Revoked)),
            // A weak key verifies nothing, which looks like a wrong signature.
            Err(_) if rest.iter().any(|issuer| has_weak_key(issuer)) => Err(SvidReason::WeakKey),
            Err(error) => Err(reason(&error)),
        }
    }

    fn replace(&self, trust_domain: &str, with: impl FnOnce(Option<&Arc<Domain>>) -> Domain) -> Result<(), SvidError> {
        let mut domains = self.0.domains.write().unwrap_or_else(PoisonError::into_inner);
        let held = domains.get(trust_domain);
        if held.is_none() && domains.len() >= MAX_DOMAINS {
            return Err(SvidError::TooMany("trust domains", MAX_DOMAINS));
        }
        let domain = with(held);
        // What changes nothing is not told: each connection would be judged again.
        if held.is_some_and(|held| **held == domain) {
            return Ok(());
        }
        domains.insert(trust_domain.into(), Arc::new(domain));
        drop(domains);
        self.0.version.send_modify(|version| *version += 1);
        Ok(())
    }

    /// What is trusted in a trust domain that has roots.
    fn domain(&self, trust_domain: &str) -> Option<Arc<Domain>> {
        let domains = self.0.domains.read().unwrap_or_else(PoisonError::into_inner);
        domains.get(trust_domain).filter(|domain| !domain.anchors.is_empty()).cloned()
    }
}

impl Domain {
    fn new(roots: &[Vec<u8>], revocations: &[Revocation]) -> Result<Self, SvidError> {
        if roots.len() > MAX_ROOTS {
            return Err(SvidError::TooMany("roots of a trust domain", MAX_ROOTS));
        }
        if revocations.len() > MAX_REVOCATIONS {
            return Err(SvidError::TooMany("revocations of a trust domain", MAX_REVOCATIONS));
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for root in roots {
            let der = CertificateDer::from(root.as_slice());
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|error| SvidError::Root(error.to_string()))?;
            let end = not_after(root).ok_or_else(|| SvidError::Root("its dates cannot be read".into()))?;
            if has_weak_key(root) {
                return Err(SvidError::Root("its key is weaker than RSA-2048 or P-256".into()));
            }
            anchors.push((end, anchor.to_owned()));
        }
        anchors.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
        let (ends, anchors) = anchors.into_iter().unzip();
        let mut domain = Self { anchors, ends, serials: HashSet::new(), identities: HashMap::new() };
        for revocation in revocations {
            match revocation {
                Revocation::Serial(serial) => {
                    domain.serials.insert(significant(serial).into());
                }
                Revocation::Identity { id, issued_before } => {
                    let before = domain.identities.entry(id.clone()).or_default();
                    *before = (*before).max(u128::from(*issued_before));
                }
            }
        }
        Ok(domain)
    }

    fn revoked(&self, serial: &[u8]) -> bool {
        !self.serials.is_empty() && self.serials.contains(serial)
    }

    /// What webpki leaves to us about a path: that its issuers may sign and are not revoked, and that its root lives.
    fn judge(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), SvidReason> {
        for issuer in path.intermediate_certificates() {
            if self.revoked(significant(issuer.serial())) {
                return Err(SvidReason::Revoked);
            }
            if !may_sign(&issuer.der()) {
                return Err(SvidReason::BadChain);
            }
        }
        let end = self.anchors.iter().position(|anchor| anchor == path.anchor()).and_then(|index| self.ends.get(index));
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        if end.is_some_and(|end| now <= *end) { Ok(()) } else { Err(SvidReason::Expired) }
    }
}

fn unreadable(error: &Error) -> SvidReason {
    match error {
        Error::UnsupportedCriticalExtension => SvidReason::UnknownExtension,
        _ => SvidReason::Malformed,
    }
}

fn reason(error: &Error) -> SvidReason {
    match error {
        Error::CertExpired { .. } => SvidReason::Expired,
        Error::CertNotValidYet { .. } => SvidReason::NotYetValid,
        Error::UnknownIssuer => SvidReason::UnknownRoot,
        Error::InvalidSignatureForPublicKey => SvidReason::BadSignature,
        Error::UnsupportedCriticalExtension => SvidReason::UnknownExtension,
        Error::InvalidCertValidity => SvidReason::Malformed,
        Error::UnsupportedSignatureAlgorithmContext(_) | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            SvidReason::WeakKey
        }
        _ => SvidReason::BadChain,
    }
}
