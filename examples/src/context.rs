//! The trace context of a request: what every service has to copy from the request that it serves to the calls that it
//! makes for it, so that the sidecars' spans belong together. Nothing else is needed of an app.

use http::{HeaderMap, HeaderName};

/// The fields of W3C Trace Context, baggage and B3, and the request id.
pub const FIELDS: [&str; 10] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-request-id",
];

/// The fields of a request's context.
pub fn of(headers: &HeaderMap) -> HeaderMap {
    let mut context = HeaderMap::new();
    for name in FIELDS.map(HeaderName::from_static) {
        for value in headers.get_all(&name) {
            context.append(name.clone(), value.clone());
        }
    }
    context
}
