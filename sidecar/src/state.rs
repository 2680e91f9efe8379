//! What a sidecar keeps on disk to come back alone: the last configuration that it held, and its certificate with the
//! key. `dir` looks after the directory and the files' permissions, `file` after their format, `configuration` and
//! `identity` after what is in them; `app` loads, `discovery` and `identity` save. SECURITY.md says why.

pub mod codec;
pub mod configuration;
pub mod dir;
pub mod file;
pub mod identity;
pub mod keep;
pub mod key;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{configuration::StoredConfiguration, dir::StateDir, file::Kind, identity::StoredIdentity, key::StateKey};
use crate::telemetry::Telemetry;

/// How far in the future a file may have been written: clocks are set back by an hour now and then.
const FUTURE: Duration = Duration::from_secs(2 * 3600);
/// Configuration files are not read beyond this.
const MAX_CONFIGURATION: u64 = 256 * 1024 * 1024;
/// Identity files are not read beyond this: chain and roots are a few KiB each.
const MAX_IDENTITY: u64 = 4 * 1024 * 1024;

/// Why a file, or the directory, is not used. Each has its own word for metrics and its own text.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Group or others may reach it.
    #[error("{0} is open to others (mode {1:04o}): chmod go= it, and enrol again if somebody may have read it")]
    Permissions(String, u32),
    /// It is another user's.
    #[error("{0} belongs to user {1} and not to the user of this process ({2}): chown it, or choose another directory")]
    Owner(String, u32, u32),
    /// A link, a pipe, or anything else than what it should be.
    #[error("{0} is not {1}; links are not followed")]
    NotAFile(String, &'static str),
    /// Another sidecar has it.
    #[error("{0} is in use by another sidecar: each needs a directory of its own")]
    Locked(String),
    /// Larger than anything that a sidecar writes.
    #[error("it has {0} bytes, more than a sidecar writes")]
    TooLarge(u64),
    /// Shorter than it says.
    #[error("it ends too early ({0} bytes)")]
    Truncated(usize),
    /// Its checksum, code or seal is wrong.
    #[error("{0}")]
    Tampered(&'static str),
    /// Written by a version of the format that is not understood.
    #[error("it has format version {0}; this sidecar reads version {1}")]
    Version(u16, u16),
    /// With a key, and none is given.
    #[error("it was written with a key: give --state-key FILE")]
    KeyMissing,
    /// Without a key, and one is given.
    #[error("it was written without a key although --state-key is given: anybody could have written it; remove it")]
    Unkeyed,
    /// Too old.
    #[error("it was last right {age} ago, and --state-max-age is {max}")]
    Stale {
        /// Since it was last confirmed.
        age: String,
        /// The limit.
        max: String,
    },
    /// Written in the future.
    #[error("it was written {0} in the future: is this machine's clock right?")]
    Future(String),
    /// The certificate has ended.
    #[error("its certificate ended {0} ago")]
    Expired(String),
    /// Another workload's, or of another mesh.
    #[error("it belongs to {0} and not to {1}: choose another directory, or remove it")]
    Foreign(String, String),
    /// What is in it makes no sense.
    #[error("{0}")]
    Content(String),
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Refused {
    /// Stable word for metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Permissions(..) => "permissions",
            Self::Owner(..) => "owner",
            Self::NotAFile(..) => "not_a_file",
            Self::Locked(_) => "locked",
            Self::TooLarge(_) => "too_large",
            Self::Truncated(_) => "truncated",
            Self::Tampered(_) => "tampered",
            Self::Version(..) => "version",
            Self::KeyMissing => "key_missing",
            Self::Unkeyed => "unkeyed",
            Self::Stale { .. } => "stale",
            Self::Future(_) => "future",
            Self::Expired(_) => "expired",
            Self::Foreign(..) => "foreign",
            Self::Content(_) => "content",
            Self::Io(_) => "io",
        }
    }
}

/// Whose state it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// `namespace/name`.
    pub workload: String,
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub account: String,
    /// The trust domain that a token at hand names; `None`: there is none, and the files say it.
    pub trust_domain: Option<String>,
}

/// The file of the last epoch.
const EPOCH: &str = "epoch";
/// Bytes of a number of 64 bits and a line end.
const MAX_EPOCH: u64 = 21;

/// The directory and the key of one sidecar.
pub struct Store {
    dir: StateDir,
    key: Option<StateKey>,
    owner: Owner,
    /// A file of somebody else lies there: it stays as it is.
    foreign: bool,
}

/// What a start finds. One file that is refused says nothing of the other; without a certificate the configuration
/// is not used, since nothing could be served with it.
#[derive(Default)]
pub struct Found {
    /// Certificate, key and roots.
    pub identity: Option<StoredIdentity>,
    /// Configuration, and when it was last right.
    pub configuration: Option<(StoredConfiguration, SystemTime)>,
}

impl Store {
    /// Opens or makes the directory, and locks it.
    ///
    /// # Errors
    /// When it is somebody else's, open to others, or in use.
    pub fn open(dir: &Path, key: Option<StateKey>, owner: Owner) -> Result<Self, Refused> {
        Ok(Self { dir: StateDir::open(dir)?, key, owner, foreign: false })
    }

    /// Reads what is there. What is refused is logged and counted with its reason; what is somebody else's is not
    /// overwritten later.
    pub fn load(&mut self, now: SystemTime, max_age: Duration, telemetry: &Telemetry) -> Found {
        let identity = self.read_identity(now);
        let identity = self.or_refuse(Kind::Identity, identity, telemetry);
        let configuration = self.read_configuration(now, max_age, identity.as_ref());
        let configuration = self.or_refuse(Kind::Configuration, configuration, telemetry);
        if identity.is_none() && configuration.is_some() {
            tracing::warn!("state: the stored configuration is not used: there is no certificate to serve it with");
            return Found::default();
        }
        Found { identity, configuration }
    }

    fn or_refuse<T>(&mut self, kind: Kind, read: Result<Option<T>, Refused>, telemetry: &Telemetry) -> Option<T> {
        read.unwrap_or_else(|refused| {
            self.foreign |= matches!(refused, Refused::Foreign(..));
            report(telemetry, kind.file_name(), &refused);
            None
        })
    }

    fn read_identity(&self, now: SystemTime) -> Result<Option<StoredIdentity>, Refused> {
        let Some(bytes) = self.dir.read(Kind::Identity.file_name(), MAX_IDENTITY)? else { return Ok(None) };
        let opened = file::open(Kind::Identity, bytes, self.key.as_ref())?;
        in_the_past(opened.saved, now)?;
        let identity = StoredIdentity::decode(&opened.body, opened.saved)?;
        identity.check(&self.owner, now)?;
        Ok(Some(identity))
    }

    fn read_configuration(
        &self,
        now: SystemTime,
        max_age: Duration,
        identity: Option<&StoredIdentity>,
    ) -> Result<Option<(StoredConfiguration, SystemTime)>, Refused> {
        let Some(bytes) = self.dir.read(Kind::Configuration.file_name(), MAX_CONFIGURATION)? else { return Ok(None) };
        let opened = file::open(Kind::Configuration, bytes, self.key.as_ref())?;
        in_the_past(opened.saved, now)?;
        let configuration = StoredConfiguration::decode(&opened.body)?;
        configuration.check(&self.owner, identity)?;
        let age = now.duration_since(opened.saved).unwrap_or_default();
        if age > max_age {
            return Err(Refused::Stale { age: duration(age), max: duration(max_age) });
        }
        Ok(Some((configuration, opened.saved)))
    }

    /// Whose it is.
    #[must_use]
    pub const fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Replaces the certificate file.
    ///
    /// # Errors
    /// When it cannot be written, or a file of somebody else is in the way.
    pub fn save_identity(&self, identity: &StoredIdentity, now: SystemTime) -> Result<(), Refused> {
        self.save(Kind::Identity, &identity.encode(), now)
    }

    /// Replaces the configuration file.
    ///
    /// # Errors
    /// When it cannot be written, or a file of somebody else is in the way.
    pub fn save_configuration(&self, configuration: &StoredConfiguration, now: SystemTime) -> Result<(), Refused> {
        self.save(Kind::Configuration, &configuration.encode(), now)
    }

    /// The epoch of this start in milliseconds: now, or one more than that of the start before when the clock has gone back
    /// since. Kept in a file of its own, in the clear, that says nothing else.
    ///
    /// # Errors
    /// When it cannot be kept, or a file of somebody else is there.
    pub fn next_epoch(&self, now: u64) -> Result<u64, Refused> {
        if self.foreign {
            return Err(Refused::Foreign("another workload".into(), self.owner.workload.clone()));
        }
        let last = self.dir.read(EPOCH, MAX_EPOCH)?;
        let last = last.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse::<u64>().ok());
        let epoch = last.map_or(now, |last| now.max(last.saturating_add(1)));
        self.dir.write(EPOCH, format!("{epoch}\n").as_bytes())?;
        Ok(epoch)
    }

    fn save(&self, kind: Kind, body: &[u8], now: SystemTime) -> Result<(), Refused> {
        if self.foreign {
            return Err(Refused::Foreign("another workload".into(), self.owner.workload.clone()));
        }
        let bytes = file::seal(kind, now, body, self.key.as_ref())?;
        Ok(self.dir.write(kind.file_name(), &bytes)?)
    }
}

/// Opens and loads the state of a sidecar; `None`: it goes on as without a state directory.
#[must_use]
pub fn start(
    dir: &Path,
    key: Option<StateKey>,
    owner: Owner,
    max_age: Duration,
    telemetry: &Telemetry,
) -> Option<(Arc<Store>, Found)> {
    match Store::open(dir, key, owner) {
        Ok(mut store) => {
            let found = store.load(SystemTime::now(), max_age, telemetry);
            Some((Arc::new(store), found))
        }
        Err(refused) => {
            report(telemetry, "directory", &refused);
            None
        }
    }
}

/// Logs and counts what is not used.
pub fn report(telemetry: &Telemetry, file: &'static str, refused: &Refused) {
    let reason = refused.as_str();
    let labels = [("file", file), ("reason", reason)];
    telemetry.counter("weft_state_refused_total", "State files that were not used, by reason", &labels).increment(1);
    tracing::warn!(file, reason, error = %refused, "stored state refused; going on as without it");
}

fn in_the_past(saved: SystemTime, now: SystemTime) -> Result<(), Refused> {
    match saved.duration_since(now) {
        Ok(ahead) if ahead > FUTURE => Err(Refused::Future(duration(ahead))),
        _ => Ok(()),
    }
}

/// The largest unit that says enough: `3d`, `5h`, `12m`, `9s`.
#[must_use]
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}
