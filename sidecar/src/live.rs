//! Sessions of mutual TLS, inbound and outbound, of one worker: each is closed when the peer's certificate ends, and when
//! the roots or revocations of now do not accept the peer's chain any more. Where a root went, and nothing was revoked,
//! what is in flight has a moment left. Before a rotation of the root comes to that, each side has left the sessions that
//! it began with a certificate of the old one, while what was in flight on them could end in its own time. What policies say of a connection is
//! looked at in `inbound`. Looked at when trust changes and once a second, never per request.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use slab::Slab;
use tokio::{sync::watch, time::Instant};
use weft_policy::SpiffeId;
use weft_svid::{PeerIdentity, Role, SvidReason, TrustStore};

use crate::{identity::IdentityReceiver, telemetry::Telemetry};

/// How often expiry is looked at, and how far ahead, by the wall clock: the monotonic one stops while a laptop sleeps.
pub const TICK: Duration = Duration::from_secs(1);
/// For requests in flight on a session whose root is not trusted any more; closed at the first look after it, so that
/// all is over within 5 s of the change.
const LEAVE: Duration = Duration::from_secs(3);
/// Chains that are checked before others get the thread: one takes some 200 us.
const CHECKS: usize = 8;

/// Ends something from outside: whoever serves it waits, whoever judges it fires. One waits at a time.
pub struct Cut<T> {
    why: Cell<Option<T>>,
    waiting: RefCell<Option<Waker>>,
}

/// Why a session is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Why {
    /// The peer's certificate ends.
    Expired,
    /// The peer's chain is not accepted any more.
    Refused(SvidReason),
}

/// The sessions of one worker.
pub struct Sessions {
    trust: TrustStore,
    version: watch::Receiver<u64>,
    telemetry: Telemetry,
    open: RefCell<Slab<Entry>>,
    /// How often our own certificate has come from another authority than the one before.
    authorities: Cell<u64>,
}

/// One session, until it is dropped.
pub struct Session {
    sessions: Rc<Sessions>,
    key: usize,
    leaving: Rc<Cut<()>>,
    cut: Rc<Cut<Why>>,
}

/// All that is kept of a peer: its chain, about 1 KiB, and when its leaf ends.
struct Entry {
    chain: Rc<[CertificateDer<'static>]>,
    id: SpiffeId,
    not_after: SystemTime,
    role: Role,
    /// Takes no new streams.
    leaving: Rc<Cut<()>>,
    /// When a session that is leaving is closed, and why.
    due: Cell<Option<(Instant, SvidReason)>>,
    cut: Rc<Cut<Why>>,
}

/// A moment in what is trusted, and in which certificate is ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Trusted {
    version: u64,
    authorities: u64,
}

impl<T> Default for Cut<T> {
    fn default() -> Self {
        Self { why: Cell::new(None), waiting: RefCell::default() }
    }
}

impl<T: Copy> Cut<T> {
    /// Ends it; the first reason stays.
    pub fn fire(&self, why: T) {
        if self.why.get().is_none() {
            self.why.set(Some(why));
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
    }

    /// Why it was fired, if it was.
    pub const fn why(&self) -> Option<T> {
        self.why.get()
    }

    /// Whether it was fired.
    pub fn has_fired(&self) -> bool {
        self.why.get().is_some()
    }

    /// Ready when it was fired.
    pub fn poll(&self, context: &Context<'_>) -> Poll<T> {
        if let Some(why) = self.why.get() {
            return Poll::Ready(why);
        }
        let mut waiting = self.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until it is fired.
    pub async fn fired(&self) -> T {
        poll_fn(|context| self.poll(context)).await
    }
}

impl Why {
    /// Stable word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => SvidReason::Expired.as_str(),
            Self::Refused(reason) => reason.as_str(),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Sessions {
    /// None yet; `trust` is what a chain is checked against.
    #[must_use]
    pub fn new(trust: TrustStore, telemetry: Telemetry) -> Rc<Self> {
        Rc::new(Self {
            version: trust.subscribe(),
            trust,
            telemetry,
            open: RefCell::default(),
            authorities: Cell::default(),
        })
    }

    /// What is trusted now: to be asked before a handshake.
    #[must_use]
    pub fn trusted(&self) -> Trusted {
        Trusted { version: *self.version.borrow(), authorities: self.authorities.get() }
    }

    /// A session with a peer that has proved its identity with this chain, in a handshake that began when `trusted` was.
    pub fn enter(
        self: &Rc<Self>,
        trusted: &Trusted,
        role: Role,
        chain: &[CertificateDer<'_>],
        peer: &PeerIdentity,
    ) -> Session {
        let (cut, leaving) = (Rc::new(Cut::default()), Rc::new(Cut::default()));
        let entry = Entry {
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            id: peer.id.clone(),
            not_after: peer.not_after,
            role,
            leaving: Rc::clone(&leaving),
            due: Cell::new(None),
            cut: Rc::clone(&cut),
        };
        if self.authorities.get() != trusted.authorities {
            entry.leaving.fire(());
        }
        if *self.version.borrow() != trusted.version
            && let Err(reason) = self.trust.accepts(&entry.chain, role)
        {
            self.close(&entry, Why::Refused(reason));
        }
        let key = self.open.borrow_mut().insert(entry);
        Session { sessions: Rc::clone(self), key, leaving, cut }
    }

    /// How many are open.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }

    /// Looks at all sessions for as long as the worker lives.
    pub async fn keep(self: Rc<Self>, mut identity: IdentityReceiver) {
        let mut signer = identity.borrow_and_update().as_ref().map(|own| own.signer.clone());
        let (mut version, mut tick) = (self.version.clone(), tokio::time::interval(TICK));
        loop {
            tokio::select! {
                _ = tick.tick() => self.expire(SystemTime::now(), Instant::now()),
                // The sender is in `self.trust`.
                _ = version.changed() => self.recheck().await,
                Ok(()) = identity.changed() => {
                    let now = identity.borrow_and_update().as_ref().map(|own| own.signer.clone());
                    if now.is_some() && signer.is_some() && now != signer {
                        self.renewed();
                    }
                    signer = now.or(signer);
                }
            }
        }
    }

    /// Our own certificate comes from another authority: what is open takes no new streams, which go on sessions with the
    /// new certificate. What is in flight goes on, since the old authority is still trusted; when its root is withdrawn,
    /// little is left that depended on it.
    fn renewed(&self) {
        self.authorities.set(self.authorities.get() + 1);
        let open = self.open.borrow();
        tracing::info!(sessions = open.len(), "certificate of another authority: mesh connections take no new streams");
        open.iter().for_each(|(_, entry)| entry.leaving.fire(()));
    }

    /// Closes the sessions whose peer's certificate ends before the next look, and those that have left for long enough.
    fn expire(&self, now: SystemTime, moment: Instant) {
        for entry in self.open.borrow().iter().map(|(_, entry)| entry) {
            if entry.not_after <= now + TICK {
                self.close(entry, Why::Expired);
            }
            if let Some((due, reason)) = entry.due.get()
                && due <= moment
            {
                self.close(entry, Why::Refused(reason));
            }
        }
    }

    /// Closes the sessions whose peer's chain is not accepted any more; those of which only the root has gone, later.
    async fn recheck(&self) {
        let chains = self.chains();
        // A peer has many connections with one certificate.
        let mut known: HashMap<(&[CertificateDer<'static>], bool), Option<SvidReason>> = HashMap::new();
        for (key, chain, role) in &chains {
            let refused = match known.get(&(&**chain, *role == Role::Client)) {
                Some(refused) => *refused,
                None => {
                    let refused = self.trust.accepts(chain, *role).err();
                    known.insert((chain, *role == Role::Client), refused);
                    if known.len().is_multiple_of(CHECKS) {
                        tokio::task::yield_now().await;
                    }
                    refused
                }
            };
            let open = self.open.borrow();
            // Its place may be another session's by now.
            let entry = open.get(*key).filter(|entry| Rc::ptr_eq(&entry.chain, chain));
            match (entry, refused) {
                (Some(entry), Some(reason @ SvidReason::UnknownRoot)) => Self::leave(entry, reason),
                (Some(entry), Some(reason)) => self.close(entry, Why::Refused(reason)),
                (Some(_), None) | (None, _) => {}
            }
        }
    }

    fn chains(&self) -> Vec<(usize, Rc<[CertificateDer<'static>]>, Role)> {
        self.open.borrow().iter().map(|(key, entry)| (key, Rc::clone(&entry.chain), entry.role)).collect()
    }

    /// No new streams; closed when those that are open have had their time, also when the root should come back.
    fn leave(entry: &Entry, reason: SvidReason) {
        if entry.due.get().is_none() {
            entry.due.set(Some((Instant::now() + LEAVE, reason)));
            entry.leaving.fire(());
        }
    }

    fn close(&self, entry: &Entry, why: Why) {
        if entry.cut.why.get().is_some() {
            return;
        }
        let side = if entry.role == Role::Client { "server" } else { "client" };
        let labels = [("side", side), ("reason", why.as_str())];
        let help = "Mesh connections closed since the peer's certificate ended or is not accepted any more";
        self.telemetry.counter("weft_mesh_closed_total", help, &labels).increment(1);
        tracing::info!(peer = %entry.id, reason = why.as_str(), side, "mesh connection closed");
        entry.cut.fire(why);
    }
}

impl Session {
    /// Fired when it is to take no new streams.
    #[must_use]
    pub const fn leaving(&self) -> &Rc<Cut<()>> {
        &self.leaving
    }

    /// Waits until it is to take no new streams, for `life` at most.
    pub async fn left(&self, life: Duration) {
        // What is left of `life` does not matter once the time is over.
        tokio::time::timeout(life, self.leaving.fired()).await.unwrap_or_default();
    }

    /// Ready when it must be closed.
    pub fn poll_ended(&self, context: &Context<'_>) -> Poll<Why> {
        self.cut.poll(context)
    }

    /// Waits until it must be closed.
    pub async fn ended(&self) -> Why {
        self.cut.fired().await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.open.borrow_mut().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests;
