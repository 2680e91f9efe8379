//! The body of an answer in HTTP/1.x (RFC 9112 sections 6 and 7), taken out of the bytes of its connection as they come.
//! No input or output: pieces can be cut anywhere, and what comes out is the same.

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};

use crate::http::FIELDS;

/// Bytes of chunk extensions in a body. They are not passed on.
const EXTENSIONS: usize = 16 * 1024;
/// Bytes of trailers.
const TRAILERS: usize = 16 * 1024;
/// Digits of a `u64`.
const DIGITS: u8 = 16;

/// What follows the data of the last chunk but one, where there are no trailers.
const LAST: &[u8] = b"\r\n0\r\n\r\n";

/// Where a body ends.
#[derive(Debug, PartialEq)]
pub enum Decoder {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked(Chunked),
    /// With the connection.
    Close,
    /// It has ended.
    Done,
}

/// Where in a chunked body its reader is.
#[derive(Debug, Default, PartialEq)]
pub struct Chunked {
    state: State,
    /// Of the chunk: its size while that is read, then what is left of it.
    left: u64,
    digits: u8,
    /// Bytes of extensions so far.
    extensions: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    #[default]
    Size,
    /// White space after the size, which the grammar of extensions allows (RFC 9112 section 7.1.1).
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
}

impl Decoder {
    /// A chunked body, at its start.
    pub fn chunked() -> Self {
        Self::Chunked(Chunked::default())
    }

    /// The next frame in `input`, of which it takes all until there is one or the body has ended.
    ///
    /// # Errors
    /// What the body breaks.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Option<Frame<Bytes>>, String> {
        match self {
            Self::Done => Ok(None),
            Self::Close => Ok((!input.is_empty()).then(|| Frame::data(std::mem::take(input)))),
            Self::Length(left) => {
                let data = take(input, left);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(data)
            }
            Self::Chunked(chunked) => {
                if chunked.state != State::Data && !chunked.lines(input)? {
                    return Ok(None);
                }
                if chunked.state == State::Data {
                    let data = take(input, &mut chunked.left);
                    if chunked.left == 0 {
                        chunked.state = State::DataCr;
                        // Most often the end is there, and nobody has to ask for it.
                        if input.starts_with(LAST) {
                            input.advance(LAST.len());
                            *self = Self::Done;
                        }
                    }
                    return Ok(data);
                }
                let trailers = parse_trailers(&chunked.trailers)?;
                *self = Self::Done;
                Ok(trailers.map(Frame::trailers))
            }
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// When the body has not.
    pub fn end(&mut self) -> Result<(), String> {
        match self {
            Self::Done => Ok(()),
            Self::Close => {
                *self = Self::Done;
                Ok(())
            }
            Self::Length(left) => Err(format!("the connection ended {left} bytes before the end of the body")),
            Self::Chunked(_) => Err("the connection ended before the last chunk".into()),
        }
    }

    /// What is left.
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Done => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::Close => SizeHint::default(),
        }
    }
}

impl Chunked {
    /// Reads lines until data follows or the body has ended, which is true, or more input is needed.
    fn lines(&mut self, input: &mut Bytes) -> Result<bool, String> {
        let mut taken = 0;
        let mut reached = false;
        for byte in input.iter() {
            taken += 1;
            reached = self.step(*byte)?;
            if reached {
                break;
            }
        }
        input.advance(taken);
        Ok(reached)
    }

    /// One byte that is not data. True: the next one is data, or the body has ended.
    fn step(&mut self, byte: u8) -> Result<bool, String> {
        match (self.state, byte) {
            (State::Size, digit) if digit.is_ascii_hexdigit() => {
                if self.digits == DIGITS {
                    return Err("a chunk size has more than 16 digits".into());
                }
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                self.digits += 1;
            }
            (State::Size | State::Space, b' ' | b'\t') if self.digits > 0 => {
                self.state = State::Space;
                self.extension()?;
            }
            (State::Size | State::Space, b';') if self.digits > 0 => self.state = State::Extension,
            (State::Size | State::Space, b'\r') if self.digits > 0 => self.state = State::SizeLf,
            (State::Extension, b'\r') => self.state = State::SizeLf,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.extension()?,
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                self.state = if self.left == 0 { State::Trailers } else { State::Data };
                return Ok(self.left > 0);
            }
            (State::DataCr, b'\r') => self.state = State::DataLf,
            (State::DataLf, b'\n') => self.state = State::Size,
            (State::Trailers, byte) => return self.trailer(byte),
            (state, byte) => return Err(format!("byte {byte:#04x} in a chunked body, where {} is", state.name())),
        }
        Ok(false)
    }

    fn extension(&mut self) -> Result<(), String> {
        self.extensions += 1;
        if self.extensions > EXTENSIONS {
            return Err(format!("the chunk extensions of a body are longer than {EXTENSIONS} bytes"));
        }
        Ok(())
    }

    /// True: these were all trailers.
    fn trailer(&mut self, byte: u8) -> Result<bool, String> {
        if byte == b'\n' && self.trailers.last() != Some(&b'\r') {
            return Err("a line of the trailers ends in LF without CR".into());
        }
        if self.trailers.len() == TRAILERS {
            return Err(format!("the trailers of the answer are longer than {TRAILERS} bytes"));
        }
        self.trailers.push(byte);
        Ok(byte == b'\n' && (self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n")))
    }
}

impl State {
    /// What is read in it.
    const fn name(self) -> &'static str {
        match self {
            Self::Size | Self::Space | Self::SizeLf => "the size of a chunk",
            Self::Extension => "an extension of a chunk",
            Self::Data | Self::DataCr | Self::DataLf => "the end of a chunk",
            Self::Trailers => "a trailer",
        }
    }
}

/// So many bytes at most of `input`.
fn take(input: &mut Bytes, left: &mut u64) -> Option<Frame<Bytes>> {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= u64::try_from(length).unwrap_or(*left);
    (length > 0).then(|| Frame::data(input.split_to(length)))
}

/// Trailers with the empty line that ends them; `None` where there are none.
fn parse_trailers(bytes: &[u8]) -> Result<Option<HeaderMap>, String> {
    if bytes == b"\r\n" {
        return Ok(None);
    }
    let mut slots = [httparse::EMPTY_HEADER; FIELDS];
    let wrong = |error: &dyn std::fmt::Display| format!("the trailers of the answer: {error}");
    let parsed = match httparse::parse_headers(bytes, &mut slots) {
        Ok(httparse::Status::Complete((length, parsed))) if length == bytes.len() => parsed,
        Ok(_) => return Err(wrong(&"they do not end")),
        Err(error) => return Err(wrong(&error)),
    };
    let mut trailers = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|error| wrong(&error))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|error| wrong(&error))?;
        trailers.append(name, value);
    }
    Ok(Some(trailers))
}
