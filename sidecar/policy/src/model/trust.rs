//! Whom to trust in a trust domain: its roots, and which certificates below them are not trusted all the same.

use crate::SpiffeId;

/// What is trusted in one trust domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustBundle {
    /// Lower-case.
    pub trust_domain: Box<str>,
    /// DER certificates, at least one.
    pub roots: Vec<Vec<u8>>,
    /// Certificates that are not trusted although they chain to a root.
    pub revocations: Vec<Revocation>,
    /// The own certificate is renewed soon when its notBefore is before this, in milliseconds since the Unix epoch; 0 for
    /// none.
    pub renew_issued_before: u64,
}

/// Certificates that are not trusted any more.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Revocation {
    /// Those with this serial number (the leaf or an issuing certificate of its chain): big-endian, no leading zeros.
    Serial(Box<[u8]>),
    /// Those of an identity that began before a moment.
    Identity {
        /// Whose.
        id: SpiffeId,
        /// Those whose notBefore is before this, in milliseconds since the Unix epoch; at least 1.
        issued_before: u64,
    },
}
