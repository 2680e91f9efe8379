//! How the authority changes: another issuing certificate, and the three phases of another root. Every change is one
//! replacement of the state's file; keys are written before it and removed after it. Its beginning is `founding`'s.

use std::{sync::Arc, time::SystemTime};

use anyhow::{Context, Result, bail};
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Active, Ca, Kept,
    audit::Entry,
    founding::{issuer_below, key_name, roots},
    lock,
    presented::Serial,
    revocation::Revocations,
    signer::{BACKDATE, Info, Signer, date, make_root, seconds},
    state::{Authority, Keyed, Past, Phase, State},
    trusted::pem,
};

/// Earlier issuing certificates that are remembered.
const MAX_PAST: usize = 64;

/// One step.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Another issuing certificate under the same root.
    Issuer,
    /// A new root is trusted beside the old one.
    RootPrepare,
    /// The new root's issuing certificate issues.
    RootSwitch,
    /// The old root is trusted no more.
    RootFinish,
    /// One phase back.
    RootRollback,
}

impl Step {
    /// Stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::RootPrepare => "root-prepare",
            Self::RootSwitch => "root-switch",
            Self::RootFinish => "root-finish",
            Self::RootRollback => "root-rollback",
        }
    }
}

/// Why the authority was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It does not go with the state that it is in.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// A file could not be read or written, or a certificate not be made.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// What a step makes of the state.
struct Plan {
    state: State,
    signer: Arc<Signer>,
    other: Option<Arc<Signer>>,
    /// Files that are to be there before the state.
    keys: Vec<(String, Zeroizing<String>)>,
    /// What to tell.
    detail: String,
}

/// A moment in the certificates' own time: all that were issued so far begin before it, and those after the step do not.
pub(super) fn boundary(signer: &Signer, floor: i64, now: SystemTime) -> i64 {
    let begins = seconds(now - BACKDATE).saturating_add(1);
    begins.max(signer.not_before).max(floor).saturating_add(1)
}

/// Notes which issuing certificate from files issues; another one than before lets sidecars renew.
///
/// # Errors
/// When it is revoked: then it is not to issue.
pub(super) fn follow(state: &mut State, signer: &Signer, now: SystemTime) -> Result<()> {
    state.remember(&signer.chain, now)?;
    if let Some(revoked) = revoked(state, signer) {
        bail!("certificate {revoked} of its chain is revoked, and nobody would accept what it signs: give another one");
    }
    let serial = signer.serials.first().map(ToString::to_string);
    let another = state.external.is_some() || state.current.is_some();
    if another && state.external != serial {
        renew(state, signer, now);
    }
    state.external = serial;
    Ok(())
}

/// The serial number of the first certificate of a signer's chain that is revoked.
fn revoked<'a>(state: &State, signer: &'a Signer) -> Option<&'a Serial> {
    let revocations = Revocations::of(&state.revocations);
    signer.serials.iter().find(|serial| revocations.has(serial))
}

/// The embedded authority issues again, after files did.
pub(super) fn unfollow(state: &mut State, signer: &Signer, now: SystemTime) {
    if state.external.take().is_some() {
        renew(state, signer, now);
    }
}

fn milliseconds(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

impl Ca {
    /// Takes a step. Whether the sidecars are ready for it is the caller's question, see [`super::fleet`].
    ///
    /// # Errors
    /// When it does not go with the phase, or a file could not be written: then nothing has changed here, and on disk
    /// is the old state or the new one.
    pub fn step(&self, step: Step, by: &str, reason: &str) -> Result<(), ChangeError> {
        self.step_at(step, by, reason, SystemTime::now())
    }

    pub(super) fn step_at(&self, step: Step, by: &str, reason: &str, now: SystemTime) -> Result<(), ChangeError> {
        let mut kept = lock(&self.kept);
        if let Some(files) = &kept.external {
            return Err(ChangeError::Conflict(format!(
                "the issuing certificate comes from files: change {} and {}",
                files.certificate.display(),
                files.roots.display()
            )));
        }
        let plan = self.plan(&kept, step, now)?;
        let detail = plan.detail.clone();
        self.carry_out(&mut kept, plan)?;
        drop(kept);
        let detail = if reason.is_empty() { detail } else { format!("{detail}; {reason}") };
        let (event, by) = ("rotation".into(), by.into());
        self.audit.changed(Entry { event, by, reason: step.as_str().into(), detail, ..Entry::default() });
        Ok(())
    }

    fn plan(&self, kept: &Kept, step: Step, now: SystemTime) -> Result<Plan, ChangeError> {
        let (mut state, phase) = (kept.state.clone(), kept.state.phase);
        let wrong = |wanted: &str| {
            let text = format!(
                "{} follows on {wanted}, and the rotation of the root is in phase {}: weft certs ca lists the next steps",
                step.as_str(),
                phase.as_str()
            );
            Err(ChangeError::Conflict(text))
        };
        let current = state.current.clone().context("there is no issuing certificate")?;
        let (mut signer, mut other) = (Arc::clone(&kept.signer), kept.other.clone());
        let mut keys = Vec::new();
        let detail = match (step, phase) {
            (Step::Issuer, _) => {
                let root = current.root.der()?;
                let root_key = current.root.load_key(&self.directory).context("the root's key is needed for this")?;
                let (issuer, key) = issuer_below(&root, root_key, &self.trust_domain, now)?;
                let made = self.signer(&issuer, &key, &roots(&state)?, now)?;
                remember(&mut state, &kept.signer, now);
                state.current = Some(Authority { root: current.root, issuer: issuer.clone() });
                signer = Arc::new(made);
                keys.push((issuer.key, key));
                renew(&mut state, &kept.signer, now);
                format!("issuing certificate {} until {}", shown(&signer), date(signer.not_after))
            }
            (Step::RootPrepare, Phase::Stable) => {
                let key = KeyPair::generate().context("key of the root")?;
                let root = make_root(&key, &self.trust_domain, now)?;
                let keyed = Keyed { certificate: pem("CERTIFICATE", &root), key: key_name("root") };
                keys.push((keyed.key.clone(), Zeroizing::new(key.serialize_pem())));
                let (issuer, key) = issuer_below(&root, key, &self.trust_domain, now)?;
                let made = self.signer(&issuer, &key, std::slice::from_ref(&root), now)?;
                keys.push((issuer.key.clone(), key));
                let detail = format!("root {} until {}", Info::of(&root)?.serial, date(Info::of(&root)?.not_after));
                (state.phase, state.other) = (Phase::Prepared, Some(Authority { root: keyed, issuer }));
                other = Some(Arc::new(made));
                detail
            }
            (Step::RootSwitch, Phase::Prepared) | (Step::RootRollback, Phase::Switched) => {
                let next = other.replace(signer).context("the other issuing certificate cannot be used")?;
                if let Some(revoked) = revoked(&state, &next) {
                    return Err(ChangeError::Conflict(format!(
                        "{}: issuing certificate {revoked}, which would issue, is revoked: {}",
                        step.as_str(),
                        match phase {
                            Phase::Prepared => "root-rollback and root-prepare make another one",
                            _ => "root-finish completes the change of the root; or withdraw the revocation",
                        }
                    )));
                }
                signer = next;
                state.current = state.other.replace(current);
                state.phase = if phase == Phase::Prepared { Phase::Switched } else { Phase::Prepared };
                state.past.clear();
                renew(&mut state, &kept.signer, now);
                format!("issuing certificate {} issues", shown(&signer))
            }
            (Step::RootFinish, Phase::Switched) | (Step::RootRollback, Phase::Prepared) => {
                let gone = state.other.take().context("there is no other root")?;
                other = None;
                state.phase = Phase::Stable;
                format!("root {} is trusted no more", Info::of(&gone.root.der()?)?.serial)
            }
            (Step::RootPrepare, _) => return wrong("phase stable"),
            (Step::RootSwitch, _) => return wrong("phase prepared"),
            (Step::RootFinish, _) => return wrong("phase switched"),
            (Step::RootRollback, _) => return wrong("phase prepared or switched"),
        };
        let chains = [Some(&signer), other.as_ref()].into_iter().flatten().flat_map(|signer| &signer.chain);
        state.remember(chains, now)?;
        Ok(Plan { state, signer, other, keys, detail })
    }

    fn signer(&self, issuer: &Keyed, key: &str, roots: &[CertificateDer<'static>], now: SystemTime) -> Result<Signer> {
        let key = KeyPair::from_pem(key)?;
        Signer::new(vec![issuer.der()?], key, roots, &self.trust_domain, now)
    }

    fn carry_out(&self, kept: &mut Kept, plan: Plan) -> Result<()> {
        let roots = roots(&plan.state)?;
        self.change(
            kept,
            plan.state,
            roots,
            |kept| {
                (kept.signer, kept.other) = (plan.signer, plan.other);
            },
            &plan.keys,
        )
    }

    /// Makes `state` the one that counts: keys first, then the state, then memory, then what is not needed goes.
    pub(super) fn change(
        &self,
        kept: &mut Kept,
        state: State,
        roots: Vec<CertificateDer<'static>>,
        adopt: impl FnOnce(&mut Kept),
        keys: &[(String, Zeroizing<String>)],
    ) -> Result<()> {
        let held = state.floor > kept.state.floor;
        if held {
            // What is issued until the new state counts belongs before the boundary, however long the disk takes.
            self.hold(Some(state.floor - 1));
        }
        let written = keys
            .iter()
            .try_for_each(|(name, key)| self.directory.write(name, key.as_bytes()))
            .and_then(|()| state.store(&self.directory));
        if let Err(error) = written {
            if held {
                self.hold(None);
            }
            return Err(error.context("nothing was changed"));
        }
        kept.state = state;
        adopt(kept);
        self.publish(kept.active(roots, None));
        kept.state.sweep(&self.directory);
        Ok(())
    }

    /// Lets certificates begin no later than this until the next change.
    fn hold(&self, ceiling: Option<i64>) {
        self.active.send_modify(|active| {
            let held = Active {
                signer: Arc::clone(&active.signer),
                own: Arc::clone(&active.own),
                roots: active.roots.clone(),
                revocations: active.revocations.clone(),
                ceiling,
                ..**active
            };
            *active = Arc::new(held);
        });
    }
}

/// Keeps in mind whose leaves may still be in use.
fn remember(state: &mut State, signer: &Signer, now: SystemTime) {
    state.past.retain(|past| past.not_after > seconds(now));
    let key_id = signer.key_id.iter().map(|byte| format!("{byte:02x}")).collect();
    state.past.push(Past { serial: shown(signer), key_id, not_after: signer.not_after });
    let over = state.past.len().saturating_sub(MAX_PAST);
    state.past.drain(..over);
}

/// Certificates so far are to be renewed early.
fn renew(state: &mut State, old: &Signer, now: SystemTime) {
    state.floor = boundary(old, state.floor, now);
    state.renew_issued_before = milliseconds(state.floor);
}

/// The serial number of the issuing certificate, in hex.
pub(super) fn shown(signer: &Signer) -> String {
    signer.serials.first().map(ToString::to_string).unwrap_or_default()
}
