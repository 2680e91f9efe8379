//! What is wrong with a token: a word each, for logs and metrics. Callers are told no more than that it is not valid.

/// Why a token is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum Flaw {
    /// There is none, and one is required.
    Missing,
    /// More than one token, or more than one field that may hold it.
    Several,
    /// More than [`MAX_TOKEN`](super::MAX_TOKEN) bytes.
    TooLarge,
    /// Not three parts of base64url, or not JSON objects with the types of RFC 7519.
    Malformed,
    /// A name twice in one object, or two claims with one flattened name.
    Duplicate,
    /// Five parts: RFC 7516.
    Encrypted,
    /// A token in a token, or of a type that is for something else (RFC 8725 section 3.11).
    Type,
    /// `crit`, or compressed: what we do not know must not be ignored.
    Critical,
    /// `alg` is none, a shared secret, unknown, or not one that the issuer may use.
    Algorithm,
    /// `iss` is missing, or nobody's that is configured.
    Issuer,
    /// It came in a header in which this issuer's tokens do not come.
    Place,
    /// The keys of the issuer are not there.
    KeysMissing,
    /// No key has this `kid`, or none fits the algorithm.
    UnknownKey,
    /// No key has made the signature.
    Signature,
    /// `exp` is missing.
    NoExpiry,
    /// `exp` is past.
    Expired,
    /// `nbf` or `iat` is in the future.
    NotYetValid,
    /// `aud` has none of the audiences.
    Audience,
    /// More claims than are looked at.
    TooManyClaims,
}

impl Flaw {
    /// How many there are.
    pub const COUNT: usize = 19;

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Several => "several",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Duplicate => "duplicate",
            Self::Encrypted => "encrypted",
            Self::Type => "type",
            Self::Critical => "critical",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::Place => "place",
            Self::KeysMissing => "keys_missing",
            Self::UnknownKey => "unknown_key",
            Self::Signature => "signature",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Audience => "audience",
            Self::TooManyClaims => "too_many_claims",
        }
    }
}
