//! The file under redb: [`Disk`] remembers which operation failed first, because redb only says that one did, and
//! [`Overlay`] lets redb recover a file without changing it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Bound,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use redb::{BackendError, StorageBackend, backends::FileBackend};

/// What is done to the file.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests look at what is written"))]
pub(in crate::store) enum Operation<'a> {
    Read,
    /// The new length.
    Resize(u64),
    Sync,
    /// The offset, and the bytes.
    Write(u64, &'a [u8]),
}

/// Asked before every operation: tests make it fail as a disk would, or write down what a power loss may take away.
pub(in crate::store) type Fault = Arc<dyn Fn(Operation<'_>) -> io::Result<()> + Send + Sync>;

/// The first failure of a file.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// Whether it was data that could not be put there.
    was_write: bool,
    pub(super) error: Arc<io::Error>,
}

impl Failure {
    /// Whether nothing is wrong but that there is no room. Only where the data did not fit: a sync that fails may have
    /// lost what was written, whatever it says.
    pub(super) fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        self.was_write && matches!(self.error.kind(), FileTooLarge | QuotaExceeded | StorageFull)
    }
}

/// Where the first failure of a file is found.
pub(super) type Failed = Arc<OnceLock<Failure>>;

/// A file that is read and written.
pub(super) struct Disk {
    file: FileBackend,
    fault: Fault,
    failed: Failed,
}

impl Disk {
    pub(super) fn new(file: File, fault: Fault, failed: &Failed) -> Result<Self, redb::Error> {
        Ok(Self { file: FileBackend::new(file)?, fault, failed: Arc::clone(failed) })
    }

    fn run<T>(&self, operation: Operation<'_>, run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        (self.fault)(operation).and_then(|()| run()).inspect_err(|error| {
            let was_write = matches!(operation, Operation::Resize(_) | Operation::Write(..));
            let copy = error
                .raw_os_error()
                .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error);
            let _ = self.failed.set(Failure { was_write, error: Arc::new(copy) });
        })
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.run(Operation::Read, || self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.run(Operation::Read, || self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(Operation::Resize(len), || self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.run(Operation::Sync, || self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.run(Operation::Write(offset, data), || self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

const BLOCK: usize = 4096;

/// A file that is only read: what is written stays in memory. Takes no locks.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    /// How much of the file still shows through: it may have been cut and grown again.
    visible: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Overlay {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, written: Mutex::new(Written { length, visible: length, blocks: BTreeMap::new() }) })
    }

    fn with<T>(&self, run: impl FnOnce(&mut Written) -> io::Result<T>) -> io::Result<T> {
        run(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One block of the file, zeros where it has none.
    fn block(&self, written: &Written, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        let mut block = Box::new([0; BLOCK]);
        let start = number * BLOCK as u64;
        let length = usize::try_from(written.visible.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
        self.file.read_exact_at(&mut block[..length], start)?;
        Ok(block)
    }
}

/// The parts of a range, by block: number, offset in the block, range in the data.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let skip = usize::try_from(at % BLOCK as u64).unwrap_or(0);
        let range = done..length.min(done + BLOCK - skip);
        done = range.end;
        (!range.is_empty()).then_some((at / BLOCK as u64, skip, range))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        self.with(|written| Ok(written.length))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|written| {
            if offset.saturating_add(out.len() as u64) > written.length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (number, skip, range) in parts(offset, out.len()) {
                let out = &mut out[range];
                let skip = skip..skip + out.len();
                match written.blocks.get(&number) {
                    Some(block) => out.copy_from_slice(&block[skip]),
                    None => out.copy_from_slice(&self.block(written, number)?[skip]),
                }
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|written| {
            written.length = len;
            written.visible = written.visible.min(len);
            written.blocks.retain(|number, _| number * (BLOCK as u64) < len);
            if let Some(block) = written.blocks.get_mut(&(len / BLOCK as u64)) {
                block[usize::try_from(len % BLOCK as u64).unwrap_or(0)..].fill(0);
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|written| {
            for (number, skip, range) in parts(offset, data.len()) {
                let data = &data[range];
                if !written.blocks.contains_key(&number) {
                    let block = self.block(written, number)?;
                    written.blocks.insert(number, block);
                }
                if let Some(block) = written.blocks.get_mut(&number) {
                    block[skip..skip + data.len()].copy_from_slice(data);
                }
            }
            Ok(())
        })
    }
}
