//! How a certificate is written: versions, numbers, repeated and broken parts, algorithms.

use super::*;
use crate::tests::forge::{BASIC, EXTENDED, SAN, USAGE, algorithm, extension, oid, seq, tlv};

pub fn cases(world: &World) -> Vec<Case> {
    let good = || world.leaf(|_| {});
    let one = |what: &str, leaf: Vec<u8>| case(what, vec![leaf], Some(SvidReason::Malformed));
    let serial = |serial: &[u8]| world.leaf(|cert| cert.serial = serial.to_vec());
    let version = |version| world.leaf(|cert| cert.version = version);
    let with = |at: usize, extension: Vec<u8>| world.leaf(|cert| cert.extensions[at] = extension);
    let also = |extension: Vec<u8>| world.leaf(|cert| cert.extensions.push(extension));
    let twice = |at: usize| world.leaf(|cert| cert.extensions.push(cert.extensions[at].clone()));
    let unknown = extension(&[1, 2, 3, 4], false, &tlv(5, &[]));
    let again = vec![unknown.clone(), unknown];
    let many = (0..30).map(|n| extension(&[1, 2, 3, n], false, &[5, 0]));
    let mut cases = vec![
        case("a serial number of 20 bytes behind a zero", vec![serial(&[&[0], [0xff; 20].as_slice()].concat())], None),
        case("a serial number of one byte", vec![serial(&[1])], None),
        one("no bytes", Vec::new()),
        one("one byte", vec![0x30]),
        one("no DER", b"no certificate at all".to_vec()),
        one("PEM", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_vec()),
        one("a byte behind it", [good(), vec![0]].concat()),
        one("another certificate behind it", [good(), good()].concat()),
        one("the last byte missing", {
            let good = good();
            good[..good.len() - 1].to_vec()
        }),
        one("an empty sequence", seq(&[])),
        one("bytes behind the extensions", world.leaf(|cert| cert.more = tlv(5, &[]))),
        one("version 1", version(None)),
        one("version 1, said so", version(Some(0))),
        one("version 2", version(Some(1))),
        one("version 4", version(Some(3))),
        one(
            "version 1 without extensions",
            world.leaf(|cert| {
                cert.version = None;
                cert.extensions.clear();
            }),
        ),
        one("a negative serial number", serial(&[0xff, 1])),
        one("serial number zero", serial(&[0])),
        one("a serial number of 21 bytes", serial(&[0x11; 21])),
        one("a serial number of 256 bytes", serial(&[0x11; 256])),
        one("an empty serial number", serial(&[])),
        one("names twice", twice(0)),
        one("key usage twice", twice(1)),
        one("extended key usage twice", twice(2)),
        one("an unknown extension twice", world.leaf(|cert| cert.extensions.extend(again))),
        one("33 extensions", world.leaf(|cert| cert.extensions.extend(many))),
        one("names that cannot be read", with(0, extension(SAN, false, b"\x30\x7f"))),
        one("names that are no list", with(0, extension(SAN, false, &tlv(0x0c, ID.as_bytes())))),
        one("key usage that cannot be read", with(1, extension(USAGE, true, &tlv(2, &[1])))),
        one("extended key usage that cannot be read", with(2, extension(EXTENDED, false, b"\x30"))),
        one("basic constraints that cannot be read", also(extension(BASIC, true, b"\x01\x01\xff"))),
        one(
            "a month that is none",
            world.leaf(|cert| {
                cert.validity = seq(&[tlv(0x17, b"251301000000Z"), tlv(0x17, b"490101000000Z")]);
            }),
        ),
        one("dates that are none", world.leaf(|cert| cert.validity = seq(&[tlv(0x17, b"x"), tlv(0x17, b"y")]))),
        one("a key that is none", world.leaf(|cert| cert.key = seq(&[]))),
    ];
    cases.extend(algorithms(world));
    cases
}

fn algorithms(world: &World) -> Vec<Case> {
    let both = |arcs: &[u64]| {
        let written = algorithm(arcs);
        world.leaf(|cert| cert.algorithms = [written.clone(), written])
    };
    let rsa = |last: u64| {
        let written = seq(&[oid(&[1, 2, 840, 113_549, 1, 1, last]), tlv(5, &[])]);
        world.leaf(|cert| cert.algorithms = [written.clone(), written])
    };
    let weak = |what: &str, leaf: Vec<u8>| case(what, vec![leaf], Some(SvidReason::WeakKey));
    let mut corrupt = world.leaf(|_| {});
    *corrupt.last_mut().expect("not empty") ^= 1;
    let stranger = KeyPair::generate().expect("a key");
    let mut forged = Cert::new(&name("catalog"), &world.key, &world.root.name);
    forged.extensions = vec![uris(&[ID]), usage(true, 0x80)];
    let differing = world.leaf(|cert| cert.algorithms[1] = algorithm(&[1, 2, 840, 10045, 4, 3, 3]));
    let mut own = forged.clone();
    own.issuer = own.subject.clone();
    vec![
        weak("ECDSA with SHA-1", both(&[1, 2, 840, 10045, 4, 1])),
        weak("ECDSA with SHA-224", both(&[1, 2, 840, 10045, 4, 3, 1])),
        weak("RSA with MD2", rsa(2)),
        weak("RSA with MD5", rsa(4)),
        weak("RSA with SHA-1", rsa(5)),
        weak("RSA with SHA-224", rsa(14)),
        weak("an unknown algorithm", both(&[1, 2, 3, 4])),
        weak("an algorithm of another kind of key", rsa(11)),
        case("two algorithms", vec![differing], Some(SvidReason::Malformed)),
        case("a changed signature", vec![corrupt], Some(SvidReason::BadSignature)),
        case("signed by somebody else", vec![forged.signed(&stranger)], Some(SvidReason::BadSignature)),
        case("signed by itself", vec![own.signed(&world.key)], Some(SvidReason::UnknownRoot)),
        case("signed by itself in the root's name", vec![forged.signed(&world.key)], Some(SvidReason::BadSignature)),
    ]
}
