//! Turning a received request into one that can be sent on, and the answer back: canonical form, HTTP version of the
//! next leg, WebSocket across versions. Shared by outbound and inbound.

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request, uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use weft_policy::canonical::{self, Authority, Framing, Upgrade, Violation};

use super::{
    CALLER_VERSION, FIELDS,
    body::{Body, Finish},
    is_grpc,
};
use crate::{
    error::{ProxyError, Reason},
    opaque,
};

/// A request in canonical form, ready to be sent on any kind of leg.
pub struct Received {
    /// Headers and, in extensions, whatever hyper needs. The URI is set for each leg.
    pub parts: request::Parts,
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
    host: HeaderValue,
    on_upgrade: Option<OnUpgrade>,
}

/// A request refused before anything else looked at it.
pub struct Refused {
    /// Why.
    pub error: ProxyError,
    /// Status of the answer.
    pub status: u16,
}

impl Received {
    /// Canonicalises a request or refuses it.
    ///
    /// # Errors
    /// The rule that the request breaks.
    pub fn new(mut request: Request<Incoming>) -> Result<(Self, Incoming), Refused> {
        few_fields(request.headers())?;
        let on_upgrade = hyper::upgrade::on(&mut request);
        let grpc = is_grpc(request.headers());
        let (mut parts, body) = request.into_parts();
        let (method, version) = (parts.method.clone(), parts.version);
        let canonical = canonical::request(&mut parts).map_err(Refused::from)?;
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let host = parts.headers.remove(header::HOST).unwrap_or_else(|| HeaderValue::from_static(""));
        // HTTP/2 has no field for "no body": its end mark came with the head, or a body follows.
        let framing = if body.is_end_stream() && canonical.framing == Framing::Stream {
            Framing::None
        } else {
            canonical.framing
        };
        let on_upgrade = canonical.upgrade.is_some().then_some(on_upgrade);
        let received = Self {
            parts,
            method,
            authority: canonical.host,
            path,
            framing,
            upgrade: canonical.upgrade,
            version,
            grpc,
            host,
            on_upgrade,
        };
        Ok((received, body))
    }

    /// No body follows, so that the request can be sent again.
    #[must_use]
    pub const fn is_bodyless(&self) -> bool {
        matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// The request for one leg. `http2` is the version of that leg; `parts` comes from [`Received::parts`] or from an
    /// earlier try.
    ///
    /// # Errors
    /// When Host and path do not make a URI.
    pub fn leg(&self, mut parts: request::Parts, http2: bool, body: Body) -> Result<Request<Body>, ProxyError> {
        let invalid = |error: http::Error| ProxyError::unsent(Reason::BadRequest, format!("host and path: {error}"));
        parts.headers.remove(header::HOST);
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::TRANSFER_ENCODING);
        if http2 {
            let uri = Uri::builder().scheme("http").authority(self.host.as_bytes()).path_and_query(self.path.clone());
            parts.uri = uri.build().map_err(invalid)?;
            parts.version = Version::HTTP_2;
        } else {
            parts.uri = Uri::builder().path_and_query(self.path.clone()).build().map_err(invalid)?;
            parts.headers.insert(header::HOST, self.host.clone());
            parts.version = Version::HTTP_11;
        }
        match self.framing {
            Framing::None => {}
            Framing::Length(length) => {
                parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            }
            // hyper gives a GET of unknown length no body unless this header says that there is one.
            Framing::Stream if !http2 => {
                parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            Framing::Stream => {}
        }
        if self.upgrade.is_some() {
            upgrade_leg(&mut parts, http2);
        }
        Ok(Request::from_parts(parts, body))
    }

    /// The answer for the caller: canonical, with the upgrade completed when there is one.
    ///
    /// # Errors
    /// What the answer of the upstream breaks.
    pub fn answer(&mut self, response: Response<Incoming>, mut finish: Finish) -> Result<Response<Body>, ProxyError> {
        if self.upgrade.is_some()
            && (response.status() == 101 || response.version() == Version::HTTP_2 && response.status().is_success())
        {
            return Ok(self.switch(response, finish));
        }
        if response.status() == 101 {
            finish.metrics = None;
            return Err(ProxyError::new(Reason::ProtocolError, "101 without an upgrade request"));
        }
        let version = response.version();
        let (mut parts, body) = response.into_parts();
        let framing = match canonical::response(&mut parts, &self.method, version) {
            Ok(framing) => framing,
            Err(violation) => {
                // The caller gets another answer, which is counted where it is made.
                finish.metrics = None;
                let detail = format!("{}: {}", violation.rule, violation.detail);
                return Err(ProxyError::new(Reason::ProtocolError, detail));
            }
        };
        if let Framing::Length(length) = framing {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        parts.version = self.version;
        Ok(Response::from_parts(parts, Body::incoming(body).with_finish(finish)))
    }

    /// Joins both sides of an upgrade; bytes flow once both legs have switched.
    fn switch(&mut self, mut response: Response<Incoming>, finish: Finish) -> Response<Body> {
        let far = hyper::upgrade::on(&mut response);
        if let Some(near) = self.on_upgrade.take() {
            tokio::task::spawn_local(async move {
                match futures_util::future::try_join(near, far).await {
                    Ok((near, far)) => {
                        let mut finish = finish;
                        finish.complete = true;
                        let (near, far) = (TokioIo::new(near), TokioIo::new(far));
                        if let Err(error) = opaque::copy(near, far, |_| {}, |_| {}).await {
                            tracing::debug!(%error, "upgraded connection ended");
                        }
                        // The connection was an upgrade's: it does not go back to a pool.
                        finish.pools = None;
                    }
                    Err(error) => tracing::debug!(%error, "upgrade failed"),
                }
            });
        }
        let mut answer = Response::new(Body::empty());
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        let headers = answer.headers_mut();
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        if self.version == Version::HTTP_2 {
            *answer.status_mut() = StatusCode::OK;
        } else {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        answer
    }
}

/// HTTP/1.1's reader bounds the number of fields, HTTP/2's only their bytes. The mesh's own field is not the caller's:
/// what one sidecar takes, the next one takes too.
fn few_fields(headers: &HeaderMap) -> Result<(), Refused> {
    let fields = headers.len() - usize::from(headers.contains_key(CALLER_VERSION));
    if fields <= FIELDS {
        return Ok(());
    }
    let detail = format!("{fields} fields: at most {FIELDS} are accepted");
    Err(Refused { error: ProxyError::unsent(Reason::HeaderTooLarge, detail), status: Reason::HeaderTooLarge.status() })
}

/// WebSocket on one leg: extended CONNECT (RFC 8441) on HTTP/2, `Upgrade` on HTTP/1.1.
fn upgrade_leg(parts: &mut request::Parts, http2: bool) {
    if http2 {
        parts.method = Method::CONNECT;
        parts.extensions.insert(hyper::ext::Protocol::from_static("websocket"));
    } else {
        parts.method = Method::GET;
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Says in a mesh request which HTTP version the caller's app used.
pub fn mark_caller_version(parts: &mut request::Parts, version: Version) {
    let value = if version == Version::HTTP_2 { "2" } else { "1" };
    parts.headers.insert(CALLER_VERSION, HeaderValue::from_static(value));
}

impl From<Violation> for Refused {
    fn from(violation: Violation) -> Self {
        let detail = format!("{}: {}", violation.rule, violation.detail);
        Self { error: ProxyError::unsent(Reason::BadRequest, detail), status: violation.status }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_at_most_128_fields_beside_the_meshs_own() {
        let fields = |count: usize| -> HeaderMap {
            let name = |n| http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).expect("valid");
            (0..count).map(|n| (name(n), HeaderValue::from(n))).collect()
        };
        let mut full = fields(FIELDS);
        full.insert(CALLER_VERSION, HeaderValue::from_static("1"));
        assert!(few_fields(&full).is_ok());
        let refused = few_fields(&fields(FIELDS + 1)).expect_err("too many");
        assert_eq!((refused.status, refused.error.reason), (431, Reason::HeaderTooLarge));
    }
}
