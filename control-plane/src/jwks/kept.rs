//! Key sets on disk, so that a control plane that starts anew while an issuer is away has the keys that it had: sidecars
//! would lose theirs otherwise. Public keys, no secret; the directory is the control plane's alone, and what is read is
//! checked as if it had been fetched.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of one file: a set and what JSON makes of it in a string.
const MAX_FILE: u64 = 8 * super::keys::MAX_BYTES as u64;

/// A directory of key sets.
#[derive(Clone, Debug)]
pub struct Kept(PathBuf);

/// One set.
#[derive(Debug, Deserialize, Serialize)]
pub struct File {
    /// Where it is from.
    pub url: String,
    /// When it was fetched, in seconds since the Unix epoch.
    fetched: u64,
    /// As it was fetched.
    pub text: String,
}

impl File {
    /// A set that was fetched just now.
    pub fn new(url: &str, text: &str, now: SystemTime) -> Self {
        let fetched = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { url: url.to_owned(), fetched, text: text.to_owned() }
    }

    /// When it was fetched; `None`: in a future that nobody believes.
    pub fn fetched(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.fetched))
    }
}

impl Kept {
    /// A directory, made when something is kept.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// All sets. What cannot be read is left out: it is fetched again.
    #[must_use]
    pub fn read(&self) -> Vec<File> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let read = |entry: fs::DirEntry| {
            let small = entry.metadata().ok()?.len() <= MAX_FILE;
            let text = fs::read_to_string(entry.path()).ok().filter(|_| small)?;
            serde_json::from_str::<File>(&text).ok()
        };
        entries.flatten().take(2 * super::MAX_URLS).filter_map(read).collect()
    }

    /// Keeps a set; a failure is told and no more, since the set is in memory.
    pub fn write(&self, file: &File) {
        let write = || {
            fs::create_dir_all(&self.0)?;
            let (path, text) = (self.path(&file.url), serde_json::to_string(file)?);
            let new = path.with_extension("new");
            fs::write(&new, text)?;
            fs::rename(&new, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(directory = %self.0.display(), %error, "a key set could not be kept");
        }
    }

    /// Forgets a set.
    pub fn remove(&self, url: &str) {
        let _ = fs::remove_file(self.path(url));
    }

    fn path(&self, url: &str) -> PathBuf {
        let name = Sha256::digest(url.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.0.join(format!("{name}.json"))
    }
}
