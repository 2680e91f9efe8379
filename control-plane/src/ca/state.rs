//! What the authority keeps on disk: one file that is replaced as a whole, and a file for each key, which is there
//! before the state names it and goes after the state does not. So a crash at any moment leaves one phase or the next.

use std::{collections::BTreeSet, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::{
    files::Directory,
    revocation::Revocation,
    signer::{Info, seconds},
};

/// The state's file.
pub const STATE: &str = "ca.json";
/// Key and certificate of the first root.
pub const FIRST_KEY: &str = "ca.key";
/// Its certificate.
pub const FIRST_ROOT: &str = "ca.crt";
const VERSION: u32 = 1;
/// Certificates that signed and whose ends are remembered.
const MAX_SIGNERS: usize = 1024;

/// Where a rotation of the root stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// One root.
    #[default]
    Stable,
    /// Two roots are trusted; the old one's issuer issues.
    Prepared,
    /// Two roots are trusted; the new one's issuer issues.
    Switched,
}

impl Phase {
    /// Stable word for the API, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Prepared => "prepared",
            Self::Switched => "switched",
        }
    }
}

/// A certificate and the name of the file with its key.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Keyed {
    /// PEM.
    pub certificate: String,
    /// File in the data directory.
    pub key: String,
}

/// A root and the certificate that it lets issue.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// The root. Its key may be kept elsewhere and is needed only to make an issuing certificate.
    pub root: Keyed,
    /// The issuing certificate.
    pub issuer: Keyed,
}

/// An issuing certificate that issues no more, but whose leaves may be in use.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Past {
    /// Serial number in hex.
    pub serial: String,
    /// What its leaves name as the key that signed them, in hex.
    pub key_id: String,
    /// Its end, seconds since the Unix epoch.
    pub not_after: i64,
}

/// A certificate that signs, or has signed, in this trust domain.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signing {
    /// Serial number in hex.
    pub serial: String,
    /// Its own end, seconds since the Unix epoch: what it signed is valid no longer, whatever it says.
    pub not_after: i64,
}

/// Everything.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Of the form of this file.
    pub version: u32,
    /// Whose authority this is.
    pub trust_domain: String,
    /// Of the rotation of the root.
    pub phase: Phase,
    /// Which issues; none when certificates come from files.
    pub current: Option<Authority>,
    /// Which is trusted too while the root is changed: the next in phase prepared, the last in phase switched.
    pub other: Option<Authority>,
    /// Earlier issuing certificates of the current root.
    pub past: Vec<Past>,
    /// Every certificate that issued here or lay between one that did and its root, whatever became of it, until its end:
    /// so long does a revocation of it last, since whoever has its key can sign what is valid until then.
    #[serde(default)]
    pub signers: Vec<Signing>,
    /// The last end of those that found no room in `signers`.
    #[serde(default)]
    pub signers_forgotten: i64,
    /// Serial number of the issuing certificate when it comes from files.
    pub external: Option<String>,
    /// No certificate that is issued from now on begins before this, seconds since the Unix epoch.
    pub floor: i64,
    /// Certificates that began before this are renewed early, milliseconds since the Unix epoch; 0 for none.
    pub renew_issued_before: u64,
    /// The longest life that certificates were given, in seconds.
    pub longest_life: u64,
    /// What is revoked.
    pub revocations: Vec<Revocation>,
}

impl State {
    /// A state that says nothing yet.
    #[must_use]
    pub fn new(trust_domain: &str) -> Self {
        Self { version: VERSION, trust_domain: trust_domain.into(), ..Self::default() }
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood, or is of another trust domain.
    pub fn load(directory: &Directory, trust_domain: &str) -> Result<Option<Self>> {
        let Some(text) = directory.read(STATE)? else { return Ok(None) };
        let file = directory.path(STATE);
        let state: Self = serde_json::from_str(&text).with_context(|| {
            format!("{}: not the state of an authority; restore it from a backup of the data directory", file.display())
        })?;
        let shown = file.display();
        ensure!(state.version == VERSION, "{shown}: version {} is not {VERSION}: made by a newer weft?", state.version);
        if state.trust_domain != trust_domain {
            bail!(
                "{shown}: the authority is that of trust domain {:?}, and --trust-domain says {trust_domain:?}: use \
                 another --data-dir",
                state.trust_domain
            );
        }
        let two = state.phase != Phase::Stable;
        ensure!(state.other.is_some() == two, "{shown}: phase {} with a wrong number of roots", state.phase.as_str());
        Ok(Some(state))
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written; the old one or this one is on disk then.
    pub fn store(&self, directory: &Directory) -> Result<()> {
        directory.write(STATE, serde_json::to_string_pretty(self)?.as_bytes())
    }

    /// Keeps these certificates in mind, which sign from now on or may do so; and the ends of revocations right that were
    /// made before it was known what they mean.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn remember<'a>(
        &mut self,
        signing: impl IntoIterator<Item = &'a CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<()> {
        self.signers.retain(|old| old.not_after > seconds(now));
        for certificate in signing {
            let Info { serial, not_after, .. } = Info::of(certificate)?;
            let serial = serial.to_string();
            for entry in self.revocations.iter_mut().filter(|entry| entry.serial.as_ref() == Some(&serial)) {
                entry.not_after = entry.not_after.max(Some(not_after));
                entry.expires = entry.expires.max(super::revocation::over(not_after));
            }
            // Who numbers certificates from 1 on may have given one number twice.
            match self.signers.iter_mut().find(|known| known.serial == serial) {
                Some(known) => known.not_after = known.not_after.max(not_after),
                None => self.signers.push(Signing { serial, not_after }),
            }
        }
        self.signers.sort_by_key(|known| known.not_after);
        let surplus = self.signers.len().saturating_sub(MAX_SIGNERS);
        if let Some(last) = self.signers.drain(..surplus).next_back() {
            self.signers_forgotten = self.signers_forgotten.max(last.not_after);
        }
        Ok(())
    }

    /// The end of a certificate that signs or has signed, while it is known.
    #[must_use]
    pub fn signer_end(&self, serial: &str) -> Option<i64> {
        self.signers.iter().find(|known| known.serial == serial).map(|known| known.not_after)
    }

    /// Names of the key files that it needs.
    pub fn keys(&self) -> BTreeSet<&str> {
        let authorities = self.current.iter().chain(&self.other);
        authorities.flat_map(|of| [of.root.key.as_str(), of.issuer.key.as_str()]).collect()
    }

    /// Removes key files that no state names: what a crash, or a step, left behind.
    pub fn sweep(&self, directory: &Directory) {
        let keys = self.keys();
        let names = directory.names().unwrap_or_default();
        let unused = |name: &&String| {
            let key = is_key(name) && !keys.contains(name.as_str());
            let first = name.as_str() == FIRST_ROOT && self.current.is_some() && !keys.contains(FIRST_KEY);
            let half = name.strip_suffix(".new").is_some_and(|name| is_key(name) || name == STATE);
            key || first || half
        };
        for name in names.iter().filter(unused) {
            if let Err(error) = directory.remove(name) {
                tracing::warn!(error = format!("{error:#}"), "a file of the authority that is not needed stays");
            }
        }
    }
}

/// Whether a file is one of the authority's keys.
#[must_use]
pub fn is_key(name: &str) -> bool {
    let made = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".key"));
    name == FIRST_KEY
        || [made("ca-root-"), made("ca-issuer-")]
            .into_iter()
            .flatten()
            .any(|rest| rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Keyed {
    /// The certificate.
    ///
    /// # Errors
    /// When it is none.
    pub fn der(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The key.
    ///
    /// # Errors
    /// When its file cannot be read, or others may read it.
    pub fn load_key(&self, directory: &Directory) -> Result<KeyPair> {
        let file = directory.path(&self.key);
        let text = directory.read(&self.key)?.with_context(|| format!("{}: there is no such file", file.display()))?;
        KeyPair::from_pem(&text).with_context(|| format!("{}: no private key", file.display()))
    }
}
