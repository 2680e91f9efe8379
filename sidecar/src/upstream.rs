//! Connections to applications and to other sidecars, pooled per worker. `outbound` and `inbound` ask for a
//! connection and send; nothing here knows of routes or retries.

mod connect;
mod http1;
mod pool;
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
    time::Duration,
};

use http::HeaderMap;
use weft_policy::{
    SpiffeId,
    limits::{Limits, Permit},
    model::{BackendPolicy, MeshAddress, Target},
};

use connect::Own;
pub use connect::tcp as connect_tcp;
pub use http1::Error as Http1Error;
use pool::Shared;
pub use pool::{Held, Lease, Pool, Stream, StreamGuard};

use crate::{
    error::{ProxyError, Reason},
    identity::{self, IdentityReceiver},
    live::Sessions,
    telemetry::Telemetry,
};

/// An idle connection in HTTP/1.1 is not used after this time, unless a policy has another: Node.js closes its own after
/// 5 s.
const IDLE: Duration = Duration::from_secs(3);
/// Streams on one HTTP/2 connection, unless a policy has another number; then another connection is made.
const STREAMS: u32 = 250;
/// Of TCP and TLS together, unless a policy has another time.
pub const CONNECT: Duration = Duration::from_secs(2);

/// How connections are made and used.
pub struct Rules<'a> {
    /// TCP and TLS together.
    pub connect: Duration,
    /// `None`: [`IDLE`] for HTTP/1.1, and no limit but the age for HTTP/2, whose end is told before it comes.
    idle: Option<Duration>,
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

/// The pools of one worker.
pub struct Pools {
    identity: IdentityReceiver,
    sessions: Rc<Sessions>,
    telemetry: Telemetry,
    pools: RefCell<HashMap<Key, Rc<Pool>>>,
    /// Connections of each of [`POOLED`], and how many this worker has told of.
    pooled: [(metrics::Gauge, Cell<u32>); POOLED.len()],
}

/// What is in pools: idle connections in HTTP/1.1, connections in HTTP/2, and connections of tunnels.
const POOLED: [&str; 3] = ["http1_idle", "http2", "tunnel"];

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
        let pooled = POOLED.map(|kind| {
            let help = "Connections in the pools";
            (telemetry.gauge("weft_upstream_pooled_connections", help, &[("kind", kind)]), Cell::new(0))
        });
        Self { identity, sessions, telemetry, pools: RefCell::default(), pooled }
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
            let connection = self.counted(key, connect::http1(key, rules.connect).await)?;
            let times = (rules.idle.unwrap_or(IDLE), rules.max_age);
            return Ok(Lease::Http1(Box::new(Held::new(connection, pool, times, place))));
        }
        let _turn = pool.turn().await?;
        if let Some(lease) = pool.stream(rules.streams) {
            return Ok(lease);
        }
        let place = rules.limits.map(connection).transpose()?;
        let dialled = self.counted(key, connect::http2(key, self.own(), rules.connect).await);
        let (sender, leaving, life) = dialled.inspect_err(|error| pool.failed(error))?;
        Ok(pool.share(Shared::new(sender, life.min(rules.max_age), rules.idle, leaving, place)))
    }

    /// A tunnel to a service port, on a connection of tunnels to its endpoint, made within `connect` if there is none. The
    /// CONNECT has the fields of `context`.
    ///
    /// # Errors
    /// Whatever kept it from being opened; no byte was sent.
    pub async fn tunnel(
        &self,
        mesh: &MeshAddress,
        target: &Target,
        context: HeaderMap,
        connect: Duration,
    ) -> Result<(crate::tunnel::Tunnel, StreamGuard), ProxyError> {
        let key = Key::mesh(mesh, target);
        let pool = self.pool(&key);
        if let Some(carrier) = pool.carrier() {
            return carrier.open(target, context).await;
        }
        let turn = pool.turn().await?;
        if let Some(carrier) = pool.carrier() {
            drop(turn);
            return carrier.open(target, context).await;
        }
        let dialled = self.counted(&key, connect::carrier(mesh, target, self.own(), connect).await);
        let carrier = dialled.inspect_err(|error| pool.failed(error))?;
        pool.carry(carrier.clone());
        drop(turn);
        carrier.open(target, context).await
    }

    /// Drops what is idle for too long, too old or closed, and the pools that nothing uses. Called once a second.
    pub fn sweep(&self) {
        let mut held = [0_usize; POOLED.len()];
        self.pools.borrow_mut().retain(|_, pool| {
            pool.sweep();
            for (sum, count) in held.iter_mut().zip(pool.sizes()) {
                *sum += count;
            }
            Rc::strong_count(pool) > 1 || !pool.is_empty()
        });
        // All workers share a gauge: each adds what has changed.
        for ((gauge, told), count) in self.pooled.iter().zip(held) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            gauge.increment(f64::from(count) - f64::from(told.replace(count)));
        }
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
        Self { connect: CONNECT, idle: None, max_age: identity::MAX_AGE, streams: STREAMS, fresh: false, limits: None }
    }
}

impl<'a> Rules<'a> {
    /// For connections to the endpoints of a target.
    #[must_use]
    pub fn of(policy: &BackendPolicy, limits: &'a Limits) -> Self {
        Self {
            connect: policy.connect_timeout,
            idle: policy.connection.idle,
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

/// The error and its causes in one line; a cause that only repeats what is said already is left out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
