//! Follows the log record by record: checks the hash chain and folds it to where each object's last event is. Also
//! the snapshot of that fold, which lets a start skip what lies before it.

use std::collections::BTreeMap;

use crate::store::{
    codec::{self, Reader, Record},
    error::VerifyError,
    model::{Action, Head, Key, Revision},
};

/// Where an object's events are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub created: Revision,
    pub revision: Revision,
}

/// The log up to a head: what was read is proven to be what was written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Chain {
    pub head: Head,
    pub objects: BTreeMap<Key, Place>,
}

impl Chain {
    /// Takes the next record of the log.
    pub(super) fn follow(&mut self, revision: Revision, sealed: &[u8]) -> Result<(), VerifyError> {
        let expected = self.head.revision + 1;
        let wrong = |why: &str| Err(VerifyError { revision: expected, why: why.into() });
        if revision != expected {
            return wrong("the event is missing");
        }
        let record = match intact(revision, sealed) {
            Ok(record) => record,
            Err(why) => return wrong(why),
        };
        if record.previous_hash != self.head.hash {
            return wrong("it does not follow the event before it: an earlier one was changed");
        }
        if !self.fold(&record) {
            return wrong("it contradicts the events before it");
        }
        self.head = Head { revision, hash: record.hash };
        Ok(())
    }

    /// Whether the event can happen to its object; if so, it has.
    fn fold(&mut self, record: &Record<'_>) -> bool {
        let key = record.key();
        let before = Place { created: record.created, revision: record.before };
        let after = Place { created: record.created, revision: record.revision };
        match (record.action, self.objects.get_mut(&key)) {
            (Action::Create, None) => {
                self.objects.insert(key, after);
                before == Place { created: record.revision, revision: 0 }
            }
            (Action::Update, Some(place)) if *place == before => {
                *place = after;
                true
            }
            (Action::Delete, Some(place)) if *place == before => {
                self.objects.remove(&key);
                true
            }
            _ => false,
        }
    }
}

/// A record whose hash is right and which is of that revision.
pub(super) fn intact(revision: Revision, sealed: &[u8]) -> Result<Record<'_>, &'static str> {
    if !codec::is_intact(sealed) {
        return Err("its bytes are not those that were written");
    }
    codec::decode(sealed).and_then(|record| {
        if record.revision == revision { Ok(record) } else { Err("it lies in the place of another event") }
    })
}

/// The bytes of a fold: hash of the head, then for each object kind, namespace, name, created, revision; then SHA-256
/// of all that.
pub(super) fn snapshot<'a>(head: &Head, objects: impl Iterator<Item = (&'a Key, Place)>) -> Vec<u8> {
    let mut out = head.hash.to_vec();
    for (key, place) in objects {
        for text in [&*key.kind, &key.namespace, &key.name] {
            codec::text_to(&mut out, |out| out.extend(text.as_bytes()));
        }
        out.extend(place.created.to_be_bytes());
        out.extend(place.revision.to_be_bytes());
    }
    let digest = codec::hash(&out);
    codec::seal(out, &digest)
}

/// Reads what [`snapshot`] wrote. It is proven intact, not proven true: the log decides.
pub(super) fn from_snapshot(revision: Revision, sealed: &[u8]) -> Result<Chain, &'static str> {
    let (bytes, _) = sealed.split_last_chunk::<32>().filter(|_| codec::is_intact(sealed)).ok_or("damaged")?;
    let mut reader = Reader(bytes);
    let head = Head { revision, hash: reader.array()? };
    let mut objects = BTreeMap::new();
    while !reader.0.is_empty() {
        let key = Key::new(reader.text()?, reader.text()?, reader.text()?);
        objects.insert(key, Place { created: reader.number()?, revision: reader.number()? });
    }
    Ok(Chain { head, objects })
}
