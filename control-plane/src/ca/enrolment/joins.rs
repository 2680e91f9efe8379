//! Join tokens: each gets one certificate of one identity, once. What is kept is a hash of the secret and, after its use,
//! what was issued for it; the use and the issue are one commit of `identity.redb`, on disk before the answer leaves.
//!
//! A client whose answer got lost tries again with the same key and gets the same certificate, for as long as the token
//! would have been valid; with another key it is refused, so a stolen token that was used is worth nothing.

mod file;

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rand::RngCore;
use redb::Database;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use weft_policy::{SpiffeId, model::ObjectName};
use zeroize::Zeroizing;

use self::file::Fault;
use super::{
    attested::Attested,
    refusal::{Reason, Refusal},
};
use crate::hexadecimal;

/// First part of every token of this kind: one enrolment, version 1.
pub const PREFIX: &str = "weft1j.";
/// Life of a token that says nothing else.
pub const DEFAULT_TTL: Duration = Duration::from_secs(600);
/// The longest life of a token.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// For how long what has ended is still listed.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Tokens at once, with those that have ended.
const MAX_TOKENS: usize = 20_000;
/// Labels of one token.
const MAX_LABELS: usize = 16;

/// What is kept of a join token.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinToken {
    /// Second part of the token; no secret.
    pub id: String,
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// What the certificate is to attest beside the identity.
    #[serde(default)]
    pub attested: Attested,
    /// When it was made.
    pub created: Timestamp,
    /// By whom.
    pub created_by: String,
    /// From when on it is refused.
    pub expires: Timestamp,
    /// Since when it is refused whatever else is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// What it was used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Use>,
    /// SHA-256 of the secret. 256 random bits need no slow hash.
    #[serde(with = "hexadecimal")]
    hash: [u8; 32],
}

/// The one use of a token.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Use {
    /// When.
    pub at: Timestamp,
    /// Serial number of the certificate, hexadecimal.
    pub serial: String,
    /// Hash of the key that it is for.
    #[serde(with = "hexadecimal")]
    key: [u8; 32],
    /// The certificate in hexadecimal DER, leaf first.
    chain: Vec<String>,
}

/// What a new token is to be.
#[derive(Clone, Debug)]
pub struct NewJoin {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// What the certificate is to attest beside the identity.
    pub attested: Attested,
    /// How long it can be used.
    pub ttl: Duration,
}

/// Why join tokens could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such token.
    #[error("there is no token with id {0:?}")]
    NotFound(String),
    /// The file could not be read or written.
    #[error("the join tokens cannot be read or written; nothing was changed")]
    Store(#[source] anyhow::Error),
}

impl From<Fault> for JoinError {
    fn from(fault: Fault) -> Self {
        Self::Store(fault.into())
    }
}

/// A certificate chain, leaf first, and how it came to be.
#[derive(Debug)]
pub struct Redeemed {
    /// The chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// The token.
    pub token: JoinToken,
    /// It was issued before, and the answer got lost.
    pub again: bool,
}

/// The join tokens of a control plane. Clones share them.
#[derive(Clone)]
pub struct Joins(Arc<Database>);

impl Joins {
    /// The tokens in `data_dir`, in a file that is made when there is none.
    ///
    /// # Errors
    /// When the file cannot be read, understood or written.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(file::open(data_dir)?)))
    }

    /// No tokens, and no file; for tests.
    ///
    /// # Errors
    /// None that are known.
    pub fn memory() -> anyhow::Result<Self> {
        Ok(Self(Arc::new(file::memory()?)))
    }

    /// Makes a token. The result is the only time that its text is seen.
    ///
    /// # Errors
    /// When it makes no sense, there are too many, or the file cannot be written.
    pub fn create(&self, new: NewJoin, by: &str, now: Timestamp) -> Result<(JoinToken, Zeroizing<String>), JoinError> {
        check(&new)?;
        let ttl = SignedDuration::try_from(new.ttl).map_err(|error| JoinError::Invalid(error.to_string()))?;
        let expires = now.checked_add(ttl).map_err(|error| JoinError::Invalid(error.to_string()))?;
        let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; 32]));
        rand::rng().fill_bytes(&mut id);
        rand::rng().fill_bytes(secret.as_mut());
        let (id, secret) = (hexadecimal::text(&id), Zeroizing::new(hexadecimal::text(secret.as_ref())));
        let text = Zeroizing::new(format!("{PREFIX}{id}.{}", *secret));
        let token = JoinToken {
            id,
            namespace: new.namespace,
            service_account: new.service_account,
            attested: new.attested,
            created: now,
            created_by: by.into(),
            expires,
            revoked: None,
            used: None,
            hash: hash(&secret),
        };
        let room = file::change(&self.0, |table| {
            table.retain(|old| old.expires.checked_add(KEPT).is_ok_and(|end| end > now))?;
            if table.len()? >= MAX_TOKENS {
                return Ok(false);
            }
            table.put(&token)?;
            Ok(true)
        })?;
        if room {
            return Ok((token, text));
        }
        let why =
            format!("there are {MAX_TOKENS} join tokens, which is the limit: one is forgotten a day after its end");
        Err(JoinError::Invalid(why))
    }

    /// All tokens, the oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn list(&self) -> Result<Vec<JoinToken>, JoinError> {
        let mut all = file::all(&self.0)?;
        all.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(all)
    }

    /// Revokes a token: from here on it is refused. A certificate that it got stays valid.
    ///
    /// # Errors
    /// When there is none with this id, or the file cannot be written.
    pub fn revoke(&self, id: &str, now: Timestamp) -> Result<JoinToken, JoinError> {
        let revoked = file::change(&self.0, |table| {
            let Some(mut token) = table.get(id)? else { return Ok(None) };
            token.revoked.get_or_insert(now);
            table.put(&token)?;
            Ok(Some(token))
        })?;
        revoked.ok_or_else(|| JoinError::NotFound(id.into()))
    }

    /// Whose token this is, used or not.
    ///
    /// # Errors
    /// When it is none: which part is wrong is not told, and takes no other time.
    pub fn verify(&self, text: &str) -> Result<JoinToken, Refusal> {
        let invalid = || Refusal::new(Reason::Invalid, "the token is not valid here");
        let (id, secret) = parts(text).ok_or_else(invalid)?;
        let token = file::get(&self.0, id).map_err(unreadable)?;
        let known = token.as_ref().map_or([0; 32], |token| token.hash);
        let same = bool::from(known.ct_eq(&hash(secret)));
        token.filter(|_| same).ok_or_else(invalid)
    }

    /// Uses a token that was verified: `issue` makes the certificate (serial number and chain), which with the use is on disk when this returns.
    /// `key` is the hash of the public key that it is for. Of two that use it at the same moment, one wins.
    ///
    /// # Errors
    /// Why it is refused; nothing was issued then.
    pub fn redeem(
        &self,
        verified: &JoinToken,
        key: &[u8; 32],
        now: Timestamp,
        issue: impl FnOnce(&JoinToken) -> Result<(String, Vec<CertificateDer<'static>>), Refusal>,
    ) -> Result<Redeemed, Refusal> {
        let mut refusal = None;
        let redeemed = file::change(&self.0, |table| {
            // The writer is alone: what it reads now is what it changes.
            let token = table.get(&verified.id)?.filter(|token| token.hash == verified.hash);
            let result = match token {
                None => Err(Refusal::new(Reason::Revoked, "the token is gone: ask for a new one")),
                Some(token) => match judge(&token, key, now) {
                    Err(refusal) => Err(refusal),
                    Ok(Some(chain)) => return Ok(Some(Redeemed { chain, token, again: true })),
                    Ok(None) => issue(&token).map(|issued| (token, issued)),
                },
            };
            match result {
                Err(error) => {
                    refusal = Some(error);
                    Ok(None)
                }
                Ok((mut token, (serial, chain))) => {
                    let hex = chain.iter().map(|der| hexadecimal::text(der)).collect();
                    token.used = Some(Use { at: now, serial, key: *key, chain: hex });
                    table.put(&token)?;
                    Ok(Some(Redeemed { chain, token, again: false }))
                }
            }
        });
        let redeemed = redeemed.map_err(unreadable)?;
        redeemed.ok_or_else(|| refusal.unwrap_or_else(|| Refusal::new(Reason::Invalid, "the token is not valid here")))
    }
}

/// Whether a token may be used with this key: none for a first use, else what it was used for.
fn judge(token: &JoinToken, key: &[u8; 32], now: Timestamp) -> Result<Option<Vec<CertificateDer<'static>>>, Refusal> {
    let new = "make a new one with weft token create";
    if token.revoked.is_some() {
        return Err(Refusal::new(Reason::Revoked, format!("the token {} was revoked: {new}", token.id)));
    }
    let is_over = token.expires <= now;
    match &token.used {
        None if is_over => {
            let text = format!("the token {} has expired at {}: {new}", token.id, token.expires);
            Err(Refusal::new(Reason::Expired, text))
        }
        None => Ok(None),
        Some(used) if !bool::from(used.key.ct_eq(key)) => {
            let text = format!(
                "the token {} was used at {} with another key: {new}; if nobody of yours used it, revoke certificate {}",
                token.id, used.at, used.serial
            );
            Err(Refusal::new(Reason::OtherKey, text))
        }
        Some(used) if is_over => {
            let text = format!("the token {} was used at {}, and its time is over: {new}", token.id, used.at);
            Err(Refusal::new(Reason::Used, text))
        }
        Some(used) => {
            let chain: Option<_> =
                used.chain.iter().map(|hex| hexadecimal::bytes(hex).map(CertificateDer::from)).collect();
            let damaged = || Refusal::new(Reason::Store, format!("the record of the token {} is damaged", token.id));
            chain.map(Some).ok_or_else(damaged)
        }
    }
}

fn unreadable(fault: Fault) -> Refusal {
    let error = anyhow::Error::from(fault);
    tracing::error!(error = format!("{error:#}"), "join tokens cannot be read or written");
    let text = "the control plane cannot record what it issues, so it issues nothing for tokens: its log says why";
    Refusal::new(Reason::Store, text)
}

impl JoinToken {
    /// Whether it is the token of this identity.
    #[must_use]
    pub fn is_of(&self, id: &SpiffeId) -> bool {
        id.namespace_and_account() == Some((self.namespace.as_str(), self.service_account.as_str()))
    }

    /// `valid`, `used`, `expired` or `revoked`.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> &'static str {
        match self {
            Self { revoked: Some(_), .. } => "revoked",
            Self { used: Some(_), .. } => "used",
            Self { expires, .. } if *expires <= now => "expired",
            _ => "valid",
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, namespace, service_account, expires, .. } = self;
        write!(f, "JoinToken({id}, {namespace}/{service_account}, {expires})")
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Id and secret of `weft1j.ID.SECRET`.
fn parts(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('.')?;
    (id.len() == 16 && secret.len() == 64).then_some((id, secret))
}

fn check(new: &NewJoin) -> Result<(), JoinError> {
    let invalid = |text: String| Err(JoinError::Invalid(text));
    let (namespace, name) = (&new.namespace, new.attested.name.as_ref());
    let names = [("serviceAccount", Some(&new.service_account)), ("name", name)];
    for (field, value) in names.into_iter().filter_map(|(field, value)| Some((field, value?))) {
        if ObjectName::parse(&format!("{namespace}/{value}")).is_none() {
            return invalid(format!("namespace {namespace:?}, {field} {value:?}: expected lower-case DNS labels"));
        }
    }
    if new.ttl < Duration::from_secs(1) || new.ttl > MAX_TTL {
        return invalid(format!("ttlSeconds: {} is not 1 to {}", new.ttl.as_secs(), MAX_TTL.as_secs()));
    }
    let labels = &new.attested.labels;
    if labels.len() > MAX_LABELS {
        return invalid(format!("labels: {} are more than {MAX_LABELS}", labels.len()));
    }
    if let Some(wrong) = wrong_label(labels) {
        return invalid(format!("labels: {wrong} is not a label as Kubernetes has them"));
    }
    new.attested.extension().map(drop).or_else(|error| invalid(format!("labels: {error:#}")))
}

/// The first that is none.
fn wrong_label(labels: &BTreeMap<String, String>) -> Option<String> {
    let word = |text: &str, most: usize| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        text.len() <= most && ends(text.chars().next()) && ends(text.chars().next_back()) && text.chars().all(inner)
    };
    let key = |key: &str| match key.split_once('/') {
        Some((prefix, name)) => word(prefix, 253) && word(name, 63),
        None => word(key, 63),
    };
    let wrong = labels.iter().find(|(k, v)| !key(k) || !(v.is_empty() || word(v, 63)));
    wrong.map(|(key, value)| format!("{key:?}={value:?}"))
}

#[cfg(test)]
mod tests;
