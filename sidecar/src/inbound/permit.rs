//! A permit is the only thing that opens the app's port: given when the mode of the port and its policies let a caller
//! in, before anything is dialled, and taken back while it is used when they do not any more. Nothing else here knows the
//! app's address.

use std::{
    cell::Cell,
    future::poll_fn,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    task::{Context, Poll},
};

use http::HeaderMap;
use tokio::net::TcpStream;
use weft_policy::{
    authorize::{Caller, Operation, Verdict},
    claims::Claims,
    model::{InboundPort, TlsMode},
};

use super::{
    connection::{App, Connection, Head},
    jwt::Shown,
};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::forward::Received,
    opaque::{self, Side},
    telemetry::{TcpMetrics, trace::OpenSpan},
    upstream::{self, CONNECT, Key},
};

/// Leave to send one request, or the bytes of one connection, to a port of the app.
pub struct Permit {
    connection: Rc<Connection>,
    flight: usize,
    port: u16,
}

/// What a token gave, and what was shown for it.
type Token = (Option<Rc<Claims>>, Shown);

/// Why something is not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused<'a> {
    /// There is no configuration to judge by.
    NotReady,
    /// The port takes mutual TLS only.
    Plaintext,
    /// A policy denies it; `None`: there are policies that allow, and none of them does.
    Policy(Option<&'a str>),
    /// Requests to the port have tokens, or none is looked at; in bytes nobody could look.
    Bytes,
    /// What policies look at is not known of it any more.
    Unknown,
    /// The token that it came with is not accepted any more.
    Token(Reason),
}

/// What mode and policies say, those on trial included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Judged<'a> {
    /// Why it is not let in, if it is not.
    pub refused: Option<Refused<'a>>,
    /// The policy in dry run that would have refused it.
    pub shadow: Option<&'a str>,
}

impl Refused<'_> {
    /// The reason for metrics and the caller.
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotReady => Reason::NotReady,
            Self::Plaintext => Reason::PlaintextDenied,
            Self::Bytes => Reason::TokenMissing,
            Self::Policy(_) | Self::Unknown => Reason::RbacDenied,
            Self::Token(reason) => reason,
        }
    }

    /// What the caller is told: nothing of policies.
    pub fn error(self) -> ProxyError {
        let text = match self {
            Self::NotReady => "the inbound configuration has not arrived yet",
            Self::Plaintext => "this port takes mutual TLS only",
            Self::Bytes => "this port takes requests only, whose tokens are looked at",
            Self::Policy(_) | Self::Unknown | Self::Token(_) => "the caller is not allowed to do this",
        };
        ProxyError::unsent(self.reason(), text)
    }
}

/// Whether the mode of a port lets this kind of connection in.
pub const fn mode<'a>(mode: Option<TlsMode>, mtls: bool) -> Result<(), Refused<'a>> {
    match (mode, mtls) {
        (None, _) => Err(Refused::NotReady),
        (Some(TlsMode::Strict), false) => Err(Refused::Plaintext),
        (Some(_), _) => Ok(()),
    }
}

/// Judges a request, or opaque bytes when there is none.
pub fn judge<'a>(port: &'a InboundPort, caller: &Caller<'_>, operation: Option<&Operation<'_>>) -> Judged<'a> {
    if let Err(refused) = mode(Some(port.access.tls_mode), caller.id.is_some()) {
        return Judged { refused: Some(refused), shadow: None };
    }
    if operation.is_none() && !port.request_authentications.is_empty() {
        return Judged { refused: Some(Refused::Bytes), shadow: None };
    }
    let authorization = &port.access.authorization;
    let decision = match operation {
        Some(operation) => authorization.request(caller, port.port, operation),
        None => authorization.connection(caller, port.port),
    };
    let refused = match decision.verdict {
        Verdict::Allowed => None,
        Verdict::Denied { policy } => Some(Refused::Policy(policy)),
    };
    Judged { refused, shadow: decision.shadow }
}

impl Permit {
    /// For the bytes of an opaque connection.
    ///
    /// # Errors
    /// When they are not let in.
    pub fn bytes(worker: &Worker, connection: &Rc<Connection>, app: &App) -> Result<Self, ProxyError> {
        Self::give(worker, connection, app, None)
    }

    /// For a request, as it is about to be forwarded.
    ///
    /// # Errors
    /// When it is not let in.
    pub fn request(
        worker: &Worker,
        connection: &Rc<Connection>,
        app: &App,
        (received, headers): (&Received, &HeaderMap),
        (claims, shown): Token,
    ) -> Result<Self, ProxyError> {
        let operation = Operation {
            method: &received.method,
            path: received.path.path(),
            host: &received.authority,
            headers,
            claims: claims.as_deref(),
        };
        let kept = (claims.clone(), shown);
        Self::give(worker, connection, app, Some((&operation, received, kept)))
    }

    fn give(
        worker: &Worker,
        connection: &Rc<Connection>,
        app: &App,
        request: Option<(&Operation<'_>, &Received, Token)>,
    ) -> Result<Self, ProxyError> {
        let Some(port) = app.config() else { return Err(Refused::NotReady.error()) };
        let judged = judge(port, &connection.caller(), request.as_ref().map(|(operation, ..)| *operation));
        app.book.note(worker, connection, judged);
        if let Some(refused) = judged.refused {
            return Err(refused.error());
        }
        let head = request.map(|(operation, received, token)| {
            Head::new(operation, (&received.path, received.host()), token, app.book.looks_at_headers())
        });
        let flight = connection.begin(app, head);
        Ok(Self { connection: Rc::clone(connection), flight, port: port.port })
    }

    /// The app's connections for requests, in this version of HTTP.
    pub const fn key(&self, http2: bool) -> Key {
        Key::Plain { address: self.address(), http2 }
    }

    /// A connection of the app's for opaque bytes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn dial(&self) -> Result<TcpStream, ProxyError> {
        upstream::connect_tcp(self.address(), CONNECT).await
    }

    /// Copies between the caller and the app until both have ended, or it is not allowed any more: then both see a
    /// failure. Why it ended badly, if it did.
    pub async fn copy(
        &self,
        caller: impl Side,
        app: impl Side,
        metrics: &TcpMetrics,
        span: &mut OpenSpan,
    ) -> Option<Reason> {
        let moved = (Cell::new(0), Cell::new(0));
        let received = |bytes| {
            moved.0.set(moved.0.get() + bytes);
            metrics.received(bytes);
        };
        let sent = |bytes| {
            moved.1.set(moved.1.get() + bytes);
            metrics.sent(bytes);
        };
        let revoked = async { _ = self.revoked().await };
        let result = opaque::copy_until(caller, app, received, sent, revoked).await;
        let reason = result.err().map(|error| {
            let reason = self.why_revoked().unwrap_or_else(|| error.reason());
            tracing::debug!(%error, reason = reason.as_str(), port = self.port, "opaque connection ended");
            reason
        });
        span.moved(moved.0.get(), moved.1.get(), reason);
        reason
    }

    const fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port)
    }

    /// Ready when it is not allowed any more.
    pub fn poll_revoked(&self, context: &Context<'_>) -> Poll<Reason> {
        self.connection.poll_revoked(self.flight, context)
    }

    /// Why it is not allowed any more, when that is so.
    pub fn why_revoked(&self) -> Option<Reason> {
        self.connection.why_revoked(self.flight)
    }

    /// Waits until it is not allowed any more.
    pub async fn revoked(&self) -> Reason {
        poll_fn(|context| self.poll_revoked(context)).await
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connection.finish(self.flight);
    }
}
