//! The connections of one key, and their use by one exchange each.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::client::conn::http2;
use tokio::net::TcpStream;
use weft_policy::limits::Permit;

use super::{
    chain,
    http1::{Connection, Error},
    tunnel::Carrier,
};
use crate::{
    detect::Rewind,
    error::{ProxyError, Reason},
    http::body::{Body, Incoming},
    live::Cut,
};

/// Idle HTTP/1.1 connections kept for one key.
const IDLE_PER_KEY: usize = 256;

/// A connection or stream in use by one exchange.
pub enum Lease {
    /// A whole HTTP/1.1 connection.
    Http1(Box<Held>),
    /// One stream of an HTTP/2 connection.
    Http2(Stream),
}

/// A stream of an HTTP/2 connection, whether it is open yet or not.
pub struct Stream {
    sender: http2::SendRequest<Body>,
    _guard: StreamGuard,
}

/// Counts a stream of an HTTP/2 connection while it lives.
pub struct StreamGuard(Rc<Cell<u32>>);

/// An HTTP/1.1 connection. It goes with the answer, whose end gives it back.
pub struct Held {
    connection: Connection,
    /// Where it goes back to, while it is in use.
    pool: Option<Rc<Pool>>,
    /// Since when it is idle.
    since: Instant,
    idle: Duration,
    /// Not used from here on.
    until: Instant,
    /// Its place among the connections to the target.
    _place: Option<Permit>,
}

/// An HTTP/2 connection, and how many use it.
pub(super) struct Shared {
    sender: http2::SendRequest<Body>,
    streams: Rc<Cell<u32>>,
    /// Had a stream since the last sweep.
    used: Cell<bool>,
    /// The first sweep that saw it without streams.
    since: Cell<Instant>,
    /// Closed after this time without streams.
    idle: Option<Duration>,
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

impl Held {
    pub(super) fn new(
        connection: Connection,
        pool: Rc<Pool>,
        (idle, life): (Duration, Duration),
        place: Option<Permit>,
    ) -> Self {
        let now = Instant::now();
        Self { connection, pool: Some(pool), since: now, idle, until: now + life, _place: place }
    }

    fn is_usable(&self, now: Instant) -> bool {
        self.connection.is_quiet() && now.duration_since(self.since) < self.idle && now < self.until
    }

    async fn send(mut self: Box<Self>, request: &mut Option<Request<Body>>) -> Result<Response<Incoming>, ProxyError> {
        let answered = self.connection.send(request).await?;
        let mut response = Response::new(Incoming::Nothing);
        *response.status_mut() = answered.status;
        *response.version_mut() = answered.version;
        *response.headers_mut() = answered.fields;
        if answered.status == StatusCode::SWITCHING_PROTOCOLS || !self.connection.is_done() {
            *response.body_mut() = Incoming::Http1(self);
        } else {
            self.finish();
        }
        Ok(response)
    }

    /// The next frame of the answer.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.connection.poll_frame(context)
    }

    /// The answer has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.connection.is_done()
    }

    /// What is left of the answer.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        self.connection.size_hint()
    }

    /// The connection, on which HTTP has ended.
    ///
    /// # Errors
    /// When the request is still being sent.
    pub fn into_bytes(self) -> io::Result<Rewind<TcpStream>> {
        self.connection.into_bytes()
    }

    /// Gives the connection back, now that the answer has ended. One whose answer came before the end of its request is
    /// closed, and no more of that is sent.
    pub fn finish(mut self: Box<Self>) {
        let Some(pool) = self.pool.take().filter(|_| self.connection.is_kept()) else { return };
        let mut idle = pool.idle.borrow_mut();
        self.since = Instant::now();
        if self.is_usable(self.since) && idle.len() < IDLE_PER_KEY {
            self.connection.rests();
            idle.push(self);
        }
    }
}

impl Shared {
    pub(super) fn new(
        sender: http2::SendRequest<Body>,
        life: Duration,
        idle: Option<Duration>,
        leaving: Option<Rc<Cut<()>>>,
        place: Option<Permit>,
    ) -> Self {
        let (now, streams) = (Instant::now(), Rc::default());
        let (used, since, until) = (Cell::new(true), Cell::new(now), now + life);
        Self { sender, streams, used, since, idle, until, leaving, _place: place }
    }

    fn lease(&self) -> Lease {
        self.used.set(true);
        Lease::Http2(Stream { sender: self.sender.clone(), _guard: StreamGuard::new(Rc::clone(&self.streams)) })
    }

    /// Told by sweeps alone, so that a request reads no clock for it: never too early, and as late as two of them.
    fn is_idle(&self, now: Instant) -> bool {
        let busy = self.streams.get() > 0;
        if self.used.replace(busy) || busy {
            self.since.set(now);
        }
        self.idle.is_some_and(|idle| now.duration_since(self.since.get()) > idle)
    }

    fn is_young(&self, now: Instant) -> bool {
        now < self.until && !self.leaving.as_ref().is_some_and(|leaving| leaving.has_fired())
    }
}

impl Pool {
    pub(super) fn lease(self: &Rc<Self>, http2: bool, streams: u32) -> Option<Lease> {
        if http2 {
            return self.stream(streams);
        }
        let (now, mut idle) = (Instant::now(), self.idle.borrow_mut());
        // The newest is the last to be closed.
        while let Some(mut held) = idle.pop() {
            if held.is_usable(now) {
                held.pool = Some(Rc::clone(self));
                return Some(Lease::Http1(held));
            }
        }
        None
    }

    /// The turn to dial. When a dial fails, all who waited for it fail with it: one after the other they would wait for
    /// as many connect timeouts as there are of them.
    pub(super) async fn turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ProxyError> {
        let before = self.failures.borrow().0;
        let turn = self.dialing.lock().await;
        match &*self.failures.borrow() {
            (now, Some(error)) if *now != before => Err(ProxyError { shared: true, ..error.clone() }),
            _ => Ok(turn),
        }
    }

    pub(super) fn failed(&self, error: &ProxyError) {
        let mut failures = self.failures.borrow_mut();
        *failures = (failures.0 + 1, Some(error.clone()));
    }

    pub(super) fn stream(&self, streams: u32) -> Option<Lease> {
        let shared = self.shared.borrow();
        let now = Instant::now();
        let free = shared
            .iter()
            .find(|shared| !shared.sender.is_closed() && shared.streams.get() < streams && shared.is_young(now))?;
        Some(free.lease())
    }

    /// Keeps a new connection, and gives the first stream of it.
    pub(super) fn share(&self, shared: Shared) -> Lease {
        let lease = shared.lease();
        self.shared.borrow_mut().push(shared);
        lease
    }

    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|held| held.is_usable(now));
        self.shared.borrow_mut().retain(|shared| {
            let kept = shared.streams.get() > 0 || shared.is_young(now);
            !shared.is_idle(now) && !shared.sender.is_closed() && kept
        });
        self.carriers.borrow_mut().retain(Carrier::is_open);
    }

    /// How many connections there are, as [`super::POOLED`] has them.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.idle.borrow().len(), self.shared.borrow().len(), self.carriers.borrow().len()]
    }

    pub(super) fn carry(&self, carrier: Carrier) {
        self.carriers.borrow_mut().push(carrier);
    }

    pub(super) fn carrier(&self) -> Option<Carrier> {
        self.carriers.borrow().iter().find(|carrier| carrier.is_free()).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty() && self.carriers.borrow().is_empty()
    }
}

impl Lease {
    /// Sends a request and waits for the response head. After an error `request` holds it again when not a byte of it
    /// was sent. What was leased goes with the body of the answer.
    ///
    /// # Errors
    /// Why there is no response.
    pub async fn send(self, request: &mut Option<Request<Body>>) -> Result<Response<Incoming>, ProxyError> {
        // Two kinds of future: each is polled where it is made, so that neither is moved.
        match self {
            Self::Http1(held) => held.send(request).await,
            Self::Http2(stream) => stream.send(request).await,
        }
    }
}

impl Stream {
    async fn send(mut self, request: &mut Option<Request<Body>>) -> Result<Response<Incoming>, ProxyError> {
        self.sender.ready().await.map_err(|error| classify(&error, true))?;
        let Some(sent) = request.take() else {
            return Err(ProxyError::new(Reason::Internal, "the request was already sent"));
        };
        let result = self.sender.try_send_request(sent).await.map_err(|mut error| {
            *request = error.take_message();
            classify(error.error(), request.is_some())
        });
        Ok(result?.map(|body| Incoming::Http2(body, self)))
    }
}

impl StreamGuard {
    pub(super) fn new(streams: Rc<Cell<u32>>) -> Self {
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
