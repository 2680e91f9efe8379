//! Connections to applications and to other sidecars, pooled per worker. `outbound` and `inbound` ask for a
//! connection and send; nothing here knows of routes or retries.

mod connect;
#[cfg(test)]
mod tests;
mod tunnel;
mod watched;

#[cfg(test)]
pub(crate) use connect::handshake;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use weft_policy::{
    SpiffeId,
    limits::{Limits, Permit},
    model::{BackendPolicy, MeshAddress, Target},
};

use connect::Own;
pub use connect::tcp as connect_tcp;
use tunnel::Carrier;

use crate::{
    error::{ProxyError, Reason},
    http::body::Body,
    identity::{self, IdentityReceiver},
    live::{Cut, Sessions},
    telemetry::Telemetry,
};

/// An idle plaintext connection is not used after this time, unless a policy has another: Node.js closes its own after
/// 5 s.
const IDLE: Duration = Duration::from_secs(3);
/// Idle HTTP/1.1 connections kept for one key.
const IDLE_PER_KEY: usize = 256;
/// Streams on one HTTP/2 connection, unless a policy has another number; then another connection is made.
const STREAMS: u32 = 250;
/// Of TCP and TLS together, unless a policy has another time.
pub const CONNECT: Duration = Duration::from_secs(2);

/// How connections are made and used.
pub struct Rules<'a> {
    /// TCP and TLS together.
    pub connect: Duration,
    idle: Duration,
    max_age: Duration,
    streams: u32,
    /// No HTTP/1.1 connection that was used before: its end may be on its way, and a request that failed by that would
    /// fail by it again.
    fresh: bool,
    /// Connections and requests that wait for one; `None` for the app beside this sidecar.
    limits: Option<&'a Limits>,
}

/// Where a connection leads and what is spoken on it. Connections with equal keys are interchangeable.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Key {
    /// An application, in the clear.
    Plain {
        /// Its address.
        address: SocketAddr,
        /// HTTP/2 with prior knowledge rather than HTTP/1.1.
        http2: bool,
    },
    /// The mesh listener of an endpoint, for one service port.
    Mesh {
        /// Its address.
        address: SocketAddr,
        /// Who must answer.
        identity: SpiffeId,
        /// What the SNI names.
        target: Target,
    },
}

/// A connection or stream in use by one exchange.
pub enum Lease {
    /// A whole HTTP/1.1 connection, and the pool that it goes back to.
    Http1(Rc<Pool>, Box<Held>),
    /// One stream of an HTTP/2 connection.
    Http2(http2::SendRequest<Body>, StreamGuard),
}

/// Counts a stream of an HTTP/2 connection while it lives.
pub struct StreamGuard(Rc<Cell<u32>>);

/// An HTTP/1.1 connection.
pub struct Held {
    sender: http1::SendRequest<Body>,
    /// Since when it is idle.
    since: Instant,
    idle: Duration,
    /// Not used from here on.
    until: Instant,
    /// Its place among the connections to the target.
    _place: Option<Permit>,
}

struct Shared {
    sender: http2::SendRequest<Body>,
    streams: Rc<Cell<u32>>,
    /// No new stream from here on.
    until: Instant,
    /// Nor once this was fired; `None` for the app beside this sidecar.
    leaving: Option<Rc<Cut<()>>>,
    /// Its place among the connections to the target.
    _place: Option<Permit>,
}

/// The connections of one key.
#[derive(Default)]
pub struct Pool {
    #[expect(clippy::vec_box, reason = "a lease is part of every body: it holds a pointer")]
    idle: RefCell<Vec<Box<Held>>>,
    shared: RefCell<Vec<Shared>>,
    carriers: RefCell<Vec<Carrier>>,
    /// One dial at a time on HTTP/2, so that a burst makes one connection.
    dialing: tokio::sync::Mutex<()>,
    /// How many dials have failed, and why the last one did.
    failures: RefCell<(u64, Option<ProxyError>)>,
}

/// The pools of one worker.
pub struct Pools {
    identity: IdentityReceiver,
    sessions: Rc<Sessions>,
    telemetry: Telemetry,
    pools: RefCell<HashMap<Key, Rc<Pool>>>,
}

impl Key {
    /// The key for an endpoint's mesh listener.
    #[must_use]
    pub fn mesh(mesh: &MeshAddress, target: &Target) -> Self {
        Self::Mesh { address: mesh.address, identity: mesh.identity.clone(), target: target.clone() }
    }

    /// Mutual TLS.
    #[must_use]
    pub const fn is_mesh(&self) -> bool {
        matches!(self, Self::Mesh { .. })
    }

    /// Where it leads.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        match self {
            Self::Mesh { address, .. } | Self::Plain { address, .. } => *address,
        }
    }

    /// HTTP/2 is spoken.
    #[must_use]
    pub const fn is_http2(&self) -> bool {
        matches!(self, Self::Mesh { .. } | Self::Plain { http2: true, .. })
    }
}

impl Pools {
    /// Empty pools.
    #[must_use]
    pub fn new(identity: IdentityReceiver, sessions: Rc<Sessions>, telemetry: Telemetry) -> Self {
        Self { identity, sessions, telemetry, pools: RefCell::default() }
    }

    /// A connection for one exchange: a pooled one if there is one, else a new one.
    ///
    /// # Errors
    /// Whatever kept a new connection from being made; nothing was sent.
    pub async fn lease(&self, key: &Key, rules: &Rules<'_>) -> Result<Lease, ProxyError> {
        let pool = self.pool(key);
        let pooled = if rules.fresh && !key.is_http2() { None } else { pool.lease(key.is_http2(), rules.streams) };
        match pooled {
            Some(lease) => Ok(lease),
            // Rare, and its state is large: boxed, so that the future of every request is not as large.
            None => Box::pin(self.dial(key, pool, rules)).await,
        }
    }

    fn pool(&self, key: &Key) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        if let Some(pool) = pools.get(key) {
            return Rc::clone(pool);
        }
        Rc::clone(pools.entry(key.clone()).or_default())
    }

    async fn dial(&self, key: &Key, pool: Rc<Pool>, rules: &Rules<'_>) -> Result<Lease, ProxyError> {
        let _waiting = rules.limits.map(pending).transpose()?;
        if !key.is_http2() {
            let place = rules.limits.map(connection).transpose()?;
            let sender = self.counted(key, connect::http1(key, rules.connect).await)?;
            let (since, until) = (Instant::now(), Instant::now() + rules.max_age);
            return Ok(Lease::Http1(pool, Box::new(Held { sender, since, idle: rules.idle, until, _place: place })));
        }
        let _turn = pool.turn().await?;
        if let Some(lease) = pool.stream(rules.streams) {
            return Ok(lease);
        }
        let place = rules.limits.map(connection).transpose()?;
        let dialled = self.counted(key, connect::http2(key, self.own(), rules.connect).await);
        let (sender, leaving, life) = dialled.inspect_err(|error| pool.failed(error))?;
        let streams = Rc::new(Cell::new(0));
        let until = Instant::now() + life.min(rules.max_age);
        let shared = Shared { sender: sender.clone(), streams: Rc::clone(&streams), until, leaving, _place: place };
        pool.shared.borrow_mut().push(shared);
        Ok(Lease::Http2(sender, StreamGuard::new(streams)))
    }

    /// A tunnel to a service port, on a connection of tunnels to its endpoint, made within `connect` if there is none.
    ///
    /// # Errors
    /// Whatever kept it from being opened; no byte was sent.
    pub async fn tunnel(
        &self,
        mesh: &MeshAddress,
        target: &Target,
        connect: Duration,
    ) -> Result<(crate::tunnel::Tunnel, StreamGuard), ProxyError> {
        let key = Key::mesh(mesh, target);
        let pool = self.pool(&key);
        if let Some(carrier) = pool.carrier() {
            return carrier.open(target).await;
        }
        let turn = pool.turn().await?;
        if let Some(carrier) = pool.carrier() {
            drop(turn);
            return carrier.open(target).await;
        }
        let dialled = self.counted(&key, connect::carrier(mesh, target, self.own(), connect).await);
        let carrier = dialled.inspect_err(|error| pool.failed(error))?;
        pool.carriers.borrow_mut().push(carrier.clone());
        drop(turn);
        carrier.open(target).await
    }

    /// Drops what is idle for too long, too old or closed, and the pools that nothing uses. Called once a second.
    pub fn sweep(&self) {
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep();
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
    }

    /// Closes the mesh connections to addresses that are not `live`, once their streams have ended.
    pub fn keep_live(&self, live: impl Fn(&SocketAddr) -> bool) {
        self.pools.borrow_mut().retain(|key, _| match key {
            Key::Mesh { address, .. } => live(address),
            Key::Plain { .. } => true,
        });
    }

    const fn own(&self) -> Own<'_> {
        Own { identity: &self.identity, sessions: &self.sessions }
    }

    fn counted<T>(&self, key: &Key, result: Result<T, ProxyError>) -> Result<T, ProxyError> {
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => error.reason.as_str(),
        };
        let kind = if key.is_mesh() { "mesh" } else { "plaintext" };
        let labels = [("kind", kind), ("result", outcome)];
        self.telemetry.counter("weft_upstream_connects_total", "Connections made to endpoints", &labels).increment(1);
        result
    }
}

fn pending(limits: &Limits) -> Result<Permit, ProxyError> {
    limits.pending.try_acquire().ok_or_else(|| {
        let detail = format!("{} requests wait for a connection, as many as may", limits.pending.current());
        ProxyError::unsent(Reason::PendingLimit, detail)
    })
}

fn connection(limits: &Limits) -> Result<Permit, ProxyError> {
    limits.connections.try_acquire().ok_or_else(|| {
        let detail = format!("{} connections are open, as many as may be", limits.connections.current());
        ProxyError::unsent(Reason::ConnectionLimit, detail)
    })
}

impl Rules<'static> {
    /// For connections to the app beside this sidecar.
    #[must_use]
    pub const fn app() -> Self {
        Self { connect: CONNECT, idle: IDLE, max_age: identity::MAX_AGE, streams: STREAMS, fresh: false, limits: None }
    }
}

impl<'a> Rules<'a> {
    /// For connections to the endpoints of a target.
    #[must_use]
    pub fn of(policy: &BackendPolicy, limits: &'a Limits) -> Self {
        Self {
            connect: policy.connect_timeout,
            idle: policy.connection.idle.unwrap_or(IDLE),
            max_age: policy.connection.max_age,
            streams: policy.connection.max_streams,
            fresh: false,
            limits: Some(limits),
        }
    }

    /// Whether an HTTP/1.1 connection must be a new one; off unless it is set.
    #[must_use]
    pub const fn fresh(self, fresh: bool) -> Self {
        Self { fresh, ..self }
    }
}

impl Held {
    fn is_usable(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now.duration_since(self.since) < self.idle && now < self.until
    }
}

impl Shared {
    fn is_young(&self, now: Instant) -> bool {
        now < self.until && !self.leaving.as_ref().is_some_and(|leaving| leaving.has_fired())
    }
}

impl Pool {
    fn lease(self: &Rc<Self>, http2: bool, streams: u32) -> Option<Lease> {
        if http2 {
            return self.stream(streams);
        }
        let mut idle = self.idle.borrow_mut();
        // Not ready is one that has ended, or on which a request is still being sent whose answer came early: the next
        // one would wait for the body of another caller. `sweep` drops them.
        let newest = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        let held = idle.remove(newest);
        held.is_usable(Instant::now()).then(|| Lease::Http1(Rc::clone(self), held))
    }

    /// The turn to dial. When a dial fails, all who waited for it fail with it: one after the other they would wait for
    /// as many connect timeouts as there are of them.
    async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ProxyError> {
        let before = self.failures.borrow().0;
        let turn = self.dialing.lock().await;
        match &*self.failures.borrow() {
            (now, Some(error)) if *now != before => Err(ProxyError { shared: true, ..error.clone() }),
            _ => Ok(turn),
        }
    }

    fn failed(&self, error: &ProxyError) {
        let mut failures = self.failures.borrow_mut();
        *failures = (failures.0 + 1, Some(error.clone()));
    }

    fn stream(&self, streams: u32) -> Option<Lease> {
        let shared = self.shared.borrow();
        let now = Instant::now();
        let free = shared
            .iter()
            .find(|shared| !shared.sender.is_closed() && shared.streams.get() < streams && shared.is_young(now))?;
        Some(Lease::Http2(free.sender.clone(), StreamGuard::new(Rc::clone(&free.streams))))
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|held| held.is_usable(now));
        self.shared
            .borrow_mut()
            .retain(|shared| !shared.sender.is_closed() && (shared.streams.get() > 0 || shared.is_young(now)));
        self.carriers.borrow_mut().retain(Carrier::is_open);
    }

    fn carrier(&self) -> Option<Carrier> {
        self.carriers.borrow().iter().find(|carrier| carrier.is_free()).cloned()
    }

    fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty() && self.carriers.borrow().is_empty()
    }
}

impl Lease {
    /// Sends a request and waits for the response head. After an error `request` holds it again when not a byte of it
    /// was sent.
    ///
    /// # Errors
    /// Why there is no response.
    pub async fn send(&mut self, request: &mut Option<Request<Body>>) -> Result<Response<Incoming>, ProxyError> {
        let ready = match self {
            Self::Http1(_, held) => held.sender.ready().await,
            Self::Http2(sender, _) => sender.ready().await,
        };
        ready.map_err(|error| classify(&error, true))?;
        let Some(sent) = request.take() else {
            return Err(ProxyError::new(Reason::Internal, "the request was already sent"));
        };
        // Two kinds of future: each is polled where it is made, so that the request is not kept twice.
        let result = match self {
            Self::Http1(_, held) => held.sender.try_send_request(sent).await,
            Self::Http2(sender, _) => sender.try_send_request(sent).await,
        };
        result.map_err(|mut error| {
            *request = error.take_message();
            classify(error.error(), request.is_some())
        })
    }

    /// Gives back what an exchange has used to its end.
    pub fn give_back(self) {
        let Self::Http1(pool, mut held) = self else { return };
        let mut idle = pool.idle.borrow_mut();
        held.since = Instant::now();
        if held.is_usable(held.since) && idle.len() < IDLE_PER_KEY {
            idle.push(held);
        }
    }
}

impl StreamGuard {
    fn new(streams: Rc<Cell<u32>>) -> Self {
        streams.set(streams.get() + 1);
        Self(streams)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// What a failed exchange was. A stream that the peer refused was never processed (RFC 9113 section 8.7), nor was one
/// above the last of its GOAWAY (section 6.8).
fn classify(error: &hyper::Error, unsent: bool) -> ProxyError {
    let refused = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM));
    let reason = if error.is_parse() { Reason::ProtocolError } else { Reason::ConnectionTerminated };
    ProxyError { reason, detail: chain(error), unsent, refused, shared: false }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
