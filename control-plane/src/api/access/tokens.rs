//! The operators' tokens: made, checked, revoked, kept in one file. Only hashes of the secrets are kept, and no secret
//! and no hash is ever printed.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::jiff::{Timestamp, civil::Date, tz::TimeZone};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::rules::Role;
use crate::{
    ca::{read_private, write_private},
    hexadecimal,
};

/// First part of every token of this kind: access to the operator API, version 1.
const PREFIX: &str = "weft1a";
/// Tokens at once.
const MAX_TOKENS: usize = 1000;
/// Author of the control plane's own writes in the history: nobody else's.
const RESERVED: &str = "weft";
/// Longest name of a token.
const MAX_NAME: usize = 100;

/// What is kept of a token.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Token {
    /// Second part of the token; no secret.
    pub id: String,
    /// Who writes with it, for the history.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The only namespace in which it does; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// When it was made.
    pub created: Timestamp,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Day of its last use (UTC): a day is enough to find what is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Date>,
    /// SHA-256 of the secret. 256 random bits need no slow hash.
    #[serde(with = "hexadecimal")]
    hash: [u8; 32],
}

/// What a new token is to be.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Who writes with it.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The only namespace in which it does; none for all.
    pub namespace: Option<String>,
    /// From when on it is refused; none for never.
    pub expires: Option<Timestamp>,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// It was valid once. Told only to who has its secret.
    Expired,
    /// It is none, or its secret is wrong.
    Invalid,
}

/// Why tokens could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Another token has this name.
    #[error("a token named {0:?} exists already: revoke it first, or choose another name")]
    Exists(String),
    /// There is no such token.
    #[error("there is no token with id {0:?}")]
    NotFound(String),
    /// The file could not be written.
    #[error("the tokens cannot be written, {done}")]
    Write {
        /// What became of the change.
        done: &'static str,
        /// Why.
        source: anyhow::Error,
    },
}

/// The tokens of a control plane. Clones share them.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    /// None in tests.
    file: Option<PathBuf>,
    tokens: RwLock<BTreeMap<String, Token>>,
    /// Held while the file is written, so that the newest content is the last one.
    writing: Mutex<()>,
    /// Changes with each revocation.
    revoked: watch::Sender<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    tokens: Vec<Token>,
}

impl Tokens {
    /// No tokens, and no file; for tests.
    #[must_use]
    pub fn memory() -> Self {
        Self::of(None, BTreeMap::new())
    }

    fn of(file: Option<PathBuf>, tokens: BTreeMap<String, Token>) -> Self {
        let revoked = watch::Sender::new(0);
        Self(Arc::new(Inner { file, tokens: RwLock::new(tokens), writing: Mutex::new(()), revoked }))
    }

    /// The tokens in `data_dir`. When none of them is a valid admin's, one is made; the result says in which file it is.
    ///
    /// # Errors
    /// When a file cannot be read, understood or written.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, Option<PathBuf>)> {
        let path = data_dir.join("tokens.json");
        let all = match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            // Who can write it can make itself an administrator.
            _ => read(read_private(&path)?.as_bytes()).with_context(|| {
                format!("{}: restore it from a backup, or remove it: that revokes all tokens", path.display())
            })?,
        };
        let tokens = Self::of(Some(path), all);
        let admin = |token: &Token| token.role == Role::Admin && !token.is_expired(now);
        if tokens.list().iter().any(admin) {
            return Ok((tokens, None));
        }
        let (mut token, secret) = Token::new("admin".into(), Role::Admin, now);
        if tokens.list().iter().any(|other| other.name == token.name) {
            token.name = format!("admin-{}", token.id);
        }
        // The secret first: a crash in between leaves a file that the next start replaces, not a lost secret.
        let file = data_dir.join("admin.token");
        write_private(&file, Zeroizing::new(format!("{}\n", *secret)).as_bytes())?;
        tokens.change(|all| _ = all.insert(token.id.clone(), token))?;
        Ok((tokens, Some(file)))
    }

    /// Makes a token. The result is the only time that its text is seen.
    ///
    /// # Errors
    /// When the name is taken or not a name, there are too many, or the file cannot be written.
    pub fn create(&self, new: NewToken, now: Timestamp) -> Result<(Token, Zeroizing<String>), ChangeError> {
        check(&new)?;
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.all();
        if all.values().any(|token| token.name == new.name) {
            return Err(ChangeError::Exists(new.name));
        }
        if all.len() >= MAX_TOKENS {
            return Err(ChangeError::Invalid(format!("there are {MAX_TOKENS} tokens already: revoke some")));
        }
        let (token, secret) = Token::new(new.name, new.role, now);
        let token = Token { namespace: new.namespace, expires: new.expires, ..token };
        all.insert(token.id.clone(), token.clone());
        self.write(&all).map_err(|source| ChangeError::Write { done: "so none was made", source })?;
        self.replace(all);
        Ok((token, secret))
    }

    /// Revokes a token: from here on it is refused, and watches that were begun with it end.
    ///
    /// # Errors
    /// When there is none with this id. When the file cannot be written it is revoked for this process only.
    pub fn revoke(&self, id: &str) -> Result<Token, ChangeError> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.all();
        let token = all.remove(id).ok_or_else(|| ChangeError::NotFound(id.into()))?;
        // Memory first: that the disk is full keeps nobody in.
        self.replace(all.clone());
        self.0.revoked.send_modify(|count| *count += 1);
        let done = "so the token is revoked only until the control plane starts again: revoke it anew";
        if let Err(source) = self.write(&all) {
            // Kept for the second try, but as one that is over.
            let expired = Token { expires: Some(Timestamp::UNIX_EPOCH), ..token };
            all.insert(id.into(), expired);
            self.replace(all);
            return Err(ChangeError::Write { done, source });
        }
        Ok(token)
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn verify(&self, text: &str, now: Timestamp) -> Result<Token, Refused> {
        let (id, secret) = parts(text).ok_or(Refused::Invalid)?;
        let token = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let token = token.ok_or(Refused::Invalid)?;
        if !bool::from(token.hash.ct_eq(&hash(secret))) {
            return Err(Refused::Invalid);
        }
        if token.is_expired(now) { Err(Refused::Expired) } else { Ok(token) }
    }

    /// Notes that a token is used; true when that is news, which [`Tokens::save`] keeps.
    #[must_use]
    pub fn used(&self, id: &str, now: Timestamp) -> bool {
        let today = Some(now.to_zoned(TimeZone::UTC).date());
        // Nearly always it was used today, and then nobody waits for a lock.
        if self.0.tokens.read().unwrap_or_else(PoisonError::into_inner).get(id).is_none_or(|t| t.last_used == today) {
            return false;
        }
        let mut tokens = self.0.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.get_mut(id).is_some_and(|token| std::mem::replace(&mut token.last_used, today) != today)
    }

    /// Writes the file anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<()> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&self.all())
    }

    /// All tokens, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Token> {
        let mut all: Vec<Token> = self.all().into_values().collect();
        all.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        all
    }

    /// Returns when the token is no longer valid.
    pub async fn ended(self, id: String) {
        let mut revoked = self.0.revoked.subscribe();
        loop {
            let token = self.0.tokens.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
            let Some(token) = token.filter(|token| !token.is_expired(Timestamp::now())) else { return };
            // The wall clock is asked again often: it may jump, and timers stand still while a machine sleeps.
            let left = token.expires.map_or(MINUTE, |expires| {
                let left = expires.duration_since(Timestamp::now());
                std::time::Duration::try_from(left).unwrap_or_default().min(MINUTE)
            });
            tokio::select! {
                changed = revoked.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(left + std::time::Duration::from_millis(1)) => {}
            }
        }
    }

    fn all(&self) -> BTreeMap<String, Token> {
        self.0.tokens.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, all: BTreeMap<String, Token>) {
        *self.0.tokens.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Token>)) -> Result<()> {
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.all();
        change(&mut all);
        self.write(&all)?;
        self.replace(all);
        Ok(())
    }

    fn write(&self, all: &BTreeMap<String, Token>) -> Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        let content = File { version: 1, tokens: all.values().cloned().collect() };
        write_private(file, &serde_json::to_vec_pretty(&content)?)
    }
}

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

impl Token {
    fn new(name: String, role: Role, now: Timestamp) -> (Self, Zeroizing<String>) {
        let (mut id, mut secret) = ([0; 8], Zeroizing::new([0; 32]));
        rand::rng().fill_bytes(&mut id);
        rand::rng().fill_bytes(secret.as_mut());
        let (id, secret) = (hexadecimal::text(&id), Zeroizing::new(hexadecimal::text(secret.as_ref())));
        let text = Zeroizing::new(format!("{PREFIX}.{id}.{}", *secret));
        let hash = hash(&secret);
        (Self { id, name, role, namespace: None, created: now, expires: None, last_used: None, hash }, text)
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, role, namespace, expires, .. } = self;
        write!(f, "Token({id}, {name:?}, {role}, {namespace:?}, {expires:?})")
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Id and secret of `weft1a.ID.SECRET`.
fn parts(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.strip_prefix('.')?.split_once('.')?;
    (id.len() == 16 && secret.len() == 64).then_some((id, secret))
}

fn check(new: &NewToken) -> Result<(), ChangeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '@' | ':' | '-');
    if new.name.is_empty() || new.name.len() > MAX_NAME || !new.name.chars().all(plain) {
        let text = format!("name: {:?} is not 1 to {MAX_NAME} letters, digits or any of . _ @ : -", new.name);
        return Err(ChangeError::Invalid(text));
    }
    if new.name == RESERVED {
        let text = format!("name: {RESERVED:?} is the author of what the control plane writes itself: choose another");
        return Err(ChangeError::Invalid(text));
    }
    let Some(namespace) = &new.namespace else { return Ok(()) };
    if new.role == Role::Admin {
        return Err(ChangeError::Invalid("namespace: an admin is not bound to one; use the role editor".into()));
    }
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if namespace.is_empty() || namespace.len() > 63 || !namespace.chars().all(label) {
        return Err(ChangeError::Invalid(format!("namespace: {namespace:?} is not the name of a namespace")));
    }
    Ok(())
}

fn read(bytes: &[u8]) -> Result<BTreeMap<String, Token>> {
    let file: File = serde_json::from_slice(bytes).context("this is no file of tokens")?;
    if file.version != 1 {
        bail!("version {} is not known: it was written by a newer Weft", file.version);
    }
    Ok(file.tokens.into_iter().map(|token| (token.id.clone(), token)).collect())
}

#[cfg(test)]
mod tests;
