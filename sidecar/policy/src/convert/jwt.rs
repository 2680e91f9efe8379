//! Authentication of requests from the wire.

use std::{sync::Arc, time::Duration};

use http::HeaderName;
use http::header::{self, AUTHORIZATION};
use weft_proto::v1;

use super::{Invalid, at, header_name, invalid, name, port};
use crate::model::{
    InboundAuthentication, Issuer, Key, KeyMaterial, RequestAuthentication, SignatureAlgorithm, Target,
};

/// Issuers of one RequestAuthentication.
pub const MAX_ISSUERS: usize = 16;
/// Keys of one issuer: a token without `kid` is tried with each of them.
pub const MAX_KEYS: usize = 32;
/// Audiences of one issuer.
pub const MAX_AUDIENCES: usize = 64;
/// Headers of one issuer that may hold a token.
pub const MAX_FROM_HEADERS: usize = 8;
/// Claims of one issuer that the app gets as headers.
pub const MAX_CLAIM_HEADERS: usize = 32;
/// Bytes of an issuer, an audience or the name of a claim.
pub const MAX_TEXT: usize = 1024;
/// Bytes of a `kid`.
pub const MAX_KEY_ID: usize = 256;
/// Clocks that are further apart than this are wrong.
pub const MAX_SKEW: Duration = Duration::from_secs(300);
/// Without a setting.
pub const DEFAULT_SKEW: Duration = Duration::from_secs(60);

/// Fields that frame, route or authenticate a message: no claim may be put into them.
const RESERVED: [HeaderName; 12] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    header::COOKIE,
    header::FORWARDED,
    AUTHORIZATION,
];

/// Whether no token may be read from this header, and no claim written into it. `authorization` is for tokens only.
#[must_use]
pub fn is_reserved(header: &HeaderName) -> bool {
    let text = header.as_str();
    RESERVED.contains(header)
        || ["proxy-", "x-weft-", "grpc-", "sec-"].iter().any(|prefix| text.starts_with(prefix))
        || ["keep-alive", "x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]
            .contains(&text)
}

pub fn inbound_authentication(wire: v1::InboundAuthentication) -> Result<InboundAuthentication, Invalid> {
    let mut services = Vec::with_capacity(wire.services.len());
    for (index, service) in wire.services.into_iter().enumerate() {
        let path = format!("services[{index}]");
        let port = port(&format!("{path}.port"), service.port)?;
        services.push(Target { service: name(&format!("{path}.service"), &service.service)?, port });
    }
    let authentication = at("authentication", request_authentication(wire.authentication.unwrap_or_default()))?;
    Ok(InboundAuthentication { authentication: Arc::new(authentication), services })
}

/// Converts what is wanted of tokens.
///
/// # Errors
/// The first field that is wrong.
pub fn request_authentication(wire: v1::RequestAuthentication) -> Result<RequestAuthentication, Invalid> {
    let count = wire.issuers.len();
    if !(1..=MAX_ISSUERS).contains(&count) {
        return invalid("issuers", count, format!("must be 1 to {MAX_ISSUERS}"));
    }
    let mut issuers: Vec<Issuer> = Vec::with_capacity(count);
    for (index, wire) in wire.issuers.into_iter().enumerate() {
        let path = format!("issuers[{index}]");
        let issuer = at(&path, self::issuer(wire))?;
        if issuers.iter().any(|other| other.issuer == issuer.issuer) {
            return invalid(format!("{path}.issuer"), issuer.issuer, "must be unique");
        }
        issuers.push(issuer);
    }
    Ok(RequestAuthentication { name: wire.name.into(), issuers, required: wire.required })
}

fn issuer(wire: v1::JwtIssuer) -> Result<Issuer, Invalid> {
    for (field, count, most) in [
        ("audiences", wire.audiences.len(), MAX_AUDIENCES),
        ("keys", wire.keys.len(), MAX_KEYS),
        ("from_headers", wire.from_headers.len(), MAX_FROM_HEADERS),
        ("claims_to_headers", wire.claims_to_headers.len(), MAX_CLAIM_HEADERS),
    ] {
        if count > most {
            return invalid(field, count, format!("must be at most {most}"));
        }
    }
    let issuer = text("issuer", wire.issuer)?;
    let audiences = wire.audiences.into_iter().enumerate();
    let audiences = audiences.map(|(index, audience)| text(&format!("audiences[{index}]"), audience));
    let audiences = audiences.collect::<Result<_, _>>()?;
    let keys = wire.keys.into_iter().enumerate();
    let keys = keys.map(|(index, key)| at(&format!("keys[{index}]"), self::key(key))).collect::<Result<_, _>>()?;
    if wire.algorithms.is_empty() {
        return invalid("algorithms", "[]", "must have at least one");
    }
    let mut algorithms = Vec::with_capacity(wire.algorithms.len());
    for (index, number) in wire.algorithms.into_iter().enumerate() {
        match algorithm(number) {
            Some(Some(algorithm)) => algorithms.push(algorithm),
            _ => return invalid(format!("algorithms[{index}]"), number, "is no algorithm that this version knows"),
        }
    }
    // A skew of zero is a skew: the absence is what has the default.
    let clock_skew = match wire.clock_skew {
        None => DEFAULT_SKEW,
        Some(skew) => match Duration::try_from(skew) {
            Ok(skew) if skew <= MAX_SKEW => skew,
            _ => return invalid("clock_skew", format!("{}s", skew.seconds), format!("must be 0 to {MAX_SKEW:?}")),
        },
    };
    Ok(Issuer {
        issuer,
        audiences,
        keys,
        algorithms,
        clock_skew,
        from_headers: from_headers(wire.from_headers)?,
        forward: wire.forward,
        claims_to_headers: claims_to_headers(wire.claims_to_headers)?,
    })
}

fn from_headers(wire: Vec<String>) -> Result<Vec<HeaderName>, Invalid> {
    if wire.is_empty() {
        return Ok(vec![AUTHORIZATION]);
    }
    let mut found: Vec<HeaderName> = Vec::with_capacity(wire.len());
    for (index, text) in wire.into_iter().enumerate() {
        let path = format!("from_headers[{index}]");
        let header = header_name(&path, text)?;
        if is_reserved(&header) && header != AUTHORIZATION {
            return invalid(path, header, "holds no token");
        }
        if found.contains(&header) {
            return invalid(path, header, "must be unique");
        }
        found.push(header);
    }
    Ok(found)
}

fn claims_to_headers(wire: Vec<v1::ClaimHeader>) -> Result<Vec<(Box<str>, HeaderName)>, Invalid> {
    let mut found: Vec<(Box<str>, HeaderName)> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let path = format!("claims_to_headers[{index}]");
        let header = header_name(&format!("{path}.header"), wire.header)?;
        if is_reserved(&header) {
            return invalid(format!("{path}.header"), header, "is not for claims: it frames or routes the request");
        }
        if found.iter().any(|(_, other)| *other == header) {
            return invalid(format!("{path}.header"), header, "must be unique");
        }
        found.push((text(&format!("{path}.claim"), wire.claim)?, header));
    }
    Ok(found)
}

fn text(field: &str, text: String) -> Result<Box<str>, Invalid> {
    if (1..=MAX_TEXT).contains(&text.len()) {
        Ok(text.into())
    } else {
        invalid(field, format!("{} bytes", text.len()), format!("must have 1 to {MAX_TEXT} bytes"))
    }
}

/// `None`: unknown. `Some(None)`: not given.
fn algorithm(number: i32) -> Option<Option<SignatureAlgorithm>> {
    use v1::JwtAlgorithm as Wire;
    Some(match Wire::try_from(number).ok()? {
        Wire::Unspecified => None,
        Wire::Rs256 => Some(SignatureAlgorithm::Rs256),
        Wire::Rs384 => Some(SignatureAlgorithm::Rs384),
        Wire::Rs512 => Some(SignatureAlgorithm::Rs512),
        Wire::Ps256 => Some(SignatureAlgorithm::Ps256),
        Wire::Ps384 => Some(SignatureAlgorithm::Ps384),
        Wire::Ps512 => Some(SignatureAlgorithm::Ps512),
        Wire::Es256 => Some(SignatureAlgorithm::Es256),
        Wire::Es384 => Some(SignatureAlgorithm::Es384),
        Wire::Eddsa => Some(SignatureAlgorithm::EdDsa),
    })
}

/// Converts a key.
///
/// # Errors
/// The first field that is wrong.
pub fn key(wire: v1::JwtKey) -> Result<Key, Invalid> {
    use v1::jwt_key::Key as Wire;
    if wire.id.len() > MAX_KEY_ID {
        return invalid("id", format!("{} bytes", wire.id.len()), format!("must have at most {MAX_KEY_ID} bytes"));
    }
    let Some(algorithm) = algorithm(wire.algorithm) else {
        return invalid("algorithm", wire.algorithm, "is no algorithm that this version knows");
    };
    let material = match wire.key {
        None => return invalid("key", "", "is no kind of key that this version knows"),
        Some(Wire::Rsa(rsa)) => at("rsa", self::rsa(&rsa))?,
        Some(Wire::Ec(ec)) => at("ec", self::ec(&ec))?,
        Some(Wire::Ed25519(bytes)) => match <[u8; 32]>::try_from(&bytes[..]) {
            Ok(key) => KeyMaterial::Ed25519(key),
            Err(_) => return invalid("ed25519", format!("{} bytes", bytes.len()), "must have 32 bytes"),
        },
    };
    if let Some(given) = algorithm
        && !given.fits(&material)
    {
        return invalid("algorithm", given.as_str(), "does not fit the type of the key");
    }
    Ok(Key { id: (!wire.id.is_empty()).then(|| wire.id.into()), algorithm, material })
}

fn rsa(wire: &v1::JwtRsaKey) -> Result<KeyMaterial, Invalid> {
    let bits = |number: &[u8]| {
        let zeros = number.first().map_or(0, |first| first.leading_zeros());
        (number.len() * 8).saturating_sub(usize::try_from(zeros).unwrap_or(0))
    };
    let leading = |number: &[u8]| number.first().is_none_or(|first| *first == 0);
    let (modulus, exponent) = (&wire.modulus[..], &wire.exponent[..]);
    if leading(modulus) || !(2048..=8192).contains(&bits(modulus)) {
        return invalid("modulus", format!("{} bits", bits(modulus)), "must have 2048 to 8192 bits");
    }
    let odd = exponent.last().is_some_and(|last| last % 2 == 1);
    if leading(exponent) || !odd || bits(exponent) < 2 || bits(exponent) > 33 {
        return invalid("exponent", format!("{} bits", bits(exponent)), "must be odd, at least 3, of at most 33 bits");
    }
    Ok(KeyMaterial::Rsa { modulus: modulus.into(), exponent: exponent.into() })
}

fn ec(wire: &v1::JwtEcKey) -> Result<KeyMaterial, Invalid> {
    use v1::JwtCurve as Wire;
    let length = match Wire::try_from(wire.curve) {
        Ok(Wire::P256) => 32,
        Ok(Wire::P384) => 48,
        _ => return invalid("curve", wire.curve, "is no curve that this version knows"),
    };
    for (field, coordinate) in [("x", &wire.x), ("y", &wire.y)] {
        if coordinate.len() != length {
            return invalid(field, format!("{} bytes", coordinate.len()), format!("must have {length} bytes"));
        }
    }
    let point = [&[4][..], &wire.x, &wire.y].concat().into();
    Ok(if length == 32 { KeyMaterial::P256(point) } else { KeyMaterial::P384(point) })
}

#[cfg(test)]
mod tests;
