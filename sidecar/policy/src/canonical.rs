//! Framing, Host, path and hop-by-hop headers: made canonical or rejected before anything else looks at a message.
//! hyper alone is not enough (RFC 9112 and 9113 leave a proxy more to check); what it accepts too much of is here.

mod authority;
mod identity;
mod response;

pub use authority::{Authority, canonical_path, path};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, request::Parts, uri::PathAndQuery};
pub use identity::{is_identity, strip_identity};
pub use response::{response, response_length, trailers};

use crate::fields::Fields;

/// A rule that a message breaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// Stable word.
    pub rule: &'static str,
    /// Status of the answer.
    pub status: u16,
    /// The value and why.
    pub detail: String,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// No body.
    None,
    /// This many bytes.
    Length(u64),
    /// Until its end mark.
    Stream,
}

/// Leaving HTTP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upgrade {
    /// WebSocket: `Upgrade` on HTTP/1.1, extended CONNECT on HTTP/2.
    WebSocket,
}

/// What was found in a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Canonical {
    /// Who is called.
    pub host: Authority,
    /// The body.
    pub framing: Framing,
    /// An upgrade that we carry.
    pub upgrade: Option<Upgrade>,
    /// What the head had when it came.
    pub fields: Fields,
}

pub(crate) fn violation(rule: &'static str, detail: impl Into<String>) -> Violation {
    Violation { rule, status: 400, detail: detail.into() }
}

/// Checks a request from a downstream and rewrites its head: exactly one Host, an origin-form target, no hop-by-hop
/// fields, neither Content-Length nor Transfer-Encoding (the result says what they said; the encoder writes anew).
///
/// # Errors
/// The first rule that the request breaks.
pub fn request(parts: &mut Parts) -> Result<Canonical, Violation> {
    let (http2, fields) = (parts.version == Version::HTTP_2, Fields::of(&parts.headers));
    let websocket = websocket(parts, http2, fields)?;
    if parts.method == Method::CONNECT && websocket.is_none() {
        return Err(Violation { status: 405, ..violation("connect", "CONNECT is not enabled here") });
    }
    let framing = request_framing(parts, http2, websocket.is_some(), fields)?;
    if fields.has(Fields::EXPECT) {
        expect(&parts.headers)?;
        parts.headers.remove(header::EXPECT);
    }
    let host = host(parts, http2)?;
    target(parts, http2)?;
    let trailers = fields.has(Fields::TE) && te_trailers(&parts.headers);
    strip_hop_by_hop(&mut parts.headers, fields)?;
    if fields.has(Fields::CONTENT_LENGTH) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    if trailers {
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if fields.has(Fields::COOKIE) {
        join_cookies(&mut parts.headers);
    }
    Ok(Canonical { host, framing, upgrade: websocket, fields })
}

/// WebSocket is the one upgrade that is carried; any other `Upgrade` is dropped with the hop.
fn websocket(parts: &Parts, http2: bool, fields: Fields) -> Result<Option<Upgrade>, Violation> {
    if http2 {
        // Extended CONNECT (RFC 8441) has a scheme and a path; a plain one has only an authority.
        let extended = parts.method == Method::CONNECT && parts.uri.path_and_query().is_some();
        return Ok(extended.then_some(Upgrade::WebSocket));
    }
    if !fields.has(Fields::UPGRADE) {
        return Ok(None);
    }
    let mut upgrades = parts.headers.get_all(header::UPGRADE).iter();
    let named = upgrades.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let nominated = tokens(&parts.headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if !(named && nominated) {
        return Ok(None);
    }
    if upgrades.next().is_some() || parts.method != Method::GET || parts.version != Version::HTTP_11 {
        return Err(violation("websocket", "a WebSocket upgrade is one GET with one Upgrade field in HTTP/1.1"));
    }
    Ok(Some(Upgrade::WebSocket))
}

fn request_framing(parts: &Parts, http2: bool, upgrade: bool, fields: Fields) -> Result<Framing, Violation> {
    let length = content_length(&parts.headers, fields)?;
    if !fields.has(Fields::TRANSFER_ENCODING) {
        return Ok(match length {
            Some(length) => Framing::Length(length),
            // In HTTP/2 a body may follow without any field; its end mark says when it is over.
            None if http2 && !upgrade => Framing::Stream,
            None => Framing::None,
        });
    }
    if http2 {
        return Err(violation("te_in_http2", "Transfer-Encoding does not exist in HTTP/2"));
    }
    if length.is_some() {
        return Err(violation("te_with_cl", "both Transfer-Encoding and Content-Length"));
    }
    if parts.version == Version::HTTP_10 {
        return Err(violation("te_in_http10", "Transfer-Encoding in HTTP/1.0"));
    }
    let mut encodings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    let (encoding, other) = (encodings.next(), encodings.next());
    if other.is_some() {
        return Err(violation("te_several", "more than one Transfer-Encoding field"));
    }
    if encoding.is_some_and(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        return Ok(Framing::Stream);
    }
    let detail = format!("Transfer-Encoding {encoding:?}: only \"chunked\" is accepted");
    Err(Violation { status: 501, ..violation("te_not_chunked", detail) })
}

/// The one value of Content-Length: digits only, equal when repeated.
pub(crate) fn content_length(headers: &HeaderMap, fields: Fields) -> Result<Option<u64>, Violation> {
    if !fields.has(Fields::CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut found: Option<u64> = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
        let parsed = value.to_str().ok().filter(|_| digits).and_then(|text| text.parse().ok());
        let Some(length) = parsed else {
            return Err(violation("cl_invalid", format!("Content-Length {value:?}: expected digits")));
        };
        if found.is_some_and(|other| other != length) {
            return Err(violation("cl_differs", "Content-Length fields that differ"));
        }
        found = Some(length);
    }
    Ok(found)
}

/// `100-continue` is the only expectation; the server answers it when the body is first asked for.
fn expect(headers: &HeaderMap) -> Result<(), Violation> {
    let mut values = headers.get_all(header::EXPECT).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(()),
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        (Some(value), _) => {
            Err(Violation { status: 417, ..violation("expect", format!("Expect {value:?}: only 100-continue")) })
        }
    }
}

/// Exactly one Host: of the absolute form, of `:authority`, or of the field.
fn host(parts: &mut Parts, http2: bool) -> Result<Authority, Violation> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let field = hosts.next();
    if hosts.next().is_some() {
        return Err(violation("host_several", "more than one Host field"));
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if http2
        && let (Some(field), Some(authority)) = (field, authority)
        && !field.as_bytes().eq_ignore_ascii_case(authority)
    {
        return Err(violation("host_differs", "Host and :authority differ"));
    }
    // RFC 9112 section 3.2.2: an absolute form replaces the Host field.
    let Some(text) = authority.or(field.map(HeaderValue::as_bytes)) else {
        if parts.version == Version::HTTP_10 {
            return Ok(Authority { host: "".into(), port: None });
        }
        return Err(violation("host_missing", "no Host"));
    };
    let parsed = Authority::parse(text)?;
    if let Some(authority) = authority {
        let value = HeaderValue::from_bytes(authority);
        parts.headers.insert(header::HOST, value.map_err(|_| violation("host_invalid", "Host is no field value"))?);
    }
    Ok(parsed)
}

/// Reduces the target to its origin form, with the one form of its path.
fn target(parts: &mut Parts, http2: bool) -> Result<(), Violation> {
    if parts.uri.path() == "*" {
        if parts.method == Method::OPTIONS {
            return Ok(());
        }
        return Err(violation("target_asterisk", "the target * is for OPTIONS only"));
    }
    if let Some(scheme) = parts.uri.scheme_str()
        && !matches!(scheme, "http" | "https")
    {
        return Err(violation("target_scheme", format!("scheme {scheme:?}: expected http or https")));
    }
    let origin = match parts.uri.path_and_query() {
        Some(origin) => origin.clone(),
        None if http2 => return Err(violation("path_missing", "no :path")),
        None => PathAndQuery::from_static("/"),
    };
    // `?x` alone is the path `/` with a query (RFC 9112 section 3.2.1); what is sent must say so.
    let bare = origin.as_str().starts_with('?').then(|| "/".to_owned());
    let origin = match canonical_path(origin.path())?.or(bare) {
        None => origin,
        Some(path) => {
            let whole = origin.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
            PathAndQuery::try_from(whole).map_err(|error| violation("target_invalid", error.to_string()))?
        }
    };
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(origin);
    parts.uri = Uri::from_parts(uri).map_err(|error| violation("target_invalid", error.to_string()))?;
    Ok(())
}

fn te_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

/// Removes what is for one hop: every field that any Connection line nominates, and the classic ones.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, fields: Fields) -> Result<(), Violation> {
    const CLASSIC: [HeaderName; 7] = [
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    if fields.has(Fields::CONNECTION) {
        for name in nominated(headers)? {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if fields.has(Fields::TE | Fields::TRANSFER_ENCODING | Fields::UPGRADE | Fields::OTHER_HOP) {
        for name in &CLASSIC {
            headers.remove(name);
        }
    }
    Ok(())
}

/// What any Connection line nominates.
fn nominated(headers: &HeaderMap) -> Result<Vec<HeaderName>, Violation> {
    let mut nominated = Vec::new();
    for token in tokens(headers, &header::CONNECTION) {
        if token.eq_ignore_ascii_case("close") || token.eq_ignore_ascii_case("keep-alive") {
            continue;
        }
        let name = HeaderName::try_from(token).map_err(|_| {
            violation("connection_token", format!("Connection nominates {token:?}, which is no field name"))
        })?;
        // These are the message's own, not the hop's: a caller cannot make them vanish.
        if !matches!(name, header::HOST | header::CONTENT_LENGTH | header::AUTHORIZATION | header::COOKIE) {
            nominated.push(name);
        }
    }
    Ok(nominated)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|t| !t.is_empty())
}

/// Cookie crumbs of HTTP/2 become one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().count() < 2 {
        return;
    }
    let mut joined = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(value.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests;
