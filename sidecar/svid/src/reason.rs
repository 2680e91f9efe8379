//! Why a certificate is refused: one stable word each, the same in logs, metrics and the tables of tests.

/// Why a certificate is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SvidReason {
    /// No link to a root of the trust domain, or a rule of RFC 5280 is broken on the way.
    BadChain,
    /// A subject alternative name of a kind that no SVID needs, or one with bytes that are no visible ASCII.
    BadSan,
    /// A signature is wrong.
    BadSignature,
    /// The URI SAN is no SPIFFE id, or one without a path.
    BadSpiffeId,
    /// More certificates, or more bytes of them, than are looked at.
    ChainTooLong,
    /// Its life, or that of an issuer, is over.
    Expired,
    /// Extended key usage without both serverAuth and clientAuth.
    ExtendedKeyUsage,
    /// No roots are known for its trust domain.
    ForeignTrustDomain,
    /// Key usage is absent, not critical, without digitalSignature, or with keyCertSign or cRLSign.
    KeyUsage,
    /// Basic constraints say CA.
    LeafIsCa,
    /// No X.509 certificate of version 3, or one that breaks a rule of its encoding.
    Malformed,
    /// None was presented.
    NoCertificate,
    /// No URI SAN.
    NoUriSan,
    /// Its life, or that of an issuer, has not begun.
    NotYetValid,
    /// It, or an issuer, is on the trust domain's list of revocations.
    Revoked,
    /// More than one URI SAN.
    SeveralUriSans,
    /// A critical extension that is not understood.
    UnknownExtension,
    /// Signed by an unknown root.
    UnknownRoot,
    /// The key or the signature algorithm is too weak.
    WeakKey,
}

impl SvidReason {
    /// Stable word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadChain => "bad_chain",
            Self::BadSan => "bad_san",
            Self::BadSignature => "bad_signature",
            Self::BadSpiffeId => "bad_spiffe_id",
            Self::ChainTooLong => "chain_too_long",
            Self::Expired => "expired",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::KeyUsage => "key_usage",
            Self::LeafIsCa => "leaf_is_ca",
            Self::Malformed => "malformed",
            Self::NoCertificate => "no_certificate",
            Self::NoUriSan => "no_uri_san",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::SeveralUriSans => "several_uri_sans",
            Self::UnknownExtension => "unknown_extension",
            Self::UnknownRoot => "unknown_root",
            Self::WeakKey => "weak_key",
        }
    }
}

impl std::fmt::Display for SvidReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for SvidReason {}
