//! One token: taken apart (RFC 7515 section 7.1), and verified against what is configured of its issuer (RFC 7519
//! section 7.2, RFC 8725). Nothing in its header leads to a key: `jwk`, `jku`, `x5c` and `x5u` are not looked at.

use std::{rc::Rc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;
use weft_policy::{
    claims::Claims,
    model::{Issuer, SignatureAlgorithm},
};

use super::{MAX_TOKEN, Verified, flaw::Flaw, json::Object, key::VerifyingKey};

/// Types of tokens that say who calls (RFC 7519, RFC 9068), without `application/`. Those of tokens for other ends, such
/// as `logout+jwt` or `dpop+jwt`, must not pass for one.
const TYPES: [&str; 3] = ["jwt", "at+jwt", "jose"];

/// An issuer whose keys are parsed.
pub struct KnownIssuer {
    /// As configured.
    pub config: Issuer,
    /// For each algorithm one.
    pub keys: Vec<VerifyingKey>,
    /// Bits of the places in which its tokens come.
    pub places: u128,
}

/// What the header says.
struct Header {
    algorithm: SignatureAlgorithm,
    key: Option<String>,
}

/// Verifies a token that came in `place`, a bit. `now` is the time since the Unix epoch.
pub fn verify(token: &[u8], place: u128, issuers: &[KnownIssuer], now: Duration) -> Result<Verified, Flaw> {
    if token.len() > MAX_TOKEN {
        return Err(Flaw::TooLarge);
    }
    let text = std::str::from_utf8(token).map_err(|_| Flaw::Malformed)?;
    let dots = text.bytes().filter(|byte| *byte == b'.').count();
    let parts = text.rsplit_once('.').and_then(|(signed, signature)| {
        let (header, payload) = signed.split_once('.')?;
        Some((signed, header, payload, signature))
    });
    let (signed, header, payload, signature) = match (dots, parts) {
        (2, Some(parts)) => parts,
        (4, _) => return Err(Flaw::Encrypted),
        _ => return Err(Flaw::Malformed),
    };
    let header = self::header(&decode(header)?)?;
    let payload = Object::parse(&decode(payload)?)?;
    let signature = decode(signature)?;
    let name = payload.text("iss")?.ok_or(Flaw::Issuer)?;
    let found = issuers.iter().position(|issuer| *issuer.config.issuer == *name).ok_or(Flaw::Issuer)?;
    let issuer = issuers.get(found).ok_or(Flaw::Issuer)?;
    if issuer.places & place == 0 {
        return Err(Flaw::Place);
    }
    if !issuer.config.algorithms.contains(&header.algorithm) {
        return Err(Flaw::Algorithm);
    }
    if issuer.keys.is_empty() {
        return Err(Flaw::KeysMissing);
    }
    let mut known = false;
    let mut fitting = issuer.keys.iter().filter(|key| key.is_for(header.algorithm, header.key.as_deref()));
    let verified = fitting.any(|key| {
        known = true;
        key.verifies(signed.as_bytes(), &signature)
    });
    match (verified, known) {
        (true, _) => claims(payload, issuer, found, now),
        (false, true) => Err(Flaw::Signature),
        (false, false) => Err(Flaw::UnknownKey),
    }
}

/// base64url without padding and with nothing in its spare bits: a token has one form.
fn decode(part: &str) -> Result<Vec<u8>, Flaw> {
    match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(Flaw::Malformed),
    }
}

fn header(bytes: &[u8]) -> Result<Header, Flaw> {
    let header = Object::parse(bytes)?;
    if ["crit", "zip", "b64"].iter().any(|name| header.has(name)) {
        return Err(Flaw::Critical);
    }
    if header.has("enc") {
        return Err(Flaw::Encrypted);
    }
    if header.has("cty") {
        return Err(Flaw::Type);
    }
    if let Some(given) = header.text("typ")? {
        let lower = given.to_ascii_lowercase();
        if !TYPES.contains(&lower.strip_prefix("application/").unwrap_or(&lower)) {
            return Err(Flaw::Type);
        }
    }
    let algorithm = header.text("alg")?.and_then(SignatureAlgorithm::parse).ok_or(Flaw::Algorithm)?;
    Ok(Header { algorithm, key: header.text("kid")?.map(str::to_owned) })
}

/// What holds of a token whose signature is its issuer's.
fn claims(payload: Object, issuer: &KnownIssuer, index: usize, now: Duration) -> Result<Verified, Flaw> {
    let (now, skew) = (now.as_secs_f64(), issuer.config.clock_skew.as_secs_f64());
    let until = payload.number("exp")?.ok_or(Flaw::NoExpiry)? + skew;
    if now >= until {
        return Err(Flaw::Expired);
    }
    for name in ["nbf", "iat"] {
        if payload.number(name)?.is_some_and(|from| now + skew < from) {
            return Err(Flaw::NotYetValid);
        }
    }
    let audiences = payload.texts("aud")?;
    let wanted = &issuer.config.audiences;
    if !wanted.is_empty() && !wanted.iter().any(|wanted| audiences.contains(&&**wanted)) {
        return Err(Flaw::Audience);
    }
    let pairs = payload.leaves.into_iter().map(|leaf| (leaf.name, leaf.value.into_text()));
    let claims = Claims::new(pairs).map_err(|_| Flaw::TooManyClaims)?;
    let headers = issuer.config.claims_to_headers.iter();
    let headers = headers.filter_map(|(claim, header)| Some((header.clone(), value(&claims, claim)?))).collect();
    Ok(Verified { claims: Rc::new(claims), headers, until, issuer: index })
}

/// A claim as the value of a header, several values with commas between them. None when it cannot be one and mean the
/// same: the app must not read more values than there are.
fn value(claims: &Claims, name: &str) -> Option<HeaderValue> {
    let mut values = claims.get(name);
    let first = values.next()?;
    let Some(second) = values.next() else { return HeaderValue::from_bytes(first.as_bytes()).ok() };
    let mut joined = String::new();
    for value in [first, second].into_iter().chain(values) {
        if value.contains(',') {
            return None;
        }
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(value);
    }
    HeaderValue::from_bytes(joined.as_bytes()).ok()
}
