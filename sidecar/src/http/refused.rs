//! A request that is refused before anything else looks at it: why, and what of it the access log can tell.

use std::time::Instant;

use http::{HeaderMap, Method, Request, Version, header, request::Parts, uri::PathAndQuery};
use weft_policy::canonical::{Authority, Framing, Violation};

use super::{CALLER_VERSION, FIELDS, RULE, forward::Received};
use crate::{
    error::{ProxyError, Reason},
    telemetry::Ended,
};

/// Why a request is refused, and the status of the answer.
pub struct Refusal(pub ProxyError, pub u16);

/// A request that is refused.
pub struct Refused {
    /// Why.
    pub error: ProxyError,
    /// Status of the answer.
    pub status: u16,
    /// What came. Boxed: a request that is let in does not pay for it.
    head: Box<Parts>,
}

impl Refusal {
    /// The refusal of what has this head.
    pub fn of(self, head: Parts) -> Refused {
        Refused { error: self.0, status: self.1, head: Box::new(head) }
    }
}

impl Refused {
    /// Its fields.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// What the metrics are told of it.
    #[must_use]
    pub fn ended(&self, started: Instant) -> Ended {
        let reason = Some(self.error.reason);
        Ended { reason, ..Ended::new(self.status, self.head.version, started) }
    }

    /// What it says of itself, for books alone. A Host that is none is left out.
    #[must_use]
    pub fn received(&self) -> Received {
        let head = &self.head;
        let host = head.headers.get(header::HOST).map(http::HeaderValue::as_bytes);
        let host = host.or_else(|| head.uri.authority().map(|authority| authority.as_str().as_bytes()));
        let authority = host.and_then(|host| Authority::parse(host).ok());
        let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Received::without_body(
            (head.method.clone(), head.version, Framing::None),
            authority.unwrap_or_else(|| Authority { host: "".into(), port: None }),
            path,
        )
    }
}

/// As many fields as are accepted, and those of the mesh.
pub fn few_fields(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.len() <= FIELDS {
        return Ok(());
    }
    let own = [CALLER_VERSION, RULE].iter().filter(|name| headers.contains_key(*name)).count();
    let fields = headers.len() - own;
    if fields <= FIELDS {
        return Ok(());
    }
    let detail = format!("{fields} fields: at most {FIELDS} are accepted");
    Err(Refusal(ProxyError::unsent(Reason::HeaderTooLarge, detail), Reason::HeaderTooLarge.status()))
}

/// Of the protocols that extended CONNECT can name only WebSocket is carried (RFC 8441 section 4; RFC 9220 section 3 has
/// 501 for the others).
pub fn websocket_only<B>(request: &Request<B>) -> Result<(), Refusal> {
    let extended = request.version() == Version::HTTP_2
        && request.method() == Method::CONNECT
        && request.uri().path_and_query().is_some();
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    let (status, detail) = match protocol {
        _ if !extended => return Ok(()),
        Some(protocol) if protocol.as_str() == "websocket" => return Ok(()),
        Some(protocol) => (501, format!(":protocol {:?}: only websocket is carried", protocol.as_str())),
        None => (400, "CONNECT has a path and no :protocol".to_owned()),
    };
    Err(Refusal(ProxyError::unsent(Reason::BadRequest, detail), status))
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        let detail = format!("{}: {}", violation.rule, violation.detail);
        Self(ProxyError::unsent(Reason::BadRequest, detail), violation.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_at_most_128_fields_beside_the_meshs_own() {
        let fields = |count: usize| -> HeaderMap {
            let name = |n| http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).expect("valid");
            (0..count).map(|n| (name(n), http::HeaderValue::from_static("1"))).collect()
        };
        let mut full = fields(FIELDS);
        full.insert(CALLER_VERSION, http::HeaderValue::from_static("1.1"));
        assert!(few_fields(&full).is_ok());
        let Err(Refusal(error, status)) = few_fields(&fields(FIELDS + 1)) else { panic!("too many") };
        assert_eq!((status, error.reason), (431, Reason::HeaderTooLarge));
    }
}
