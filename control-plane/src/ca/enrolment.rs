//! Enrolment: what a workload proves to get its first certificate, what that proof lets it say of itself later, how
//! often it may try, and the record of all that. The gRPC side is [`super::service`]'s.

pub mod attested;
mod csr;
pub mod joins;
mod rate;
pub mod refusal;
pub mod review;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use weft_policy::SpiffeId;

pub use self::csr::check as check_csr;
use self::{
    joins::Joins,
    rate::{Rate, network},
    refusal::Refusal,
};
use super::{
    Ca,
    audit::{Audit, Credential, Refused},
};

/// Requests of one address, whatever comes of them: a machine full of sidecars starts at once.
const ADDRESS: (u32, Duration) = (1000, Duration::from_millis(5));
/// Certificates of one identity, which may have many instances.
const IDENTITY: (u32, Duration) = (200, Duration::from_millis(20));
/// Refusals of one address that are answered one by one.
const FAILURES: (u32, Duration) = (20, Duration::from_secs(3));
/// Refusals of all addresses that are answered one by one.
const ALL_FAILURES: (u32, Duration) = (500, Duration::from_millis(50));

/// Join tokens, limits and the record of one control plane. Clones share them.
#[derive(Clone)]
pub struct Enrolment(Arc<Inner>);

struct Inner {
    ca: Arc<Ca>,
    joins: Joins,
    addresses: Rate<IpAddr>,
    identities: Rate<String>,
    failures: Rate<IpAddr>,
    all_failures: Rate<()>,
    audit: Audit,
}

impl Enrolment {
    /// Enrolment with these join tokens.
    #[must_use]
    pub fn new(ca: Arc<Ca>, joins: Joins, audit: Audit) -> Self {
        let inner = Inner {
            ca,
            joins,
            addresses: Rate::new(ADDRESS.0, ADDRESS.1),
            identities: Rate::new(IDENTITY.0, IDENTITY.1),
            failures: Rate::new(FAILURES.0, FAILURES.1),
            all_failures: Rate::new(ALL_FAILURES.0, ALL_FAILURES.1),
            audit,
        };
        Self(Arc::new(inner))
    }

    /// The join tokens.
    #[must_use]
    pub fn joins(&self) -> &Joins {
        &self.0.joins
    }

    /// The authority.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        &self.0.ca
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// When the address asks too often.
    pub fn admit(&self, address: SocketAddr) -> Result<(), Refusal> {
        let taken = self.0.addresses.take(network(address.ip()), Instant::now());
        taken.map_err(|wait| Refusal::rate_limited("from this address", wait))
    }

    /// Lets somebody who proved an identity have a certificate.
    ///
    /// # Errors
    /// When the identity has too many.
    pub fn admit_identity(&self, id: &SpiffeId) -> Result<(), Refusal> {
        let taken = self.0.identities.take(id.as_str().to_owned(), Instant::now());
        taken.map_err(|wait| Refusal::rate_limited(&format!("of {id}"), wait))
    }

    /// Lets a token be looked at that costs more than a hash.
    ///
    /// # Errors
    /// When the address, or all of them, were refused too often of late.
    pub fn admit_costly(&self, address: SocketAddr) -> Result<(), Refusal> {
        let (now, of) = (Instant::now(), "that were refused");
        self.0.failures.peek(&network(address.ip()), now).map_err(|wait| Refusal::rate_limited(of, wait))?;
        self.0.all_failures.peek(&(), now).map_err(|wait| Refusal::rate_limited(of, wait))
    }

    /// The record of what was issued and refused.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// Records a refusal; the result is what is answered. Whoever is refused often learns no more than that.
    #[must_use]
    pub fn refused(&self, refusal: Refusal, id: &str, by: Credential, from: SocketAddr) -> Refusal {
        let now = Instant::now();
        let mut answered = refusal;
        if answered.reason.is_suspicious() {
            let each = self.0.failures.take(network(from.ip()), now);
            if let Err(wait) = each.and_then(|()| self.0.all_failures.take((), now)) {
                answered = Refusal::rate_limited("that were refused", wait);
            }
        }
        let (reason, detail) = (answered.reason.label(), answered.message.as_str());
        self.0.audit.refused(&Refused { reason, identity: id, by, from: Some(from), detail });
        answered
    }
}
