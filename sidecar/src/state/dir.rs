//! The state directory: who may have it, and reading and replacing files in it. Everything goes through one handle of
//! the directory, so that nothing can be exchanged between the check and the use.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use zeroize::Zeroizing;

use super::Refused;

/// An open directory, of this user alone and locked.
pub struct StateDir {
    handle: OwnedFd,
    shown: String,
    /// Held for its lock.
    _lock: OwnedFd,
}

impl StateDir {
    /// Opens the directory, or makes it for this user alone.
    ///
    /// # Errors
    /// When it is a link, somebody else's, open to others, or in use.
    pub fn open(path: &Path) -> Result<Self, Refused> {
        use std::os::unix::fs::DirBuilderExt as _;
        // With a slash at its end a link would be followed.
        let path: &Path = &path.components().collect::<PathBuf>();
        let shown = path.display().to_string();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).or_else(|error| match error.kind() {
            // Something is there; what, is looked at below.
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
            rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => Refused::NotAFile(shown.clone(), "a directory"),
            other => Refused::Io(other.into()),
        })?;
        let stat = rustix::fs::fstat(&handle).map_err(io::Error::from)?;
        private(&stat, FileType::Directory, &shown)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&handle, "lock", flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Refused::Locked(shown.clone()))?;
        Ok(Self { handle, shown, _lock: lock })
    }

    /// Reads a file; `None`: there is none.
    ///
    /// # Errors
    /// When it is no plain file, somebody else's, open to others, or too large.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Refused> {
        let shown = format!("{}/{name}", self.shown);
        // A pipe must not make us wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
                return Err(Refused::NotAFile(shown, "a file of its own"));
            }
            Err(other) => return Err(Refused::Io(other.into())),
        };
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from)?;
        private(&stat, FileType::RegularFile, &shown)?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size > limit {
            return Err(Refused::TooLarge(size));
        }
        let capacity = usize::try_from(size).map_err(|_| Refused::TooLarge(size))?;
        // One byte more, so that the end is found without growing: that would leave a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity + 1));
        File::from(file).take(size).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Replaces a file: a new one, 0600, on disk before it takes the name.
    ///
    /// # Errors
    /// When any step fails; the file of before is whole then.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        match rustix::fs::unlinkat(&self.handle, &new, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.handle, &new, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.handle, &new, &self.handle, name)?;
        Ok(rustix::fs::fsync(&self.handle)?)
    }
}

/// Of this user alone, also when that is root, and what it should be.
fn private(stat: &Stat, kind: FileType, shown: &str) -> Result<(), Refused> {
    let (own, mode) = (rustix::process::geteuid().as_raw(), stat.st_mode & 0o7777);
    if FileType::from_raw_mode(stat.st_mode) != kind || (kind == FileType::RegularFile && stat.st_nlink != 1) {
        let expected = if kind == FileType::Directory { "a directory" } else { "a file of its own" };
        return Err(Refused::NotAFile(shown.into(), expected));
    }
    if stat.st_uid != own {
        return Err(Refused::Owner(shown.into(), stat.st_uid, own));
    }
    if mode & 0o077 != 0 {
        return Err(Refused::Permissions(shown.into(), mode));
    }
    Ok(())
}
