//! The head of an answer in HTTP/1.x (RFC 9112), read strictly: what two readers could take for two things is refused.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use weft_policy::{
    canonical::{Violation, response_length},
    fields::Fields,
};

use super::body::Decoder;
use crate::http::FIELDS;

/// Bytes of a head.
const HEAD_BYTES: usize = 64 * 1024;
/// Interim answers (1xx) before the answer.
const INTERIM: u8 = 16;

/// What was asked, as far as it changes what an answer means.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Asked {
    /// The answer has no body, whatever its fields say.
    pub head: bool,
    /// The answer may end HTTP on this connection.
    pub upgrade: bool,
}

/// A head, and what follows it.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    pub version: Version,
    pub fields: HeaderMap,
    pub decoder: Decoder,
    /// The connection can be used again after the body.
    pub keep: bool,
}

/// How far the head of an answer is read.
#[derive(Debug, Default)]
pub struct Reader {
    /// Bytes that were looked at and do not end a line.
    seen: usize,
    /// Interim answers so far.
    interim: u8,
}

impl Asked {
    /// What a request with these fields asks.
    pub fn of(method: &Method, fields: Fields) -> Self {
        Self { head: *method == Method::HEAD, upgrade: fields.has(Fields::UPGRADE) }
    }
}

impl Reader {
    /// Takes a head from `input`, if all of it is there, and puts what follows it into `rest`. `spare` is an empty map, whose
    /// memory is used. Interim answers are passed over.
    ///
    /// # Errors
    /// What the head breaks.
    pub fn read(
        &mut self,
        input: &mut BytesMut,
        rest: &mut Bytes,
        spare: &mut HeaderMap,
        asked: Asked,
    ) -> Result<Option<Head>, String> {
        loop {
            // A head that comes in small pieces is not parsed for each of them.
            if memchr::memchr(b'\n', &input[self.seen..]).is_none() {
                self.seen = input.len();
                return partial(input.len());
            }
            let bytes = input.split().freeze();
            let mut slots = [const { MaybeUninit::uninit() }; FIELDS];
            let mut parsed = httparse::Response::new(&mut []);
            let length = httparse::ParserConfig::default()
                .parse_response_with_uninit_headers(&mut parsed, &bytes, &mut slots)
                .map_err(|error| format!("the head of the answer: {error}"))?;
            let httparse::Status::Complete(length) = length else {
                self.seen = bytes.len();
                // Nobody else holds the memory then, and it is taken back as it was.
                *input = BytesMut::new();
                *input = bytes.try_into_mut().unwrap_or_else(|bytes| BytesMut::from(&bytes[..]));
                return partial(input.len());
            };
            strict(&bytes[..length])?;
            let (status, version) = status_line(&parsed)?;
            if status.is_informational() && !(status == StatusCode::SWITCHING_PROTOCOLS && asked.upgrade) {
                if status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err("101 without an upgrade request".into());
                }
                self.interim += 1;
                if self.interim > INTERIM {
                    return Err(format!("more than {INTERIM} interim answers"));
                }
                self.seen = 0;
                let following = bytes.slice(length..);
                *input = BytesMut::new();
                drop(bytes);
                *input = following.try_into_mut().unwrap_or_else(|bytes| BytesMut::from(&bytes[..]));
                continue;
            }
            let mut fields = std::mem::take(spare);
            fields.reserve(parsed.headers.len());
            for field in &*parsed.headers {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                // A part of what was read: nothing is copied.
                let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(format!("the head of the answer: a field {:?} is not allowed", field.name));
                };
                fields.append(name, value);
            }
            *self = Self::default();
            *rest = bytes.slice(length..);
            return head(status, version, fields, asked).map(Some);
        }
    }
}

fn partial(length: usize) -> Result<Option<Head>, String> {
    if length > HEAD_BYTES {
        return Err(format!("the head of the answer is longer than {HEAD_BYTES} bytes"));
    }
    Ok(None)
}

/// What `httparse` lets pass: empty lines before the head, and lines that end in LF alone.
fn strict(head: &[u8]) -> Result<(), String> {
    if head.len() > HEAD_BYTES {
        return Err(format!("the head of the answer is longer than {HEAD_BYTES} bytes"));
    }
    if head.first() != Some(&b'H') {
        return Err("the answer does not begin with HTTP/".into());
    }
    let bare = |end: usize| end.checked_sub(1).and_then(|before| head.get(before)) != Some(&b'\r');
    if memchr::memchr_iter(b'\n', head).any(bare) {
        return Err("a line of the head of the answer ends in LF without CR".into());
    }
    Ok(())
}

fn status_line(parsed: &httparse::Response<'_, '_>) -> Result<(StatusCode, Version), String> {
    let code = parsed.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| format!("the answer has status {code}"))?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    Ok((status, version))
}

/// RFC 9112 section 6.3: what delimits the body, and whether another answer can follow it.
fn head(status: StatusCode, version: Version, fields: HeaderMap, asked: Asked) -> Result<Head, String> {
    let found = Fields::of(&fields);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Head { status, version, fields, decoder: Decoder::Done, keep: false });
    }
    let wrong = |violation: Violation| format!("{}: {}", violation.rule, violation.detail);
    let length = response_length(&fields, version, found).map_err(wrong)?;
    let decoder = match (status.as_u16(), length) {
        (204 | 304, _) => Decoder::Done,
        _ if asked.head => Decoder::Done,
        (_, Some(0)) => Decoder::Done,
        (_, Some(length)) => Decoder::Length(length),
        (_, None) if found.has(Fields::TRANSFER_ENCODING) => Decoder::chunked(),
        (_, None) => Decoder::Close,
    };
    let keep = decoder != Decoder::Close && is_kept(version, &fields, found);
    Ok(Head { status, version, fields, decoder, keep })
}

/// RFC 9112 section 9.3.
fn is_kept(version: Version, fields: &HeaderMap, found: Fields) -> bool {
    if !found.has(Fields::CONNECTION) {
        return version == Version::HTTP_11;
    }
    let (mut close, mut keep_alive) = (false, false);
    for value in fields.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            close |= token.eq_ignore_ascii_case(b"close");
            keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    !close && (version == Version::HTTP_11 || keep_alive)
}
