//! HTTP as both directions need it: the one body type, serving a connection with every limit set, and the
//! responses that the sidecar makes itself.

pub mod body;
pub mod forward;
pub mod refused;
pub mod reply;
pub mod serve;
pub mod websocket;

/// Mesh-internal request header: the HTTP version that the caller's app used, `1` or `2`, with an `r` after it
/// when the request is sent again because a connection broke. Set by the outbound sidecar, stripped by the inbound one,
/// and by the outbound one when an app sends it.
pub const CALLER_VERSION: http::HeaderName = http::HeaderName::from_static("x-weft-caller-version");
/// Mesh-internal request header: the route rule that the request follows, `namespace/route#rule`, for rate limits that are
/// for a rule. Set by the outbound sidecar, stripped by the inbound one, which believes only a peer with a certificate, and
/// by the outbound one when an app sends it.
pub const RULE: http::HeaderName = http::HeaderName::from_static("x-weft-rule");
/// Mesh-internal response header: the sidecar beside the app answered, and nothing of the request had reached the app.
/// Set by the inbound sidecar, stripped by the outbound one.
pub const UNSENT: http::HeaderName = http::HeaderName::from_static("x-weft-unsent");
/// Fields of a request head; more are answered with 431.
pub const FIELDS: usize = 128;

/// The request is gRPC, so that its errors must be.
#[must_use]
pub fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
