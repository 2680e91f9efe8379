use super::*;

#[test]
fn an_identity_is_whole_or_ends_with_a_star_after_its_trust_domain() {
    assert_eq!(IdentityMatch::parse("*"), Ok(IdentityMatch::Any));
    let id = SpiffeId::workload("td", "shop", "web").unwrap();
    assert_eq!(IdentityMatch::parse("spiffe://td/ns/shop/sa/web"), Ok(IdentityMatch::Exact(id)));
    for good in ["spiffe://td/*", "spiffe://td/ns/shop/*", "spiffe://td/ns/shop/sa/web-*"] {
        let prefix = good.strip_suffix('*').unwrap();
        assert_eq!(IdentityMatch::parse(good), Ok(IdentityMatch::Prefix(prefix.into())));
    }
    for bad in ["", "web", "spiffe://*", "spiffe://td*", "spiffe://TD/*", "spiffe://td/a/*/b", "spiffe://td//*", "**"] {
        assert!(IdentityMatch::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_network_has_no_bits_beyond_its_own_and_one_family() {
    let network = |text| Network::parse(text).map(|network| format!("{}/{}", network.address, network.bits));
    for (text, expected) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("fd00::/8", "fd00::/8"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ] {
        assert_eq!(network(text).as_deref(), Ok(expected), "{text}");
    }
    for bad in [
        "",
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "10.0.0.0/",
        "10.0.0.0/8/8",
        "10.0.0/8",
        "a/8",
        "::/129",
        "::ffff:0.0.0.0/95",
    ] {
        assert!(network(bad).is_err(), "{bad}");
    }
    assert_eq!(network("10.1.0.0/8"), Err("has bits beyond /8: use 10.0.0.0/8".into()));
    assert!(network("fd00::1/8").is_err());
}

#[test]
fn a_host_has_no_port_and_a_star_only_in_front() {
    assert_eq!(HostMatch::parse("Secret.COM."), Ok(HostMatch::Exact("secret.com".into())));
    assert_eq!(HostMatch::parse("*.Secret.com"), Ok(HostMatch::Below(".secret.com".into())));
    assert_eq!(HostMatch::parse("::1"), Ok(HostMatch::Exact("::1".into())));
    assert_eq!(HostMatch::parse("[::1]"), Ok(HostMatch::Exact("::1".into())));
    for bad in ["", "a:80", "a:", "[::1]:80", "a b", "*a", "a.*", "*.*", "a/b", "u@a"] {
        assert!(HostMatch::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_path_is_canonical_and_its_stars_and_braces_are_whole_segments() {
    for good in ["*", "/", "/*", "/a", "/a/", "/a/*", "/a/{id}/b", "/{a}/{b-1}/*", "/caf%C3%A9", "/a.b/~c"] {
        assert!(PathPattern::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "a",
        "/a*",
        "/*/a",
        "/a/*/b",
        "/a/{}",
        "/a/{x",
        "/a/x{y}",
        "/a/{x y}",
        "/a;v=1",
        "/a?b",
        "/a//b",
        "/a/../b",
        "/%2e%2e/",
        "/a#b",
        "/caf\u{e9}",
        "/a b",
    ] {
        assert!(PathPattern::parse(bad).is_err(), "{bad}");
    }
    for (text, canonical) in [("/%61dmin", "/admin"), ("/caf%c3%a9", "/caf%C3%A9")] {
        let expected = format!("is not in canonical form: write it as {canonical}");
        assert_eq!(PathPattern::parse(text), Err(expected));
    }
}

#[test]
fn headers_that_no_rule_would_see_are_refused() {
    assert_eq!(rule_header("X-Tenant").unwrap(), "x-tenant");
    for bad in ["", "a b", "Host", "Connection", "content-length", "x-forwarded-client-cert"] {
        assert!(rule_header(bad).is_err(), "{bad}");
    }
    assert!(TextMatch::parse_header("a\nb").is_err() && TextMatch::parse_header(" a").is_err());
}
