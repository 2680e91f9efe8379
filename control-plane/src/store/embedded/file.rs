//! The redb file of a data directory: made, opened, opened anew after a failure, and opened without being changed.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Builder, Database, ReadableDatabase, backends::FileBackend};

use super::{
    chain::Chain,
    disk::{self, Disk, Failed, Overlay},
    tables::{self, Fault},
};
use crate::store::{
    error::{OpenError, VerifyError},
    model::Head,
};

/// The name of the file in its data directory.
pub(super) const NAME: &str = "weft.redb";
/// Its name while it is made.
const NEW: &str = "weft.redb.new";

/// redb would take 1 GiB. What is hot is in memory in our own form already.
const CACHE: usize = 16 * 1024 * 1024;

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// Opens the file of a data directory; makes the directory (0700), the file (0600) and its tables where they are
/// missing.
pub(super) fn create(directory: &Path, fault: disk::Fault, failed: &Failed) -> Result<Database, OpenError> {
    let path = directory.join(NAME);
    let missing = directory.ancestors().take_while(|path| !path.exists()).count();
    let io = |what| move |source| OpenError::Io { path: directory.into(), what, source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io("making the directory"))?;
    if path.symlink_metadata().is_ok() {
        crate::ca::open_private(&path, false).map_err(|error| OpenError::NotPrivate { why: format!("{error:#}") })?;
    }
    let database = guarded(|| {
        create_file(directory)?;
        check_format(&path)?;
        open(&path, fault, failed)
    });
    let database = database.map_err(|fault| cannot_open(&path, fault))?;
    // The names of the file, and of the directories that were made for it, must survive a power loss as well.
    for directory in directory.ancestors().take(missing + 1) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io("syncing the directory"))?;
    }
    Ok(database)
}

/// Makes the file where it is missing or empty: under another name first, because a power loss while redb makes its
/// file leaves one that it does not open.
fn create_file(directory: &Path) -> Result<(), Fault> {
    let (path, new) = (directory.join(NAME), directory.join(NEW));
    let is_missing = || path.metadata().map_or(true, |file| file.len() == 0);
    if !is_missing() {
        return Ok(());
    }
    // Held until the end: of two that start at once, one makes the file.
    let lock = File::open(directory)?;
    lock.lock()?;
    if !is_missing() {
        return Ok(());
    }
    let _ = std::fs::remove_file(&new);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    let database = builder().create_with_backend(FileBackend::new(file.try_clone()?)?)?;
    tables::initialise(&database)?;
    database.close()?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    Ok(lock.sync_all()?)
}

/// Refuses a file of another format before anything is changed in it, if it can be read like that.
fn check_format(path: &Path) -> Result<(), Fault> {
    match builder().open_read_only(path) {
        Ok(database) => tables::check_format(&database.begin_read()?),
        Err(redb::DatabaseError::RepairAborted) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the file, recovering from an interrupted commit.
pub(super) fn open(path: &Path, fault: disk::Fault, failed: &Failed) -> Result<Database, Fault> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let database = builder().create_with_backend(Disk::new(file, fault, failed)?)?;
    tables::check_format(&database.begin_read()?)?;
    Ok(database)
}

/// Opens the file so that it can be read but not be changed, whatever state it is in.
pub(super) fn open_overlay(path: &Path) -> Result<Database, Fault> {
    Ok(builder().create_with_backend(Overlay::new(File::open(path)?)?)?)
}

/// Verifies the log of a data directory (or of a copy of its file) that no control plane has open, without changing
/// anything. A file that was not closed cleanly is recovered in memory.
///
/// # Errors
/// When an event is not what was written; with revision 0 when the file cannot be read, or is in use.
pub fn verify(path: &Path) -> Result<Head, VerifyError> {
    let path = if path.is_dir() { path.join(NAME) } else { path.to_path_buf() };
    let result = guarded(|| {
        let follow = |txn: &redb::ReadTransaction| {
            tables::check_format(txn)?;
            tables::follow(txn, Chain::default(), None).map(|chain| chain.head)
        };
        match builder().open_read_only(&path) {
            Ok(database) => follow(&database.begin_read()?),
            Err(redb::DatabaseError::RepairAborted) => follow(&open_overlay(&path)?.begin_read()?),
            Err(error) => Err(error.into()),
        }
    });
    result.map_err(|fault| match cannot_open(&path, fault) {
        OpenError::Damaged { source, .. } => source,
        error @ OpenError::Io { .. } => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            VerifyError { revision: 0, why: format!("{error}: {cause}") }
        }
        error => VerifyError { revision: 0, why: error.to_string() },
    })
}

/// redb may panic on a file that was damaged from outside and is marked as closed cleanly.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Fault::Redb(redb::Error::Corrupted("its structure is broken".into()))))
}

pub(super) fn cannot_open(path: &Path, fault: Fault) -> OpenError {
    let path = PathBuf::from(path);
    match fault {
        Fault::Damaged(source) => OpenError::Damaged { path, source },
        Fault::Format(Some(found)) if found > tables::FORMAT => OpenError::Newer { path, found, known: tables::FORMAT },
        Fault::Format(found) => {
            let found = found.map_or_else(|| "no format".into(), |found| format!("format {found}"));
            OpenError::Unreadable { path, why: format!("it has {found}") }
        }
        Fault::Redb(redb::Error::DatabaseAlreadyOpen) => OpenError::Locked { path },
        Fault::Redb(redb::Error::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path, what: "opening the store", source }
        }
        Fault::Redb(error) => OpenError::Unreadable { path, why: error.to_string() },
    }
}
