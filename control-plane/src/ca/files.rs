//! Files of the authority: written so that a crash leaves the old content or the new one, readable by nobody else, and
//! refused when others could have read or changed them.

use std::{
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

/// No file of an authority is larger.
const MAX: u64 = 16 * 1024 * 1024;

/// The data directory. In tests any of its file operations may be the last before a crash.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    #[cfg(test)]
    pub crash: Crash,
}

/// After how many more operations everything fails; for tests.
#[cfg(test)]
#[derive(Clone, Debug)]
pub struct Crash(std::sync::Arc<std::sync::atomic::AtomicUsize>);

#[cfg(test)]
impl Crash {
    pub fn never() -> Self {
        Self::after(usize::MAX)
    }

    pub fn after(operations: usize) -> Self {
        Self(std::sync::Arc::new(operations.into()))
    }

    pub fn set(&self, operations: usize) {
        self.0.store(operations, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn left(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn step(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.0.load(SeqCst);
        self.0.store(left.saturating_sub(usize::from(left != usize::MAX)), SeqCst);
        if left == 0 { Err(io::Error::other("crashed here")) } else { Ok(()) }
    }
}

impl Directory {
    /// This directory, made if it is not there.
    ///
    /// # Errors
    /// See [`private_dir`].
    pub fn open(path: &Path) -> Result<Self> {
        private_dir(path)?;
        Ok(Self {
            path: path.into(),
            #[cfg(test)]
            crash: Crash::never(),
        })
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of a file of ours; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or others may.
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>> {
        let path = self.path(name);
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => read_private(&path).map(Some),
        }
    }

    /// Writes a file with mode 0600: new, synced, renamed into place, the directory synced.
    ///
    /// # Errors
    /// The file, and what failed.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        let new = self.path(&format!("{name}.new"));
        let write = || -> io::Result<()> {
            self.step()?;
            let _ = std::fs::remove_file(&new);
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            self.step()?;
            file.write_all(bytes)?;
            self.step()?;
            sync(&file)?;
            self.step()?;
            std::fs::rename(&new, &path)?;
            self.step()?;
            sync(&std::fs::File::open(&self.path)?)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// Removes a file; it is no failure when it is not there.
    ///
    /// # Errors
    /// The file, and what failed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        let remove = || {
            self.step()?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result,
            }
        };
        remove().with_context(|| format!("remove {}", path.display()))
    }

    /// Names of the files in it, in order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let entries = std::fs::read_dir(&self.path)?.collect::<io::Result<Vec<_>>>()?;
            let mut names: Vec<_> = entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
            names.sort();
            Ok(names)
        };
        read().with_context(|| format!("read {}", self.path.display()))
    }

    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        self.crash.step()
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests let it fail")]
    const fn step(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns when it is on disk; in tests, which only stop and pull no plug, at once.
fn sync(file: &std::fs::File) -> io::Result<()> {
    if cfg!(test) { Ok(()) } else { file.sync_all() }
}

/// Writes a file with mode 0600 beside whatever is in its directory, as [`Directory::write`] does.
///
/// # Errors
/// The file, and what failed.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a file needs a name")?;
    let directory = Directory {
        path: path.parent().unwrap_or(Path::new(".")).into(),
        #[cfg(test)]
        crash: Crash::never(),
    };
    directory.write(name, bytes)
}

/// Makes a directory that only this user may enter, or checks that it is one.
///
/// # Errors
/// When it cannot be made or is somebody else's.
pub fn private_dir(directory: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("create {}", directory.display()))?;
    let metadata = std::fs::symlink_metadata(directory)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::getuid().as_raw() {
        bail!("{} is not a directory of this user: remove it or choose another", directory.display());
    }
    Ok(())
}

/// Reads a file that holds a secret: a regular file of this user (or root's) that nobody else may read or write.
///
/// # Errors
/// What is wrong with it, and how that is put right.
pub fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    let shown = path.display();
    let mut file = std::fs::File::open(path).with_context(|| format!("read {shown}"))?;
    // Of what was opened, not of what the name leads to by now.
    let metadata = file.metadata().with_context(|| format!("read {shown}"))?;
    let (mode, owner) = (metadata.permissions().mode() & 0o7777, metadata.uid());
    if !metadata.is_file() {
        bail!("{shown}: must be a regular file");
    }
    if owner != rustix::process::getuid().as_raw() && owner != 0 {
        bail!("{shown}: belongs to uid {owner}: a secret must belong to the user that runs the control plane");
    }
    if mode & 0o077 != 0 {
        bail!("{shown}: mode {mode:04o} lets others at a secret: chmod 600 {shown}, and think of who may have read it");
    }
    if metadata.len() > MAX {
        bail!("{shown}: {} bytes are more than {MAX}", metadata.len());
    }
    let mut text = Zeroizing::new(String::new());
    (&mut file).take(MAX).read_to_string(&mut text).with_context(|| format!("read {shown}"))?;
    Ok(text)
}

/// `$XDG_RUNTIME_DIR/weft` or `/tmp/weft-<uid>`, of this user alone.
///
/// # Errors
/// See [`private_dir`].
pub fn runtime_dir() -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let directory = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(base) if !base.is_empty() => PathBuf::from(base).join("weft"),
        _ => PathBuf::from(format!("/tmp/weft-{uid}")),
    };
    private_dir(&directory)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_may_read_or_write_is_refused() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(temporary.path()).expect("private");
        directory.write("key", b"secret").expect("written");
        assert_eq!(*directory.read("key").expect("readable").expect("there"), "secret");
        for mode in [0o640, 0o604, 0o620, 0o602, 0o601] {
            std::fs::set_permissions(directory.path("key"), std::fs::Permissions::from_mode(mode)).expect("set");
            let error = directory.read("key").expect_err("loose").to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")), "{error}");
        }
        std::fs::set_permissions(directory.path("key"), std::fs::Permissions::from_mode(0o400)).expect("set");
        assert!(directory.read("key").is_ok(), "stricter is fine");
        assert!(directory.read("none").expect("no failure").is_none());
        std::fs::create_dir(directory.path("folder")).expect("made");
        assert!(directory.read("folder").is_err());
    }

    #[test]
    fn a_write_that_stops_anywhere_leaves_the_old_or_the_new_content() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(temporary.path()).expect("private");
        directory.write("file", b"old").expect("written");
        for operations in 0..5 {
            directory.crash.set(operations);
            assert!(directory.write("file", b"new").is_err(), "{operations}");
            let text = directory.read("file").expect("readable").expect("there");
            assert_eq!(*text, if operations == 4 { "new" } else { "old" }, "{operations}");
            directory.crash.set(usize::MAX);
            directory.write("file", b"old").expect("written");
        }
        assert_eq!(directory.names().expect("listed"), ["file"]);
    }
}
