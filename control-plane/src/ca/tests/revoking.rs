//! Revocations: whom they mean, how long they last, and what is not revoked.

use super::{super::rotation::ChangeError, super::rotation::Step, *};

fn covered(ca: &Ca, leaf: &Leaf) -> bool {
    ca.is_revoked(&id(), &presented(leaf))
}

#[test]
fn a_serial_number_means_one_certificate_and_goes_with_its_end() {
    let directory = temporary();
    let ca = open(&directory);
    let (one, other) = (issue(&ca), issue(&ca));
    let entry = ca.revoke(&Subject::Serial(one.serial.clone()), "ann", "lost laptop").expect("revoked");
    assert_eq!((covered(&ca, &one), covered(&ca, &other)), (true, false));
    assert_eq!(entry.identity.as_deref(), Some(id().as_str()), "whose it is is known");
    assert_eq!((entry.expires, entry.not_after), (one.life.to, Some(one.life.to)));
    // A stream that was opened with an earlier certificate says when the present one ends.
    let earlier =
        Presented { serials: vec![Serial::new(&[9])], not_before: 0, not_after: 1, issuer: vec![], chain: vec![] };
    let revocations = ca.revocations().borrow().clone();
    assert!(revocations.cover(&id(), &earlier, Some(one.life.to)));
    assert!(!revocations.cover(&id(), &earlier, Some(one.life.to + 1)) && !revocations.cover(&id(), &earlier, None));
    drop(ca);
    let ca = open(&directory);
    assert!(covered(&ca, &one), "it survives a restart");
    ca.maintain(SystemTime::now() + HOUR + Duration::from_secs(60));
    assert!(!covered(&ca, &one), "it is over");
    assert!(ca.bundle().revocations.is_empty());
    let events: Vec<_> = ca.audit().entries(None, 50).into_iter().map(|entry| entry.event).collect();
    assert!(events.contains(&"revoked".into()) && events.contains(&"revocation_ended".into()), "{events:?}");
}

#[test]
fn an_identity_means_its_certificates_so_far_and_no_later_one_and_nobody_elses() {
    let directory = temporary();
    let ca = open(&directory);
    let before = issue(&ca);
    let subject = Subject::Identity(id());
    let entry = ca.revoke(&subject, "ann", "").expect("revoked");
    let after = issue(&ca);
    assert_eq!((covered(&ca, &before), covered(&ca, &after)), (true, false), "a new one in the same second is fine");
    let orders = SpiffeId::workload(DOMAIN, "shop", "orders").expect("valid");
    assert!(!ca.is_revoked(&orders, &presented(&before)));
    let wire = weft_policy::convert::trust_bundle(ca.bundle()).expect("sidecars take it");
    assert_eq!(wire.revocations.len(), 1);
    ca.revoke(&subject, "ann", "").expect("again");
    assert!(covered(&ca, &after), "what was issued since is meant now");
    assert_eq!(ca.bundle().revocations.len(), 1, "in place of the first");
    ca.withdraw(&entry.id, "ann").expect("withdrawn");
    assert!(!covered(&ca, &before));
    assert!(matches!(ca.withdraw(&entry.id, "ann"), Err(ChangeError::NotFound(_))));
}

#[test]
fn an_identity_that_is_none_of_ours_is_refused() {
    let directory = temporary();
    let ca = open(&directory);
    for text in ["spiffe://other.local/ns/a/sa/b", "spiffe://weft.local/x", "spiffe://weft.local"] {
        let subject = Subject::Identity(SpiffeId::parse(text).expect("a SPIFFE id"));
        assert!(matches!(ca.revoke(&subject, "ann", ""), Err(ChangeError::Invalid(_))), "{text}");
    }
}

#[test]
fn the_certificate_that_issues_is_not_revoked_and_an_earlier_one_is_with_all_its_leaves() {
    let directory = temporary();
    let ca = open(&directory);
    let old = issue(&ca);
    let issuer = ca.active().signer.serials[0].clone();
    let error = ca.revoke(&Subject::Serial(issuer.clone()), "ann", "").expect_err("it issues").to_string();
    assert!(error.contains("rotate issuer"), "{error}");
    ca.step(Step::Issuer, "ann", "").expect("rotated");
    let entry = ca.revoke(&Subject::Serial(issuer), "ann", "").expect("revoked");
    assert_eq!(Some(entry.expires), entry.not_after, "it lasts as long as the issuing certificate");
    assert!(entry.expires > seconds(SystemTime::now()) + 300 * 86_400);
    assert_eq!((covered(&ca, &old), covered(&ca, &issue(&ca))), (true, false));
}

#[test]
fn a_revocation_of_an_unknown_serial_lasts_as_long_as_any_certificate_may() {
    let directory = temporary();
    let long = Ca::open(directory.path(), DOMAIN, HOUR * 240).expect("an authority");
    drop(long);
    // The life was shortened since, but certificates of then may still be valid.
    let ca = open(&directory);
    let entry = ca.revoke(&Subject::Serial(Serial::new(&[7])), "ann", "").expect("revoked");
    assert!(entry.expires >= seconds(SystemTime::now() + HOUR * 239));
}

#[test]
fn the_list_is_bounded() {
    let directory = temporary();
    let ca = open(&directory);
    let most = weft_policy::convert::MAX_REVOCATIONS;
    {
        let template = ca.revoke(&Subject::Serial(Serial::new(&[7])), "ann", "").expect("revoked");
        let mut kept = lock(&ca.kept);
        kept.state.revocations =
            (0..most).map(|number| Revocation { id: number.to_string(), ..template.clone() }).collect();
    }
    let error = ca.revoke(&Subject::Serial(Serial::new(&[8])), "ann", "").expect_err("full").to_string();
    assert!(error.contains("4096"), "{error}");
}
