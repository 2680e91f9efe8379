//! Changes of trust: revocations, withdrawn domains, and connections that stand when it happens.

use weft_policy::model::Revocation;

use super::*;

/// A chain of `good()` with this serial number below `ca`.
fn numbered(ca: &Authority, serial: &[u8]) -> Svid {
    hostile(ca, with(|p| p.serial_number = Some(rcgen::SerialNumber::from_slice(serial))))
}

fn revoking(ca: &Authority, revocations: &[Revocation]) -> TrustStore {
    let store = TrustStore::default();
    store.set("weft.local", std::slice::from_ref(&ca.root), revocations).expect("a bundle");
    store
}

fn judged(store: &TrustStore, svid: &Svid) -> [Result<(), SvidReason>; 2] {
    [Role::Client, Role::Server].map(|role| store.accepts(&svid.chain, role))
}

fn millis(time: time::OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp()).expect("after 1970") * 1000
}

#[test]
fn a_revoked_serial_number_is_refused_in_handshakes_and_on_connections_that_stand() {
    let ca = authority("root");
    let (revoked, other) = (numbered(&ca, &[0x7f, 1]), numbered(&ca, &[0x7f, 2]));
    let store = revoking(&ca, &[]);
    assert_eq!(judged(&store, &revoked), [Ok(()), Ok(())]);
    store.set("weft.local", std::slice::from_ref(&ca.root), &[Revocation::Serial([0x7f, 1].into())]).expect("a bundle");
    assert_eq!(judged(&store, &revoked), [Err(SvidReason::Revoked); 2]);
    assert_eq!(judged(&store, &other), [Ok(()), Ok(())]);
    for (client, server) in [(&revoked, &other), (&other, &revoked)] {
        let error = handshake(client, server, &store).expect_err("revoked");
        assert_eq!(reason(&error), Some(SvidReason::Revoked));
    }
    handshake(&other, &other, &store).expect("accepted");
}

#[test]
fn a_serial_number_with_its_highest_bit_set_is_found_without_the_zero_before_it() {
    let ca = authority("root");
    let svid = numbered(&ca, &[0xff, 1]);
    assert_eq!(judged(&revoking(&ca, &[Revocation::Serial([0xff, 1].into())]), &svid), [Err(SvidReason::Revoked); 2]);
    assert_eq!(
        judged(&revoking(&ca, &[Revocation::Serial([0, 0xff, 1].into())]), &svid),
        [Err(SvidReason::Revoked); 2]
    );
    assert_eq!(judged(&revoking(&ca, &[Revocation::Serial([1].into())]), &svid), [Ok(()), Ok(())]);
}

#[test]
fn an_identity_is_revoked_up_to_a_moment() {
    let ca = authority("root");
    let began = time::OffsetDateTime::now_utc() - time::Duration::minutes(5);
    let svid = hostile(&ca, with(|p| p.not_before = began));
    let id = |text| SpiffeId::parse(text).expect("valid");
    let revoking_id = |text, issued_before| revoking(&ca, &[Revocation::Identity { id: id(text), issued_before }]);
    assert_eq!(judged(&revoking_id(ID, millis(began) + 1000), &svid), [Err(SvidReason::Revoked); 2]);
    assert_eq!(judged(&revoking_id(ID, millis(began)), &svid), [Ok(()), Ok(())], "began at that moment");
    let other = "spiffe://weft.local/ns/shop/sa/catalo";
    assert_eq!(judged(&revoking_id(other, u64::MAX), &svid), [Ok(()), Ok(())], "another identity");
    let both = [millis(began) + 1000, 1].map(|issued_before| Revocation::Identity { id: id(ID), issued_before });
    assert_eq!(judged(&revoking(&ca, &both), &svid), [Err(SvidReason::Revoked); 2], "the later moment counts");
}

#[test]
fn a_revoked_issuer_takes_all_that_it_issued_with_it() {
    let root = authority("root");
    let issuing = issuing(&root, "issuing", |p| p.serial_number = Some(rcgen::SerialNumber::from(77)));
    let mut svid = hostile(&issuing, good());
    svid.chain.push(issuing.root.clone().into());
    assert_eq!(judged(&revoking(&root, &[]), &svid), [Ok(()), Ok(())]);
    assert_eq!(judged(&revoking(&root, &[Revocation::Serial([77].into())]), &svid), [Err(SvidReason::Revoked); 2]);
}

#[test]
fn a_withdrawn_or_emptied_trust_domain_trusts_nobody_and_tells_it() {
    let ca = authority("root");
    let svid = hostile(&ca, good());
    let store = revoking(&ca, &[]);
    let mut changes = store.subscribe();
    let roots = std::slice::from_ref(&ca.root);
    store.set("weft.local", roots, &[]).expect("a bundle");
    assert!(!changes.has_changed().expect("alive"), "the same again is no change");

    store.withdraw("weft.local");
    assert!(changes.has_changed().expect("alive"));
    changes.mark_unchanged();
    assert_eq!(judged(&store, &svid), [Err(SvidReason::ForeignTrustDomain); 2]);

    store.set("weft.local", roots, &[]).expect("a bundle");
    assert_eq!(judged(&store, &svid), [Ok(()), Ok(())]);
    store.set("weft.local", &[], &[]).expect("an empty bundle");
    assert_eq!(judged(&store, &svid), [Err(SvidReason::ForeignTrustDomain); 2]);
    assert!(changes.has_changed().expect("alive"));
}

#[test]
fn roots_that_come_alone_keep_the_revocations() {
    let (ca, other) = (authority("root"), authority("other"));
    let svid = numbered(&ca, &[1, 2]);
    let store = revoking(&ca, &[Revocation::Serial([1, 2].into())]);
    store.set_roots("weft.local", &[other.root, ca.root.clone()]).expect("roots");
    assert_eq!(judged(&store, &svid), [Err(SvidReason::Revoked); 2]);
    assert_eq!(judged(&store, &hostile(&ca, good())), [Ok(()), Ok(())]);
}

#[test]
fn lists_are_bounded_and_too_long_ones_change_nothing() {
    let ca = authority("root");
    let svid = hostile(&ca, good());
    let store = revoking(&ca, &[]);
    let serials = |count: u32| (0..count).map(|n| Revocation::Serial(n.to_be_bytes().into())).collect::<Vec<_>>();
    let roots = std::slice::from_ref(&ca.root);
    store.set("weft.local", roots, &serials(4096)).expect("as many as are kept");
    assert!(matches!(store.set("weft.local", roots, &serials(4097)), Err(SvidError::TooMany(_, 4096))));
    assert!(matches!(store.set("weft.local", &vec![ca.root.clone(); 17], &[]), Err(SvidError::TooMany(_, 16))));
    for n in 0..63 {
        store.set(&format!("td{n}"), roots, &[]).expect("a trust domain");
    }
    assert!(matches!(store.set("one.more", roots, &[]), Err(SvidError::TooMany(_, 64))));
    assert_eq!(judged(&store, &svid), [Ok(()), Ok(())]);
}

#[test]
fn a_root_whose_life_is_over_trusts_nobody_unless_it_was_renewed() {
    let key = KeyPair::generate().expect("a key");
    let now = time::OffsetDateTime::now_utc();
    let mut params = ca_params("root");
    params.not_after = now - time::Duration::minutes(1);
    let expired = params.self_signed(&key).expect("a root").der().to_vec();
    params.not_after = now + time::Duration::hours(1);
    let renewed = params.self_signed(&key).expect("a root").der().to_vec();
    let ca = Authority { issuer: Issuer::new(params, key), root: expired.clone() };
    let svid = hostile(&ca, good());
    assert_eq!(judged(&revoking(&ca, &[]), &svid), [Err(SvidReason::Expired); 2]);
    let store = TrustStore::default();
    store.set("weft.local", &[expired, renewed], &[]).expect("roots");
    assert_eq!(judged(&store, &svid), [Ok(()), Ok(())]);
}
