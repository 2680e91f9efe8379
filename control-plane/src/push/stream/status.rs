//! Sync state of a stream, for people (rule 12).

use weft_proto::{ResourceType, v1::Rejection};

use super::TypeState;

/// Refused resources that a status shows.
const SHOWN: usize = 16;

/// Sync state of one type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TypeStatus {
    /// Which type.
    pub kind: ResourceType,
    /// Whether the sidecar holds what it was sent.
    pub state: SyncState,
    /// Responses sent.
    pub sent: u64,
    /// Responses accepted.
    pub acked: u64,
    /// Revision of the view that the last response was made from; 0 before the first.
    pub sent_revision: u64,
    /// The same for the last response that was answered.
    pub acked_revision: u64,
    /// The last NACK, until what it refused has changed and was accepted, or is no longer wanted.
    pub error: String,
    /// The version that it holds, of a type of which there is one resource: the trust bundle.
    pub holds: Option<String>,
    /// What is refused at the moment, field by field; the first [`SHOWN`].
    pub refused: Vec<Rejection>,
}

/// Whether a sidecar holds what it was sent of a type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SyncState {
    /// Something that it was sent is refused.
    Error,
    /// Nothing was due so far.
    NotSent,
    /// Sent and not yet answered.
    Stale,
    /// What was sent last was accepted, or it came back with everything.
    Synced,
}

impl SyncState {
    /// As the API shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::NotSent => "NOT_SENT",
            Self::Stale => "STALE",
            Self::Synced => "SYNCED",
        }
    }
}

impl TypeState {
    pub(super) fn status(&self, kind: ResourceType) -> TypeStatus {
        TypeStatus {
            kind,
            state: match self {
                state if !state.error.is_empty() => SyncState::Error,
                state if state.outstanding.is_some() => SyncState::Stale,
                state if state.sent == 0 && state.held.is_empty() => SyncState::NotSent,
                _ => SyncState::Synced,
            },
            sent: self.sent,
            acked: self.acked,
            sent_revision: self.sent_revision,
            acked_revision: self.acked_revision,
            error: self.error.clone(),
            holds: self.held.values().next().filter(|_| kind == ResourceType::TrustBundle).cloned(),
            refused: self.refused.values().take(SHOWN).cloned().collect(),
        }
    }
}
