//! Which JSON Web Tokens requests have: issuers and their public keys. Bytes only: whether a key is one of its curve is
//! for those to say who have the arithmetic.

use std::{sync::Arc, time::Duration};

use http::HeaderName;

use super::Target;

/// Tokens of the requests to a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestAuthentication {
    /// `namespace/name` of the RequestAuthentication.
    pub name: Box<str>,
    /// A token must satisfy the one of its `iss`. At least one, each issuer once.
    pub issuers: Vec<Issuer>,
    /// Requests without a token are refused.
    pub required: bool,
}

/// One of them at an inbound port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InboundAuthentication {
    /// What is wanted.
    pub authentication: Arc<RequestAuthentication>,
    /// Only requests sent to one of these; empty: all.
    pub services: Vec<Target>,
}

/// The tokens of one issuer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issuer {
    /// `iss`, byte by byte.
    pub issuer: Box<str>,
    /// One of them must be in `aud`; empty: not checked.
    pub audiences: Vec<Box<str>>,
    /// Its public keys; none: every token is refused.
    pub keys: Vec<Key>,
    /// What tokens may be signed with, at least one.
    pub algorithms: Vec<SignatureAlgorithm>,
    /// How far clocks may be apart. Default 60 s.
    pub clock_skew: Duration,
    /// Headers that hold the token, at least one. `authorization` holds it behind `Bearer`. Default `authorization`.
    pub from_headers: Vec<HeaderName>,
    /// The token goes on to the app.
    pub forward: bool,
    /// Claims (nested ones joined by dots) and the headers in which the app gets them.
    pub claims_to_headers: Vec<(Box<str>, HeaderName)>,
}

/// A public key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// `kid`.
    pub id: Option<Box<str>>,
    /// The only algorithm that it is for; `None`: all that fit.
    pub algorithm: Option<SignatureAlgorithm>,
    /// The key itself.
    pub material: KeyMaterial,
}

/// The numbers of a public key, big-endian.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyMaterial {
    /// 2048 to 8192 bits.
    Rsa {
        /// n, without leading zeros.
        modulus: Box<[u8]>,
        /// e, without leading zeros.
        exponent: Box<[u8]>,
    },
    /// The uncompressed point of SEC 1: `04`, x, y. 65 bytes.
    P256(Box<[u8]>),
    /// The same, 97 bytes.
    P384(Box<[u8]>),
    /// 32 bytes.
    Ed25519([u8; 32]),
}

/// How a token may be signed (RFC 7518 section 3.1, RFC 8037): never with a shared secret, never not at all.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// With SHA-384.
    Rs384,
    /// With SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// With SHA-384.
    Ps384,
    /// With SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl SignatureAlgorithm {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// The word in `alg`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of this word; case counts (RFC 7515 section 4.1.1).
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == word)
    }

    /// Whether a key of this type can have made the signature.
    #[must_use]
    pub const fn fits(self, key: &KeyMaterial) -> bool {
        match key {
            KeyMaterial::Rsa { .. } => !matches!(self, Self::Es256 | Self::Es384 | Self::EdDsa),
            KeyMaterial::P256(_) => matches!(self, Self::Es256),
            KeyMaterial::P384(_) => matches!(self, Self::Es384),
            KeyMaterial::Ed25519(_) => matches!(self, Self::EdDsa),
        }
    }
}
