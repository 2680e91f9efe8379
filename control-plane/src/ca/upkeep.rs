//! What the authority does without being asked: another issuing certificate in time, the end of revocations that are
//! over, files that somebody else has changed; and what it tells operators to do.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Ca,
    audit::Entry,
    external::{self, External},
    lock,
    rotation::{Step, follow, shown},
    signer::{Info, date, seconds},
};

/// How often [`Ca::maintain`] is to be called.
pub const MAINTENANCE: Duration = Duration::from_secs(2);

/// The wall clock may go this far from the uptime.
const JUMP: Duration = Duration::from_secs(300);
/// After a start or a jump, the wall clock is believed for what cannot be undone when it has gone with the uptime for
/// this long: time enough for a clock that was wrong at the start to be set right.
pub(super) const CONFIRM: Duration = Duration::from_secs(3600);

/// Since when the wall clock has gone as the uptime has.
#[derive(Debug, Default)]
pub(super) struct Steady {
    since: Option<(SystemTime, Instant)>,
}

impl Steady {
    /// Whether the wall clock has gone steadily for [`CONFIRM`]. A jump begins that time again and is logged.
    fn is_confirmed(&mut self, now: SystemTime, uptime: Instant) -> bool {
        let Some((wall, started)) = self.since else {
            self.since = Some((now, uptime));
            return false;
        };
        let steady = uptime.saturating_duration_since(started);
        let expected = wall.checked_add(steady).unwrap_or(wall);
        let off = now.duration_since(expected).unwrap_or_else(|error| error.duration());
        if off > JUMP {
            tracing::error!(
                seconds = off.as_secs(),
                "the clock of this machine has jumped: revocations that are over stay for an hour; check its time \
                 synchronization"
            );
            self.since = Some((now, uptime));
            return false;
        }
        steady >= CONFIRM
    }
}

impl Ca {
    /// What has to be done without being asked: an issuing certificate at 80 % of its life, revocations that are over,
    /// files that changed, files for new sidecars that could not be written.
    pub fn maintain(&self, now: SystemTime) {
        self.maintain_at(now, Instant::now());
    }

    /// The same, with the clock that nobody can set.
    pub(super) fn maintain_at(&self, now: SystemTime, uptime: Instant) {
        // What is dropped does not come back: a clock that was set wrong for one look must not do it.
        if lock(&self.steady).is_confirmed(now, uptime) {
            self.end_revocations(now);
        }
        self.follow_files(now);
        if self.issuer_is_due(now)
            && let Err(error) = self.step_at(Step::Issuer, "weft", "80 % of its life are over", now)
        {
            tracing::error!(error = format!("{error:#}"), "no other issuing certificate; trying again");
        }
        if let Err(error) = lock(&self.trusted).write(&self.active.borrow().roots) {
            tracing::error!(error = format!("{error:#}"), "new sidecars cannot be told the roots; trying again");
        }
    }

    fn issuer_is_due(&self, now: SystemTime) -> bool {
        let kept = lock(&self.kept);
        let Some(current) = kept.state.current.as_ref().filter(|_| kept.external.is_none()) else { return false };
        let (signer, now) = (&kept.signer, seconds(now));
        let due = signer.not_before + (signer.not_after - signer.not_before) / 5 * 4;
        // One that ends with its root cannot be followed by one that ends later.
        let root = current.root.der().ok().and_then(|root| Info::of(&root).ok());
        now >= due && root.is_some_and(|root| root.not_after > signer.not_after)
    }

    fn follow_files(&self, now: SystemTime) {
        let mut kept = lock(&self.kept);
        let Some(files) = kept.external.as_ref().filter(|files| files.changed()) else { return };
        let files = files.stamped();
        let mut state = kept.state.clone();
        let read = files.load(&self.trust_domain, now);
        let read = read.and_then(|read| follow(&mut state, &read.signer, now).map(|()| read));
        let External { signer, roots } = match read {
            Ok(read) => read,
            Err(error) => {
                let text = format!("{error:#}");
                drop(kept);
                // Told once for each text: the next look is in seconds.
                if lock(&self.trusted).told.replace(text.clone()).as_ref() != Some(&text) {
                    tracing::error!(error = text, "the authority's files are not used; the old certificate issues");
                    let (event, reason) = ("external".into(), "refused".into());
                    self.audit.changed(Entry { event, reason, by: "weft".into(), detail: text, ..Entry::default() });
                }
                return;
            }
        };
        lock(&self.trusted).told = None;
        let same = signer.chain == kept.signer.chain && roots == self.active.borrow().roots;
        let detail =
            format!("issuing certificate {} until {}, {} roots", shown(&signer), date(signer.not_after), roots.len());
        if same {
            kept.external = Some(files);
            return;
        }
        let changed = self.change(
            &mut kept,
            state,
            roots,
            |kept| {
                (kept.signer, kept.external) = (Arc::new(signer), Some(files));
            },
            &[],
        );
        drop(kept);
        match changed {
            Ok(()) => {
                let (event, reason) = ("external".into(), "changed".into());
                self.audit.changed(Entry { event, reason, by: "weft".into(), detail, ..Entry::default() });
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the authority's files are not used yet"),
        }
    }

    /// What is to be told about ends that come near, if anything is.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let kept = lock(&self.kept);
        if kept.external.is_some() {
            return external::warning(&kept.signer, seconds(now));
        }
        let root = Info::of(&kept.state.current.as_ref()?.root.der().ok()?).ok()?;
        let due = root.not_after - (root.not_after - root.not_before) / 5;
        (seconds(now) >= due)
            .then(|| format!("the root ends at {}: weft certs rotate root --all changes it", date(root.not_after)))
    }
}
