//! Names: exactly one SPIFFE id, spelled as the standard says, and nothing beside it that others have misread.

use super::*;
use crate::tests::forge::{name, names, oid, seq, tlv, uris};

const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

pub fn cases(world: &World) -> Vec<Case> {
    let with = |extension: Vec<u8>| vec![world.leaf(|cert| cert.extensions[0] = extension)];
    let mut cases: Vec<Case> = accepted(world);
    cases.extend(spellings().into_iter().map(|(uri, reason)| {
        let what = format!("URI {:?}", uri.chars().take(60).collect::<String>());
        case(&what, with(uris(&[&uri])), Some(reason))
    }));
    let id = ID.as_bytes();
    let other_name = seq(&[oid(&[1, 3, 6, 1, 5, 5, 7, 8, 9]), tlv(0xa0, &tlv(0x0c, id))]);
    let other_name = &other_name[2..];
    let directory = name("catalog");
    let reasons = [
        ("no names", vec![], SvidReason::NoUriSan),
        ("a DNS name only", vec![(DNS, b"catalog".as_slice())], SvidReason::NoUriSan),
        ("the id as a DNS name", vec![(DNS, id)], SvidReason::NoUriSan),
        ("an address only", vec![(IP, &[127, 0, 0, 1])], SvidReason::NoUriSan),
        ("a mail address only", vec![(0x81, b"a@weft.local")], SvidReason::NoUriSan),
        ("the same URI twice", vec![(URI, id), (URI, id)], SvidReason::SeveralUriSans),
        ("two ids", vec![(URI, id), (URI, b"spiffe://weft.local/ns/shop/sa/orders")], SvidReason::SeveralUriSans),
        ("an id and a web page", vec![(URI, id), (URI, b"https://weft.local/")], SvidReason::SeveralUriSans),
        ("a web page and an id", vec![(URI, b"https://weft.local/"), (URI, id)], SvidReason::SeveralUriSans),
        ("an id and an empty URI", vec![(URI, id), (URI, b"")], SvidReason::SeveralUriSans),
        ("ids around a DNS name", vec![(URI, id), (DNS, b"a"), (URI, id)], SvidReason::SeveralUriSans),
        ("an OTHERNAME only", vec![(0xa0, other_name)], SvidReason::BadSan),
        ("an OTHERNAME behind an id", vec![(URI, id), (0xa0, other_name)], SvidReason::BadSan),
        ("an OTHERNAME before an id", vec![(0xa0, other_name), (URI, id)], SvidReason::BadSan),
        ("a directory name", vec![(URI, id), (0xa4, &directory)], SvidReason::BadSan),
        ("a registered id", vec![(URI, id), (0x88, &[0x2a, 3])], SvidReason::BadSan),
        ("an X.400 address", vec![(URI, id), (0xa3, &[])], SvidReason::BadSan),
        ("an EDI party", vec![(URI, id), (0xa5, &[])], SvidReason::BadSan),
        ("an unknown kind of name", vec![(URI, id), (0x89, b"a")], SvidReason::BadSan),
        ("a URI in Latin-1", vec![(URI, b"spiffe://weft.local/caf\xe9")], SvidReason::BadSan),
        ("NUL in a DNS name", vec![(URI, id), (DNS, b"catalog\0.evil")], SvidReason::BadSan),
        ("UTF-8 in a DNS name", vec![(URI, id), (DNS, "c\u{e4}talog".as_bytes())], SvidReason::BadSan),
        ("a line break in a DNS name", vec![(URI, id), (DNS, b"a\nb")], SvidReason::BadSan),
        ("NUL in a mail address", vec![(URI, id), (0x81, b"a\0@b")], SvidReason::BadSan),
        ("an address of five bytes", vec![(URI, id), (IP, &[1, 2, 3, 4, 5])], SvidReason::BadSan),
    ];
    cases.extend(reasons.into_iter().map(|(what, list, reason)| case(what, with(names(&list)), Some(reason))));
    let common = |cert: &mut Cert| {
        cert.subject = name(ID);
        cert.extensions.remove(0);
    };
    cases.push(case("the id as common name only", vec![world.leaf(common)], Some(SvidReason::NoUriSan)));
    cases
}

fn accepted(world: &World) -> Vec<Case> {
    let with = |extension: Vec<u8>| vec![world.leaf(|cert| cert.extensions[0] = extension)];
    let longest = format!("spiffe://weft.local/{}", "a".repeat(2048 - "spiffe://weft.local/".len()));
    let id = ID.as_bytes();
    vec![
        case("an id of 2048 bytes", with(uris(&[&longest])), None),
        case("a trust domain of 255 bytes", with(uris(&[&format!("spiffe://{LONG_DOMAIN}/a")])), None),
        case("every kind of byte in a trust domain", with(uris(&["spiffe://a-b_c.0/a"])), None),
        case("every kind of byte in a path", with(uris(&["spiffe://weft.local/aZ09.-_/..."])), None),
        case("a path of one segment", with(uris(&["spiffe://weft.local/a"])), None),
        case("a DNS name beside", with(names(&[(DNS, b"catalog.shop"), (URI, id)])), None),
        case("a DNS wildcard beside", with(names(&[(URI, id), (DNS, b"*.catalog.shop")])), None),
        case("addresses beside", with(names(&[(URI, id), (IP, &[127, 0, 0, 1]), (IP, &[1; 16])])), None),
        case("a mail address beside", with(names(&[(URI, id), (0x81, b"a@weft.local")])), None),
        case("another id as common name", vec![world.leaf(|cert| cert.subject = name(REVOKED_ID))], None),
        case("no subject", vec![world.leaf(|cert| cert.subject = seq(&[]))], None),
    ]
}

/// What is no SPIFFE id of a trust domain that is known.
fn spellings() -> Vec<(String, SvidReason)> {
    use SvidReason::{BadSpiffeId, ForeignTrustDomain};
    let mut all = vec![
        (format!("spiffe://weft.local/{}", "b".repeat(2049 - "spiffe://weft.local/".len())), BadSpiffeId),
        (format!("spiffe://{LONG_DOMAIN}a/a"), BadSpiffeId),
    ];
    let bad = [
        "",
        "spiffe:",
        "spiffe:/weft.local/a",
        "spiffe:///a",
        "//weft.local/a",
        "weft.local/a",
        "SPIFFE://weft.local/a",
        "Spiffe://weft.local/a",
        "https://weft.local/a",
        " spiffe://weft.local/a",
        "spiffe://weft.local/a ",
        "spiffe://weft.local/a\n",
        "spiffe://weft.local",
        "spiffe://weft.local/",
        "spiffe://weft.local/a/",
        "spiffe://weft.local//a",
        "spiffe://weft.local/a//b",
        "spiffe://weft.local/./a",
        "spiffe://weft.local/../a",
        "spiffe://weft.local/a/..",
        "spiffe://weft.local/a/.",
        "spiffe://weft.local/a%20b",
        "spiffe://weft.local/a%2fb",
        "spiffe://weft.local/a%00",
        "spiffe://weft.local/a\0",
        "spiffe://weft.local/a\0b",
        "spiffe://weft.local\0/a",
        "spiffe://weft.local\0.evil/a",
        "spiffe://weft%2elocal/a",
        "spiffe://WEFT.local/a",
        "spiffe://weft.LOCAL/a",
        "spiffe://w\u{e9}ft.local/a",
        "spiffe://weft.local/caf\u{e9}",
        "spiffe://user@weft.local/a",
        "spiffe://user:word@weft.local/a",
        "spiffe://weft.local:443/a",
        "spiffe://weft.local?a",
        "spiffe://weft.local/a?b",
        "spiffe://weft.local#a",
        "spiffe://weft.local/a#b",
        "spiffe://weft.local\\a",
        "spiffe://weft.local/a\\b",
        "spiffe://weft.local/a:b",
        "spiffe://weft.local/a@b",
        "spiffe://weft.local/a~b",
        "spiffe://weft.local/a*b",
        "spiffe://*/a",
        "spiffe://[::1]/a",
    ];
    all.extend(bad.map(|uri| (uri.to_owned(), BadSpiffeId)));
    let foreign = [
        "spiffe://elsewhere.local/a",
        "spiffe://weft.loca/a",
        "spiffe://weft.local.evil/a",
        "spiffe://evil.weft.local/a",
        "spiffe://weft.local./a",
        "spiffe://xn--weft-9na.local/a",
        "spiffe://empty.local/a",
    ];
    all.extend(foreign.map(|uri| (uri.to_owned(), ForeignTrustDomain)));
    all
}
