//! The hash behind `RingHash` and `Maglev`, and what of a request goes into it. It is the same in every sidecar and
//! every version: a change of it would move all sessions at once.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, header};

use crate::{model::HashOn, routing::query_value};

const OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01B3;

/// FNV-1a of 64 bits (draft-eastlake-fnv), then the finaliser of `MurmurHash3`, since FNV alone spreads the last bytes
/// badly over the upper bits.
#[must_use]
pub fn stable(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME)))
}

/// The finaliser of `MurmurHash3` (`fmix64`): a bijection in which every bit of the input reaches every bit of the output.
#[must_use]
pub const fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}

/// An endpoint's hash: of its address, 4 or 16 bytes, and its port, both in network order.
#[must_use]
pub fn of_address(address: SocketAddr) -> u64 {
    let mut bytes = [0; 18];
    let length = match address.ip() {
        IpAddr::V4(ip) => {
            bytes[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            bytes[..16].copy_from_slice(&ip.octets());
            16
        }
    };
    bytes[length..length + 2].copy_from_slice(&address.port().to_be_bytes());
    stable(&bytes[..length + 2])
}

/// What a request is hashed by; `None`: it does not have that. The first of several values counts; what is percent-encoded
/// stays so.
#[must_use]
pub fn of_request(on: &HashOn, headers: &HeaderMap, query: Option<&str>, source: IpAddr) -> Option<u64> {
    match on {
        HashOn::Header(name) => headers.get(name).map(|value| stable(value.as_bytes())),
        HashOn::Cookie(name) => cookie(headers, name.as_bytes()).map(stable),
        HashOn::Query(name) => query_value(query, name).map(|value| stable(value.as_bytes())),
        HashOn::SourceIp => Some(match source.to_canonical() {
            IpAddr::V4(ip) => stable(&ip.octets()),
            IpAddr::V6(ip) => stable(&ip.octets()),
        }),
    }
}

/// The value of the first cookie of this name (RFC 6265 section 5.4), bytes as sent.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &[u8]) -> Option<&'a [u8]> {
    let lines = headers.get_all(header::COOKIE).iter();
    lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b';')).find_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        (pair[..at].trim_ascii() == name).then(|| pair[at + 1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    /// These numbers are a contract between versions: another value here moves every session of every mesh.
    #[test]
    fn the_hash_never_changes() {
        // FNV-1a of "" and "a" are published with the draft; mix is the finaliser of MurmurHash3.
        assert_eq!(stable(b""), mix(0xCBF2_9CE4_8422_2325));
        assert_eq!(stable(b"a"), mix(0xAF63_DC4C_8601_EC8C));
        assert_eq!(mix(1), 0xB456_BCFC_34C2_CB2C);
        let address = "10.0.0.1:80".parse().expect("valid");
        assert_eq!(of_address(address), stable(&[10, 0, 0, 1, 0, 80]));
    }

    #[test]
    fn each_source_of_the_hash_is_found() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("alice"));
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; session=xyz"));
        headers.append(header::COOKIE, HeaderValue::from_static("session=other"));
        let of = |on: &HashOn| of_request(on, &headers, Some("q=1&user=bob&user=eve"), SOURCE);
        assert_eq!(of(&HashOn::Header(HeaderName::from_static("x-user"))), Some(stable(b"alice")));
        assert_eq!(of(&HashOn::Header(HeaderName::from_static("x-none"))), None);
        assert_eq!(of(&HashOn::Cookie("session".into())), Some(stable(b"xyz")));
        assert_eq!(of(&HashOn::Cookie("sess".into())), None);
        assert_eq!(of(&HashOn::Query("user".into())), Some(stable(b"bob")));
        assert_eq!(of(&HashOn::Query("missing".into())), None);
        assert_eq!(of(&HashOn::SourceIp), Some(stable(&[10, 0, 0, 1])));
    }

    #[test]
    fn an_address_is_the_same_source_in_both_notations() {
        let mapped = "::ffff:10.0.0.1".parse().expect("valid");
        let of = |source| of_request(&HashOn::SourceIp, &HeaderMap::new(), None, source);
        assert_eq!(of(mapped), of(SOURCE));
    }
}
