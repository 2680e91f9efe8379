//! Revoking and withdrawing: each on disk before it counts, and told in the record.

use std::{sync::Arc, time::SystemTime};

use super::{
    Ca, Kept,
    audit::Entry,
    lock,
    presented::Serial,
    revocation::{Revocation, Subject, over},
    rotation::{ChangeError, boundary},
    signer::{Info, seconds},
    state::State,
};
use weft_policy::convert::MAX_REVOCATIONS;

impl Ca {
    /// Revokes. The certificates that are meant are refused in every new handshake from now on, streams that were opened
    /// with them end, and sidecars close what they authenticated.
    ///
    /// # Errors
    /// When it would cut everybody off, there is no room, or it could not be kept.
    pub fn revoke(&self, subject: &Subject, by: &str, reason: &str) -> Result<Revocation, ChangeError> {
        let now = SystemTime::now();
        let mut kept = lock(&self.kept);
        let mut state = kept.state.clone();
        let entry = self.entry(&kept, &mut state, subject, by, reason, now)?;
        state.revocations.retain(|old| old.id != entry.id);
        if state.revocations.len() >= MAX_REVOCATIONS {
            return Err(ChangeError::Conflict(format!(
                "there are {MAX_REVOCATIONS} revocations already: they go when their certificates have ended; a shorter \
                 --svid-lifetime, or another root, needs fewer"
            )));
        }
        state.revocations.push(entry.clone());
        self.keep(&mut kept, state)?;
        drop(kept);
        self.tell("revoked", &entry, by, reason);
        Ok(entry)
    }

    fn entry(
        &self,
        kept: &Kept,
        state: &mut State,
        subject: &Subject,
        by: &str,
        reason: &str,
        now: SystemTime,
    ) -> Result<Revocation, ChangeError> {
        let seconds = seconds(now);
        let longest = i64::try_from(state.longest_life).unwrap_or(i64::MAX);
        let mut entry = Revocation {
            id: subject.id(),
            serial: None,
            identity: None,
            issued_before: None,
            not_after: None,
            created: seconds,
            expires: over(seconds.saturating_add(longest)),
            by: by.into(),
            reason: reason.into(),
        };
        match subject {
            Subject::Identity(id) => {
                if id.trust_domain() != self.trust_domain || id.namespace_and_account().is_none() {
                    let form = format!("spiffe://{}/ns/NAMESPACE/sa/ACCOUNT", self.trust_domain);
                    return Err(ChangeError::Invalid(format!("identity {id}: must be {form}")));
                }
                state.floor = boundary(&kept.signer, state.floor, now);
                entry.identity = Some(id.to_string());
                entry.issued_before = Some(state.floor);
            }
            Subject::Serial(serial) => {
                if kept.signer.serials.contains(serial) {
                    return Err(ChangeError::Conflict(format!(
                        "serial {serial} is the issuing certificate that issues now: without it nobody is trusted. First \
                         weft certs rotate issuer, then, when weft certs shows that all have renewed, revoke it"
                    )));
                }
                self.no_root(serial)?;
                entry.serial = Some(serial.to_string());
                let owned = lock(&self.recents).owner(serial).map(|(id, end)| (id.to_string(), end));
                let known = state.signer_end(&serial.to_string()).or(owned.as_ref().map(|(_, end)| *end));
                entry.identity = owned.map(|(id, _)| id);
                if let Some(end) = known {
                    (entry.not_after, entry.expires) = (Some(end), over(end));
                } else {
                    // It may be one that signed and is not known any more.
                    entry.expires = entry.expires.max(over(state.signers_forgotten));
                }
            }
        }
        Ok(entry)
    }

    /// Roots are trusted by their keys, and peers do not show them: a list that names one changes nothing.
    fn no_root(&self, serial: &Serial) -> Result<(), ChangeError> {
        let active = self.active();
        if !active.roots.iter().filter_map(|root| Info::of(root).ok()).any(|root| root.serial == *serial) {
            return Ok(());
        }
        Err(ChangeError::Conflict(format!(
            "serial {serial} is a root, which is trusted until it is no root any more: weft certs rotate root --all \
             replaces it (with --ca-roots: take it out of that file)"
        )))
    }

    /// Withdraws a revocation: what it meant is trusted again.
    ///
    /// # Errors
    /// When there is none, or it could not be kept.
    pub fn withdraw(&self, id: &str, by: &str) -> Result<Revocation, ChangeError> {
        let mut kept = lock(&self.kept);
        let mut state = kept.state.clone();
        let place = state.revocations.iter().position(|entry| entry.id == id);
        let place =
            place.ok_or_else(|| ChangeError::NotFound(format!("revocation {id:?}: there is none with this id")))?;
        let entry = state.revocations.remove(place);
        self.keep(&mut kept, state)?;
        drop(kept);
        self.tell("revocation_withdrawn", &entry, by, "");
        Ok(entry)
    }

    /// Drops those whose certificates have ended.
    pub(super) fn end_revocations(&self, now: SystemTime) {
        let mut kept = lock(&self.kept);
        let over = |entry: &Revocation| entry.expires <= seconds(now);
        if !kept.state.revocations.iter().any(over) {
            return;
        }
        let mut state = kept.state.clone();
        let (ended, left) = state.revocations.into_iter().partition(over);
        state.revocations = left;
        match self.keep(&mut kept, state) {
            Ok(()) => {
                drop(kept);
                let ended: Vec<Revocation> = ended;
                ended.iter().for_each(|entry| self.tell("revocation_ended", entry, "weft", ""));
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "revocations that are over stay"),
        }
    }

    fn keep(&self, kept: &mut Kept, state: State) -> anyhow::Result<()> {
        let roots = Arc::clone(&self.active.borrow()).roots.clone();
        self.change(kept, state, roots, |_| {}, &[])
    }

    fn tell(&self, event: &str, entry: &Revocation, by: &str, detail: &str) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (identity, serial) = (text(&entry.identity), text(&entry.serial));
        let (event, by, reason, detail) = (event.into(), by.into(), entry.id.clone(), detail.into());
        self.audit.changed(Entry { event, identity, serial, by, reason, detail, ..Entry::default() });
    }
}
