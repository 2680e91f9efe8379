//! Crashes: at every operation on a file, in every step. What is found afterwards is the state before or the one after,
//! nothing is left over, and the authority goes on.

use super::{super::rotation::Step, *};

/// Operations of the longest step, and more.
const MOST: usize = 200;

fn copy(from: &TempDir) -> TempDir {
    let to = temporary();
    for entry in std::fs::read_dir(from.path()).expect("readable") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).expect("copied");
    }
    to
}

/// Certificates and phase, without what a restart may change.
fn essence(ca: &Ca) -> (Phase, Vec<Vec<u8>>, CertificateDer<'static>) {
    let active = ca.active();
    (active.phase, ca.roots(), active.signer.chain[0].clone())
}

/// Keys on disk are exactly those that are needed, and no file is half written.
fn clean(ca: &Ca) {
    let names = ca.directory.names().expect("listed");
    let kept = lock(&ca.kept);
    let keys: std::collections::BTreeSet<_> =
        names.iter().filter(|name| state::is_key(name)).map(String::as_str).collect();
    assert_eq!(keys, kept.state.keys(), "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with(".new")), "{names:?}");
}

/// Crashes `change` at each operation, in a copy of `directory`; how many operations it has.
fn at_each(directory: &TempDir, change: impl Fn(&Ca) -> bool) -> usize {
    for operations in 0..MOST {
        let copied = copy(directory);
        let ca = open(&copied);
        let before = essence(&ca);
        ca.directory.crash.set(operations);
        let done = change(&ca);
        let untouched = ca.directory.crash.left() > 0;
        let memory = essence(&ca);
        assert!(done || memory == before, "{operations}: what failed changed nothing");
        // A crash: nothing more is written, and another process opens the directory.
        drop(ca);
        let again = open(&copied);
        let found = essence(&again);
        if done {
            assert_eq!(found, memory, "{operations}: what was acknowledged is there");
        } else {
            let (before, found) = (before.0, found.0);
            assert!(found == before || found != before && operations > 3, "{operations}");
        }
        clean(&again);
        assert!(accepted(&issue(&again), &again.roots()), "{operations}");
        if untouched {
            return operations;
        }
    }
    panic!("it never ended");
}

#[test]
fn a_crash_at_any_operation_of_any_step_leaves_the_phase_before_or_after() {
    let directory = temporary();
    let path = [Step::RootPrepare, Step::RootSwitch, Step::RootRollback, Step::RootSwitch, Step::RootFinish];
    for step in [&[Step::Issuer], path.as_slice()].concat() {
        let operations = at_each(&directory, |ca| ca.step(step, "test", "").is_ok());
        assert!(operations >= 5, "{step:?}: {operations}");
        open(&directory).step(step, "test", "").expect("a step");
    }
}

#[test]
fn a_crash_in_a_revocation_leaves_it_there_or_not() {
    let directory = temporary();
    let revoke = |ca: &Ca| ca.revoke(&Subject::Identity(id()), "test", "").is_ok();
    assert!(at_each(&directory, revoke) >= 5);
}

#[test]
fn a_crash_at_any_operation_of_the_beginning_lets_the_next_start_begin_or_go_on() {
    for operations in 0..MOST {
        let directory = temporary();
        let files = Directory::open(directory.path()).expect("private");
        files.crash.set(operations);
        let done = Ca::open_with(files.clone(), DOMAIN, HOUR, None).is_ok();
        let untouched = files.crash.left() > 0;
        let first = std::fs::read(files.path("ca.crt")).ok().filter(|_| files.path("ca.key").is_file());
        let ca = open(&directory);
        clean(&ca);
        assert!(accepted(&issue(&ca), &ca.roots()), "{operations}");
        let now = std::fs::read(files.path("ca.crt")).expect("there");
        assert!(first.is_none_or(|first| first == now), "{operations}: a root that was complete stays");
        if untouched {
            assert!(done);
            return;
        }
    }
    panic!("it never ended");
}

#[test]
fn after_a_disk_that_failed_the_next_step_works() {
    let directory = temporary();
    let ca = open(&directory);
    for operations in 0..15 {
        ca.directory.crash.set(operations);
        let _ = ca.step(Step::Issuer, "test", "");
        ca.directory.crash.set(usize::MAX);
        assert!(ca.active().ceiling.is_none(), "{operations}");
        assert!(accepted(&issue(&ca), &ca.roots()), "{operations}");
    }
    ca.step(Step::Issuer, "test", "").expect("the disk works again");
    clean(&ca);
    let issuing = essence(&ca);
    assert_eq!(essence(&open(&directory)), issuing);
}
