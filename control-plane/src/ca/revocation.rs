//! What is revoked: certificates by serial number, and all certificates of an identity that began before a moment. An
//! entry goes once the certificates that it means would have ended by themselves.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_policy::SpiffeId;
use weft_proto::v1;

use super::{
    presented::{Presented, Serial},
    signer::BACKDATE,
};

/// One entry, as it is kept and shown.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocation {
    /// By which it is withdrawn.
    pub id: String,
    /// Serial number in hex; none when an identity is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The revoked identity; of a serial number, whose it is as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Of an identity: certificates that began before this, seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before: Option<i64>,
    /// Of a serial number: the end of the certificate as far as it is known, seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<i64>,
    /// When it was made, seconds since the Unix epoch.
    pub created: i64,
    /// When it goes, seconds since the Unix epoch.
    pub expires: i64,
    /// Who made it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// When a revocation goes that is meant for what ends then, seconds since the Unix epoch: a sidecar whose clock is behind
/// takes it for valid a little longer.
#[must_use]
pub fn over(not_after: i64) -> i64 {
    not_after.saturating_add(i64::try_from(BACKDATE.as_secs()).unwrap_or_default())
}

/// What an operator wants revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A certificate, a leaf or an issuing one.
    Serial(Serial),
    /// All certificates of an identity so far.
    Identity(SpiffeId),
}

impl Subject {
    /// The entry's id: of the same thing it is the same.
    #[must_use]
    pub fn id(&self) -> String {
        let text = match self {
            Self::Serial(serial) => format!("serial {serial}"),
            Self::Identity(id) => format!("identity {id}"),
        };
        Sha256::digest(text.as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// All entries, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    serials: HashMap<Serial, ()>,
    identities: BTreeMap<SpiffeId, i64>,
    /// Identity and end of certificates that are revoked by serial number: how a stream says which one it has now.
    ends: HashMap<(SpiffeId, i64), ()>,
}

impl Revocations {
    /// Of these entries.
    #[must_use]
    pub fn of(entries: &[Revocation]) -> Self {
        let mut all = Self::default();
        for entry in entries {
            let id = entry.identity.as_deref().and_then(|id| SpiffeId::parse(id).ok());
            match (entry.serial.as_deref().and_then(Serial::parse), id, entry.issued_before, entry.not_after) {
                (Some(serial), id, _, end) => {
                    all.serials.insert(serial, ());
                    if let (Some(id), Some(end)) = (id, end) {
                        all.ends.insert((id, end), ());
                    }
                }
                (None, Some(id), Some(before), _) => _ = all.identities.insert(id, before),
                _ => {}
            }
        }
        all
    }

    /// Whether a certificate of this identity is revoked. `current_end` is the end of the one that the peer has now, when
    /// it has renewed since (seconds since the Unix epoch).
    #[must_use]
    pub fn cover(&self, id: &SpiffeId, presented: &Presented, current_end: Option<i64>) -> bool {
        presented.serials.iter().any(|serial| self.serials.contains_key(serial))
            || self.identities.get(id).is_some_and(|before| presented.not_before < *before)
            || current_end.is_some_and(|end| self.ends.contains_key(&(id.clone(), end)))
    }

    /// Whether a certificate with this serial number is revoked.
    #[must_use]
    pub fn has(&self, serial: &Serial) -> bool {
        self.serials.contains_key(serial)
    }
}

/// As sidecars get it.
#[must_use]
pub fn wire(entries: &[Revocation]) -> Vec<v1::Revocation> {
    use v1::revocation::What;
    let one = |entry: &Revocation| {
        let what = match (&entry.serial, &entry.identity, entry.issued_before) {
            (Some(serial), ..) => What::Serial(Serial::parse(serial)?.bytes().to_vec().into()),
            (None, Some(id), Some(before)) => {
                let issued_before = u64::try_from(before).ok()?.checked_mul(1000)?;
                What::Identity(v1::RevokedIdentity { spiffe_id: id.clone(), issued_before })
            }
            _ => return None,
        };
        Some(v1::Revocation { what: Some(what) })
    };
    entries.iter().filter_map(one).collect()
}
