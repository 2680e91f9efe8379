//! The texts of conditions, for the wire and for what users write alike: what is refused here could match more or less
//! than it seems to, or nothing at all.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderName;

use super::{HostMatch, IdentityMatch, Network, PathPattern, Segment, TextMatch};
use crate::{SpiffeId, canonical};

/// Bytes of one value.
const MAX_VALUE: usize = 2048;

/// Why a text is refused.
type Why = String;

fn refuse<T>(why: impl Into<Why>) -> Result<T, Why> {
    Err(why.into())
}

impl IdentityMatch {
    /// A SPIFFE id, one with a `*` at the end after its trust domain, or `*` alone.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, Why> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let Some(prefix) = text.strip_suffix('*') else {
            return SpiffeId::parse(text).map(Self::Exact).map_err(|error| format!("is no SPIFFE id: {error}"));
        };
        // What follows must be able to make an id of it: with one more character it is one.
        let domain = prefix.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
        if domain.is_none() || SpiffeId::parse(&format!("{prefix}a")).is_err() {
            return refuse("is no beginning of SPIFFE ids: the * comes after spiffe://<trust domain>/");
        }
        Ok(Self::Prefix(prefix.into()))
    }
}

impl Network {
    /// `address/bits`, or an address alone.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, Why> {
        const FORM: &str = "is no network, such as 10.0.0.0/8 or fd00::/8";
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let Ok(address) = address.parse::<IpAddr>() else { return refuse(FORM) };
        let most: u8 = if address.is_ipv4() { 32 } else { 128 };
        let digits = |bits: &str| !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits {
            None => most,
            Some(bits) => match bits.parse::<u8>() {
                Ok(number) if number <= most && digits(bits) => number,
                _ => return refuse(format!("must have 0 to {most} bits after the slash")),
            },
        };
        let network = match address {
            // Peers are looked at in their IPv4 form; what mixes both families would match neither.
            IpAddr::V6(mapped) if mapped.to_ipv4_mapped().is_some() => {
                let v4 = mapped.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED);
                let Some(bits) = bits.checked_sub(96) else { return refuse("must have at least 96 bits, or be IPv4") };
                Self { address: IpAddr::V4(v4), bits }
            }
            address => Self { address, bits },
        };
        let masked = network.masked();
        if masked != network.address {
            return refuse(format!("has bits beyond /{}: use {masked}/{}", network.bits, network.bits));
        }
        Ok(network)
    }

    /// The address without what is beyond the bits.
    fn masked(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let rest = 32_u32.saturating_sub(self.bits.into());
                IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(rest).unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                let rest = 128_u32.saturating_sub(self.bits.into());
                IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(rest).unwrap_or(0)).into())
            }
        }
    }
}

impl HostMatch {
    /// A host name or address without a port, `*.` and a name, or `*` alone.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, Why> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let below = text.strip_prefix("*.");
        let name = below.unwrap_or(text);
        // IPv6 addresses are written as in a URL, or as they are.
        let bare = name.parse::<std::net::Ipv6Addr>().is_ok();
        let whole = if bare { format!("[{name}]") } else { name.to_owned() };
        match canonical::Authority::parse(whole.as_bytes()) {
            Ok(authority) if authority.port.is_some() || whole.ends_with(':') => {
                refuse("has a port, which is not looked at: leave it out")
            }
            Ok(authority) if below.is_some() => Ok(Self::Below(format!(".{}", authority.host).into())),
            Ok(authority) => Ok(Self::Exact((*authority.host).into())),
            Err(_) => refuse("is no host name; a * may stand alone, or for the names below, as in *.example.com"),
        }
    }
}

impl TextMatch {
    /// Any text; a `*` at the end matches the rest.
    ///
    /// # Errors
    /// When it is too long.
    pub fn parse(text: &str) -> Result<Self, Why> {
        if text.len() > MAX_VALUE {
            return refuse(format!("is longer than {MAX_VALUE} bytes"));
        }
        Ok(text.strip_suffix('*').map_or_else(|| Self::Exact(text.into()), |prefix| Self::Prefix(prefix.into())))
    }

    /// The same for the value of a header.
    ///
    /// # Errors
    /// When it is no header value, or begins or ends with a space, which no value does.
    pub fn parse_header(text: &str) -> Result<Self, Why> {
        if http::HeaderValue::from_str(text).is_err() || text.trim_ascii() != text {
            return refuse("is no header value");
        }
        Self::parse(text)
    }
}

impl PathPattern {
    /// `/a/b`, `/a/*` (that path and all below), `/a/{name}/b` (any one segment), or `*` alone.
    ///
    /// # Errors
    /// What it must be.
    pub fn parse(text: &str) -> Result<Self, Why> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.len() > MAX_VALUE {
            return refuse(format!("is longer than {MAX_VALUE} bytes"));
        }
        let Some(rest) = text.strip_prefix('/') else { return refuse("does not begin with a slash") };
        let (rest, below) = match rest.strip_suffix('*') {
            Some("") => return Ok(Self::Segments { segments: Box::default(), below: true }),
            Some(before) => match before.strip_suffix('/') {
                Some(before) => (before, true),
                None => return refuse("has a * that is not a whole segment: /a/* matches /a and all below"),
            },
            None => (rest, false),
        };
        let segments: Result<Box<[Segment]>, Why> = rest.split('/').map(segment).collect();
        let segments = segments?;
        // Templates stand for segments that are like any other.
        let plain: Vec<&str> =
            segments.iter().map(|segment| if let Segment::Literal(text) = segment { text } else { "x" }).collect();
        let plain = format!("/{}", plain.join("/"));
        match canonical::canonical_path(&plain) {
            Err(violation) => refuse(format!("never matches, because no such path is let in: {}", violation.detail)),
            Ok(Some(canonical)) => refuse(format!("is not in canonical form: write it as {canonical}")),
            Ok(None) => Ok(Self::Segments { segments, below }),
        }
    }
}

fn segment(text: &str) -> Result<Segment, Why> {
    if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        if name.is_empty() || !name.bytes().all(word) {
            return refuse("has braces without a name, as in /orders/{id}");
        }
        return Ok(Segment::One);
    }
    if text.contains(['{', '}', '*']) {
        return refuse(
            "has a * or { } that is not a whole segment: a * stands at the end, { } around a segment's name",
        );
    }
    if text.contains([';', '?']) {
        return refuse("has parameters or a query, which are not looked at: leave them out");
    }
    Ok(Segment::Literal(text.into()))
}

/// The name of a header that rules may look at.
///
/// # Errors
/// What it must be.
pub fn rule_header(text: &str) -> Result<HeaderName, Why> {
    const NOT_SEEN: [&str; 12] = [
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-client-cert",
    ];
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else { return refuse("is no header name") };
    match name.as_str() {
        "host" => refuse("is what hosts are for"),
        known if NOT_SEEN.contains(&known) => refuse("is taken away before rules look at headers"),
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests;
