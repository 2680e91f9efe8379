//! Responses that the sidecar makes itself: status, `Proxy-Status` (RFC 9209) and a body that a person can read;
//! for gRPC a trailers-only response.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::body::Body;
use crate::error::ProxyError;

/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The response for a failure. `grpc` says that the caller expects gRPC; `status` overrides the reason's own.
#[must_use]
pub fn error(error: &ProxyError, grpc: bool, status: Option<u16>) -> Response<Body> {
    let proxy_status = HeaderValue::from_str(&proxy_status(error)).unwrap_or(HeaderValue::from_static("weft"));
    let text = format!("weft: {error}\n");
    let mut response = if grpc { Response::new(Body::empty()) } else { Response::new(Body::full(text)) };
    let headers = response.headers_mut();
    headers.insert(PROXY_STATUS, proxy_status);
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers
            .insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(error.reason.grpc_status())));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&error.to_string())) {
            headers.insert(HeaderName::from_static("grpc-message"), message);
        }
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let code = status.unwrap_or(error.reason.status());
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    }
    response
}

/// What `Proxy-Status` says of a failure.
#[must_use]
pub fn proxy_status(error: &ProxyError) -> String {
    let details = quoted(&format!("{}: {}", error.reason.as_str(), error.detail));
    format!("weft; error={}; details=\"{details}\"", error.reason.proxy_status())
}

/// Text for an sf-string (RFC 8941 section 3.3.3): printable ASCII, quotes and backslashes escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(256) {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

/// Text for `grpc-message`: percent-encoded as the gRPC protocol asks.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes().take(512) {
        match byte {
            b'%' => out.push_str("%25"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn an_http_error_carries_status_and_proxy_status() {
        let response = error(&ProxyError::new(Reason::ConnectionRefused, "dial \"x\""), false, None);
        assert_eq!(response.status(), 503);
        assert_eq!(
            response.headers()["proxy-status"],
            "weft; error=connection_refused; details=\"connection_refused: dial \\\"x\\\"\""
        );
    }

    #[test]
    fn a_grpc_error_is_trailers_only() {
        let response = error(&ProxyError::new(Reason::NoEndpoints, "a\nb"), true, None);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no_endpoints: a%0Ab");
    }

    #[test]
    fn every_reason_makes_a_valid_response() {
        for reason in Reason::ALL {
            assert_eq!(error(&ProxyError::new(reason, ""), false, None).status().as_u16(), reason.status());
        }
    }
}
