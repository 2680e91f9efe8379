//! What a leaf may be used for, for how long, and with which key.

use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize};
use time::Duration;

use super::*;
use crate::tests::forge::{BASIC, CONSTRAINTS, EXTENDED, ec_of, extension, moment, oid, rsa_of, seq, tlv, validity};

pub fn cases(world: &World) -> Vec<Case> {
    let mut cases = usages(world);
    cases.extend(lives(world));
    cases.extend(keys(world));
    cases
}

fn usages(world: &World) -> Vec<Case> {
    let with = |at: usize, extension: Vec<u8>| vec![world.leaf(|cert| cert.extensions[at] = extension)];
    let also = |extension: Vec<u8>| vec![world.leaf(|cert| cert.extensions.push(extension))];
    let without = |at: usize| vec![world.leaf(|cert| drop(cert.extensions.remove(at)))];
    let any = extension(EXTENDED, false, &seq(&[oid(&[2, 5, 29, 37, 0])]));
    use SvidReason::{ExtendedKeyUsage, KeyUsage, LeafIsCa, UnknownExtension};
    let critical_purposes = extension(EXTENDED, true, &seq(&[1, 2].map(|n| oid(&[1, 3, 6, 1, 5, 5, 7, 3, n]))));
    let subtree = seq(&[tlv(0xa0, &seq(&[tlv(0x86, b"weft.local")]))]);
    vec![
        case("nothing unusual", vec![world.leaf(|_| {})], None),
        case("no extended key usage", without(2), None),
        case("a third purpose", with(2, purposes(&[1, 2, 3])), None),
        case("extended key usage critical", with(2, critical_purposes), None),
        case("basic constraints: no CA", also(basic(false, None)), None),
        case("basic constraints not critical", also(extension(BASIC, false, &seq(&[]))), None),
        case("key agreement too", with(1, usage(true, 0xa8)), None),
        case("an unknown extension, not critical", also(extension(&[1, 2, 3, 4], false, &tlv(5, &[]))), None),
        case("CA", also(basic(true, None)), Some(LeafIsCa)),
        case("CA of path length 0", also(basic(true, Some(0))), Some(LeafIsCa)),
        case("keyCertSign", with(1, usage(true, 0x84)), Some(KeyUsage)),
        case("cRLSign", with(1, usage(true, 0x82)), Some(KeyUsage)),
        case("keyCertSign alone", with(1, usage(true, 0x04)), Some(KeyUsage)),
        case("no key usage", without(1), Some(KeyUsage)),
        case("key usage not critical", with(1, usage(false, 0x80)), Some(KeyUsage)),
        case("keyEncipherment alone", with(1, usage(true, 0x20)), Some(KeyUsage)),
        case("nonRepudiation alone", with(1, usage(true, 0x40)), Some(KeyUsage)),
        case("serverAuth only", with(2, purposes(&[1])), Some(ExtendedKeyUsage)),
        case("clientAuth only", with(2, purposes(&[2])), Some(ExtendedKeyUsage)),
        case("codeSigning only", with(2, purposes(&[3])), Some(ExtendedKeyUsage)),
        case("any purpose", with(2, any), Some(ExtendedKeyUsage)),
        case(
            "an unknown critical extension",
            also(extension(&[1, 2, 3, 4], true, &tlv(5, &[]))),
            Some(UnknownExtension),
        ),
        case("critical name constraints", also(extension(CONSTRAINTS, true, &subtree)), Some(UnknownExtension)),
        case(
            "critical policy constraints",
            also(extension(&[2, 5, 29, 36], true, &seq(&[tlv(0x80, &[0])]))),
            Some(UnknownExtension),
        ),
    ]
}

fn lives(world: &World) -> Vec<Case> {
    let lives = |from, to| vec![world.leaf(|cert| cert.validity = validity(from, to))];
    let (second, hour) = (Duration::seconds(1), Duration::hours(1));
    let year = Duration::days(365);
    let past = seq(&[tlv(0x17, b"691231235959Z"), moment(time::OffsetDateTime::now_utc() - hour)]);
    vec![
        case("just begun", lives(-second, hour), None),
        case("beyond 2050", lives(-hour, year * 60), None),
        case("expired a second ago", lives(-hour, -second), Some(SvidReason::Expired)),
        case("expired years ago", lives(-year * 10, -year * 9), Some(SvidReason::Expired)),
        case("from before 1970", vec![world.leaf(|cert| cert.validity = past)], Some(SvidReason::BadChain)),
        case("not begun", lives(hour, hour * 2), Some(SvidReason::NotYetValid)),
        case("ends before it begins", lives(hour, -hour), Some(SvidReason::Malformed)),
    ]
}

fn keys(world: &World) -> Vec<Case> {
    let held = |what: &str, key: &KeyPair| Case {
        key: Some(key.serialize_der()),
        ..case(what, vec![world.leaf(|cert| cert.key = key.subject_public_key_info())], None)
    };
    let made = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
    let weak =
        |what: &str, key: Vec<u8>| case(what, vec![world.leaf(|cert| cert.key = key)], Some(SvidReason::WeakKey));
    let point =
        |arc: u64, bytes: usize| seq(&[seq(&[oid(&[1, 3, 101, arc])]), tlv(3, &[vec![0], vec![9; bytes]].concat())]);
    let explicit = {
        let parameters = seq(&[tlv(2, &[1]), seq(&[oid(&[1, 2, 840, 10045, 1, 1]), tlv(2, &[7])])]);
        seq(&[seq(&[oid(&[1, 2, 840, 10045, 2, 1]), parameters]), tlv(3, &[vec![0, 4], vec![1; 64]].concat())])
    };
    let strange = KeyPair::generate().expect("a key");
    let mut proof = held("handshake: a key that the peer does not have", &strange);
    (proof.key, proof.expected) = (None, [Some(SvidReason::BadSignature); 2]);
    vec![
        held("P-384", &made(&PKCS_ECDSA_P384_SHA384)),
        held("P-521", &made(&PKCS_ECDSA_P521_SHA512)),
        held("Ed25519", &made(&PKCS_ED25519)),
        held("RSA-2048", &rsa),
        weak("RSA-512", rsa_of(512)),
        weak("RSA-1024", rsa_of(1024)),
        weak("RSA-2047", rsa_of(2047)),
        weak("RSA-16384", rsa_of(16384)),
        weak("P-192", ec_of(&[1, 2, 840, 10045, 3, 1, 1], 24)),
        weak("P-224", ec_of(&[1, 3, 132, 0, 33], 28)),
        weak("secp256k1", ec_of(&[1, 3, 132, 0, 10], 32)),
        weak("brainpoolP256r1", ec_of(&[1, 3, 36, 3, 3, 2, 8, 1, 1, 7], 32)),
        weak("a curve by its parameters", explicit),
        weak("X25519", point(110, 32)),
        weak("Ed448", point(113, 57)),
        weak("an unknown kind of key", point(99, 32)),
        proof,
    ]
}
