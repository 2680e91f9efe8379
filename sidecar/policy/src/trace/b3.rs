//! B3 propagation, single and multi (openzipkin/b3-propagation). Ids of 64 bits are left-padded to 128.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Incoming, Outgoing, Parent, SpanId, TraceId, hex, only, value};

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// `{trace}-{span}[-{0|1|d}[-{parent}]]`, or a decision alone.
pub(super) fn extract_single(headers: &HeaderMap) -> Option<Incoming> {
    let text = only(headers, &SINGLE)?;
    let mut parts = text.split('-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        let (sampled, debug) = decision(first)?;
        return Some(Incoming { sampled: Some(sampled), debug, ..Incoming::default() });
    };
    let parent = parent(first, span)?;
    let (sampled, debug) = match parts.next() {
        Some(word) => decision(word).map(|(sampled, debug)| (Some(sampled), debug))?,
        None => (None, false),
    };
    if parts.next().is_some_and(|id| SpanId::parse(id).is_none()) || parts.next().is_some() {
        return None;
    }
    Some(Incoming { parent: Some(parent), sampled, debug, ..Incoming::default() })
}

fn decision(word: &str) -> Option<(bool, bool)> {
    match word {
        "0" => Some((false, false)),
        "1" => Some((true, false)),
        "d" => Some((true, true)),
        _ => None,
    }
}

fn parent(trace: &str, span: &str) -> Option<Parent> {
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    Some(Parent { trace: TraceId::parse(trace)?, span: SpanId::parse(span)?, random: false })
}

pub(super) fn extract_multi(headers: &HeaderMap) -> Option<Incoming> {
    let debug = only(headers, &FLAGS) == Some("1");
    let sampled = match only(headers, &SAMPLED) {
        // `true` and `false` are what the first writers of this format sent.
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        _ => None,
    };
    let parent = match (only(headers, &TRACE), only(headers, &SPAN)) {
        (Some(trace), Some(span)) => Some(parent(trace, span)?),
        _ => None,
    };
    if parent.is_none() && sampled.is_none() && !debug {
        return None;
    }
    Some(Incoming { parent, sampled: if debug { Some(true) } else { sampled }, debug, ..Incoming::default() })
}

pub(super) fn inject(headers: &mut HeaderMap, outgoing: &Outgoing) {
    // What was there and broke the rules would send an app that reads it first into another trace.
    if outgoing.formats.b3_single {
        headers.insert(SINGLE, single(outgoing));
    } else {
        headers.remove(&SINGLE);
    }
    if outgoing.formats.b3_multi {
        multi(headers, outgoing);
    } else {
        [TRACE, SPAN, PARENT, SAMPLED, FLAGS].iter().for_each(|name| drop(headers.remove(name)));
    }
}

fn single(outgoing: &Outgoing) -> HeaderValue {
    let mut text = *b"00000000000000000000000000000000-0000000000000000-0-0000000000000000";
    hex(&outgoing.trace.to_bytes(), &mut text[..32]);
    hex(&outgoing.span.to_bytes(), &mut text[33..49]);
    text[50] = match (outgoing.debug, outgoing.sampled) {
        (true, _) => b'd',
        (false, true) => b'1',
        (false, false) => b'0',
    };
    match outgoing.parent {
        Some(parent) => {
            hex(&parent.to_bytes(), &mut text[52..]);
            value(&text)
        }
        None => value(&text[..51]),
    }
}

fn multi(headers: &mut HeaderMap, outgoing: &Outgoing) {
    let mut trace = [0; 32];
    hex(&outgoing.trace.to_bytes(), &mut trace);
    headers.insert(TRACE, value(&trace));
    let mut span = [0; 16];
    hex(&outgoing.span.to_bytes(), &mut span);
    headers.insert(SPAN, value(&span));
    match outgoing.parent {
        Some(parent) => {
            hex(&parent.to_bytes(), &mut span);
            headers.insert(PARENT, value(&span));
        }
        None => _ = headers.remove(&PARENT),
    }
    // With the debug flag the decision is implied and not sent beside it.
    if outgoing.debug {
        headers.insert(FLAGS, HeaderValue::from_static("1"));
        headers.remove(&SAMPLED);
    } else {
        headers.remove(&FLAGS);
        headers.insert(SAMPLED, HeaderValue::from_static(if outgoing.sampled { "1" } else { "0" }));
    }
}
