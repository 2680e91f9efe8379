//! The life of this sidecar's identity: the first certificate, renewals, what happens when they fail, when clocks jump
//! and when the certificate is not trusted any more. Who signs and what time it is are arguments.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};
use weft_proto::v1::Registration;
use weft_svid::{Role, Svid, SvidReason, TrustStore};

use super::{
    Failure, FailureReason, MeshIdentity,
    life::{CHECK, Life, Moment, WallClock},
};
use crate::{
    readiness::Readiness,
    state::{self, Store, duration, identity::StoredIdentity},
    telemetry::Telemetry,
};

/// Between two certificates, whatever the clocks say.
const SPACING: Duration = Duration::from_secs(2);
/// Between two certificates that had ended by this machine's clock when they came.
const CLOCK_SPACING: Duration = Duration::from_secs(300);
/// A signature has this time.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What proves to the signer who asks.
#[derive(Clone)]
pub enum Proof {
    /// The enrolment token.
    Token,
    /// The certificate that is to be renewed.
    Certificate(Arc<Svid>),
}

/// A new certificate.
pub struct Signed {
    /// Chain and key.
    pub svid: Svid,
    /// DER roots of its trust domain.
    pub roots: Vec<Vec<u8>>,
}

/// Who signs certificates.
pub trait Signer: Send + Sync + 'static {
    /// Gets a certificate for a new key.
    fn sign(&self, proof: Proof) -> impl Future<Output = Result<Signed, Failure>> + Send;

    /// Whether there is a token to ask with.
    fn has_token(&self) -> bool;
}

/// By trust domain: certificates whose notBefore is before this (milliseconds since the Unix epoch; 0: none) are to be
/// renewed soon.
pub type Wishes = BTreeMap<String, u64>;

/// The parts of a renewal.
pub struct Renewal<S> {
    /// Who signs.
    pub signer: Arc<S>,
    /// Whom we trust: our own certificate is judged by it, too.
    pub trust: TrustStore,
    /// What time it is.
    pub clock: WallClock,
    /// What the control plane wants renewed soon.
    pub wishes: watch::Receiver<Wishes>,
    /// For the workers; `None` while there is no certificate that may be used.
    pub publish: watch::Sender<Option<Arc<MeshIdentity>>>,
    /// For discovery's own connection.
    pub discovery: watch::Sender<Option<Arc<Svid>>>,
    /// Says when the certificate ends.
    pub registration: watch::Sender<Registration>,
    /// Told whether there is a certificate, and why not.
    pub readiness: Readiness,
    /// Metrics.
    pub telemetry: Telemetry,
    /// Where certificates are kept.
    pub store: Option<Arc<Store>>,
}

/// A certificate in our hands.
struct Held {
    svid: Arc<Svid>,
    identity: Arc<MeshIdentity>,
    life: Life,
    standing: Standing,
    /// For which wish of the control plane it was renewed early already.
    answered: u64,
    warned: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    Good,
    /// Our own bundle does not trust it any more.
    Untrusted(SvidReason),
    /// It is on the list.
    Revoked,
}

/// Tries so far, since the last certificate.
#[derive(Default)]
struct Tries {
    failures: u32,
    next: Option<Instant>,
    last: Option<String>,
    /// The certificate did not help: the token goes next.
    token_next: bool,
}

type Attempt = Pin<Box<dyn Future<Output = (SystemTime, Result<Signed, Failure>)> + Send>>;

impl<S: Signer> Renewal<S> {
    /// Enrols, or goes on with `stored`; then renews for ever.
    pub async fn run(mut self, stored: Option<StoredIdentity>) {
        let mut trust_changed = self.trust.subscribe();
        let mut generation = 0;
        let mut held = stored.and_then(|stored| {
            let now = self.clock.now();
            tracing::info!(not_after = %OffsetDateTime::from(stored.svid.identity.not_after), "certificate from disk");
            self.take(stored.svid, stored.obtained, now, &mut generation)
                .map_err(|failure| tracing::warn!(%failure, "the stored certificate is not used"))
                .ok()
        });
        let mut tries = Tries::default();
        let mut attempt: Option<Attempt> = None;
        self.judge(&mut held);
        loop {
            let now = self.clock.now();
            self.wish(&mut held, now);
            self.show(held.as_mut(), &tries, now);
            if attempt.is_none() && wants(held.as_ref(), now) && tries.next.is_none_or(|next| now.steady >= next) {
                attempt = Some(self.attempt(proof(held.as_ref(), &tries, now)));
            }
            let quiet = held.as_ref().map_or(CHECK, |held| held.life.quiet(now));
            let next = tries.next.map(|next| next.saturating_duration_since(now.steady)).filter(|wait| !wait.is_zero());
            tokio::select! {
                (obtained, result) = finished(&mut attempt) => {
                    attempt = None;
                    match result {
                        Ok(signed) => self.obtained(&mut held, &mut tries, signed, obtained, &mut generation).await,
                        Err(failure) => self.failed(held.as_mut(), &mut tries, &failure),
                    }
                }
                () = tokio::time::sleep(next.map_or(quiet, |next| quiet.min(next))) => {}
                _ = trust_changed.changed() => self.judge(&mut held),
                Ok(()) = self.wishes.changed() => {}
            }
        }
    }

    /// Begins a try that goes on while the clocks are watched.
    fn attempt(&self, proof: Proof) -> Attempt {
        let (signer, clock) = (Arc::clone(&self.signer), self.clock.clone());
        Box::pin(async move {
            let signed = tokio::time::timeout(TIMEOUT, signer.sign(proof)).await;
            let late = || {
                let error = anyhow::anyhow!("the control plane has not signed within {}", duration(TIMEOUT));
                Err(Failure::new(FailureReason::Timeout, error))
            };
            (clock.now().wall, signed.unwrap_or_else(|_| late()))
        })
    }

    /// A certificate in hand, with the configurations that the workers use.
    fn take(&self, svid: Arc<Svid>, obtained: SystemTime, now: Moment, generation: &mut u64) -> Result<Held, Failure> {
        *generation += 1;
        let identity = Arc::new(MeshIdentity::new(&svid, &self.trust, *generation)?);
        let validity = (svid.not_before, svid.identity.not_after);
        let life = Life::new(validity, obtained, now, rand::random());
        Ok(Held { svid, identity, life, standing: Standing::Good, answered: 0, warned: 0 })
    }

    async fn obtained(
        &mut self,
        held: &mut Option<Held>,
        tries: &mut Tries,
        signed: Signed,
        obtained: SystemTime,
        generation: &mut u64,
    ) {
        let now = self.clock.now();
        let new = match self.take(Arc::new(signed.svid), obtained, now, generation) {
            Ok(new) => new,
            Err(failure) => return self.failed(held.as_mut(), tries, &failure),
        };
        let svid = Arc::clone(&new.svid);
        let answered = self.wished(&svid);
        *held = Some(Held { answered, ..new });
        self.readiness.reached();
        let not_after = svid.identity.not_after;
        self.telemetry.counter("weft_cert_rotations_total", "Certificates obtained", &[]).increment(1);
        tracing::info!(not_after = %OffsetDateTime::from(not_after), "certificate obtained");
        if held.as_ref().is_some_and(|held| held.life.is_over(now)) {
            // It may be good all the same, once this clock is right; asking for more of the kind helps nobody.
            let ago = duration(now.wall.duration_since(not_after).unwrap_or_default());
            let error = anyhow::anyhow!("the new certificate ended {ago} ago by this machine's clock");
            self.failed(held.as_mut(), tries, &Failure::new(FailureReason::Clock, error));
            tries.next = Some(now.steady + CLOCK_SPACING);
        } else {
            *tries = Tries { next: Some(now.steady + SPACING), ..Tries::default() };
        }
        self.judge(held);
        if let Some(held) = held
            && matches!(held.standing, Standing::Untrusted(_))
        {
            // The bundle that trusts it may be on its way.
            tries.next = Some(now.steady + held.life.spread());
        }
        self.show(held.as_mut(), tries, now);
        if let Some(store) = &self.store {
            let workload = store.owner().workload.clone();
            let stored = StoredIdentity { workload, svid, roots: signed.roots, obtained, saved: obtained };
            state::keep::save_identity(store, stored, &self.telemetry).await;
        }
    }

    fn failed(&self, held: Option<&mut Held>, tries: &mut Tries, failure: &Failure) {
        let now = self.clock.now();
        let reason = failure.reason.as_str();
        let help = "Certificates that could not be obtained, by reason";
        self.telemetry.counter("weft_cert_renewal_failures_total", help, &[("reason", reason)]).increment(1);
        tries.failures = tries.failures.saturating_add(1);
        let left = held.as_ref().map_or(Duration::MAX, |held| held.life.left(now));
        let wait = retry_after(tries.failures, left, rand::random());
        tries.next = Some(now.steady + wait);
        // The token goes once, then the certificate again: a used token must not keep a good certificate from renewal.
        tries.token_next = !tries.token_next && failure.reason.asks_for_token() && self.signer.has_token();
        // Each doubling: an hour without a control plane must not fill the log.
        if tries.failures.is_power_of_two() {
            tracing::warn!(reason, error = %failure, failures = tries.failures, ?wait, "no new certificate; trying again");
        }
        if matches!(failure.reason, FailureReason::Unreachable | FailureReason::Untrusted | FailureReason::Timeout) {
            self.readiness.away(&failure.to_string());
        } else {
            self.readiness.reached();
        }
        tries.last = Some(failure.to_string());
        if failure.reason == FailureReason::Revoked
            && let Some(held) = held
        {
            held.standing = Standing::Revoked;
        }
    }

    /// Judges our own certificate by the trust of now.
    fn judge(&self, held: &mut Option<Held>) {
        let Some(held) = held else { return };
        let standing = match self.trust.accepts(&held.svid.chain, Role::Client) {
            Err(SvidReason::Revoked) => Standing::Revoked,
            // Dates are judged by both clocks, and not here; an empty store says nothing yet.
            Ok(()) | Err(SvidReason::Expired | SvidReason::NotYetValid | SvidReason::ForeignTrustDomain) => {
                Standing::Good
            }
            Err(reason) => Standing::Untrusted(reason),
        };
        if standing != held.standing && standing != Standing::Good {
            tracing::warn!(?standing, "our own certificate is not trusted any more; it is to be replaced");
        }
        held.standing = standing;
    }

    fn wished(&self, svid: &Svid) -> u64 {
        self.wishes.borrow().get(svid.identity.id.trust_domain()).copied().unwrap_or(0)
    }

    /// Renews early when the control plane wishes it or nobody trusts our issuer any more.
    fn wish(&self, held: &mut Option<Held>, now: Moment) {
        let Some(held) = held else { return };
        let wished = self.wished(&held.svid);
        let began = held.svid.not_before.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        // A wish that a renewal has not met would be one for ever.
        let wished = began < u128::from(wished) && wished != held.answered;
        if wished || matches!(held.standing, Standing::Untrusted(_)) {
            held.life.renew_early(now, rand::random());
        }
    }

    /// Tells workers, discovery, metrics and readiness what there is now.
    fn show(&self, held: Option<&mut Held>, tries: &Tries, now: Moment) {
        let usable = held.filter(|held| !held.life.is_over(now) && held.standing != Standing::Revoked);
        let Some(held) = usable else {
            self.withdraw(tries);
            return;
        };
        let current = self.publish.borrow().as_ref().map(|identity| identity.generation);
        if current != Some(held.identity.generation) {
            let end = held.svid.identity.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
            let millis = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
            self.registration.send_modify(|registration| registration.certificate_end_ms = millis);
            let gauge = self.telemetry.gauge("weft_cert_expiry_seconds", "End of the certificate, Unix time", &[]);
            gauge.set(end.as_secs_f64());
            self.publish.send_replace(Some(Arc::clone(&held.identity)));
            self.discovery.send_replace(Some(Arc::clone(&held.svid)));
        }
        self.readiness.certificate(None);
        let step = match held.life.share_left(now) {
            share if share <= 0.10 => 2,
            share if share <= 0.25 => 1,
            _ => 0,
        };
        if step > held.warned {
            held.warned = step;
            let (left, last) = (duration(held.life.left(now)), tries.last.as_deref().unwrap_or("nothing was tried"));
            tracing::warn!(left, last, "the certificate ends soon and was not renewed");
        }
    }

    /// There is no certificate that may be used.
    fn withdraw(&self, tries: &Tries) {
        if self.publish.borrow().is_some() {
            tracing::error!(last = tries.last, "there is no valid certificate any more: the mesh is not served");
            self.publish.send_replace(None);
        }
        if self.discovery.borrow().is_some() {
            self.discovery.send_replace(None);
        }
        let why = tries.last.as_ref().map_or_else(|| "certificate".to_owned(), |last| format!("certificate ({last})"));
        self.readiness.certificate(Some(why));
    }
}

/// Whether a certificate is to be asked for.
fn wants(held: Option<&Held>, now: Moment) -> bool {
    held.is_none_or(|held| held.life.is_due(now) || held.life.is_over(now) || held.standing == Standing::Revoked)
}

/// With what to ask.
fn proof(held: Option<&Held>, tries: &Tries, now: Moment) -> Proof {
    match held {
        Some(held) if !held.life.is_over(now) && held.standing != Standing::Revoked && !tries.token_next => {
            Proof::Certificate(Arc::clone(&held.svid))
        }
        _ => Proof::Token,
    }
}

/// The result of a try that goes on; never, when none does.
async fn finished(attempt: &mut Option<Attempt>) -> (SystemTime, Result<Signed, Failure>) {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

/// How long to wait after a failure: doubling to 10 s with jitter, and never more than a quarter of what is `left` of the
/// certificate, so that a control plane that comes back in its last moments still finds somebody who asks.
fn retry_after(failures: u32, left: Duration, random: f64) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    let doubled = FIRST.saturating_mul(1 << failures.min(7)).min(Duration::from_secs(10));
    doubled.min((left / 4).max(FIRST)).mul_f64(0.5 + 0.5 * random)
}

#[cfg(test)]
mod tests;
