//! The tables of the redb file, and what is read from them. Nothing here writes but [`write`] and [`initialise`].

use std::{collections::BTreeMap, sync::Arc};

use redb::{Database, Durability, ReadOnlyTable, ReadTransaction, ReadableTable, TableDefinition, TableError};
use serde_json::Value;
use tracing::warn;

use super::chain::{self, Chain, Place};
use crate::store::{
    codec::{self, Record},
    error::{ReadError, VerifyError},
    model::{Event, Head, HistoryFilter, Key, Past, Revision, Stored},
    propose::Proposed,
    state::State,
};

/// The format of the file that we write, in the table `meta`.
pub(super) const FORMAT: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";
/// Sealed records by revision.
const EVENTS: TableDefinition<'_, Revision, &[u8]> = TableDefinition::new("events");
/// The newest snapshot, by the revision that it reflects.
const SNAPSHOTS: TableDefinition<'_, Revision, &[u8]> = TableDefinition::new("snapshots");

/// Most bytes of records that one read of a page takes, beyond the first event.
const PAGE_BYTES: usize = 1024 * 1024;

/// Why something could not be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// The log is not what was written.
    Damaged(VerifyError),
    /// A format that we do not know, or not ours.
    Format(Option<u64>),
    Redb(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Damaged(VerifyError { revision, why }) => Self::Damaged { revision, why },
            Fault::Format(_) => Self::Io { why: "not a store of this version".into() },
            Fault::Redb(error) => Self::Io { why: error.to_string().into() },
        }
    }
}

fn damaged(revision: Revision, why: &str) -> Fault {
    Fault::Damaged(VerifyError { revision, why: why.into() })
}

type Events = ReadOnlyTable<Revision, &'static [u8]>;

/// Checks that the file is ours and of the format that we know.
pub(super) fn check_format(txn: &ReadTransaction) -> Result<(), Fault> {
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Err(Fault::Format(None)),
        Err(error) => return Err(error.into()),
    };
    match meta.get(FORMAT_KEY)?.map(|format| format.value()) {
        Some(FORMAT) => Ok(()),
        other => Err(Fault::Format(other)),
    }
}

/// Makes the tables of a new file.
pub(super) fn initialise(database: &Database) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    txn.open_table(EVENTS)?;
    txn.open_table(SNAPSHOTS)?;
    Ok(txn.commit()?)
}

/// Commits events, and with them the snapshot of the state that they lead to, if there is to be one.
pub(super) fn write(database: &Database, events: &[Proposed], snapshot: Option<&State>) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    {
        let mut table = txn.open_table(EVENTS)?;
        for Proposed { event, record } in events {
            table.insert(event.revision, codec::seal(record.clone(), &event.hash).as_slice())?;
        }
    }
    if let Some(state) = snapshot {
        let places =
            state.iter().map(|stored| (&stored.key, Place { created: stored.created, revision: stored.revision }));
        let bytes = chain::snapshot(&state.head(), places);
        let mut table = txn.open_table(SNAPSHOTS)?;
        table.retain(|_, _| false)?;
        table.insert(state.revision(), bytes.as_slice())?;
    }
    Ok(txn.commit()?)
}

/// The last event.
pub(super) fn head(txn: &ReadTransaction) -> Result<Head, Fault> {
    let events = txn.open_table(EVENTS)?;
    let Some((revision, sealed)) = events.last()? else { return Ok(Head::default()) };
    let revision = revision.value();
    let record = chain::intact(revision, sealed.value()).map_err(|why| damaged(revision, why))?;
    Ok(Head { revision, hash: record.hash })
}

/// The newest snapshot that is intact, belongs to this log and is not newer than `through`.
pub(super) fn snapshot(txn: &ReadTransaction, through: Revision) -> Result<Option<Chain>, Fault> {
    let snapshots = txn.open_table(SNAPSHOTS)?;
    let Some((revision, sealed)) = snapshots.last()? else { return Ok(None) };
    let revision = revision.value();
    if revision > through {
        return Ok(None);
    }
    let events = txn.open_table(EVENTS)?;
    let matches = |chain: &Chain| -> Result<bool, Fault> {
        let sealed = events.get(revision)?;
        Ok(sealed.is_some_and(|sealed| {
            chain::intact(revision, sealed.value()).is_ok_and(|record| record.hash == chain.head.hash)
        }))
    };
    match chain::from_snapshot(revision, sealed.value()) {
        Ok(chain) if matches(&chain)? => return Ok(Some(chain)),
        Ok(_) => warn!(revision, "the snapshot does not belong to this log: replaying all events instead"),
        Err(why) => warn!(revision, why, "the snapshot is unusable: replaying all events instead"),
    }
    Ok(None)
}

/// Follows the log from where `chain` is, through a revision or to the end.
pub(super) fn follow(txn: &ReadTransaction, mut chain: Chain, through: Option<Revision>) -> Result<Chain, Fault> {
    if through == Some(chain.head.revision) {
        return Ok(chain);
    }
    let events = txn.open_table(EVENTS)?;
    for entry in events.range(chain.head.revision + 1..=through.unwrap_or(Revision::MAX))? {
        let (revision, sealed) = entry?;
        chain.follow(revision.value(), sealed.value()).map_err(Fault::Damaged)?;
    }
    match through {
        Some(through) if chain.head.revision != through => {
            Err(damaged(chain.head.revision + 1, "the event is missing"))
        }
        _ => Ok(chain),
    }
}

/// The objects that a chain leads to.
pub(super) fn objects(txn: &ReadTransaction, chain: &Chain) -> Result<Vec<Arc<Stored>>, Fault> {
    let events = txn.open_table(EVENTS)?;
    let load = |(key, place): (&Key, &Place)| stored(&events, key, *place).map(Arc::new);
    chain.objects.iter().map(load).collect()
}

/// Everything that [`objects`] gives, by key.
pub(super) fn state_at(txn: &ReadTransaction, revision: Revision) -> Result<BTreeMap<Key, Arc<Stored>>, Fault> {
    let chain = follow(txn, snapshot(txn, revision)?.unwrap_or_default(), Some(revision))?;
    Ok(objects(txn, &chain)?.into_iter().map(|stored| (stored.key.clone(), stored)).collect())
}

/// An object as one of its events left it.
fn stored(events: &Events, key: &Key, place: Place) -> Result<Stored, Fault> {
    let Place { created, revision } = place;
    let sealed = events.get(revision)?.ok_or_else(|| damaged(revision, "the event is missing"))?;
    let record = chain::intact(revision, sealed.value()).map_err(|why| damaged(revision, why))?;
    if record.key() != *key || record.created != created {
        return Err(damaged(revision, "it is not about the object that it should be about"));
    }
    let object = record.object().map_err(|why| damaged(revision, why))?;
    let object = object.ok_or_else(|| damaged(revision, "it should have an object"))?;
    Ok(Stored { key: key.clone(), created, revision, object: Arc::new(object) })
}

fn event(events: &Events, record: &Record<'_>) -> Result<Event, Fault> {
    let place = Place { created: record.created, revision: record.before };
    let before = if record.before == 0 { None } else { Some(Arc::new(stored(events, &record.key(), place)?)) };
    let object = record.object().map_err(|why| damaged(record.revision, why))?.map(Arc::new);
    Ok(told(record, before, object))
}

/// The event of a record, with these objects.
fn told(record: &Record<'_>, before: Option<Arc<Stored>>, object: Option<Arc<Value>>) -> Event {
    Event {
        revision: record.revision,
        time_ms: record.time_ms,
        author: record.author.into(),
        reason: record.reason.into(),
        action: record.action,
        key: record.key(),
        before,
        object,
        previous_hash: record.previous_hash,
        hash: record.hash,
    }
}

/// At least one event after a revision, if there is one through `head`.
pub(super) fn page(
    txn: &ReadTransaction,
    after: Revision,
    head: Revision,
    limit: usize,
) -> Result<Vec<Arc<Event>>, Fault> {
    let mut page = Vec::new();
    if after >= head {
        return Ok(page);
    }
    let events = txn.open_table(EVENTS)?;
    let mut bytes = 0;
    for entry in events.range(after + 1..=head)?.take(limit) {
        let (revision, sealed) = entry?;
        let (revision, sealed) = (revision.value(), sealed.value());
        let record = chain::intact(revision, sealed).map_err(|why| damaged(revision, why))?;
        page.push(Arc::new(event(&events, &record)?));
        bytes += sealed.len();
        if bytes > PAGE_BYTES {
            break;
        }
    }
    Ok(page)
}

/// The events that a filter asks for, newest first.
pub(super) fn history(txn: &ReadTransaction, filter: &HistoryFilter, head: Revision) -> Result<Past, Fault> {
    let events = txn.open_table(EVENTS)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for entry in events.range(..=filter.last(head))?.rev() {
        if filter.is_enough(found.len(), bytes) {
            return Ok(Past { events: found, more: true });
        }
        let (revision, sealed) = entry?;
        let (revision, sealed) = (revision.value(), sealed.value());
        let record = codec::decode(sealed).map_err(|why| damaged(revision, why))?;
        if !filter.matches([record.kind, record.namespace, record.name], record.author, record.reason) {
            continue;
        }
        let record = chain::intact(revision, sealed).map_err(|why| damaged(revision, why))?;
        if filter.objects.is_none() {
            let key = record.key();
            let before = Stored { key, created: record.created, revision: record.before, object: Arc::default() };
            let before = (record.before > 0).then(|| Arc::new(before));
            found.push(told(&record, before, None));
            continue;
        }
        bytes += record.object.len();
        if let Some(before) = events.get(record.before)? {
            bytes += before.value().len();
        }
        found.push(event(&events, &record)?);
    }
    Ok(Past { events: found, more: false })
}

/// Checks the whole log against a state.
pub(super) fn verify(txn: &ReadTransaction, state: &State) -> Result<Head, Fault> {
    let head = state.head();
    let chain = follow(txn, Chain::default(), Some(head.revision))?;
    if chain.head != head {
        return Err(damaged(head.revision, "it is not the event that was committed"));
    }
    let events = txn.open_table(EVENTS)?;
    let differs = |revision| Err(damaged(revision, "the objects in memory are not what the events lead to"));
    if state.len() != chain.objects.len() {
        return differs(head.revision);
    }
    for (stored, (key, place)) in state.iter().zip(&chain.objects) {
        let mut object = Vec::new();
        codec::canonical_json(&stored.object, &mut object);
        let place_in_memory = Place { created: stored.created, revision: stored.revision };
        let sealed = events.get(place.revision)?;
        let same = sealed.is_some_and(|sealed| codec::decode(sealed.value()).is_ok_and(|r| r.object == object));
        if stored.key != *key || place_in_memory != *place || !same {
            return differs(place.revision);
        }
    }
    Ok(head)
}

/// Pretends that another version wrote the file.
#[cfg(test)]
pub(super) fn set_format(database: &Database, format: u64) {
    let txn = database.begin_write().unwrap();
    txn.open_table(META).unwrap().insert(FORMAT_KEY, format).unwrap();
    txn.commit().unwrap();
}

/// Puts a snapshot that no store wrote.
#[cfg(test)]
pub(super) fn set_snapshot(database: &Database, revision: Revision, bytes: &[u8]) {
    let txn = database.begin_write().unwrap();
    txn.open_table(SNAPSHOTS).unwrap().retain(|_, _| false).unwrap();
    txn.open_table(SNAPSHOTS).unwrap().insert(revision, bytes).unwrap();
    txn.commit().unwrap();
}
