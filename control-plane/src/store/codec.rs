//! The bytes of an event, and its hash. Canonical: the same event has the same bytes on every machine.
//!
//! Record, format 1, integers big-endian, texts with their length in bytes as u32 before them:
//! format (u8), previous hash (32 bytes), revision (u64), time (u64, ms), action (u8: 1 create, 2 update, 3 delete),
//! created (u64), before (u64), kind, namespace, name, author, reason, object (JSON without spaces, keys sorted by
//! their bytes; empty for a deletion). `created` and `before` are the revisions of the event that created the object
//! and of its event before this one (0: none): the chain fixes what they say, so the object before is not repeated.
//! The hash is SHA-256 over all of that. In the log the hash follows the record.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::model::{Action, Event, Hash, Key, Revision};

/// The format that we write.
pub(super) const FORMAT: u8 = 1;
const HASH: usize = size_of::<Hash>();

/// The record of an event (its `hash` is not looked at).
pub(super) fn encode(event: &Event) -> Vec<u8> {
    let before = event.before.as_ref();
    let mut out = Vec::with_capacity(512);
    out.push(FORMAT);
    out.extend(event.previous_hash);
    out.extend(event.revision.to_be_bytes());
    out.extend(event.time_ms.to_be_bytes());
    out.push(match event.action {
        Action::Create => 1,
        Action::Update => 2,
        Action::Delete => 3,
    });
    out.extend(before.map_or(event.revision, |before| before.created).to_be_bytes());
    out.extend(before.map_or(0, |before| before.revision).to_be_bytes());
    for text in [&event.key.kind, event.key.namespace.as_str(), &event.key.name, &event.author, &event.reason] {
        text_to(&mut out, |out| out.extend(text.as_bytes()));
    }
    text_to(&mut out, |out| {
        if let Some(object) = &event.object {
            canonical_json(object, out);
        }
    });
    out
}

/// Writes what `write` writes with its length before it. Lengths stay below u32: the store bounds every part.
pub(super) fn text_to(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// JSON without spaces, keys sorted: not left to serde_json, whose order depends on a feature that any crate of the
/// build may switch on.
pub(super) fn canonical_json(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                canonical_json(item, out);
            }
            out.push(b']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| name.as_str());
            out.push(b'{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                canonical_json(&Value::from(name.as_str()), out);
                out.push(b':');
                canonical_json(value, out);
            }
            out.push(b'}');
        }
        scalar => out.extend(scalar.to_string().as_bytes()),
    }
}

/// The hash of a record.
pub(super) fn hash(record: &[u8]) -> Hash {
    Sha256::digest(record).into()
}

/// A record taken apart, borrowed. The object is not parsed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub previous_hash: Hash,
    pub revision: Revision,
    pub time_ms: u64,
    pub action: Action,
    pub created: Revision,
    pub before: Revision,
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub author: &'a str,
    pub reason: &'a str,
    pub object: &'a [u8],
    pub hash: Hash,
}

/// Takes what [`seal`] made apart. Checks the form, not the hash.
pub(super) fn decode(sealed: &[u8]) -> Result<Record<'_>, &'static str> {
    let mut reader = Reader(sealed);
    let [format] = reader.array()?;
    if format != FORMAT {
        return Err("written in a format that this version does not know");
    }
    let record = Record {
        previous_hash: reader.array()?,
        revision: reader.number()?,
        time_ms: reader.number()?,
        action: match reader.array()? {
            [1] => Action::Create,
            [2] => Action::Update,
            [3] => Action::Delete,
            _ => return Err("an unknown action"),
        },
        created: reader.number()?,
        before: reader.number()?,
        kind: reader.text()?,
        namespace: reader.text()?,
        name: reader.text()?,
        author: reader.text()?,
        reason: reader.text()?,
        object: reader.bytes()?,
        hash: reader.array()?,
    };
    if reader.0.is_empty() { Ok(record) } else { Err("too long") }
}

impl Record<'_> {
    pub(super) fn key(&self) -> Key {
        Key::new(self.kind, self.namespace, self.name)
    }

    /// The object; none for a deletion.
    pub(super) fn object(&self) -> Result<Option<Value>, &'static str> {
        if self.action == Action::Delete {
            return Ok(None);
        }
        serde_json::from_slice(self.object).map(Some).map_err(|_| "its object is not JSON")
    }
}

/// The record with its hash after it, as it lies in the log.
pub(super) fn seal(mut record: Vec<u8>, hash: &Hash) -> Vec<u8> {
    record.extend(hash);
    record
}

/// Checks that the hash at the end is that of the record before it.
pub(super) fn is_intact(sealed: &[u8]) -> bool {
    sealed.split_last_chunk::<HASH>().is_some_and(|(record, stored)| hash(record) == *stored)
}

/// Reads fields from the front.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.0.split_first_chunk().ok_or("cut short")?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn number(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], &'static str> {
        let length = u32::from_be_bytes(self.array()?);
        let length = usize::try_from(length).map_err(|_| "too long")?;
        let (head, rest) = self.0.split_at_checked(length).ok_or("cut short")?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, &'static str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "text that is not UTF-8")
    }
}
