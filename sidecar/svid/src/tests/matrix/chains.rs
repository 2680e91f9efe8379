//! The way from a leaf to a root of its own trust domain, and what is revoked on it.

use rcgen::PublicKeyData;
use time::Duration;

use super::*;
use crate::tests::forge::{CONSTRAINTS, algorithm, ec_of, extension, names, rsa_of, seq, tlv, validity};

pub fn cases(world: &World) -> Vec<Case> {
    let mut cases = accepted(world);
    cases.extend(roots(world));
    cases.extend(issuers(world));
    cases.extend(shapes(world));
    cases.extend(revoked(world));
    cases
}

/// A leaf below an issuing certificate that is changed.
fn below(world: &World, change: impl FnOnce(&mut Cert)) -> Vec<Vec<u8>> {
    let issuing = world.root.issues("issuing", change);
    vec![issuing.leaf(world, |_| {}), issuing.der]
}

fn accepted(world: &World) -> Vec<Case> {
    let first = world.root.issues("first", |_| {});
    let second = first.issues("second", |_| {});
    let leaf = second.leaf(world, |_| {});
    let chain = |parts: &[&Vec<u8>]| parts.iter().map(|part| (*part).clone()).collect::<Vec<_>>();
    let ours = uris(&["spiffe://weft.local"]);
    let dns = seq(&[tlv(0xa0, &seq(&[tlv(0x82, b"weft.local")]))]);
    vec![
        case("by the second root", vec![world.second.leaf(world, |_| {})], None),
        case("one issuer between", below(world, |_| {}), None),
        case("two issuers between", chain(&[&leaf, &second.der, &first.der]), None),
        case("issuers in the wrong order", chain(&[&leaf, &first.der, &second.der]), None),
        case("the root beside", chain(&[&leaf, &second.der, &first.der, &world.root.der]), None),
        case("an issuer twice", chain(&[&leaf, &second.der, &second.der, &first.der]), None),
        case("a stranger's certificate beside", chain(&[&leaf, &second.der, &first.der, &world.other.der]), None),
        case("path length 0 that is kept", below(world, |cert| cert.extensions[0] = basic(true, Some(0))), None),
        case("an issuer with the id of its trust domain", below(world, |cert| cert.extensions.push(ours)), None),
        case(
            "constraints on DNS names that the leaf has not",
            below(world, |cert| cert.extensions.push(extension(CONSTRAINTS, true, &dns))),
            None,
        ),
        case("an issuer without cRLSign", below(world, |cert| cert.extensions[1] = usage(true, 0x04)), None),
        case("seven certificates", long(world, 7), None),
    ]
}

/// A chain of so many certificates.
fn long(world: &World, certificates: usize) -> Vec<Vec<u8>> {
    let mut issuers = vec![world.root.issues("issuer 0", |_| {})];
    for n in 1..certificates - 1 {
        let next = issuers[n - 1].issues(&format!("issuer {n}"), |_| {});
        issuers.push(next);
    }
    let leaf = issuers.last().expect("some").leaf(world, |_| {});
    std::iter::once(leaf).chain(issuers.into_iter().rev().map(|issuer| issuer.der)).collect()
}

fn roots(world: &World) -> Vec<Case> {
    let id = |uri: &'static str| move |cert: &mut Cert| cert.extensions[0] = uris(&[uri]);
    let unknown = root("unknown", |_| {});
    let impostor = root("root", |_| {});
    let below_unknown = unknown.issues("issuing", |_| {});
    let leaf_below_unknown = below_unknown.leaf(world, |_| {});
    let with_id = |cert: &mut Cert| cert.extensions.push(uris(&[ID]));
    let mut as_leaf = ca_cert(&world.root.name, &world.root.key, &world.root.name);
    with_id(&mut as_leaf);
    vec![
        case("an unknown root", vec![unknown.leaf(world, |_| {})], Some(SvidReason::UnknownRoot)),
        case(
            "an unknown root, shown",
            vec![unknown.leaf(world, |cert| cert.serial = vec![3]), unknown.der.clone()],
            Some(SvidReason::UnknownRoot),
        ),
        case(
            "an issuer below an unknown root",
            vec![leaf_below_unknown, below_unknown.der],
            Some(SvidReason::UnknownRoot),
        ),
        case("the root's name, another key", vec![impostor.leaf(world, |_| {})], Some(SvidReason::BadSignature)),
        case(
            "the root's name, another key, shown",
            vec![impostor.leaf(world, |cert| cert.serial = vec![3]), impostor.der.clone()],
            Some(SvidReason::BadSignature),
        ),
        case("our id by another domain's root", vec![world.other.leaf(world, |_| {})], Some(SvidReason::UnknownRoot)),
        case(
            "another domain's id by our root",
            vec![world.leaf(id("spiffe://other.local/a"))],
            Some(SvidReason::UnknownRoot),
        ),
        case("another domain's id by its root", vec![world.other.leaf(world, id("spiffe://other.local/a"))], None),
        case(
            "an expired root",
            vec![world.expired.leaf(world, id("spiffe://expired.local/a"))],
            Some(SvidReason::Expired),
        ),
        case("a root as leaf", vec![as_leaf.signed(&world.root.key)], Some(SvidReason::LeafIsCa)),
        case("an issuer as leaf", vec![world.root.issues("issuing", with_id).der], Some(SvidReason::LeafIsCa)),
    ]
}

fn issuers(world: &World) -> Vec<Case> {
    use SvidReason::{BadChain, Expired, NotYetValid, UnknownExtension, WeakKey};
    let hour = Duration::hours(1);
    let with = |at: usize, extension: Vec<u8>| below(world, |cert| cert.extensions[at] = extension);
    let constrained = |tag: u8, name: u8, text: &[u8]| {
        let subtrees = seq(&[tlv(tag, &seq(&[tlv(name, text)]))]);
        below(world, |cert| cert.extensions.push(extension(CONSTRAINTS, true, &subtrees)))
    };
    let dns_excluded = {
        let subtrees = seq(&[tlv(0xa1, &seq(&[tlv(0x82, b"evil.example")]))]);
        let issuing =
            world.root.issues("issuing", |cert| cert.extensions.push(extension(CONSTRAINTS, true, &subtrees)));
        let evil = names(&[(0x86, ID.as_bytes()), (0x82, b"a.evil.example")]);
        vec![issuing.leaf(world, |cert| cert.extensions[0] = evil), issuing.der]
    };
    let sha1 = algorithm(&[1, 2, 840, 10045, 4, 1]);
    let weak = |key: Vec<u8>| below(world, |cert| cert.key = key);
    let mut server_only =
        case("an issuer for servers only", below(world, |cert| cert.extensions.push(purposes(&[1]))), None);
    server_only.expected = [Some(BadChain), None];
    let mut client_only =
        case("an issuer for clients only", below(world, |cert| cert.extensions.push(purposes(&[2]))), None);
    client_only.expected = [None, Some(BadChain)];
    vec![
        case("an issuer that is no CA", with(0, basic(false, None)), Some(BadChain)),
        case(
            "an issuer without basic constraints",
            below(world, |cert| drop(cert.extensions.remove(0))),
            Some(BadChain),
        ),
        case("an issuer without keyCertSign", with(1, usage(true, 0x82)), Some(BadChain)),
        case("an issuer without key usage", below(world, |cert| drop(cert.extensions.remove(1))), Some(BadChain)),
        case("an expired issuer", below(world, |cert| cert.validity = validity(-hour * 2, -hour)), Some(Expired)),
        case("an issuer not begun", below(world, |cert| cert.validity = validity(hour, hour * 2)), Some(NotYetValid)),
        case(
            "an issuer with an unknown critical extension",
            below(world, |cert| cert.extensions.push(extension(&[1, 2, 3, 4], true, &tlv(5, &[])))),
            Some(UnknownExtension),
        ),
        case(
            "an issuer of version 1",
            below(world, |cert| {
                cert.version = None;
                cert.extensions.clear();
            }),
            Some(BadChain),
        ),
        case("an issuer with RSA-1024", weak(rsa_of(1024)), Some(WeakKey)),
        case("an issuer with P-224", weak(ec_of(&[1, 3, 132, 0, 33], 28)), Some(WeakKey)),
        case("an issuer signed with SHA-1", below(world, |cert| cert.algorithms = [sha1.clone(), sha1]), Some(WeakKey)),
        case("URIs of our trust domain permitted", constrained(0xa0, 0x86, b"weft.local"), Some(BadChain)),
        case("URIs of another host permitted", constrained(0xa0, 0x86, b"other.local"), Some(BadChain)),
        case("URIs of our trust domain excluded", constrained(0xa1, 0x86, b"weft.local"), Some(BadChain)),
        case("URIs of another host excluded", constrained(0xa1, 0x86, b"other.local"), Some(BadChain)),
        case("a DNS name that the issuer may not name", dns_excluded, Some(BadChain)),
        server_only,
        client_only,
    ]
}

fn shapes(world: &World) -> Vec<Case> {
    use SvidReason::{BadChain, ChainTooLong, UnknownRoot};
    let closed = world.root.issues("closed", |cert| cert.extensions[0] = basic(true, Some(0)));
    let beyond = closed.issues("beyond", |_| {});
    // A workload that signs with its own certificate.
    let workload = Ca { name: name("catalog"), key: KeyPair::generate().expect("a key"), der: Vec::new() };
    let own = world.leaf(|cert| cert.key = workload.key.subject_public_key_info());
    // Two that vouch for each other and for nobody else.
    let (one, two) = (root("one", |_| {}), root("two", |_| {}));
    let vouch = |for_whom: &Ca, by: &Ca| ca_cert(&for_whom.name, &for_whom.key, &by.name).signed(&by.key);
    // Many of the same name with as many keys: each could be the issuer of each.
    let crowd: Vec<_> = (0..7).map(|_| root("crowd", |_| {})).collect();
    let mut bomb = vec![crowd[0].leaf(world, |_| {})];
    bomb.extend(crowd.iter().map(|issuer| issuer.der.clone()));
    let padding = extension(&[1, 2, 3, 4], false, &vec![0; 60_000]);
    let mut mebibyte = vec![world.leaf(|cert| cert.serial = vec![5])];
    mebibyte.extend((0_u8..18).map(|n| {
        let filled = |cert: &mut Cert| cert.extensions.push(padding.clone());
        world.root.issues(&format!("filled {n}"), filled).der
    }));
    assert!(mebibyte.iter().map(Vec::len).sum::<usize>() > 1024 * 1024);
    vec![
        case("the issuer left out", vec![below(world, |_| {}).swap_remove(0)], Some(UnknownRoot)),
        case("beyond the path length", vec![beyond.leaf(world, |_| {}), beyond.der, closed.der], Some(BadChain)),
        case("signed by a workload", vec![workload.leaf(world, |_| {}), own], Some(BadChain)),
        case(
            "two that vouch for each other",
            vec![one.leaf(world, |_| {}), vouch(&one, &two), vouch(&two, &one)],
            Some(UnknownRoot),
        ),
        case("a bomb of paths", bomb, Some(BadChain)),
        // webpki goes as far as seven.
        case("eight certificates on one way", long(world, 8), Some(BadChain)),
        case("nine certificates", long(world, 9), Some(ChainTooLong)),
        case("a mebibyte", mebibyte, Some(ChainTooLong)),
        case(
            "an issuer with a byte behind it",
            {
                let mut chain = below(world, |_| {});
                chain[1].push(0);
                chain
            },
            Some(BadChain),
        ),
    ]
}

fn revoked(world: &World) -> Vec<Case> {
    let number = |cert: &mut Cert| cert.serial = REVOKED.to_vec();
    let padded = |cert: &mut Cert| cert.serial = [&[0, 0], REVOKED.as_slice()].concat();
    let upper = world.root.issues("upper", number);
    let lower = upper.issues("lower", |_| {});
    let stolen = |cert: &mut Cert| cert.extensions[0] = uris(&[REVOKED_ID]);
    let all = [
        ("a revoked leaf", vec![world.leaf(number)]),
        ("a revoked leaf, its number behind zeros", vec![world.leaf(padded)]),
        ("a revoked leaf below an issuer", {
            let issuing = world.root.issues("issuing", |_| {});
            vec![issuing.leaf(world, number), issuing.der]
        }),
        ("a revoked issuer", below(world, number)),
        ("a revoked issuer above another", vec![lower.leaf(world, |_| {}), lower.der, upper.der]),
        ("a revoked identity", vec![world.leaf(stolen)]),
    ];
    all.into_iter().map(|(what, chain)| case(what, chain, Some(SvidReason::Revoked))).collect()
}
