//! The rules that a leaf must keep to be an SVID, each with a stable reason, and what is read from the certificates of
//! its chain. The chain itself is `trust`'s.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use weft_policy::SpiffeId;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension, X509Extension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
        OID_SIG_ED25519, OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
    },
    prelude::FromDer,
    public_key::PublicKey,
    x509::{SubjectPublicKeyInfo, X509Version},
};

use crate::{reason::SvidReason, unix};

/// Extensions that are looked at; real certificates have about ten.
const MAX_EXTENSIONS: usize = 32;
/// Bytes of a serial number without leading zeros (RFC 5280 section 4.1.2.2).
const MAX_SERIAL: usize = 20;

/// Who a peer has proved to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerIdentity {
    /// Its SPIFFE id.
    pub id: SpiffeId,
    /// Until when.
    pub not_after: SystemTime,
}

/// What a leaf says that keeps all the rules.
pub(crate) struct Leaf<'a> {
    pub identity: PeerIdentity,
    pub not_before: SystemTime,
    /// Without leading zeros.
    pub serial: &'a [u8],
}

/// Reads the identity from a chain and checks the leaf's own rules, not the chain.
///
/// # Errors
/// The first rule that the leaf breaks.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, SvidReason> {
    leaf(chain.first().ok_or(SvidReason::NoCertificate)?).map(|leaf| leaf.identity)
}

/// Name and key identifier of who signed a certificate, as they stand there.
pub(crate) fn authority(der: &CertificateDer<'_>) -> Box<[u8]> {
    let Ok(certificate) = parse(der) else { return Box::default() };
    let known =
        certificate.extensions().iter().filter(|extension| extension.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER);
    [certificate.issuer().as_raw()]
        .into_iter()
        .chain(known.map(|extension| extension.value))
        .flatten()
        .copied()
        .collect()
}

/// Checks all rules that need nothing but the leaf (X509-SVID sections 2 to 4, RFC 5280 section 4).
pub(crate) fn leaf<'a>(der: &'a CertificateDer<'_>) -> Result<Leaf<'a>, SvidReason> {
    let certificate = parse(der)?;
    let serial = significant(certificate.tbs_certificate.raw_serial());
    // RFC 5280 asks for a positive number: a negative one has its highest bit set.
    let negative = certificate.tbs_certificate.raw_serial().first().is_none_or(|byte| byte & 0x80 != 0);
    if negative || serial.is_empty() || serial.len() > MAX_SERIAL {
        return Err(SvidReason::Malformed);
    }
    let id = extensions(certificate.extensions())?;
    if !strong(certificate.public_key()) {
        return Err(SvidReason::WeakKey);
    }
    let validity = certificate.validity();
    Ok(Leaf {
        identity: PeerIdentity { id, not_after: unix(validity.not_after.timestamp()) },
        not_before: unix(validity.not_before.timestamp()),
        serial,
    })
}

fn extensions(extensions: &[X509Extension<'_>]) -> Result<SpiffeId, SvidReason> {
    if extensions.len() > MAX_EXTENSIONS {
        return Err(SvidReason::Malformed);
    }
    let mut names: &[GeneralName<'_>] = &[];
    let (mut usage, mut extended, mut unknown) = (None, None, false);
    for (index, extension) in extensions.iter().enumerate() {
        if extensions[..index].iter().any(|before| before.oid == extension.oid) {
            return Err(SvidReason::Malformed);
        }
        match extension.parsed_extension() {
            ParsedExtension::ParseError { .. } => return Err(SvidReason::Malformed),
            ParsedExtension::SubjectAlternativeName(found) => names = &found.general_names,
            ParsedExtension::BasicConstraints(found) if found.ca => return Err(SvidReason::LeafIsCa),
            ParsedExtension::BasicConstraints(_) => {}
            ParsedExtension::KeyUsage(found) => usage = Some((extension.critical, *found)),
            ParsedExtension::ExtendedKeyUsage(found) => extended = Some((found.server_auth, found.client_auth)),
            _ => unknown |= extension.critical,
        }
    }
    if unknown {
        return Err(SvidReason::UnknownExtension);
    }
    match usage {
        Some((true, usage)) if usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign() => {}
        _ => return Err(SvidReason::KeyUsage),
    }
    if extended.is_some_and(|(server, client)| !(server && client)) {
        return Err(SvidReason::ExtendedKeyUsage);
    }
    spiffe_id(names)
}

/// The one SPIFFE id among the names. DNS names, addresses and mail addresses may stand beside it; kinds of names that
/// others have misread are refused.
fn spiffe_id(names: &[GeneralName<'_>]) -> Result<SpiffeId, SvidReason> {
    let (mut only, mut uris) = ("", 0_usize);
    for name in names {
        match name {
            GeneralName::URI(uri) => (only, uris) = (*uri, uris + 1),
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text)
                if text.bytes().all(|b| b.is_ascii_graphic()) => {}
            GeneralName::IPAddress(bytes) if matches!(bytes.len(), 4 | 16) => {}
            _ => return Err(SvidReason::BadSan),
        }
    }
    match uris {
        0 => Err(SvidReason::NoUriSan),
        // A leaf's id has a path: that of the trust domain alone belongs to its authority.
        1 => match SpiffeId::parse(only) {
            Ok(id) if id.as_str().len() > "spiffe://".len() + id.trust_domain().len() => Ok(id),
            _ => Err(SvidReason::BadSpiffeId),
        },
        _ => Err(SvidReason::SeveralUriSans),
    }
}

fn parse<'a>(der: &'a [u8]) -> Result<X509Certificate<'a>, SvidReason> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) if certificate.version() == X509Version::V3 => Ok(certificate),
        _ => Err(SvidReason::Malformed),
    }
}

/// A big-endian number without leading zeros.
pub(crate) fn significant(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

/// Whether an issuer may sign certificates: webpki takes "CA" in the basic constraints for that, X509-SVID section 4.3
/// asks for the key usage too.
pub(crate) fn may_sign(der: &[u8]) -> bool {
    parse(der).is_ok_and(|certificate| {
        certificate.key_usage().is_ok_and(|usage| usage.is_some_and(|usage| usage.value.key_cert_sign()))
    })
}

/// Whether a certificate can be read and its key is too weak.
pub(crate) fn has_weak_key(der: &[u8]) -> bool {
    parse(der).is_ok_and(|certificate| !strong(certificate.public_key()))
}

/// When a certificate's life ends.
pub(crate) fn not_after(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(unix(certificate.validity().not_after.timestamp()))
}

/// P-256, P-384, P-521, Ed25519, or RSA from 2048 to 8192 bits.
fn strong(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &key.algorithm;
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        return curve.is_some_and(|curve| [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521].contains(&curve));
    }
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { return false };
        let modulus = significant(rsa.modulus);
        let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        return (2048..=8192).contains(&(modulus.len() * 8 - unused));
    }
    algorithm.algorithm == OID_SIG_ED25519
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
