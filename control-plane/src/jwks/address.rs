//! Where a URL that a tenant has chosen may not lead: to this machine, its neighbours, or what lends credentials to
//! whoever asks from here. Asked of every address that a name resolves to, and those and no others are dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why nothing is fetched from this address; `None`: it may be.
#[must_use]
pub fn forbidden(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => forbidden_v4(v4),
        IpAddr::V6(v6) => forbidden_v6(v6),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0, ..) => Some("unspecified"),
        (127, ..) => Some("a loopback"),
        // 169.254.169.254 and its like: the metadata of clouds.
        (169, 254, _) => Some("a link-local"),
        (10, ..) | (192, 168, _) => Some("a private"),
        (172, 16..=31, _) => Some("a private"),
        // Shared by carriers; one cloud has its metadata at 100.100.100.200.
        (100, 64..=127, _) => Some("a private"),
        // 192.0.0.192 is metadata too.
        (192, 0, 0 | 2) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => Some("a reserved"),
        (224..=239, ..) => Some("a multicast"),
        (240..=255, ..) => Some("a reserved"),
        _ => None,
    }
}

fn forbidden_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("unspecified");
    }
    if address.is_loopback() {
        return Some("a loopback");
    }
    let segments = address.segments();
    let [first, second, ..] = segments;
    let inner = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (first, second) {
        // fd00:ec2::254 is metadata.
        (0xfc00..=0xfdff, _) => Some("a private"),
        (0xfe80..=0xfebf, _) => Some("a link-local"),
        (0xfec0..=0xfeff, _) => Some("a private"),
        (0xff00..=0xffff, _) => Some("a multicast"),
        // An address of version 4 in one of version 6: mapped, compatible, NAT64, 6to4, Teredo.
        (0, 0) => forbidden_v4(inner(segments[6], segments[7])).or(Some("a reserved")),
        (0x64, 0xff9b) => forbidden_v4(inner(segments[6], segments[7])).or(
            // Only the well-known prefix of RFC 6052 has the address at its end.
            if segments[2..6].iter().any(|segment| *segment != 0) { Some("a reserved") } else { None },
        ),
        (0x2002, high) => forbidden_v4(inner(high, segments[2])),
        (0x2001, 0) => Some("a reserved"),
        (0x2001, 0xdb8) | (0x100, 0) => Some("a reserved"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_url_leads_to_this_machine_its_neighbours_or_metadata() {
        for address in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "169.254.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001:0:1::1",
            "2001:db8::1",
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert!(forbidden(parsed).is_some() || address == "::ffff:8.8.8.8", "{address}");
        }
        for address in [
            "8.8.8.8",
            "1.1.1.1",
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "169.253.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert_eq!(forbidden(address.parse().unwrap()), None, "{address}");
        }
    }
}
