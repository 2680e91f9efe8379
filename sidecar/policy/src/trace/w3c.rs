//! `traceparent` of W3C Trace Context level 2.

use http::{HeaderMap, HeaderValue};

use super::{Incoming, Outgoing, Parent, SpanId, TRACEPARENT, TraceId, hex, only, value};

const SAMPLED: u8 = 0x01;
const RANDOM: u8 = 0x02;
/// Of a `traceparent` of version 00: `00-<32>-<16>-<2>`.
const LENGTH: usize = 55;

pub(super) fn extract(headers: &HeaderMap) -> Option<Incoming> {
    let text = only(headers, &TRACEPARENT)?;
    let (head, rest) = (text.get(..LENGTH)?, text.get(LENGTH..)?);
    if head.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let mut parts = head.split('-');
    let version = byte(parts.next()?)?;
    let (trace, span, flags) = (parts.next()?, parts.next()?, byte(parts.next()?)?);
    // A version to come may add fields after the ones that we know (section 3.2.4).
    let end = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    if version == 0xff || !end || trace.len() != 32 || span.len() != 16 || parts.next().is_some() {
        return None;
    }
    let parent = Parent { trace: TraceId::parse(trace)?, span: SpanId::parse(span)?, random: flags & RANDOM != 0 };
    Some(Incoming { parent: Some(parent), sampled: Some(flags & SAMPLED != 0), ..Incoming::default() })
}

/// Two hexadecimal digits.
fn byte(text: &str) -> Option<u8> {
    if text.len() != 2 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(text, 16).ok()
}

pub(super) fn traceparent(outgoing: &Outgoing) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(&outgoing.trace.to_bytes(), &mut text[3..35]);
    hex(&outgoing.span.to_bytes(), &mut text[36..52]);
    let sampled = if outgoing.sampled { SAMPLED } else { 0 };
    let random = if outgoing.random { RANDOM } else { 0 };
    hex(&[sampled | random], &mut text[53..]);
    value(&text)
}
