//! Enrolment: what a workload proves to get its first certificate, what that proof lets it say of itself later, how
//! often it may try, and the record of all that. The gRPC side is [`super::service`]'s.

pub mod attested;
mod csr;
pub mod joins;
mod rate;
pub mod refusal;
pub mod review;

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use weft_policy::SpiffeId;

pub use self::csr::check as check_csr;
use self::{
    joins::Joins,
    rate::{Rate, network},
    refusal::{Reason, Refusal},
};
use super::Ca;

/// Requests of one address, whatever comes of them: a machine full of sidecars starts at once.
const ADDRESS: (u32, Duration) = (1000, Duration::from_millis(5));
/// Certificates of one identity, which may have many instances.
const IDENTITY: (u32, Duration) = (200, Duration::from_millis(20));
/// Refusals of one address that are answered one by one.
const FAILURES: (u32, Duration) = (20, Duration::from_secs(3));
/// Refusals of all addresses that are answered one by one.
const ALL_FAILURES: (u32, Duration) = (500, Duration::from_millis(50));

/// By what a certificate was got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// The certificate before.
    Certificate,
    /// The token of `--dev`.
    DevToken,
    /// A join token.
    JoinToken,
    /// A Kubernetes service account token.
    Kubernetes,
}

impl Method {
    const ALL: [Self; 4] = [Self::Certificate, Self::DevToken, Self::JoinToken, Self::Kubernetes];

    /// Stable word for logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::DevToken => "dev_token",
            Self::JoinToken => "join_token",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// Join tokens, limits and counters of one control plane. Clones share them.
#[derive(Clone)]
pub struct Enrolment(Arc<Inner>);

struct Inner {
    ca: Arc<Ca>,
    joins: Joins,
    addresses: Rate<IpAddr>,
    identities: Rate<String>,
    failures: Rate<IpAddr>,
    all_failures: Rate<()>,
    issued: [AtomicU64; Method::ALL.len()],
    refused: [AtomicU64; Reason::ALL.len()],
}

impl Enrolment {
    /// Enrolment with these join tokens.
    #[must_use]
    pub fn new(ca: Arc<Ca>, joins: Joins) -> Self {
        let inner = Inner {
            ca,
            joins,
            addresses: Rate::new(ADDRESS.0, ADDRESS.1),
            identities: Rate::new(IDENTITY.0, IDENTITY.1),
            failures: Rate::new(FAILURES.0, FAILURES.1),
            all_failures: Rate::new(ALL_FAILURES.0, ALL_FAILURES.1),
            issued: Default::default(),
            refused: Default::default(),
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

    /// Records what was issued.
    pub fn issued(&self, method: Method, id: &SpiffeId, serial: &str, address: SocketAddr, token: &str, again: bool) {
        self.0.issued[method as usize].fetch_add(1, Relaxed);
        let method = method.label();
        tracing::info!(target: "audit", %id, method, serial, token, from = %address, again, "certificate issued");
    }

    /// Records a refusal; what is answered. Whoever is refused often learns no more than that.
    #[must_use]
    pub fn refused(&self, refusal: Refusal, id: &str, address: SocketAddr) -> Refusal {
        let now = Instant::now();
        let mut answered = refusal;
        let mut quiet = answered.reason == Reason::RateLimited;
        if answered.reason.is_suspicious() {
            let taken = self.0.failures.take(network(address.ip()), now).and_then(|()| self.0.all_failures.take((), now));
            if let Err(wait) = taken {
                quiet = true;
                answered = Refusal::rate_limited("that were refused", wait);
            }
        }
        let reason = answered.reason.label();
        self.0.refused[answered.reason as usize].fetch_add(1, Relaxed);
        // What the caller sent is quoted, so that it cannot forge a line; a flood does not fill the disk.
        let why = &answered.message;
        if quiet {
            tracing::debug!(target: "audit", id = ?id, reason, from = %address, why, "certificate refused");
        } else {
            tracing::warn!(target: "audit", id = ?id, reason, from = %address, why, "certificate refused");
        }
        answered
    }

    /// Counters, in the text format of Prometheus.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::from(
            "# HELP weft_ca_issued_total Certificates issued to workloads.\n# TYPE weft_ca_issued_total counter\n",
        );
        for method in Method::ALL {
            let count = self.0.issued[method as usize].load(Relaxed);
            let _ = writeln!(text, "weft_ca_issued_total{{method=\"{}\"}} {count}", method.label());
        }
        text.push_str("# HELP weft_ca_refused_total Certificates refused to workloads.\n# TYPE weft_ca_refused_total counter\n");
        for reason in Reason::ALL {
            let count = self.0.refused[reason as usize].load(Relaxed);
            let _ = writeln!(text, "weft_ca_refused_total{{reason=\"{}\"}} {count}", reason.label());
        }
        text
    }
}
