//! Sessions of the rules that have them: which endpoint a request is bound to, and the token that its answer gives.
//! What a token says and where it is are `weft_policy::session`'s; here it is sealed (AES-256-GCM-SIV, so that a nonce
//! drawn twice tells nothing), and the caller learns nothing of addresses.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderMap;
use smallvec::SmallVec;
use weft_policy::{
    model::{PathMatch, RouteRule, Session, SessionKey},
    session::{LENGTH, Token, of_target},
};

use crate::{app::worker::Worker, snapshot::EndpointState};

/// Keys that a worker holds ready; with more rules than that they are made again now and then.
const KEYS: usize = 256;
/// Of the seal: AES-GCM-SIV's (RFC 8452).
const TAG: usize = 16;
/// Bytes of a sealed token.
const SEALED: usize = NONCE_LEN + LENGTH + TAG;
/// The same in base64, without padding.
const TEXT: usize = (SEALED * 4).div_ceil(3);

/// The same for all workers.
static OWN: LazyLock<SessionKey> = LazyLock::new(|| SessionKey(rand::random()));

/// The keys of one worker, ready for use.
pub struct Sealers {
    /// Of rules whose configuration has no key.
    own: SessionKey,
    ready: RefCell<Vec<(SessionKey, Rc<LessSafeKey>)>>,
}

/// The session of one request.
pub struct Bound {
    /// What the request has brought, where it is worth something.
    held: Option<Token>,
    /// The paths of its match.
    matched: PathMatch,
}

impl Default for Sealers {
    /// With the key of this process for rules that have none.
    fn default() -> Self {
        Self::new(OWN.clone())
    }
}

impl Sealers {
    /// With this key for rules that have none.
    #[must_use]
    pub const fn new(own: SessionKey) -> Self {
        Self { own, ready: RefCell::new(Vec::new()) }
    }

    fn of(&self, session: &Session) -> Option<Rc<LessSafeKey>> {
        let key = session.key.as_ref().unwrap_or(&self.own);
        let mut ready = self.ready.borrow_mut();
        if let Some((_, sealer)) = ready.iter().find(|(candidate, _)| candidate == key) {
            return Some(Rc::clone(sealer));
        }
        let sealer = Rc::new(LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &key.0).ok()?));
        if ready.len() >= KEYS {
            ready.clear();
        }
        ready.push((key.clone(), Rc::clone(&sealer)));
        Some(sealer)
    }

    fn open(&self, session: &Session, text: &[u8]) -> Option<Token> {
        if text.len() != TEXT {
            return None;
        }
        // Whatever has this length fits.
        let mut bytes = [0; SEALED + 2];
        let length = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (nonce, sealed) = bytes.get_mut(..length)?.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.of(session)?.open_in_place(nonce, Aad::empty(), sealed).ok()?;
        Token::from_bytes(plain)
    }

    pub(super) fn seal(&self, session: &Session, token: Token, random: &mut impl FnMut() -> u64) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&random().to_be_bytes());
        nonce[8..].copy_from_slice(&random().to_be_bytes()[..4]);
        let mut bytes: SmallVec<[u8; SEALED]> = SmallVec::from_slice(&nonce);
        let mut plain = token.to_bytes();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.of(session)?.seal_in_place_separate_tag(nonce, Aad::empty(), &mut plain).ok()?;
        bytes.extend_from_slice(&plain);
        bytes.extend_from_slice(tag.as_ref());
        Some(BASE64_URL_SAFE_NO_PAD.encode(&bytes))
    }
}

impl Bound {
    /// The session that a request of this rule goes on with, or begins.
    pub fn of_request(worker: &Worker, session: &Session, headers: &HeaderMap, matched: &PathMatch) -> Box<Self> {
        let token = session.of_request(headers).and_then(|text| worker.sealers.open(session, text));
        let held = token.filter(|token| token.is_valid(session, now()));
        Box::new(Self { held, matched: matched.clone() })
    }

    /// The backend of the rule that the session is with, whatever its weight (GEP-1619).
    #[must_use]
    pub fn backend(&self, rule: &RouteRule) -> Option<usize> {
        let held = self.held?;
        rule.backends.iter().position(|backend| backend.target.as_ref().map(of_target) == Some(held.backend))
    }

    /// The endpoint that the session is with.
    #[must_use]
    pub fn endpoint(&self) -> Option<u64> {
        self.held.map(|held| held.endpoint)
    }

    /// Gives the caller the token of the endpoint that has answered, if it has to have one.
    pub fn answer(
        &self,
        worker: &Worker,
        session: &Session,
        (backend, endpoint): (u64, &EndpointState),
        headers: &mut HeaderMap,
    ) {
        let endpoint = endpoint.session;
        if !session.is_told(self.held.as_ref(), endpoint) {
            return;
        }
        let now = now();
        // With another endpoint another session begins.
        let began = self.held.filter(|held| held.endpoint == endpoint).map_or(now, |held| held.began);
        let token = Token { began, seen: now, backend, endpoint };
        if let Some(sealed) = worker.sealers.seal(session, token, &mut || worker.random()) {
            session.answer(headers, &sealed, &self.matched, now.saturating_sub(began));
        }
    }
}

/// Seconds since the Unix epoch.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
