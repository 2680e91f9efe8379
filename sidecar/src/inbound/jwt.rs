//! JSON Web Tokens of requests (RFC 7519 in RFC 6750): which policy applies, where the token is, what it proves. Keys
//! are parsed when a configuration is first used, one copy for each worker; nothing is fetched. What fails is refused:
//! keys that have not arrived refuse every token of their issuer.

mod cache;
mod flaw;
mod json;
mod key;
mod reserved;
mod shown;
mod token;

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
pub use reserved::Reserved;
pub use shown::Shown;
use smallvec::SmallVec;
use weft_policy::{
    claims::Claims,
    model::{InboundPort, RequestAuthentication, Target},
};

use self::{cache::Cache, flaw::Flaw, key::VerifyingKey, token::KnownIssuer};
use crate::{
    error::{ProxyError, Reason},
    telemetry::Telemetry,
};

/// Bytes of a token.
pub const MAX_TOKEN: usize = 8 * 1024;

const NEEDED: HeaderValue = HeaderValue::from_static("Bearer realm=\"weft\"");
const INVALID: HeaderValue = HeaderValue::from_static(
    "Bearer realm=\"weft\", error=\"invalid_token\", error_description=\"the token is not valid\"",
);
const EXPIRED: HeaderValue = HeaderValue::from_static(
    "Bearer realm=\"weft\", error=\"invalid_token\", error_description=\"the token has expired\"",
);

/// What one worker has parsed.
#[derive(Default)]
pub struct Authenticators(RefCell<Vec<Rc<Authenticator>>>);

/// One RequestAuthentication, ready.
pub struct Authenticator {
    config: Arc<RequestAuthentication>,
    issuers: Vec<KnownIssuer>,
    /// Where tokens may be, each once; its bit in [`KnownIssuer::places`] is its index.
    places: Vec<HeaderName>,
    cache: RefCell<Cache>,
    accepted: metrics::Counter,
    without: metrics::Counter,
    refused: RefCell<[Option<metrics::Counter>; Flaw::COUNT]>,
    telemetry: Telemetry,
}

/// A token that is what it says.
pub struct Verified {
    claims: Rc<Claims>,
    /// What the app is told.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// When it ends, the skew of clocks included, in seconds since the Unix epoch.
    until: f64,
    /// Index of its issuer.
    issuer: usize,
}

/// A refused request.
#[derive(Debug)]
pub struct Refusal {
    /// For the answer.
    pub error: ProxyError,
    /// `WWW-Authenticate` of it.
    pub challenge: HeaderValue,
}

impl Authenticators {
    /// Those of a port for requests to one of `services`, those that the connection may be for.
    pub fn of(&self, port: &InboundPort, services: &[Target], telemetry: &Telemetry) -> Rc<[Rc<Authenticator>]> {
        let own = port.request_authentications.iter().filter(|given| {
            given.services.is_empty() || given.services.iter().any(|service| services.contains(service))
        });
        let mut held = self.0.borrow_mut();
        let found = own.map(|given| {
            // What says the same is the same, also of another port: tokens that are verified stay so.
            if let Some(known) = held.iter().find(|known| known.config == given.authentication) {
                return Rc::clone(known);
            }
            let made = Rc::new(Authenticator::new(&given.authentication, telemetry));
            held.push(Rc::clone(&made));
            made
        });
        let found = found.collect();
        // What no connection uses is forgotten.
        held.retain(|known| Rc::strong_count(known) > 1);
        found
    }
}

/// Checks the token of a request against all that apply, and leaves in the headers what the app is to see. The claims of the token; `None`: there is none, and none is required.
///
/// # Errors
/// When a token is required and missing, or one is there and not valid.
pub fn check(
    authenticators: &[Rc<Authenticator>],
    reserved: &Reserved,
    headers: &mut HeaderMap,
    now: Duration,
) -> Result<Option<Rc<Claims>>, Refusal> {
    let mut claims = None;
    let mut found: SmallVec<[_; 1]> = SmallVec::new();
    for authenticator in authenticators {
        found.push(authenticator.verify(headers, now)?);
    }
    reserved.strip_head(headers);
    for (authenticator, token) in authenticators.iter().zip(found) {
        let Some((verified, place)) = token else { continue };
        authenticator.write(&verified, place, headers);
        claims = Some(Rc::clone(&verified.claims));
    }
    Ok(claims)
}

impl Authenticator {
    fn new(config: &Arc<RequestAuthentication>, telemetry: &Telemetry) -> Self {
        let mut places: Vec<HeaderName> = Vec::new();
        let mut issuers = Vec::with_capacity(config.issuers.len());
        for issuer in &config.issuers {
            let (keys, unusable) = VerifyingKey::all(&issuer.keys, &issuer.algorithms);
            if unusable > 0 {
                let (policy, issuer) = (&*config.name, &*issuer.issuer);
                tracing::warn!(policy, issuer, unusable, "keys that are none of their type are left out");
            }
            let mut bits = 0;
            for header in &issuer.from_headers {
                let index = places.iter().position(|known| known == header).unwrap_or_else(|| {
                    places.push(header.clone());
                    places.len() - 1
                });
                bits |= place(index);
            }
            issuers.push(KnownIssuer { config: issuer.clone(), keys, places: bits });
        }
        Self {
            accepted: counter(telemetry, &config.name, "accepted"),
            without: counter(telemetry, &config.name, "none"),
            config: Arc::clone(config),
            issuers,
            places,
            cache: RefCell::default(),
            refused: RefCell::default(),
            telemetry: telemetry.clone(),
        }
    }

    fn verify(&self, headers: &HeaderMap, now: Duration) -> Result<Option<(Rc<Verified>, usize)>, Refusal> {
        match self.token(headers, now) {
            Ok(Some(found)) => {
                self.accepted.increment(1);
                Ok(Some(found))
            }
            Ok(None) if self.config.required => Err(self.refuse(Flaw::Missing)),
            Ok(None) => {
                self.without.increment(1);
                Ok(None)
            }
            Err(flaw) => Err(self.refuse(flaw)),
        }
    }

    /// The verified token, and the index of the place in which it was.
    fn token(&self, headers: &HeaderMap, now: Duration) -> Result<Option<(Rc<Verified>, usize)>, Flaw> {
        let mut found = None;
        for (index, header) in self.places.iter().enumerate() {
            let mut fields = headers.get_all(header).iter();
            let Some(field) = fields.next() else { continue };
            if fields.next().is_some() {
                return Err(Flaw::Several);
            }
            let Some(token) = credentials(field.as_bytes(), *header == header::AUTHORIZATION) else { continue };
            if found.replace((token, index)).is_some() {
                return Err(Flaw::Several);
            }
        }
        let Some((token, index)) = found else { return Ok(None) };
        if token.len() > MAX_TOKEN {
            return Err(Flaw::TooLarge);
        }
        let key = cache::hash(token);
        if let Some(known) = self.cache.borrow().get(key.as_ref(), now.as_secs_f64())
            && self.issuers.get(known.issuer).is_some_and(|issuer| issuer.places & place(index) != 0)
        {
            return Ok(Some((Rc::clone(known), index)));
        }
        let verified = Rc::new(token::verify(token, place(index), &self.issuers, now)?);
        self.cache.borrow_mut().put(key, &verified);
        Ok(Some((verified, index)))
    }

    fn write(&self, verified: &Verified, index: usize, headers: &mut HeaderMap) {
        let forward = self.issuers.get(verified.issuer).is_some_and(|issuer| issuer.config.forward);
        if let Some(place) = self.places.get(index).filter(|_| !forward) {
            headers.remove(place);
        }
        for (name, value) in &verified.headers {
            headers.insert(name, value.clone());
        }
    }

    fn refuse(&self, flaw: Flaw) -> Refusal {
        let (policy, word) = (&*self.config.name, flaw.as_str());
        tracing::info!(policy, reason = word, "a request is refused for its token");
        let mut refused = self.refused.borrow_mut();
        let place = flaw as usize;
        if let Some(known) = refused.get_mut(place) {
            known.get_or_insert_with(|| counter(&self.telemetry, policy, word)).increment(1);
        }
        let (reason, detail, challenge) = match flaw {
            Flaw::Missing => (Reason::TokenMissing, "this needs a bearer token", NEEDED),
            Flaw::Expired => (Reason::TokenInvalid, "the token has expired", EXPIRED),
            _ => (Reason::TokenInvalid, "the token is not valid", INVALID),
        };
        Refusal { error: ProxyError::unsent(reason, detail), challenge }
    }
}

impl Refusal {
    /// Adds the challenge to the answer.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(header::WWW_AUTHENTICATE, self.challenge);
    }
}

/// The bit of a place: at most 8 for each of 16 issuers.
const fn place(index: usize) -> u128 {
    if index < 128 { 1 << index } else { 0 }
}

/// The token of a field; `None`: credentials of another kind. The scheme has no case (RFC 9110 section 11.1).
fn credentials(value: &[u8], bearer_only: bool) -> Option<&[u8]> {
    let value = value.trim_ascii();
    match value.split_at_checked(6) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"bearer") && rest.first().is_none_or(|c| *c == b' ') => {
            Some(rest.trim_ascii_start())
        }
        _ if bearer_only => None,
        _ => Some(value),
    }
}

fn counter(telemetry: &Telemetry, policy: &str, result: &str) -> metrics::Counter {
    let labels = [("policy", policy), ("result", result)];
    telemetry.counter_of("weft_jwt_requests_total", "Requests that met a RequestAuthentication, by result", &labels)
}

#[cfg(test)]
pub(super) mod tests;
