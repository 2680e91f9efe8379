//! What can go wrong in the store, in words that say what to do.

use std::{path::PathBuf, sync::Arc};

use super::model::{Expect, Key, Revision};

/// Why a batch was not appended. Nothing of it was, except where it says that this is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The object is not as the write expects it to be.
    #[error("{key}: {} but {}: read it again and repeat the change", expectation(.expected), presence(.actual))]
    Conflict {
        key: Key,
        expected: Expect,
        /// Its last event; none when it does not exist.
        actual: Option<Revision>,
    },
    /// The disk is full. Reads and watches go on, and writes are taken again as soon as there is room.
    #[error("{}: the disk is full: nothing was written; make room and repeat the change", path.display())]
    Full { path: PathBuf },
    /// The commit of this batch failed: whether it is in the log shows after a restart. Writes stop until then.
    #[error(
        "commit: {source}: the change may or may not be kept; check the disk, restart the control plane, then look"
    )]
    Io { source: Arc<std::io::Error> },
    /// No writes are taken until the store is opened anew. Reads and watches go on.
    #[error("the store takes no writes: {why}: check the disk and restart the control plane")]
    Stopped { why: Arc<str> },
    /// A part of the batch is larger than the store takes.
    #[error("{what} of {size}: at most {limit} is taken: make it smaller or split the change")]
    TooLarge { what: String, size: usize, limit: usize },
}

impl AppendError {
    /// One word, for metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::Full { .. } => "full",
            Self::Io { .. } => "io",
            Self::Stopped { .. } => "stopped",
            Self::TooLarge { .. } => "too_large",
        }
    }
}

fn expectation(expect: &Expect) -> String {
    match expect {
        Expect::Absent => "expected to be absent".into(),
        Expect::Any => "expected to exist".into(),
        Expect::Revision(revision) => format!("expected at revision {revision}"),
    }
}

fn presence(actual: &Option<Revision>) -> String {
    actual.map_or_else(|| "it does not exist".into(), |revision| format!("it is at revision {revision}"))
}

/// Why a read of the log failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such event (yet).
    #[error("revision {revision} lies in the future: the last one is {head}")]
    Future { revision: Revision, head: Revision },
    /// An event in the log is damaged.
    #[error("revision {revision} is damaged: {why}: restore the data directory from a backup")]
    Damaged { revision: Revision, why: String },
    /// The log could not be read.
    #[error("read the event log: {why}: check the disk and restart the control plane")]
    Io { why: Arc<str> },
}

/// Why a watch cannot start where it was asked to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WatchError {
    /// The events after this revision are no longer all there: list anew and watch from there. (Nothing is compacted
    /// today, so this does not happen yet.)
    #[error("events before revision {oldest} are gone: list again and watch from there")]
    Compacted { oldest: Revision },
    /// That revision does not exist. A store that was restored from a backup looks like this to those who knew more.
    #[error("revision {after} lies in the future: the last one is {head}: list again and watch from there")]
    Future { after: Revision, head: Revision },
}

/// The log is not what was written: someone, or the disk, changed it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("revision {revision}: {why}")]
pub struct VerifyError {
    /// The first event that is wrong; 0 when the log could not be read at all.
    pub revision: Revision,
    pub why: String,
}

/// Why the store in a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log is damaged, or somebody changed it.
    #[error("{}: the event log is damaged: restore the data directory from a backup", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: VerifyError,
    },
    /// The file system refused.
    #[error("{}: {what} failed", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// Others can get at it, or it is not the file itself.
    #[error("{why}")]
    NotPrivate { why: String },
    /// Another process has it open.
    #[error("{}: in use by another control plane: stop it, or use another --data-dir", path.display())]
    Locked { path: PathBuf },
    /// A newer Weft wrote it.
    #[error(
        "{}: written in format {found}, this version of Weft knows formats up to {known}: use the version that wrote \
         it, or a newer one",
        path.display()
    )]
    Newer { path: PathBuf, found: u64, known: u64 },
    /// The file is not one of ours, or its structure is broken.
    #[error("{}: not a readable store ({why}): restore it from a backup, or move it away to start empty", path.display())]
    Unreadable { path: PathBuf, why: String },
}
