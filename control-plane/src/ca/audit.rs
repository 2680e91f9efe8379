//! The record of what the authority did: every certificate issued or refused, every step of a rotation, every
//! revocation. Each is an event of `tracing` with the target `weft::audit`, and a line of a bounded file that only grows.
//! Nothing in it is a secret.

mod file;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use weft_metrics::{Collector, Labels};
use weft_policy::SpiffeId;

use self::file::AuditFile;

/// Events that are kept in memory for the API.
const KEPT: usize = 4096;
/// Bytes of a text in an event.
const TEXT: usize = 512;
/// Refusals that are recorded at once, and then in each second: anybody can cause them. Those above are counted.
const REFUSALS: (u32, f64) = (50, 5.0);

/// One thing that happened.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// Counts up from 1; a gap says that the file lost something.
    pub number: u64,
    /// When, RFC 3339.
    pub time: String,
    /// `issued`, `refused`, `rotation`, `revoked`, `revocation_withdrawn`, `revocation_ended` or `external`.
    pub event: String,
    /// SPIFFE id, or as much of one as was asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Serial number in hex.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// How the one who asked was known, see [`Credential`]; for steps and revocations the operator.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// `ip:port` of the one who asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// End of what was issued, RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub not_after: String,
    /// Stable word: why it was refused, or which step.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Refusals before this one that were not recorded because there were too many.
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How the one who asks for a certificate is known.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Credential {
    /// The certificate that it has.
    Certificate,
    /// The development token.
    DevToken,
    /// A join token.
    JoinToken,
    /// A token of a Kubernetes service account.
    KubernetesToken,
    /// Nobody asks: it is the control plane's own.
    Own,
    /// It is not known.
    None,
}

impl Credential {
    /// Stable word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::DevToken => "dev_token",
            Self::JoinToken => "join_token",
            Self::KubernetesToken => "kubernetes_token",
            Self::Own => "own",
            Self::None => "none",
        }
    }
}

/// A certificate that was asked for in vain.
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a> {
    /// Stable word, such as `bad_request`, `expired_token` or `revoked`: a label of a metric, so never of a peer's making.
    pub reason: &'static str,
    /// SPIFFE id that was asked for, as far as it is known.
    pub identity: &'a str,
    /// How the one who asks is known.
    pub by: Credential,
    /// Where it asks from.
    pub from: Option<SocketAddr>,
    /// For people; no secret.
    pub detail: &'a str,
}

/// A certificate that was issued.
#[derive(Clone, Copy, Debug)]
pub struct Issued<'a> {
    /// Whose.
    pub identity: &'a SpiffeId,
    /// Its serial number in hex.
    pub serial: &'a str,
    /// Its end.
    pub not_after: SystemTime,
    /// How the one who asked was known.
    pub by: Credential,
    /// Where it asked from.
    pub from: Option<SocketAddr>,
}

/// The record. Clones share it.
#[derive(Clone)]
pub struct Audit(Arc<Mutex<Inner>>);

struct Inner {
    file: Option<AuditFile>,
    kept: VecDeque<Entry>,
    last: u64,
    issued: BTreeMap<Credential, u64>,
    refused: BTreeMap<&'static str, u64>,
    allowance: (f64, Instant),
    suppressed: u64,
}

impl Audit {
    /// The record in this file, continued.
    ///
    /// # Errors
    /// When the file cannot be opened or is open to others.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, entries) = AuditFile::open(path)?;
        let mut inner = Inner { file: Some(file), ..Inner::new() };
        inner.last = entries.last().map_or(0, |entry| entry.number);
        let skip = entries.len().saturating_sub(KEPT);
        inner.kept.extend(entries.into_iter().skip(skip));
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    /// A record in memory alone; for tests.
    #[must_use]
    pub fn in_memory() -> Self {
        Self(Arc::new(Mutex::new(Inner::new())))
    }

    /// A certificate was issued.
    pub fn issued(&self, issued: &Issued<'_>) {
        let (identity, serial, by) = (issued.identity.as_str(), issued.serial, issued.by.as_str());
        let (not_after, from) = (rfc3339(issued.not_after), address(issued.from));
        tracing::info!(target: "weft::audit", identity, serial, by, from, not_after, "certificate issued");
        let mut inner = self.lock();
        *inner.issued.entry(issued.by).or_default() += 1;
        let (identity, serial, by) = (identity.into(), serial.into(), by.into());
        inner.add(Entry { event: "issued".into(), identity, serial, by, from, not_after, ..Entry::default() }, false);
    }

    /// A certificate, or a stream that needs one, was refused.
    pub fn refused(&self, refused: &Refused<'_>) {
        let mut inner = self.lock();
        *inner.refused.entry(refused.reason).or_default() += 1;
        if !inner.allows() {
            inner.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut inner.suppressed);
        let (identity, detail) = (cut(refused.identity), cut(refused.detail));
        let (by, from, reason) = (refused.by.as_str(), address(refused.from), refused.reason);
        tracing::warn!(target: "weft::audit", identity, by, from, reason, detail, suppressed, "certificate refused");
        let (by, reason) = (by.into(), reason.into());
        let entry =
            Entry { event: "refused".into(), identity, by, from, reason, detail, suppressed, ..Entry::default() };
        inner.add(entry, false);
    }

    /// A step of a rotation, a revocation or another event that changes whom the mesh trusts: on disk when this returns.
    pub fn changed(&self, entry: Entry) {
        let Entry { event, identity, serial, by, reason, detail, .. } = &entry;
        tracing::info!(target: "weft::audit", event, identity, serial, by, reason, detail, "trust changed");
        self.lock().add(Entry { detail: cut(&entry.detail), ..entry }, true);
    }

    /// The newest entries before this number, newest first, at most `limit`.
    #[must_use]
    pub fn entries(&self, before: Option<u64>, limit: usize) -> Vec<Entry> {
        let inner = self.lock();
        let older = inner.kept.iter().rev().filter(|entry| before.is_none_or(|before| entry.number < before));
        older.take(limit).cloned().collect()
    }

    /// Says what was issued and refused.
    pub fn collect(&self, out: &mut Collector) {
        let (inner, none) = (self.lock(), Labels::new(&[]));
        for (by, count) in &inner.issued {
            let family = ("weft_ca_issued_total", "Certificates issued, by how the caller was known");
            out.counter_with(family, &none, &[("by", by.as_str())], *count);
        }
        for (reason, count) in &inner.refused {
            let family = ("weft_ca_refused_total", "Certificates and streams refused, by reason");
            out.counter_with(family, &none, &[("reason", *reason)], *count);
        }
    }

    /// The same, as text.
    #[cfg(test)]
    pub(crate) fn metrics(&self) -> String {
        let mut out = Collector::default();
        self.collect(&mut out);
        out.finish().render(weft_metrics::Format::Prometheus)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new() -> Self {
        Self {
            file: None,
            kept: VecDeque::new(),
            last: 0,
            issued: BTreeMap::new(),
            refused: BTreeMap::new(),
            allowance: (f64::from(REFUSALS.0), Instant::now()),
            suppressed: 0,
        }
    }

    fn allows(&mut self) -> bool {
        let (left, at) = self.allowance;
        let now = Instant::now();
        let earned = now.saturating_duration_since(at).as_secs_f64() * REFUSALS.1;
        let left = (left + earned).min(f64::from(REFUSALS.0));
        let allows = left >= 1.0;
        self.allowance = (if allows { left - 1.0 } else { left }, now);
        allows
    }

    fn add(&mut self, entry: Entry, synced: bool) {
        self.last += 1;
        let entry = Entry { number: self.last, time: rfc3339(SystemTime::now()), ..entry };
        if let Some(file) = &mut self.file {
            file.append(&entry, synced);
        }
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(entry);
    }
}

/// Seconds and no fraction.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let stamp = i64::try_from(since).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    stamp.unwrap_or(Timestamp::MAX).to_string()
}

fn address(from: Option<SocketAddr>) -> String {
    from.map(|address| address.to_string()).unwrap_or_default()
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT)].to_owned()
}

#[cfg(test)]
mod tests;
