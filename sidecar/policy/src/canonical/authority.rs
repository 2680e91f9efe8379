//! Host with port, and paths that mean one thing only.

use std::{net::Ipv6Addr, sync::Arc};

use super::{Violation, violation};

/// Who is called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    /// Lower-case, without a trailing dot or brackets. Empty only in HTTP/1.0 without Host.
    pub host: Arc<str>,
    /// Port, where one is given.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses `host[:port]`: a name or an address, no user, no path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, Violation> {
        let invalid = |why: &str| violation("host_invalid", format!("Host {:?}: {why}", String::from_utf8_lossy(text)));
        let text = std::str::from_utf8(text).map_err(|_| invalid("not ASCII"))?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(|| invalid("no closing bracket"))?;
                host.parse::<Ipv6Addr>().map_err(|_| invalid("no IPv6 address in the brackets"))?;
                let port = if rest.is_empty() {
                    None
                } else {
                    Some(rest.strip_prefix(':').ok_or_else(|| invalid("text after the bracket"))?)
                };
                (host, port)
            }
            None => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                let host = host.strip_suffix('.').unwrap_or(host);
                let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
                if host.is_empty() || host.len() > 253 || !host.bytes().all(name) {
                    return Err(invalid("expected 1 to 253 letters, digits, '-', '.', '_'"));
                }
                if host.as_bytes().split(|&byte| byte == b'.').any(<[u8]>::is_empty) {
                    return Err(invalid("an empty label"));
                }
                (host, port)
            }
        };
        let port = match port {
            None | Some("") => None,
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
                Some(port.parse().ok().filter(|&port| port != 0).ok_or_else(|| invalid("port must be 1 to 65535"))?)
            }
            Some(_) => return Err(invalid("port must be digits")),
        };
        // Most are lower-case already.
        let upper = host.bytes().any(|byte| byte.is_ascii_uppercase());
        Ok(Self { host: if upper { host.to_ascii_lowercase().into() } else { host.into() }, port })
    }
}

/// Rejects paths that two parsers may read differently: encoded slashes, backslashes, dots, percent signs and control characters,
/// dot segments, empty segments, backslashes, fragments, bytes outside ASCII, broken escapes.
///
/// # Errors
/// The first ambiguity.
pub fn path(path: &str) -> Result<(), Violation> {
    let ambiguous = |rule, what: &str| Err(violation(rule, format!("path {:?}: {what}", truncated(path))));
    if !path.starts_with('/') {
        return ambiguous("path_relative", "does not begin with a slash");
    }
    let bytes = path.as_bytes();
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'%' => {
                let Some(value) = escape(bytes, index) else {
                    return ambiguous("path_escape", "a broken percent escape");
                };
                // Control characters: parsers of URLs (WHATWG's) drop some and stop at others.
                if matches!(value, b'/' | b'\\' | b'.' | b'%' | b'#' | b'?' | b';' | ..b' ' | 0x7f) {
                    return ambiguous("path_encoded", "an encoded character that changes meaning when decoded");
                }
            }
            b'\\' => return ambiguous("path_backslash", "a backslash"),
            b'#' => return ambiguous("path_fragment", "a fragment"),
            0..=b' ' | 0x7f.. => return ambiguous("path_byte", "a control character, a space or a byte outside ASCII"),
            _ => {}
        }
    }
    let inner = bytes[1..].strip_suffix(b"/").unwrap_or(&bytes[1..]);
    if path.len() > 1 && inner.split(|&byte| byte == b'/').any(<[u8]>::is_empty) {
        return ambiguous("path_empty_segment", "an empty segment");
    }
    // A segment's parameters do not hide its dots: `/..;x` is `/..` to some servers.
    let dots = |segment: &[u8]| matches!(segment.split(|&byte| byte == b';').next(), Some(b"." | b".."));
    if bytes.split(|&byte| byte == b'/').any(|segment| segment.first() == Some(&b'.') && dots(segment)) {
        return ambiguous("path_dot_segment", "a dot segment");
    }
    Ok(())
}

/// The one form of a path among those that mean the same: percent-encoded letters, digits, `-`, `_` and `~` are decoded
/// (RFC 3986 section 6.2.2.2), the hex digits of what stays encoded are upper-case (section 6.2.2.1). `None` when the path
/// has this form already.
///
/// # Errors
/// The first ambiguity, as of [`path`].
pub fn canonical_path(text: &str) -> Result<Option<String>, Violation> {
    path(text)?;
    let bytes = text.as_bytes();
    let (mut canonical, mut index, mut changed) = (String::new(), 0, false);
    while let Some(at) = text[index..].find('%').map(|offset| index + offset) {
        canonical.push_str(&text[index..at]);
        index = at + 3;
        match escape(bytes, at) {
            Some(value) if value.is_ascii_alphanumeric() || matches!(value, b'-' | b'_' | b'~') => {
                canonical.push(char::from(value));
                changed = true;
            }
            _ => {
                changed |= text[at..index].bytes().any(|byte| byte.is_ascii_lowercase());
                canonical.push_str(&text[at..index].to_ascii_uppercase());
            }
        }
    }
    if !changed {
        return Ok(None);
    }
    canonical.push_str(&text[index..]);
    Ok(Some(canonical))
}

fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    let digits = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok())?
}

fn truncated(path: &str) -> String {
    path.chars().take(80).collect()
}
