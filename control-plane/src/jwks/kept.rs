//! Key sets on disk, so that a control plane that starts anew while an issuer is away has the keys that it had: sidecars
//! would lose theirs otherwise. Public keys, no secret; the directory is the control plane's alone, and what is read is
//! checked as if it had been fetched.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ca::{open_private, private_dir};

/// Bytes of one file: a set and what JSON makes of it in a string.
const MAX_FILE: u64 = 8 * super::keys::MAX_BYTES as u64;

/// A directory of key sets.
#[derive(Clone, Debug)]
pub struct Kept(PathBuf);

/// What a file says; `None`: it is not there, not ours alone, too large or none of a set.
fn load(path: &Path) -> Option<File> {
    let file = open_private(path, false).ok()?;
    let mut text = String::new();
    let small = file.metadata().ok()?.len() <= MAX_FILE;
    file.take(MAX_FILE).read_to_string(&mut text).ok().filter(|_| small)?;
    serde_json::from_str(&text).ok()
}

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
            let path = entry.path();
            // The file of another URL under this name would be read and never be removed.
            let file = load(&path)?;
            (path == self.path(&file.url)).then_some(file)
        };
        entries.flatten().take(2 * super::MAX_URLS).filter_map(read).collect()
    }

    /// When the set of this URL that is kept was fetched. No other file is looked at.
    #[must_use]
    pub fn fetched(&self, url: &str) -> Option<SystemTime> {
        load(&self.path(url)).filter(|file| file.url == url)?.fetched()
    }

    /// Keeps a set; a failure is told and no more, since the set is in memory.
    pub fn write(&self, file: &File) {
        let write = || {
            private_dir(&self.0)?;
            let path = self.path(&file.url);
            let new = path.with_extension("new");
            let _ = fs::remove_file(&new);
            // Not synced: what a power loss leaves half written is no set, and is fetched again.
            let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            out.write_all(serde_json::to_string(file)?.as_bytes())?;
            Ok(fs::rename(&new, &path)?)
        };
        let written: anyhow::Result<()> = write();
        if let Err(error) = written {
            tracing::warn!(error = format!("{error:#}"), "a key set could not be kept");
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_set_is_known_by_its_own_file_alone_which_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let kept = Kept::new(directory.path().join("jwks"));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        kept.write(&File::new("https://a", "{}", now));
        kept.write(&File::new("https://b", "{}", now));
        assert_eq!((kept.fetched("https://a"), kept.read().len()), (Some(now), 2));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&kept.0), mode(&kept.path("https://a"))), (0o700, 0o600));
        // Another URL's set under this name, a link, and a file that others may write.
        fs::copy(kept.path("https://b"), kept.path("https://a")).expect("copied");
        assert_eq!((kept.fetched("https://a"), kept.read().len()), (None, 1));
        fs::remove_file(kept.path("https://a")).expect("removed");
        symlink(kept.path("https://b"), kept.path("https://a")).expect("linked");
        assert_eq!((kept.fetched("https://a"), kept.read().len()), (None, 1));
        fs::set_permissions(kept.path("https://b"), fs::Permissions::from_mode(0o666)).expect("set");
        assert_eq!((kept.fetched("https://b"), kept.read().len()), (None, 0));
    }
}
