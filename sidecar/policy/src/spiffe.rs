//! SPIFFE ids: parsing to the letter of the SPIFFE-ID standard, and Weft's `ns/<namespace>/sa/<account>` form.

use std::{fmt, sync::Arc};

/// A valid SPIFFE id, `spiffe://<trust-domain>/<path>`. Compared as text: the standard allows no two spellings.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// `spiffe://<trust_domain>/ns/<namespace>/sa/<service_account>`; `None` if that is no valid id.
    #[must_use]
    pub fn workload(trust_domain: &str, namespace: &str, service_account: &str) -> Option<Self> {
        Self::parse(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")).ok()
    }

    /// Parses an id (SPIFFE-ID section 2).
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, InvalidSpiffeId> {
        // Placeholder until the policy crate's own commit: replaced by the full rules.
        let rest = text.strip_prefix("spiffe://").ok_or(InvalidSpiffeId::Scheme)?;
        let (domain, _path) = rest.split_once('/').ok_or(InvalidSpiffeId::Path)?;
        if domain.is_empty() {
            return Err(InvalidSpiffeId::TrustDomain);
        }
        Ok(Self(text.into()))
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.0["spiffe://".len()..].split('/').next().unwrap_or("")
    }

    /// `(namespace, service_account)` when the path has Weft's form.
    #[must_use]
    pub fn namespace_and_account(&self) -> Option<(&str, &str)> {
        let mut parts = self.0["spiffe://".len()..].split('/').skip(1);
        let (ns, namespace, sa, account) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        (ns == "ns" && sa == "sa" && parts.next().is_none()).then_some((namespace, account))
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no SPIFFE id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// Over 2048 bytes.
    #[error("longer than 2048 bytes")]
    Length,
    /// Bad path.
    #[error("path must be segments of letters, digits, '.', '-' and '_', none of them empty, '.' or '..'")]
    Path,
    /// Not `spiffe://`.
    #[error("scheme must be exactly \"spiffe://\"")]
    Scheme,
    /// Bad trust domain.
    #[error("trust domain must be 1 to 255 lower-case letters, digits, '.', '-' and '_'")]
    TrustDomain,
}
