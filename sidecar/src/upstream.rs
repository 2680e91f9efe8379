//! Connections to applications and to other sidecars, pooled per worker. `outbound` and `inbound` ask for a
//! connection and send; nothing here knows of routes or retries.

mod connect;

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
    model::{MeshAddress, Target},
};

pub use connect::tcp as connect_tcp;

use crate::{
    error::{ProxyError, Reason},
    http::body::Body,
    identity::IdentityReceiver,
    telemetry::Telemetry,
};

/// An idle plaintext connection is not used after this time: Node.js closes its own after 5 s.
const IDLE: Duration = Duration::from_secs(3);
/// Idle HTTP/1.1 connections kept for one key.
const IDLE_PER_KEY: usize = 256;
/// Streams on one HTTP/2 connection; then another connection is made.
const STREAMS: u32 = 100;
/// An HTTP/2 connection takes no new stream after this time, so that load spreads and identities are re-checked.
const MAX_AGE: Duration = Duration::from_secs(3600);

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
    /// A whole HTTP/1.1 connection.
    Http1(Key, http1::SendRequest<Body>),
    /// One stream of an HTTP/2 connection.
    Http2(http2::SendRequest<Body>, StreamGuard),
}

/// Counts a stream of an HTTP/2 connection while it lives.
pub struct StreamGuard(Rc<Cell<u32>>);

struct Idle {
    sender: http1::SendRequest<Body>,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<Body>,
    streams: Rc<Cell<u32>>,
    made: Instant,
}

/// The pools of one worker.
pub struct Pools {
    identity: IdentityReceiver,
    telemetry: Telemetry,
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    shared: RefCell<HashMap<Key, Vec<Shared>>>,
    /// One dial at a time for each HTTP/2 key, so that a burst makes one connection.
    dialing: RefCell<HashMap<Key, Rc<tokio::sync::Mutex<()>>>>,
}

/// A request that failed, with the request itself when not a byte of it was sent.
pub struct Failed {
    /// Why.
    pub error: ProxyError,
    /// The request, to be sent elsewhere.
    pub request: Option<Box<Request<Body>>>,
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

    /// HTTP/2 is spoken.
    #[must_use]
    pub const fn is_http2(&self) -> bool {
        matches!(self, Self::Mesh { .. } | Self::Plain { http2: true, .. })
    }
}

impl Pools {
    /// Empty pools.
    #[must_use]
    pub fn new(identity: IdentityReceiver, telemetry: Telemetry) -> Self {
        Self { identity, telemetry, idle: RefCell::default(), shared: RefCell::default(), dialing: RefCell::default() }
    }

    /// A connection for one exchange: a pooled one if there is one, else a new one.
    ///
    /// # Errors
    /// Whatever kept a new connection from being made; nothing was sent.
    pub async fn lease(&self, key: &Key) -> Result<Lease, ProxyError> {
        if !key.is_http2() {
            if let Some(lease) = self.idle_connection(key) {
                return Ok(lease);
            }
            let sender = self.counted(key, connect::http1(key).await)?;
            return Ok(Lease::Http1(key.clone(), sender));
        }
        if let Some(lease) = self.shared_stream(key) {
            return Ok(lease);
        }
        let turn = Rc::clone(self.dialing.borrow_mut().entry(key.clone()).or_default());
        let _turn = turn.lock().await;
        if let Some(lease) = self.shared_stream(key) {
            return Ok(lease);
        }
        let sender = self.counted(key, connect::http2(key, &self.identity).await)?;
        let streams = Rc::new(Cell::new(0));
        let mut shared = self.shared.borrow_mut();
        shared.entry(key.clone()).or_default().push(Shared {
            sender: sender.clone(),
            streams: Rc::clone(&streams),
            made: Instant::now(),
        });
        Ok(Lease::Http2(sender, StreamGuard::new(streams)))
    }

    /// Gives back what an exchange has used to its end.
    pub fn give_back(&self, lease: Lease) {
        let Lease::Http1(key, sender) = lease else { return };
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() < IDLE_PER_KEY {
            list.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Drops what is idle for too long or closed, and the keys that nothing uses. Called once a second.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE);
            !list.is_empty()
        });
        self.shared.borrow_mut().retain(|_, list| {
            list.retain(|shared| {
                !shared.sender.is_closed() && (shared.streams.get() > 0 || shared.made.elapsed() < MAX_AGE)
            });
            !list.is_empty()
        });
        self.dialing.borrow_mut().retain(|_, turn| Rc::strong_count(turn) > 1);
    }

    fn idle_connection(&self, key: &Key) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        while let Some(Idle { sender, since }) = list.pop() {
            if since.elapsed() < IDLE && !sender.is_closed() {
                return Some(Lease::Http1(key.clone(), sender));
            }
        }
        None
    }

    fn shared_stream(&self, key: &Key) -> Option<Lease> {
        let shared = self.shared.borrow();
        let free = shared.get(key)?.iter().find(|shared| {
            !shared.sender.is_closed() && shared.streams.get() < STREAMS && shared.made.elapsed() < MAX_AGE
        })?;
        Some(Lease::Http2(free.sender.clone(), StreamGuard::new(Rc::clone(&free.streams))))
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

impl Lease {
    /// Sends a request and waits for the response head.
    ///
    /// # Errors
    /// The failure, with the request when nothing of it was sent.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Failed> {
        let sent = match self {
            Self::Http1(_, sender) => {
                if let Err(error) = sender.ready().await {
                    return Err(Failed { error: classify(&error, true), request: Some(Box::new(request)) });
                }
                sender.try_send_request(request).await
            }
            Self::Http2(sender, _) => {
                if let Err(error) = sender.ready().await {
                    return Err(Failed { error: classify(&error, true), request: Some(Box::new(request)) });
                }
                sender.try_send_request(request).await
            }
        };
        sent.map_err(|mut error| {
            let request = error.take_message().map(Box::new);
            Failed { error: classify(error.error(), request.is_some()), request }
        })
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

/// What a failed exchange was. A stream that the peer refused was never processed (RFC 9113 section 8.7).
fn classify(error: &hyper::Error, unsent: bool) -> ProxyError {
    let refused = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM));
    let reason = if error.is_parse() { Reason::ProtocolError } else { Reason::ConnectionTerminated };
    ProxyError { reason, detail: chain(error), unsent: unsent || refused }
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
