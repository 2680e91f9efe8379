//! Trace context: ids, what a request says of its trace (W3C Trace Context, B3 single and multi), what the next leg is
//! told, and the sampling decision. Pure: random bits and headers are arguments. `baggage` and `tracestate` are nobody's
//! business here: they pass as they are, except that a `tracestate` without a valid `traceparent` is dropped.

mod b3;
pub mod propagation;
mod w3c;

use std::{fmt, num::NonZeroU64};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::fields::Fields;

/// `traceparent` (W3C Trace Context section 3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate` (W3C Trace Context section 3.3).
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// 128 bits that name a trace; never zero. In bytes, so that what holds one needs no alignment of 16.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TraceId([u8; 16]);

/// 64 bits that name a span of a trace; never zero.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpanId(NonZeroU64);

/// The formats in which a request told its context, so that the answer to it goes on in kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Formats {
    /// `traceparent`.
    pub w3c: bool,
    /// `b3`.
    pub b3_single: bool,
    /// `x-b3-traceid` and its companions.
    pub b3_multi: bool,
}

/// What a request says of the trace that it belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Incoming {
    /// The trace and the span that caused the request.
    pub parent: Option<Parent>,
    /// Whether the caller records; `None`: it leaves that to us.
    pub sampled: Option<bool>,
    /// B3's debug flag: recorded whatever the sampling.
    pub debug: bool,
    /// How it was told.
    pub formats: Formats,
}

/// A span of the caller's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parent {
    /// Its trace.
    pub trace: TraceId,
    /// The span itself.
    pub span: SpanId,
    /// The trace id's last 56 bits are random (W3C Trace Context level 2, flag 0x02).
    pub random: bool,
}

/// What the next leg is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outgoing {
    /// The trace.
    pub trace: TraceId,
    /// The span that causes the next request.
    pub span: SpanId,
    /// The span that caused `span`, for B3.
    pub parent: Option<SpanId>,
    /// Whether it is recorded.
    pub sampled: bool,
    /// B3's debug flag.
    pub debug: bool,
    /// The trace id's last 56 bits are random.
    pub random: bool,
    /// In addition to `traceparent`.
    pub formats: Formats,
}

/// A share of traces, from none to all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sampling {
    /// Of 2^56; a trace is recorded when the last 56 bits of its id are below.
    threshold: u64,
}

impl TraceId {
    /// From random bits.
    #[must_use]
    pub fn random(bits: [u64; 2]) -> Self {
        let value = (u128::from(bits[0]) << 64) | u128::from(bits[1]);
        Self(value.max(1).to_be_bytes())
    }

    /// From 32 or fewer hexadecimal digits; `None` when it is none or zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().and_then(|value| Self::from_bytes(value.to_be_bytes()))
    }

    /// Big-endian, as on the wire of OTLP.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// From the wire of OTLP.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    const fn low(self) -> u64 {
        let bytes = self.0;
        u64::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]])
    }
}

impl SpanId {
    /// From random bits.
    #[must_use]
    pub fn random(bits: u64) -> Self {
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }

    /// From 16 or fewer hexadecimal digits; `None` when it is none or zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().and_then(NonZeroU64::new).map(Self)
    }

    /// Big-endian, as on the wire of OTLP.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }

    /// From the wire of OTLP.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        NonZeroU64::new(u64::from_be_bytes(bytes)).map(Self)
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Sampling {
    /// Every trace.
    pub const ALL: Self = Self { threshold: 1 << 56 };
    /// None.
    pub const NONE: Self = Self { threshold: 0 };

    /// Parts per million of all traces; more than a million is all.
    #[must_use]
    pub fn per_million(parts: u32) -> Self {
        // 2^56 is no multiple of a million: the rest would be lost to every share, and "all" must be all.
        if parts >= 1_000_000 { Self::ALL } else { Self { threshold: ((1 << 56) / 1_000_000) * u64::from(parts) } }
    }

    /// Whether a trace is recorded: the caller's decision (parent-based), or else ours, which is the same at every hop
    /// with the same share.
    #[must_use]
    pub fn records(self, incoming: &Incoming, trace: TraceId) -> bool {
        incoming.debug || incoming.sampled.unwrap_or((trace.low() & ((1 << 56) - 1)) < self.threshold)
    }
}

/// Reads what a request says of its trace: W3C before B3 single before B3 multi. What breaks its format's rules counts
/// as absent.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Incoming {
    let fields = Fields::of(headers);
    if !fields.has(Fields::W3C | Fields::B3) {
        return Incoming::default();
    }
    let w3c = w3c::extract(headers);
    let (single, multi) = (b3::extract_single(headers), b3::extract_multi(headers));
    let formats = Formats { w3c: w3c.is_some(), b3_single: single.is_some(), b3_multi: multi.is_some() };
    let first = w3c.or(single).or(multi).unwrap_or_default();
    Incoming { formats, ..first }
}

/// Tells the next leg: `traceparent` always, B3 as it was seen. Other formats' fields that were invalid go.
pub fn inject(headers: &mut HeaderMap, outgoing: &Outgoing) {
    let fields = Fields::of(headers);
    if !outgoing.formats.w3c && fields.has(Fields::W3C) {
        // The list belongs to a context that was not valid, or to none (W3C Trace Context section 4.3).
        headers.remove(&TRACESTATE);
    }
    headers.insert(TRACEPARENT, w3c::traceparent(outgoing));
    if fields.has(Fields::B3) || outgoing.formats.b3_single || outgoing.formats.b3_multi {
        b3::inject(headers, outgoing);
    }
}

/// The only value of a field; `None` when it is absent, repeated or not text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() {
        return None;
    }
    first.to_str().ok().map(str::trim)
}

/// Bytes that are visible ASCII as a header value.
fn value(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(bytes).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The lower-case hexadecimal digits of `bytes`, into `out`, which is twice as long.
fn hex(bytes: &[u8], out: &mut [u8]) {
    // All pairs of digits: this is done for every request.
    const PAIRS: [[u8; 2]; 256] = {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let (mut pairs, mut byte) = ([[0; 2]; 256], 0);
        while byte < 256 {
            pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
            byte += 1;
        }
        pairs
    };
    let (pairs, _) = out.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = PAIRS[usize::from(*byte)];
    }
}

#[cfg(test)]
mod tests;
