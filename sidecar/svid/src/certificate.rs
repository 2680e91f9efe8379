//! The rules that a leaf must keep to be an SVID, each with a stable reason.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use weft_policy::SpiffeId;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use crate::unix;

/// Why a certificate is refused.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum SvidReason {
    /// A signature is wrong.
    BadSignature,
    /// The URI SAN is no SPIFFE id.
    BadSpiffeId,
    /// No link to a root of the trust domain, or a rule of RFC 5280 is broken on the way.
    BadChain,
    /// Its life is over.
    Expired,
    /// Extended key usage without both serverAuth and clientAuth.
    ExtendedKeyUsage,
    /// No roots are known for its trust domain.
    ForeignTrustDomain,
    /// Key usage is absent, not critical, without digitalSignature, or with keyCertSign or cRLSign.
    KeyUsage,
    /// Basic constraints say CA.
    LeafIsCa,
    /// No X.509 certificate.
    Malformed,
    /// None was presented.
    NoCertificate,
    /// No URI SAN.
    NoUriSan,
    /// Its life has not begun.
    NotYetValid,
    /// More than one URI SAN.
    SeveralUriSans,
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
            Self::BadSignature => "bad_signature",
            Self::BadSpiffeId => "bad_spiffe_id",
            Self::BadChain => "bad_chain",
            Self::Expired => "expired",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::KeyUsage => "key_usage",
            Self::LeafIsCa => "leaf_is_ca",
            Self::Malformed => "malformed",
            Self::NoCertificate => "no_certificate",
            Self::NoUriSan => "no_uri_san",
            Self::NotYetValid => "not_yet_valid",
            Self::SeveralUriSans => "several_uri_sans",
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

/// Who a peer has proved to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    /// Its SPIFFE id.
    pub id: SpiffeId,
    /// Until when.
    pub not_after: SystemTime,
}

/// Reads the identity from a chain and checks the leaf's own rules, not the chain.
///
/// # Errors
/// The first rule that the leaf breaks.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, SvidReason> {
    let leaf = parse(chain)?;
    let mut uris = Vec::new();
    let (mut usage, mut extended) = (None, None);
    for extension in leaf.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(*uri),
                    _ => None,
                }));
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(SvidReason::LeafIsCa),
            ParsedExtension::KeyUsage(found) => usage = Some((extension.critical, *found)),
            ParsedExtension::ExtendedKeyUsage(found) => extended = Some((found.server_auth, found.client_auth)),
            _ => {}
        }
    }
    match usage {
        Some((true, usage)) if usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign() => {}
        _ => return Err(SvidReason::KeyUsage),
    }
    if extended.is_some_and(|(server, client)| !(server && client)) {
        return Err(SvidReason::ExtendedKeyUsage);
    }
    let id = match uris.as_slice() {
        [] => return Err(SvidReason::NoUriSan),
        [uri] => SpiffeId::parse(uri).map_err(|_| SvidReason::BadSpiffeId)?,
        _ => return Err(SvidReason::SeveralUriSans),
    };
    Ok(PeerIdentity { id, not_after: unix(leaf.validity().not_after.timestamp()) })
}

pub(crate) fn not_before(chain: &[CertificateDer<'_>]) -> Result<SystemTime, SvidReason> {
    Ok(unix(parse(chain)?.validity().not_before.timestamp()))
}

fn parse<'a>(chain: &'a [CertificateDer<'_>]) -> Result<X509Certificate<'a>, SvidReason> {
    let leaf = chain.first().ok_or(SvidReason::NoCertificate)?;
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(SvidReason::Malformed),
    }
}

/// The first URI SAN of any certificate.
pub(crate) fn uri_of(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}
