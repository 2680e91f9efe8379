//! Turning a received request into one that can be sent on, and the answer back: canonical form, HTTP version of the
//! next leg, WebSocket across versions. Shared by outbound and inbound.

use std::{cell::Cell, io, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery};
use http_body::Body as _;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use weft_policy::{
    canonical::{self, Authority, Framing, Upgrade},
    fields::Fields,
};

use super::{
    CALLER_VERSION,
    body::{Body, Ends, Finish, IDLE, Incoming, Times},
    is_grpc,
    refused::{Refusal, Refused, few_fields, websocket_only},
    websocket,
};
use crate::{
    drain::DrainGuard,
    error::{ProxyError, Reason},
    opaque,
};

/// What was found in a request besides its headers and body.
pub struct Received {
    /// As the caller sent it.
    pub method: Method,
    /// Host, lower-case, and port.
    pub authority: Authority,
    /// Path and query as the caller sent them.
    pub path: PathAndQuery,
    /// Whether and how a body follows.
    pub framing: Framing,
    /// Wants to leave HTTP.
    pub upgrade: Option<Upgrade>,
    /// HTTP version of the caller.
    pub version: Version,
    /// The caller expects gRPC.
    pub grpc: bool,
    /// What the head had when it came.
    pub fields: Fields,
    host: HeaderValue,
    /// In place of `path` on the next leg. Rare: boxed, so that every request is not as large.
    rewritten: Option<Box<PathAndQuery>>,
    /// Boxed for the same reason.
    switch: Option<Box<Switch>>,
}

/// What it takes to leave HTTP on the caller's connection.
struct Switch {
    on_upgrade: OnUpgrade,
    /// `Sec-WebSocket-Key` of a caller in HTTP/1.1.
    key: Option<HeaderValue>,
}

impl Received {
    /// Canonicalises a request or refuses it. The request that comes back is ready for [`Received::leg`].
    ///
    /// # Errors
    /// The rule that the request breaks.
    pub fn new(mut request: Request<hyper::body::Incoming>) -> Result<(Self, Request<Body>), Refused> {
        if let Err(refusal) = few_fields(request.headers()).and_then(|()| websocket_only(&request)) {
            return Err(refusal.of(request.into_parts().0));
        }
        let on_upgrade = hyper::upgrade::on(&mut request);
        let grpc = is_grpc(request.headers());
        let (mut parts, body) = request.into_parts();
        let (method, version) = (parts.method.clone(), parts.version);
        let canonical = match canonical::request(&mut parts) {
            Ok(canonical) => canonical,
            Err(violation) => return Err(Refusal::from(violation).of(parts)),
        };
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let host = parts.headers.remove(header::HOST).unwrap_or_else(|| HeaderValue::from_static(""));
        // HTTP/2 has no field for "no body": its end mark came with the head, or a body follows.
        let framing = if body.is_end_stream() && canonical.framing == Framing::Stream {
            Framing::None
        } else {
            canonical.framing
        };
        let switch = canonical
            .upgrade
            .map(|_| Box::new(Switch { on_upgrade, key: parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned() }));
        let received = Self {
            method,
            authority: canonical.host,
            path,
            framing,
            upgrade: canonical.upgrade,
            version,
            grpc,
            fields: canonical.fields,
            host,
            rewritten: None,
            switch,
        };
        let ends = if version == Version::HTTP_2 { Ends::Stream } else { Ends::Framed };
        let body = if received.is_bodyless() {
            Body::empty()
        } else {
            Body::incoming(Incoming::Caller(body), ends, Times { idle: (!grpc).then_some(IDLE), ..Times::default() })
        };
        Ok((received, Request::from_parts(parts, body)))
    }

    /// A request that goes nowhere, for books alone.
    #[must_use]
    pub fn without_body(
        (method, version, framing): (Method, Version, Framing),
        authority: Authority,
        path: PathAndQuery,
    ) -> Self {
        let host = HeaderValue::from_static("");
        Self {
            method,
            authority,
            path,
            framing,
            upgrade: None,
            version,
            grpc: false,
            fields: Fields::default(),
            host,
            rewritten: None,
            switch: None,
        }
    }

    /// The Host of the next leg, as it will be written.
    #[must_use]
    pub const fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// The times of the answer's body: gRPC may be silent for as long as it likes.
    #[must_use]
    pub const fn times(&self, idle: Option<Duration>, deadline: Option<Instant>) -> Times {
        Times { idle: if self.grpc { None } else { idle }, deadline, grpc: self.grpc }
    }

    /// No body follows, so that the request can be sent again.
    #[must_use]
    pub const fn is_bodyless(&self) -> bool {
        matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// Sends the request on with another Host or another path and query, where they are given.
    pub fn rewrite(&mut self, host: Option<HeaderValue>, path: Option<PathAndQuery>) {
        if let Some(host) = host {
            self.host = host;
        }
        if let Some(path) = path {
            self.rewritten = Some(Box::new(path));
        }
    }

    /// A body of this many bytes takes the place of the one that the caller sends.
    pub fn replace_body(&mut self, bytes: usize) {
        if !self.is_bodyless() {
            self.framing = Framing::Length(u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    }

    /// The same request for another receiver. It does not leave HTTP.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            method: self.method.clone(),
            authority: self.authority.clone(),
            path: self.path.clone(),
            framing: self.framing,
            upgrade: None,
            version: self.version,
            grpc: self.grpc,
            fields: self.fields,
            host: self.host.clone(),
            rewritten: self.rewritten.clone(),
            switch: None,
        }
    }

    /// Makes of a request what is sent on one leg. `http2` is the version of that leg; `request` comes from
    /// [`Received::new`] or from an earlier try.
    ///
    /// # Errors
    /// When Host and path do not make a URI.
    pub fn leg(&self, request: &mut Request<Body>, http2: bool) -> Result<(), ProxyError> {
        let invalid = |error: http::Error| ProxyError::unsent(Reason::BadRequest, format!("host and path: {error}"));
        let path = self.rewritten.as_deref().unwrap_or(&self.path).clone();
        if http2 {
            let uri = Uri::builder().scheme("http").authority(self.host.as_bytes()).path_and_query(path);
            *request.uri_mut() = uri.build().map_err(invalid)?;
            *request.version_mut() = Version::HTTP_2;
        } else {
            *request.uri_mut() = Uri::from(path);
            *request.version_mut() = Version::HTTP_11;
        }
        let headers = request.headers_mut();
        // Of an earlier try of which nothing was sent.
        if Fields::of(headers).has(Fields::HOST | Fields::CONTENT_LENGTH | Fields::TRANSFER_ENCODING) {
            headers.remove(header::HOST);
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(header::TRANSFER_ENCODING);
        }
        if !http2 {
            headers.insert(header::HOST, self.host.clone());
        }
        match self.framing {
            Framing::None => {}
            Framing::Length(length) => {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            // In HTTP/1.1 there is no body unless a field says that there is one.
            Framing::Stream if !http2 => {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Framing::Stream => {}
        }
        if self.upgrade.is_some() {
            upgrade_leg(request, http2);
        }
        Ok(())
    }

    /// The answer for the caller: canonical, with the upgrade completed when there is one; `times` are those of its
    /// body, and `guard` is for the time that the upgraded connection lives.
    ///
    /// # Errors
    /// What the answer of the upstream breaks.
    pub fn answer(
        &mut self,
        response: Response<Incoming>,
        mut finish: Finish,
        times: Times,
        guard: impl FnOnce() -> DrainGuard,
    ) -> Result<Response<Body>, ProxyError> {
        let switches =
            response.status() == 101 || response.version() == Version::HTTP_2 && response.status().is_success();
        if switches && let Some(switch) = self.switch.take() {
            return Ok(switch.join(response, self.version, finish, guard()));
        }
        if response.status() == 101 {
            let error = ProxyError::new(Reason::ProtocolError, "101 without an upgrade request");
            return Err(finish.discard(error, self.grpc));
        }
        // To a caller in extended CONNECT every 2xx says that the switch was made (RFC 8441 section 5).
        if self.upgrade.is_some() && self.version == Version::HTTP_2 && response.status().is_success() {
            let detail = format!("the app answered {} to a WebSocket handshake", response.status());
            return Err(finish.discard(ProxyError::new(Reason::UpgradeRefused, detail), self.grpc));
        }
        let version = response.version();
        let (mut parts, body) = response.into_parts();
        let framing = match canonical::response(&mut parts, &self.method, version) {
            Ok(framing) => framing,
            Err(violation) => {
                let detail = format!("{}: {}", violation.rule, violation.detail);
                return Err(finish.discard(ProxyError::new(Reason::ProtocolError, detail), self.grpc));
            }
        };
        if let Framing::Length(length) = framing {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        parts.version = self.version;
        let ends = match (version == Version::HTTP_2, self.is_bodyless()) {
            (false, _) => Ends::Framed,
            (true, true) => Ends::Stream,
            (true, false) => Ends::EarlyResponse,
        };
        Ok(Response::from_parts(parts, Body::incoming(body, ends, times).with_finish(finish)))
    }
}

impl Switch {
    /// Joins both sides of an upgrade; bytes flow once both legs have switched.
    fn join(
        self,
        mut response: Response<Incoming>,
        version: Version,
        finish: Finish,
        guard: DrainGuard,
    ) -> Response<Body> {
        let (near, far) = (self.on_upgrade, Far::of(&mut response));
        tokio::task::spawn_local(async move {
            if let Err(error) = joined(near, far, finish).await {
                tracing::debug!(error = crate::upstream::chain(&error), "upgrade failed");
            }
            drop(guard);
        });
        let mut answer = Response::new(Body::empty());
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        let headers = answer.headers_mut();
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        if version == Version::HTTP_2 {
            headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            *answer.status_mut() = StatusCode::OK;
        } else {
            if let Some(key) = &self.key {
                websocket::ensure_accept(headers, key);
            }
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        answer
    }
}

/// The upstream's side of an upgrade.
enum Far {
    Http1(Incoming),
    /// With the stream on which it is.
    Http2(OnUpgrade, Incoming),
}

impl Far {
    fn of(response: &mut Response<Incoming>) -> Self {
        match std::mem::replace(response.body_mut(), Incoming::Nothing) {
            stream @ Incoming::Http2(..) => Self::Http2(hyper::upgrade::on(response), stream),
            other => Self::Http1(other),
        }
    }
}

/// Moves the bytes of an upgrade. The whole of the exchange belongs to this, whose end is the exchange's.
async fn joined(near: OnUpgrade, far: Far, finish: Finish) -> io::Result<()> {
    match far {
        Far::Http1(Incoming::Http1(held)) => {
            let near = near.await.map_err(io::Error::other)?;
            moved(near, held.into_bytes()?, finish).await;
        }
        Far::Http1(_) => return Err(io::Error::other("the connection to the app has ended")),
        Far::Http2(far, _stream) => {
            let both = futures_util::future::try_join(near, far).await;
            let (near, far) = both.map_err(io::Error::other)?;
            moved(near, TokioIo::new(far), finish).await;
        }
    }
    Ok(())
}

async fn moved(near: Upgraded, far: impl opaque::Side, mut finish: Finish) {
    finish.complete = true;
    finish.span.upgraded();
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let count = |moved: &Cell<u64>, bytes| moved.set(moved.get() + bytes);
    let (forward, backward) = (|bytes| count(&sent, bytes), |bytes| count(&received, bytes));
    let revoked = finish.revoked();
    if let Err(error) = opaque::copy_until(TokioIo::new(near), far, forward, backward, revoked).await {
        let reason = finish.why_revoked().unwrap_or_else(|| error.reason());
        tracing::debug!(%error, reason = reason.as_str(), "upgraded connection ended");
        finish.reason = Some(reason);
    }
    finish.span.moved(sent.get(), received.get(), finish.reason);
}

/// WebSocket on one leg: extended CONNECT (RFC 8441) on HTTP/2, `Upgrade` on HTTP/1.1.
fn upgrade_leg(request: &mut Request<Body>, http2: bool) {
    if http2 {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    } else {
        *request.method_mut() = Method::GET;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        websocket::ensure_key(headers);
    }
}

/// Says in a mesh request which HTTP version the caller's app used.
pub fn mark_caller_version(request: &mut Request<Body>, version: Version, again: bool) {
    let value = match (version == Version::HTTP_2, again) {
        (false, false) => "1",
        (false, true) => "1r",
        (true, false) => "2",
        (true, true) => "2r",
    };
    request.headers_mut().insert(CALLER_VERSION, HeaderValue::from_static(value));
}
