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
        if text.len() > 2048 {
            return Err(InvalidSpiffeId::Length);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(InvalidSpiffeId::Scheme)?;
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
        let domain_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(domain_byte) {
            return Err(InvalidSpiffeId::TrustDomain);
        }
        let path_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(path_byte);
        if path.is_some_and(|path| !path.split('/').all(segment)) {
            return Err(InvalidSpiffeId::Path);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_id_has_namespace_and_account() {
        let id = SpiffeId::workload("weft.local", "shop", "catalog").expect("a valid id");
        assert_eq!(id.as_str(), "spiffe://weft.local/ns/shop/sa/catalog");
        assert_eq!(id.trust_domain(), "weft.local");
        assert_eq!(id.namespace_and_account(), Some(("shop", "catalog")));
    }

    #[test]
    fn other_paths_have_no_namespace() {
        for text in ["spiffe://td", "spiffe://td/a", "spiffe://td/ns/a/sa/b/c", "spiffe://td/sa/b/ns/a"] {
            assert_eq!(SpiffeId::parse(text).expect("a valid id").namespace_and_account(), None, "{text}");
        }
    }

    #[test]
    fn an_id_of_2048_bytes_is_accepted_and_a_longer_one_is_not() {
        let id = format!("spiffe://td/{}", "a".repeat(2048 - "spiffe://td/".len()));
        assert!(SpiffeId::parse(&id).is_ok());
        assert_eq!(SpiffeId::parse(&format!("{id}a")), Err(InvalidSpiffeId::Length));
    }

    #[test]
    fn every_other_spelling_is_refused_with_its_rule() {
        use InvalidSpiffeId::{Path, Scheme, TrustDomain};
        for (text, rule) in [
            ("", Scheme),
            ("SPIFFE://td/a", Scheme),
            ("https://td/a", Scheme),
            ("spiffe:///a", TrustDomain),
            ("spiffe://TD/a", TrustDomain),
            ("spiffe://u@td/a", TrustDomain),
            ("spiffe://td:1/a", TrustDomain),
            ("spiffe://td?q", TrustDomain),
            ("spiffe://td%41/a", TrustDomain),
            ("spiffe://t\u{e4}/a", TrustDomain),
            ("spiffe://td/", Path),
            ("spiffe://td/a/", Path),
            ("spiffe://td//a", Path),
            ("spiffe://td/./a", Path),
            ("spiffe://td/../a", Path),
            ("spiffe://td/a?q", Path),
            ("spiffe://td/a#f", Path),
            ("spiffe://td/a%20b", Path),
            ("spiffe://td/a\0b", Path),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(rule), "{text:?}");
        }
    }
}
