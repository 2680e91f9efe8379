//! Files of the authority, and of whoever else keeps something private in the data directory: written so that a crash
//! leaves the old content or the new one, readable by nobody else, and refused when others could have read or changed
//! them.

use std::{
    fs::{File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
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

/// Makes a directory that only this user may enter, or checks that nobody else may change what is in one that is there:
/// the files are private themselves, and operators and service managers make directories that can be listed.
///
/// # Errors
/// When it cannot be made, is a link, is somebody else's, or others may write in it.
pub fn private_dir(directory: &Path) -> Result<()> {
    // With a slash at its end a link would be followed.
    let directory: &Path = &directory.components().collect::<PathBuf>();
    let shown = directory.display();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).or_else(|error| match error.kind() {
        // Something is there; what, is looked at below.
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error).with_context(|| format!("create {shown}")),
    })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP | Errno::NOTDIR => anyhow::anyhow!(
            "{shown}: a link or a file, and not a directory: name the directory itself, whose owner cannot be exchanged"
        ),
        other => anyhow::Error::new(io::Error::from(other)).context(format!("open {shown}")),
    })?;
    let metadata = File::from(opened).metadata().with_context(|| format!("open {shown}"))?;
    let (mode, owner, own) = (metadata.permissions().mode() & 0o7777, metadata.uid(), user());
    if owner != own {
        bail!("{shown}: belongs to uid {owner}, and this is uid {own}, who could not keep it private: choose another");
    }
    if mode & 0o022 != 0 {
        bail!(
            "{shown}: mode {mode:04o} lets others write in it, who could exchange what is kept here: chmod 700 {shown}, \
             and think of who may have done so; or choose a directory below it, which is made private"
        );
    }
    Ok(())
}

/// Opens a file of ours, to be read, or to be read and written: never through a link, and none that others can get at.
///
/// # Errors
/// What is wrong with it, and how that is put right.
pub fn open_private(path: &Path, write: bool) -> Result<File> {
    let shown = path.display();
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // A pipe must not make us wait.
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP => {
            anyhow::anyhow!("{shown}: a link: the file itself must be there, so that it is known whose it is")
        }
        other => anyhow::Error::new(io::Error::from(other)).context(format!("open {shown}")),
    })?;
    let file = File::from(opened);
    let metadata = check(&file, path, &[user()])?;
    if metadata.nlink() != 1 {
        bail!(
            "{shown}: has another name elsewhere (a hard link), by which others may get at it: copy it, and put the copy in its place"
        );
    }
    Ok(file)
}

/// Reads a file of ours, see [`open_private`].
///
/// # Errors
/// What is wrong with it, and how that is put right.
pub fn read_private(path: &Path) -> Result<Zeroizing<String>> {
    text(open_private(path, false)?, path)
}

/// Reads a secret that somebody else has put somewhere: a regular file of this user (or root's) that nobody else may read
/// or write. Links are followed, since that is how secrets are mounted.
///
/// # Errors
/// What is wrong with it, and how that is put right.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    check(&file, path, &[user(), 0])?;
    text(file, path)
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Asks what was opened, not what the name leads to by now.
fn check(file: &File, path: &Path, owners: &[u32]) -> Result<Metadata> {
    let shown = path.display();
    let metadata = file.metadata().with_context(|| format!("read {shown}"))?;
    let (mode, owner) = (metadata.permissions().mode() & 0o7777, metadata.uid());
    if !metadata.is_file() {
        bail!("{shown}: must be a regular file");
    }
    if !owners.contains(&owner) {
        bail!("{shown}: belongs to uid {owner}: a secret must belong to the user that runs the control plane");
    }
    if mode & 0o077 != 0 {
        bail!("{shown}: mode {mode:04o} lets others at a secret: chmod 600 {shown}, and think of who may have read it");
    }
    Ok(metadata)
}

fn text(file: File, path: &Path) -> Result<Zeroizing<String>> {
    let shown = path.display();
    let size = file.metadata().with_context(|| format!("read {shown}"))?.len();
    if size > MAX {
        bail!("{shown}: {size} bytes are more than {MAX}");
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX).read_to_string(&mut text).with_context(|| format!("read {shown}"))?;
    Ok(text)
}

/// `$XDG_RUNTIME_DIR/weft` or `/tmp/weft-<uid>`, of this user alone.
///
/// # Errors
/// See [`private_dir`].
pub fn runtime_dir() -> Result<PathBuf> {
    let uid = user();
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

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    }

    fn why<T>(result: Result<T>) -> String {
        format!("{:#}", result.err().expect("refused"))
    }

    /// A directory of somebody else.
    fn foreign(temporary: &Path) -> PathBuf {
        if user() != 0 {
            return "/".into();
        }
        let path = temporary.join("foreign");
        std::fs::create_dir(&path).expect("made");
        std::os::unix::fs::chown(&path, Some(12_345), None).expect("given away");
        path
    }

    #[test]
    fn a_directory_in_which_others_may_write_is_refused_and_a_new_one_is_private() {
        let temporary = tempfile::tempdir().expect("a directory");
        let made = temporary.path().join("a/b");
        private_dir(&made).expect("made");
        for path in [&made, &temporary.path().join("a")] {
            assert_eq!(std::fs::metadata(path).expect("there").permissions().mode() & 0o7777, 0o700);
        }
        for loose in [0o775, 0o720, 0o702, 0o1777, 0o2770] {
            mode(&made, loose);
            let text = why(private_dir(&made));
            assert!(text.contains(&format!("mode {loose:04o}")) && text.contains("chmod 700"), "{text}");
        }
        mode(&made, 0o755);
        private_dir(&made).expect("its files are private themselves");
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink(&made, &link).expect("linked");
        for path in [link.clone(), link.join("")] {
            assert!(why(private_dir(&path)).contains("a link"), "{}", path.display());
        }
        std::fs::write(temporary.path().join("file"), "").expect("written");
        assert!(why(private_dir(&temporary.path().join("file"))).contains("not a directory"));
        let foreign = foreign(temporary.path());
        assert!(why(private_dir(&foreign)).contains("belongs to uid"), "{}", foreign.display());
    }

    #[test]
    fn a_file_of_ours_is_no_link_and_has_no_second_name_but_a_mounted_secret_may_be_a_link() {
        let temporary = tempfile::tempdir().expect("a directory");
        let at = |name: &str| temporary.path().join(name);
        write_private(&at("key"), b"secret").expect("written");
        std::os::unix::fs::symlink("key", at("link")).expect("linked");
        assert!(why(read_private(&at("link"))).contains("a link"));
        assert!(why(open_private(&at("link"), true)).contains("a link"));
        assert_eq!(*read_secret(&at("link")).expect("as secrets are mounted"), "secret");
        std::fs::hard_link(at("key"), at("second")).expect("linked");
        assert!(why(read_private(&at("key"))).contains("another name"));
        std::fs::remove_file(at("second")).expect("removed");
        assert_eq!(*read_private(&at("key")).expect("one name"), "secret");
        mode(&at("key"), 0o644);
        assert!(why(read_secret(&at("link"))).contains("0644"), "what the link leads to is asked");
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
