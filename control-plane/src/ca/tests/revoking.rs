//! Revocations: whom they mean, how long they last, and what is not revoked.

use std::time::Instant;

use super::{
    super::{rotation::ChangeError, rotation::Step, upkeep::CONFIRM},
    *,
};

/// Upkeep after this time, by a clock that has been right for long.
fn upkeep(ca: &Ca, after: Duration) {
    let (now, uptime) = (SystemTime::now() + after, Instant::now());
    ca.maintain_at(now.checked_sub(CONFIRM).expect("a time"), uptime);
    ca.maintain_at(now, uptime + CONFIRM);
}

#[test]
fn a_clock_that_is_wrong_for_a_while_ends_no_revocation() {
    let directory = temporary();
    let ca = open(&directory);
    let one = issue(&ca);
    ca.revoke(&Subject::Serial(one.serial.clone()), "ann", "").expect("revoked");
    let (now, uptime, step) = (SystemTime::now(), Instant::now(), Duration::from_secs(2));
    let look = |wall: Duration, up: Duration| ca.maintain_at(now + wall, uptime + up);
    // Wrong when it starts, and set right.
    look(DAY * 9, Duration::ZERO);
    look(step, step);
    look(CONFIRM + step, CONFIRM + step);
    assert!(covered(&ca, &one));
    // Wrong for one look, far too late, for ever.
    look(DAY * 400, CONFIRM + step * 2);
    look(DAY * 400 + step, CONFIRM + step * 3);
    assert!(covered(&ca, &one));
    // Little by little.
    for minutes in 1..100 {
        look(DAY * 400 + Duration::from_secs(minutes * 240), CONFIRM + step * 4);
    }
    assert!(covered(&ca, &one));
    look(CONFIRM * 2, CONFIRM * 2);
    look(CONFIRM * 3, CONFIRM * 3);
    assert!(!covered(&ca, &one), "the uptime says so too");
}

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
    assert_eq!(
        (entry.expires, entry.not_after),
        (one.life.to + 300, Some(one.life.to)),
        "and for clocks that are behind"
    );
    // A stream that was opened with an earlier certificate says when the present one ends.
    let earlier =
        Presented { serials: vec![Serial::new(&[9])], not_before: 0, not_after: 1, issuer: vec![], chain: vec![] };
    let revocations = ca.revocations().borrow().clone();
    assert!(revocations.cover(&id(), &earlier, Some(one.life.to)));
    assert!(!revocations.cover(&id(), &earlier, Some(one.life.to + 1)) && !revocations.cover(&id(), &earlier, None));
    drop(ca);
    let ca = open(&directory);
    assert!(covered(&ca, &one), "it survives a restart");
    upkeep(&ca, HOUR + Duration::from_secs(60));
    assert!(covered(&ca, &one), "there may be a sidecar whose clock is five minutes behind");
    upkeep(&ca, HOUR + Duration::from_secs(360));
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
    assert_eq!(Some(entry.expires - 300), entry.not_after, "it lasts as long as the issuing certificate");
    assert!(entry.expires > seconds(SystemTime::now()) + 300 * 86_400);
    assert_eq!((covered(&ca, &old), covered(&ca, &issue(&ca))), (true, false));
}

const DAY: Duration = Duration::from_secs(86_400);

fn issuer(ca: &Ca) -> Subject {
    Subject::Serial(ca.active().signer.serials[0].clone())
}

/// As after a restart, and when many of its leaves' lives are over.
fn later(ca: Ca, directory: &TempDir, after: Duration) -> Ca {
    drop(ca);
    let ca = open(directory);
    upkeep(&ca, after);
    ca
}

#[test]
fn a_former_issuing_certificate_stays_revoked_until_its_own_end_whatever_was_rotated_since() {
    let directory = temporary();
    let ca = open(&directory);
    let (old, first) = (issue(&ca), issuer(&ca));
    ca.step(Step::Issuer, "ann", "").expect("rotated");
    let second = issuer(&ca);
    for step in [Step::RootPrepare, Step::RootSwitch] {
        ca.step(step, "ann", "").expect("rotated");
    }
    let ca = later(ca, &directory, Duration::ZERO);
    let entry = ca.revoke(&first, "ann", "its key was stolen").expect("revoked");
    assert!(entry.not_after.expect("known") > seconds(SystemTime::now() + DAY * 300), "{entry:?}");
    let ca = later(ca, &directory, DAY * 200);
    assert!(covered(&ca, &old), "who has the key can make certificates until the issuing one ends");
    ca.step(Step::RootFinish, "ann", "").expect("finished");
    let entry = ca.revoke(&second, "ann", "").expect("revoked");
    assert!(entry.not_after.expect("known") > seconds(SystemTime::now() + DAY * 300), "{entry:?}");
    let ca = later(ca, &directory, DAY * 366);
    assert!(!covered(&ca, &old) && lock(&ca.kept).state.signers.len() == 1, "what has ended is forgotten");
}

#[test]
fn a_root_is_not_revoked_by_a_list_that_nobody_would_look_it_up_in() {
    let directory = temporary();
    let ca = open(&directory);
    let root = CertificateDer::from(ca.roots()[0].clone());
    let subject = Subject::Serial(signer::Info::of(&root).expect("a root").serial);
    let error = ca.revoke(&subject, "ann", "").expect_err("it would change nothing");
    assert!(matches!(&error, ChangeError::Conflict(text) if text.contains("rotate root")), "{error}");
}

#[test]
fn an_issuing_certificate_that_is_revoked_does_not_issue_again() {
    let directory = temporary();
    let ca = open(&directory);
    let refused = |ca: &Ca, step| {
        let error = ca.step(step, "ann", "").expect_err("revoked");
        assert!(matches!(&error, ChangeError::Conflict(text) if text.contains("revoked")), "{error}");
    };
    ca.step(Step::RootPrepare, "ann", "").expect("prepared");
    let next = Subject::Serial(lock(&ca.kept).other.as_ref().expect("there").serials[0].clone());
    let entry = ca.revoke(&next, "ann", "").expect("revoked");
    refused(&ca, Step::RootSwitch);
    ca.withdraw(&entry.id, "ann").expect("withdrawn");
    let first = issuer(&ca);
    ca.step(Step::RootSwitch, "ann", "").expect("switched");
    ca.revoke(&first, "ann", "").expect("revoked");
    refused(&ca, Step::RootRollback);
    ca.step(Step::RootFinish, "ann", "").expect("finished");
}

#[test]
fn an_issuing_certificate_that_was_revoked_while_files_issued_is_replaced_when_they_do_not_any_more() {
    let directory = temporary();
    let ca = open(&directory);
    let (old, revoked) = (issue(&ca), issuer(&ca));
    {
        let entry = ca.revoke(&Subject::Serial(Serial::new(&[7])), "ann", "").expect("revoked");
        let mut kept = lock(&ca.kept);
        let serial = Some(kept.signer.serials[0].to_string());
        kept.state.revocations = vec![Revocation { id: revoked.id(), serial, ..entry }];
        kept.state.store(&ca.directory).expect("stored");
    }
    let ca = later(ca, &directory, Duration::ZERO);
    assert_ne!(issuer(&ca), revoked);
    assert_eq!((covered(&ca, &old), covered(&ca, &issue(&ca))), (true, false));
    let entry = lock(&ca.kept).state.revocations[0].clone();
    assert!(entry.expires > seconds(SystemTime::now() + DAY * 300), "its end is known by now: {entry:?}");
}

#[test]
fn a_serial_that_may_be_that_of_a_forgotten_issuing_certificate_is_revoked_until_all_of_those_have_ended() {
    let directory = temporary();
    let ca = open(&directory);
    let end = seconds(SystemTime::now() + DAY * 400);
    {
        let mut kept = lock(&ca.kept);
        let many = (0..2000).map(|number| state::Signing { serial: format!("{number:04x}"), not_after: end - number });
        kept.state.signers.extend(many);
    }
    ca.step(Step::Issuer, "ann", "").expect("rotated");
    assert!(lock(&ca.kept).state.signers.len() <= 1024);
    let ca = later(ca, &directory, Duration::ZERO);
    let revoke = |number| ca.revoke(&Subject::Serial(Serial::new(&[7, number])), "ann", "").expect("revoked");
    assert!(revoke(0xcf).expires > seconds(SystemTime::now() + DAY * 390), "no room for it, and none of the others");
    assert_eq!(lock(&ca.kept).state.signer_end("0001"), Some(end - 1));
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
