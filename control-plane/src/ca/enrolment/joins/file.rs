//! `identity.redb` in the data directory: the join tokens by id, as JSON. A change is on disk when it returns; after a
//! write that failed nothing is written until a restart, because redb then knows no more what is on disk.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use anyhow::{Context, Result};
use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    backends::{FileBackend, InMemoryBackend},
};

use super::JoinToken;
use crate::ca::open_private;

const NAME: &str = "identity.redb";
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT: (&str, u64) = ("format", 1);
const JOINS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("join_tokens");
/// redb would take 1 GiB.
const CACHE: usize = 2 * 1024 * 1024;

/// Why a read or a change failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file.
    #[error("{NAME}")]
    Redb(#[from] redb::Error),
    /// What is in it.
    #[error("{NAME}: a record cannot be read")]
    Record(#[from] serde_json::Error),
}

/// Takes every error of redb as one.
trait Redb<T> {
    fn redb(self) -> Result<T, Fault>;
}

impl<T, E: Into<redb::Error>> Redb<T> for Result<T, E> {
    fn redb(self) -> Result<T, Fault> {
        self.map_err(|error| Fault::Redb(error.into()))
    }
}

/// The tokens, while they are changed.
pub struct Tokens<'txn> {
    table: Table<'txn, &'static str, &'static [u8]>,
    changed: bool,
}

impl Tokens<'_> {
    /// One.
    pub fn get(&self, id: &str) -> Result<Option<JoinToken>, Fault> {
        self.table.get(id).redb()?.map(|record| parse(record.value())).transpose()
    }

    /// Adds or replaces one.
    pub fn put(&mut self, token: &JoinToken) -> Result<(), Fault> {
        let record = serde_json::to_vec(token)?;
        self.changed = true;
        self.table.insert(token.id.as_str(), record.as_slice()).redb().map(drop)
    }

    /// Drops all others. A record that cannot be read stays: it is told when it is used.
    pub fn retain(&mut self, keep: impl Fn(&JoinToken) -> bool) -> Result<(), Fault> {
        self.changed = true;
        self.table.retain(|_, record| parse(record).map_or(true, |token| keep(&token))).redb()
    }

    /// How many there are.
    pub fn len(&self) -> Result<usize, Fault> {
        Ok(usize::try_from(self.table.len().redb()?).unwrap_or(usize::MAX))
    }
}

/// Opens the file, which is made when there is none.
pub fn open(data_dir: &Path) -> Result<Database> {
    let path = data_dir.join(NAME);
    let result = catch_unwind(AssertUnwindSafe(|| {
        create(data_dir, &path)?;
        let file = open_private(&path, true)?;
        let database = builder().create_with_backend(FileBackend::new(file)?)?;
        check(&database)?;
        anyhow::Ok(database)
    }));
    // redb may panic on a file that was damaged from outside.
    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("its structure is broken")));
    result.with_context(|| {
        format!("{}: put that right, restore it from a backup, or remove it: that ends all join tokens", path.display())
    })
}

/// A database that goes with its value.
pub fn memory() -> Result<Database> {
    let database = builder().create_with_backend(InMemoryBackend::new())?;
    initialise(&database)?;
    Ok(database)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// Makes the file where it is missing, under another name first: one that was half made is never opened.
fn create(data_dir: &Path, path: &Path) -> Result<()> {
    // A link that leads nowhere is there too, and is refused when it is opened.
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let new = data_dir.join(format!("{NAME}.new"));
    let _ = std::fs::remove_file(&new);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    let database = builder().create_with_backend(FileBackend::new(file.try_clone()?)?)?;
    initialise(&database)?;
    database.close()?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    Ok(File::open(data_dir)?.sync_all()?)
}

fn initialise(database: &Database) -> Result<()> {
    let txn = database.begin_write()?;
    txn.open_table(META)?.insert(FORMAT.0, FORMAT.1)?;
    txn.open_table(JOINS)?;
    Ok(txn.commit()?)
}

/// Refuses a file of another format, and one with a record that cannot be read: better now than when it is used.
fn check(database: &Database) -> Result<()> {
    let format = database.begin_read()?.open_table(META)?.get(FORMAT.0)?.map(|format| format.value());
    anyhow::ensure!(format == Some(FORMAT.1), "format {format:?} is not known: it was written by a newer Weft");
    Ok(all(database).map(drop)?)
}

/// One token.
pub fn get(database: &Database, id: &str) -> Result<Option<JoinToken>, Fault> {
    let table = database.begin_read().redb()?.open_table(JOINS).redb()?;
    table.get(id).redb()?.map(|record| parse(record.value())).transpose()
}

/// All tokens.
pub fn all(database: &Database) -> Result<Vec<JoinToken>, Fault> {
    let table = database.begin_read().redb()?.open_table(JOINS).redb()?;
    table.iter().redb()?.map(|entry| parse(entry.redb()?.1.value())).collect()
}

/// Changes tokens, alone. It is on disk when this returns; after an error nothing was changed.
pub fn change<T>(database: &Database, change: impl FnOnce(&mut Tokens<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
    let mut txn = database.begin_write().redb()?;
    txn.set_durability(Durability::Immediate).redb()?;
    let mut tokens = Tokens { table: txn.open_table(JOINS).redb()?, changed: false };
    let result = change(&mut tokens);
    let changed = result.is_ok() && tokens.changed;
    drop(tokens);
    // A refusal waits for no disk.
    if changed {
        txn.commit().redb()?
    } else {
        txn.abort().redb()?
    }
    result
}

fn parse(record: &[u8]) -> Result<JoinToken, Fault> {
    Ok(serde_json::from_slice(record)?)
}
