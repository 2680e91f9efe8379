//! What the token of a session says before it is sealed, where a request has it, and how an answer gives it. Sealing
//! is the sidecar's; who of the endpoints takes the request is said by the token, and else the balancer's choice.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderMap, HeaderValue, header};

use crate::{
    balance::hash,
    model::{Carrier, ObjectName, PathMatch, Session, Target},
};

/// Bytes of a token that is not sealed.
pub const LENGTH: usize = 25;
/// What a token begins with; another number is another form.
const FORM: u8 = 1;

/// A session: since when, until when, and with whom. Times are seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Token {
    /// Its first answer.
    pub began: u32,
    /// Its last answer that said so.
    pub seen: u32,
    /// The service port, as [`of_target`] has it.
    pub backend: u64,
    /// The endpoint, as [`of_endpoint`] has it.
    pub endpoint: u64,
}

/// The hash of a service port that tokens have.
#[must_use]
pub fn of_target(target: &Target) -> u64 {
    hash::mix(hash::stable(target.service.as_str().as_bytes()) ^ u64::from(target.port))
}

/// The hash of an endpoint that tokens have: another workload at the same address is another endpoint.
#[must_use]
pub fn of_endpoint(address: SocketAddr, workload: Option<&ObjectName>) -> u64 {
    let workload = workload.map_or(0, |workload| hash::stable(workload.as_str().as_bytes()));
    hash::mix(hash::of_address(address) ^ workload.rotate_left(1))
}

impl Token {
    /// To be sealed.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [FORM; LENGTH];
        bytes[1..5].copy_from_slice(&self.began.to_be_bytes());
        bytes[5..9].copy_from_slice(&self.seen.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.backend.to_be_bytes());
        bytes[17..].copy_from_slice(&self.endpoint.to_be_bytes());
        bytes
    }

    /// Of what was unsealed; `None` when it is of another form.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&form, rest) = bytes.split_first()?;
        let (began, rest) = rest.split_first_chunk()?;
        let (seen, rest) = rest.split_first_chunk()?;
        let (backend, rest) = rest.split_first_chunk()?;
        let endpoint = rest.try_into().ok()?;
        let number = u64::from_be_bytes;
        (form == FORM).then(|| Self {
            began: u32::from_be_bytes(*began),
            seen: u32::from_be_bytes(*seen),
            backend: number(*backend),
            endpoint: number(endpoint),
        })
    }

    /// The session goes on. A time in the future is a clock that is a little ahead.
    #[must_use]
    pub fn is_valid(&self, session: &Session, now: u32) -> bool {
        let within = |limit: Option<Duration>, since: u32| {
            limit.is_none_or(|limit| Duration::from_secs(now.saturating_sub(since).into()) < limit)
        };
        within(session.absolute, self.began) && within(session.idle, self.seen)
    }
}

impl Session {
    /// The sealed token that a request has brought. The first of several counts.
    #[must_use]
    pub fn of_request<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        match &self.carrier {
            Carrier::Cookie { name, .. } => hash::cookie(headers, name.as_bytes()),
            Carrier::Header(name) => headers.get(name).map(HeaderValue::as_bytes),
        }
    }

    /// The answer has to give the token: one that the caller does not have, or one that says that it is not idle.
    #[must_use]
    pub const fn is_told(&self, held: Option<&Token>, answered: u64) -> bool {
        match held {
            Some(held) => held.endpoint != answered || self.idle.is_some(),
            None => true,
        }
    }

    /// Gives the sealed token of a session that began so many seconds ago to the caller. A cookie is for the paths that
    /// `matched` says, for those of the rule as far as can be said. It is not `Secure`: inside the mesh, callers speak
    /// plaintext to their sidecar.
    pub fn answer(&self, headers: &mut HeaderMap, sealed: &str, matched: &PathMatch, age: u32) {
        match &self.carrier {
            Carrier::Cookie { name, permanent } => {
                let path = cookie_path(matched);
                let age = Duration::from_secs(age.into());
                let life = match self.absolute.filter(|_| *permanent) {
                    Some(absolute) => format!("; Max-Age={}", absolute.saturating_sub(age).as_secs().max(1)),
                    None => String::new(),
                };
                let line = format!("{name}={sealed}; Path={path}{life}; HttpOnly; SameSite=Strict");
                if let Ok(line) = HeaderValue::try_from(line) {
                    headers.append(header::SET_COOKIE, line);
                }
            }
            Carrier::Header(name) => {
                if let Ok(sealed) = HeaderValue::from_str(sealed) {
                    headers.insert(name, sealed);
                }
            }
        }
    }
}

/// The path under which a cookie is sent (RFC 6265 section 5.1.4 compares by segment, as a prefix match does): of a
/// regular expression the segments that it begins with literally, as GEP-1619 has it.
fn cookie_path(matched: &PathMatch) -> &str {
    let path = match matched {
        PathMatch::Any => "/",
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
        PathMatch::Regex(pattern) => literal_segments(pattern.as_str()),
    };
    // A semicolon would end the attribute.
    path.find(';').map_or(path, |end| whole_segments(&path[..end]))
}

/// Up to the last slash, without it unless it is alone.
fn whole_segments(path: &str) -> &str {
    match path.rfind('/') {
        Some(end) if end > 0 => &path[..end],
        _ => "/",
    }
}

fn literal_segments(pattern: &str) -> &str {
    // One that begins in several ways has no beginning.
    if !pattern.starts_with('/') || pattern.contains('|') {
        return "/";
    }
    let end = pattern.find(|c: char| !(c.is_ascii_alphanumeric() || "/-_~".contains(c)));
    whole_segments(&pattern[..end.unwrap_or(pattern.len())])
}

#[cfg(test)]
mod tests;
