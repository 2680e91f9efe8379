//! Steps of rotations, and what certificates and files are like in each phase.

use super::{super::rotation::ChangeError, *};

fn step(ca: &Ca, step: Step) {
    ca.step(step, "test", "because").unwrap_or_else(|error| panic!("{step:?}: {error:#}"));
}

/// Which of these leaves a peer accepts that has the present roots.
fn trusted(ca: &Ca, leaves: &[&Leaf]) -> Vec<bool> {
    leaves.iter().map(|leaf| accepted(leaf, &ca.roots())).collect()
}

fn phase(ca: &Ca) -> Phase {
    ca.active().phase
}

#[test]
fn a_root_is_changed_in_three_phases_and_at_no_time_is_a_valid_certificate_refused() {
    let directory = temporary();
    let ca = open(&directory);
    let first_root = ca.roots();
    let old = issue(&ca);
    step(&ca, Step::RootPrepare);
    let both = ca.roots();
    assert_eq!((both.len(), &both[0], phase(&ca)), (2, &first_root[0], Phase::Prepared));
    let prepared = issue(&ca);
    assert!(accepted(&prepared, &first_root), "the old root's issuer issues");
    assert_eq!(ca.bundle().renew_issued_before, 0, "nobody has to renew yet");
    step(&ca, Step::RootSwitch);
    let new = issue(&ca);
    assert_eq!(trusted(&ca, &[&old, &prepared, &new]), [true; 3]);
    assert!(!accepted(&new, &first_root), "the new root's issuer issues");
    let renew = i64::try_from(ca.bundle().renew_issued_before / 1000).expect("seconds");
    let begins = |leaf| presented(leaf).not_before;
    assert!(begins(&old) < renew && begins(&prepared) < renew && begins(&new) >= renew, "only the old ones renew");
    let own = ca.own_svid(HOUR).expect("an SVID");
    let own = Leaf { chain: own.chain.clone(), serial: Serial::new(&[1]), life: new.life };
    assert!(accepted(&own, &first_root), "who was away meanwhile still knows the control plane");
    step(&ca, Step::RootFinish);
    assert_eq!((ca.roots().len(), phase(&ca)), (1, Phase::Stable));
    assert_eq!(trusted(&ca, &[&old, &prepared, &new]), [false, false, true]);
    let own = ca.own_svid(HOUR).expect("an SVID");
    assert!(accepted(&Leaf { chain: own.chain.clone(), ..new.clone() }, &ca.roots()));
    let names = ca.directory.names().expect("listed");
    assert_eq!(names.iter().filter(|name| state::is_key(name)).count(), 2, "the old keys are gone: {names:?}");
    assert!(!names.contains(&"ca.crt".to_owned()) && !names.contains(&"ca.key".to_owned()), "{names:?}");
    drop(ca);
    let again = open(&directory);
    assert!(accepted(&issue(&again), &again.roots()));
    assert_eq!(trusted(&again, &[&new]), [true]);
}

#[test]
fn identity_and_end_tell_by_whom_a_certificate_was_issued_also_within_a_second() {
    let directory = temporary();
    let ca = open(&directory);
    let old: std::collections::HashSet<_> = (0..5).map(|_| issue(&ca).life.to).collect();
    step(&ca, Step::Issuer);
    let new = issue(&ca).life.to;
    assert!(!old.contains(&new), "{old:?} {new}");
}

#[test]
fn a_change_of_the_root_goes_back_from_each_phase() {
    let directory = temporary();
    let ca = open(&directory);
    let first_root = ca.roots();
    step(&ca, Step::RootPrepare);
    step(&ca, Step::RootRollback);
    assert_eq!((ca.roots(), phase(&ca)), (first_root.clone(), Phase::Stable));
    step(&ca, Step::RootPrepare);
    step(&ca, Step::RootSwitch);
    let new = issue(&ca);
    let renew = ca.bundle().renew_issued_before;
    step(&ca, Step::RootRollback);
    assert_eq!((ca.roots().len(), phase(&ca)), (2, Phase::Prepared));
    let back = issue(&ca);
    assert!(accepted(&back, &first_root) && accepted(&new, &ca.roots()), "the old root issues, the new one is trusted");
    assert!(ca.bundle().renew_issued_before > renew);
    assert!(presented(&new).not_before < presented(&back).not_before);
    step(&ca, Step::RootRollback);
    assert_eq!((ca.roots(), phase(&ca)), (first_root, Phase::Stable));
    assert!(!accepted(&new, &ca.roots()));
}

#[test]
fn a_step_that_does_not_go_with_the_phase_changes_nothing() {
    let directory = temporary();
    let ca = open(&directory);
    let refused = |steps: &[Step]| {
        let before = lock(&ca.kept).state.clone();
        for step in steps {
            let error = ca.step(*step, "test", "").expect_err("wrong phase");
            assert!(matches!(&error, ChangeError::Conflict(text) if text.contains("phase")), "{step:?}: {error}");
        }
        assert_eq!(lock(&ca.kept).state, before);
    };
    refused(&[Step::RootSwitch, Step::RootFinish, Step::RootRollback]);
    step(&ca, Step::RootPrepare);
    refused(&[Step::RootPrepare, Step::RootFinish]);
    step(&ca, Step::RootSwitch);
    refused(&[Step::RootPrepare, Step::RootSwitch]);
}

#[test]
fn another_issuing_certificate_under_the_same_root_lets_sidecars_renew_and_refuses_nobody() {
    let directory = temporary();
    let ca = open(&directory);
    let (roots, old) = (ca.roots(), issue(&ca));
    for _ in 0..3 {
        step(&ca, Step::Issuer);
    }
    let new = issue(&ca);
    assert_eq!(ca.roots(), roots);
    assert_ne!(new.chain[1], old.chain[1]);
    assert_eq!(trusted(&ca, &[&old, &new]), [true; 2]);
    let renew = i64::try_from(ca.bundle().renew_issued_before / 1000).expect("seconds");
    assert!(presented(&old).not_before < renew && presented(&new).not_before >= renew);
    let text = format!("{:?}", ca.audit().entries(None, 10));
    assert!(text.contains("\"issuer\"") && text.contains("because") && text.contains("\"test\""), "{text}");
}

#[test]
fn the_issuing_certificate_is_followed_by_another_at_four_fifths_of_its_life() {
    let directory = temporary();
    let ca = open(&directory);
    let (first, start) = (issue(&ca).chain[1].clone(), SystemTime::now());
    ca.maintain(start + signer::ISSUER_LIFE.mul_f64(0.79));
    assert_eq!(issue(&ca).chain[1], first);
    ca.maintain(start + signer::ISSUER_LIFE.mul_f64(0.81));
    let kept = lock(&ca.kept);
    assert_ne!(kept.signer.chain[0], first);
    assert!(kept.signer.not_after > seconds(start + signer::ISSUER_LIFE.mul_f64(1.7)));
}

#[test]
fn nothing_outlives_its_issuer_and_an_expired_one_issues_nothing() {
    let directory = temporary();
    let ca = open(&directory);
    let active = ca.active();
    let now = active.signer.not_after - 60;
    let life = active.life(&active.signer, HOUR, now).expect("a minute is left");
    assert_eq!(life.to, active.signer.not_after);
    let error = active.life(&active.signer, HOUR, active.signer.not_after).expect_err("expired").to_string();
    assert!(error.contains("expired"), "{error}");
    let early = active.life(&active.signer, HOUR, active.signer.not_before - 10_000);
    assert!(early.is_err(), "a clock that is far behind makes no certificate that begins after it ends");
    let begins = active.life(&active.signer, HOUR, active.signer.not_before + 10).expect("valid").from;
    assert_eq!(begins, active.signer.not_before, "back-dated, but not before the issuer");
}

#[test]
fn an_issuer_under_a_root_that_ends_ends_with_it_and_is_not_followed_again_and_again() {
    let key = KeyPair::generate().expect("a key");
    let now = SystemTime::now();
    let root = signer::make_root(&key, DOMAIN, now).expect("a root");
    let end = signer::Info::of(&root).expect("a root").not_after;
    let late = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(end - 3600).expect("positive"));
    let own = KeyPair::generate().expect("a key");
    let issuer = signer::make_issuer(&own, &root, key, DOMAIN, late).expect("an issuer");
    assert_eq!(signer::Info::of(&issuer).expect("a certificate").not_after, end);
    let signer = Signer::new(vec![issuer], own, &[root], DOMAIN, late).expect("a signer");
    assert_eq!(signer.not_after, end);
    let directory = temporary();
    let ca = open(&directory);
    let (first, after) = (ca.active().signer.chain.clone(), now + signer::ROOT_LIFE.mul_f64(0.85));
    lock(&ca.kept).signer = Arc::new(signer);
    assert!(ca.warning(after).is_some_and(|text| text.contains("rotate root")), "its root is to be changed");
    assert!(ca.warning(now).is_none());
    drop(first);
}

#[test]
fn files_for_new_sidecars_have_all_roots_that_are_trusted() {
    let directory = temporary();
    let ca = open(&directory);
    let root_file = ca.write_root().expect("written");
    let roots = |text: &str| {
        use rustls::pki_types::pem::PemObject;
        let read = CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| der.expect("a certificate").to_vec());
        read.collect::<Vec<_>>()
    };
    let same = |ca: &Ca| assert_eq!(roots(&std::fs::read_to_string(&root_file).expect("there")), ca.roots());
    same(&ca);
    for of in [Step::RootPrepare, Step::RootSwitch, Step::RootFinish] {
        step(&ca, of);
        same(&ca);
    }
    assert_eq!(roots(&ca.roots_pem()), ca.roots());
    std::fs::remove_file(&root_file).expect("removed");
    lock(&ca.trusted).write(&[]).expect("written");
    ca.maintain(SystemTime::now());
    same(&ca);
}

#[test]
fn who_had_a_session_under_a_root_that_is_gone_gets_no_certificate_on_it() {
    let directory = temporary();
    let ca = open(&directory);
    let old = presented(&issue(&ca));
    let steps =
        [(Step::RootPrepare, None), (Step::RootSwitch, None), (Step::RootFinish, Some(SvidReason::UnknownRoot))];
    for (next, expected) in steps {
        step(&ca, next);
        assert_eq!(ca.refuses(&id(), &old), expected, "{next:?}");
    }
    let new = issue(&ca);
    assert_eq!(ca.refuses(&id(), &presented(&new)), None);
    ca.revoke(&Subject::Serial(new.serial.clone()), "ann", "").expect("revoked");
    assert_eq!(ca.refuses(&id(), &presented(&new)), Some(SvidReason::Revoked));
}

#[test]
fn an_authority_that_was_off_while_its_issuing_certificate_ended_starts_with_another_one() {
    let directory = temporary();
    let ca = open(&directory);
    let files = ca.directory.clone();
    drop(ca);
    let load = || state::State::load(&files, DOMAIN).expect("readable").expect("there");
    let (mut state, before) = (load(), load());
    crate::ca::founding::revive(&files, &mut state, SystemTime::now()).expect("nothing to do");
    assert_eq!(state, before);
    let late = SystemTime::now() + signer::ISSUER_LIFE + HOUR;
    assert!(crate::ca::founding::load(&files, &state, late).is_err(), "it has ended");
    let key = files.read("ca.key").expect("readable").expect("there");
    files.remove("ca.key").expect("removed");
    let error = format!("{:#}", crate::ca::founding::revive(&files, &mut state, late).expect_err("no key"));
    assert!(error.contains("expired at") && error.contains("ca.key"), "{error}");
    files.write("ca.key", key.as_bytes()).expect("written");
    crate::ca::founding::revive(&files, &mut state, late).expect("another one");
    let (signer, _, roots) = crate::ca::founding::load(&files, &state, late).expect("it issues");
    assert!(signer.not_after > seconds(late) && roots.len() == 1);
}
