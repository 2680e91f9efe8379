//! JSON Web Key Sets (RFC 7517): public keys only. A set with a secret in it is refused as a whole: who could read it
//! can sign.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use weft_policy::{
    convert::jwt::{MAX_KEYS, key as convert},
    model::KeyMaterial,
};
use weft_proto::v1;

/// Bytes of a set.
pub const MAX_BYTES: usize = 256 * 1024;

/// Members that only private keys have (RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1, RFC 8037 section 2).
const PRIVATE: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

/// A set as it was read.
#[derive(Debug)]
pub struct Parsed {
    /// At least one.
    pub keys: Vec<v1::JwtKey>,
    /// Those that are not what they say they are: their index, and why.
    pub broken: Vec<(usize, String)>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// What becomes of one key.
enum Read {
    Key(v1::JwtKey),
    /// For something else, or of a type that we do not know (RFC 7517 section 5).
    Other(String),
    Broken(String),
}

/// Reads a set.
///
/// # Errors
/// When it is none, has a secret in it, has no key that can be used or too many.
pub fn parse(text: &str) -> Result<Parsed, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, more than {MAX_BYTES}", text.len()));
    }
    // serde says where and what, and may quote a value: a secret that is there by mistake must not get into a status.
    let set: Set = serde_json::from_str(text)
        .map_err(|error| format!("it is no JSON Web Key Set (line {}, column {})", error.line(), error.column()))?;
    let (mut keys, mut broken, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for (index, key) in set.keys.iter().enumerate() {
        if let Some(name) = PRIVATE.into_iter().find(|name| key.contains_key(*name)) {
            return Err(format!("key {index} has the member \"{name}\": it is a secret, and a set is for public keys"));
        }
        match text_of(key, "kty") {
            Some("oct") => return Err(format!("key {index} is of type oct: a shared secret proves nothing")),
            _ if text_of(key, "alg").is_some_and(|alg| alg.starts_with("HS")) => {
                return Err(format!("key {index} is for a shared secret (HMAC), which proves nothing"));
            }
            _ => {}
        }
        match read(key) {
            Read::Key(key) => keys.push(key),
            Read::Other(why) => others.push((index, why)),
            Read::Broken(why) => broken.push((index, why)),
        }
    }
    if keys.len() > MAX_KEYS {
        return Err(format!("it has {} keys that can be used, more than {MAX_KEYS}", keys.len()));
    }
    if keys.is_empty() {
        let why: Vec<_> =
            broken.iter().chain(&others).map(|(index, why)| format!("key {index} {why}")).take(4).collect();
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.join(", ")) };
        return Err(format!("it has no key that can be used{why}"));
    }
    Ok(Parsed { keys, broken })
}

fn text_of<'a>(key: &'a serde_json::Map<String, serde_json::Value>, name: &str) -> Option<&'a str> {
    key.get(name)?.as_str()
}

fn read(key: &serde_json::Map<String, serde_json::Value>) -> Read {
    if text_of(key, "use").is_some_and(|wanted| wanted != "sig") {
        return Read::Other("is not for signatures".to_owned());
    }
    if let Some(operations) = key.get("key_ops").and_then(serde_json::Value::as_array)
        && !operations.iter().any(|operation| operation == "verify")
    {
        return Read::Other("is not to verify".to_owned());
    }
    let algorithm = match text_of(key, "alg").map(algorithm) {
        None => v1::JwtAlgorithm::Unspecified,
        Some(Some(algorithm)) => algorithm,
        Some(None) => return Read::Other("is for an algorithm that is not taken".to_owned()),
    };
    let number = |name: &str| match text_of(key, name).map(|text| URL_SAFE_NO_PAD.decode(text)) {
        Some(Ok(bytes)) => Ok(bytes),
        _ => Err(format!("has no \"{name}\" in base64url")),
    };
    let material = match (text_of(key, "kty"), text_of(key, "crv")) {
        (Some("RSA"), _) => number("n").and_then(|n| {
            // Some write a zero before it, against RFC 7518 section 2.
            let bare = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<_>>().into();
            Ok(v1::jwt_key::Key::Rsa(v1::JwtRsaKey { modulus: bare(n), exponent: bare(number("e")?) }))
        }),
        (Some("EC"), Some("P-256")) => ec(v1::JwtCurve::P256, number("x"), number("y")),
        (Some("EC"), Some("P-384")) => ec(v1::JwtCurve::P384, number("x"), number("y")),
        (Some("OKP"), Some("Ed25519")) => number("x").map(|x| v1::jwt_key::Key::Ed25519(x.into())),
        (Some(_), _) => return Read::Other("is of a type that is not taken".to_owned()),
        (None, _) => return Read::Broken("has no \"kty\"".to_owned()),
    };
    let material = match material {
        Ok(material) => material,
        Err(why) => return Read::Broken(why),
    };
    let id = text_of(key, "kid").unwrap_or_default().to_owned();
    let wire = v1::JwtKey { id, algorithm: algorithm.into(), key: Some(material) };
    match convert(wire.clone()) {
        Ok(key) if is_key(&key.material) => Read::Key(wire),
        Ok(_) => Read::Broken("has numbers that are no key of its type".to_owned()),
        Err(error) => Read::Broken(format!("is refused: {error}")),
    }
}

fn ec(curve: v1::JwtCurve, x: Result<Vec<u8>, String>, y: Result<Vec<u8>, String>) -> Result<v1::jwt_key::Key, String> {
    Ok(v1::jwt_key::Key::Ec(v1::JwtEcKey { curve: curve.into(), x: x?.into(), y: y?.into() }))
}

/// Whether the numbers are one: a point of its curve, a modulus with its exponent. Sidecars ask the same.
fn is_key(material: &KeyMaterial) -> bool {
    match material {
        KeyMaterial::Rsa { modulus, exponent } => {
            let components = RsaPublicKeyComponents { n: modulus, e: exponent };
            components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).is_ok()
        }
        KeyMaterial::P256(point) => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).is_ok(),
        KeyMaterial::P384(point) => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).is_ok(),
        KeyMaterial::Ed25519(key) => ParsedPublicKey::new(&ED25519, key).is_ok(),
    }
}

/// The algorithm of this word, if it is one that is taken.
#[must_use]
pub fn algorithm(word: &str) -> Option<v1::JwtAlgorithm> {
    Some(match word {
        "RS256" => v1::JwtAlgorithm::Rs256,
        "RS384" => v1::JwtAlgorithm::Rs384,
        "RS512" => v1::JwtAlgorithm::Rs512,
        "PS256" => v1::JwtAlgorithm::Ps256,
        "PS384" => v1::JwtAlgorithm::Ps384,
        "PS512" => v1::JwtAlgorithm::Ps512,
        "ES256" => v1::JwtAlgorithm::Es256,
        "ES384" => v1::JwtAlgorithm::Es384,
        "EdDSA" => v1::JwtAlgorithm::Eddsa,
        _ => return None,
    })
}

/// The words of all algorithms.
pub const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

#[cfg(test)]
mod tests;
