//! The same for responses, where the upstream is not trusted either, and for trailers.

use http::{HeaderMap, HeaderName, Method, Version, header, response::Parts};

use super::{Framing, Violation, content_length, strip_hop_by_hop, strip_identity, violation};
use crate::fields::Fields;

/// Checks a response from an upstream and strips what is for one hop. Content-Length and Transfer-Encoding are
/// removed; the result says how the body is delimited. Violations have status 502.
///
/// # Errors
/// The first rule that the response breaks.
pub fn response(parts: &mut Parts, method: &Method, version: Version) -> Result<Framing, Violation> {
    let fields = Fields::of(&parts.headers);
    let length = response_length(&parts.headers, version, fields)?;
    let bodyless = *method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
    let framing = match length {
        // HEAD and 304 keep the length that the body would have (RFC 9110 section 8.6); 204 has none.
        Some(length) if parts.status != 204 => Framing::Length(length),
        _ if bodyless => Framing::None,
        _ => Framing::Stream,
    };
    strip_hop_by_hop(&mut parts.headers, fields).map_err(of_upstream)?;
    if fields.has(Fields::CONTENT_LENGTH) {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Ok(framing)
}

/// What the fields of a response say of the length of its body: that there is a Content-Length, and that a
/// Transfer-Encoding, which is `chunked` then, is not there beside it or anything else. For the codec that reads the body, so
/// that it goes by the rules by which the head is judged. Violations have status 502.
///
/// # Errors
/// The first rule that the response breaks.
pub fn response_length(headers: &HeaderMap, version: Version, fields: Fields) -> Result<Option<u64>, Violation> {
    let length = content_length(headers, fields).map_err(of_upstream)?;
    if fields.has(Fields::TRANSFER_ENCODING) {
        encoding(headers, version, length).map_err(of_upstream)?;
    }
    Ok(length)
}

fn of_upstream(violation: Violation) -> Violation {
    Violation { status: 502, ..violation }
}

/// A Transfer-Encoding is one `chunked`, in HTTP/1.1 and without a Content-Length.
fn encoding(headers: &HeaderMap, version: Version, length: Option<u64>) -> Result<(), Violation> {
    if length.is_some() {
        return Err(violation("te_with_cl", "both Transfer-Encoding and Content-Length"));
    }
    if version != Version::HTTP_11 {
        return Err(violation("te_version", format!("Transfer-Encoding in {version:?}")));
    }
    let encodings: Vec<_> = headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    match encodings[..] {
        [encoding] if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(violation("te_not_chunked", format!("Transfer-Encoding {encodings:?}"))),
    }
}

/// Drops the fields that must not come in trailers: framing, routing, authentication, identity (RFC 9110 section
/// 6.5.1).
pub fn trailers(trailers: &mut HeaderMap) {
    const FORBIDDEN: [HeaderName; 11] = [
        header::AUTHORIZATION,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::HOST,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    for name in &FORBIDDEN {
        trailers.remove(name);
    }
    strip_identity(trailers);
}
