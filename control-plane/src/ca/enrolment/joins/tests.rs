use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Barrier,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use super::*;

const KEY: [u8; 32] = [1; 32];
const OTHER: [u8; 32] = [2; 32];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

fn new() -> NewJoin {
    NewJoin {
        namespace: "shop".into(),
        service_account: "catalog".into(),
        attested: Attested::default(),
        ttl: Duration::from_secs(60),
    }
}

fn create(joins: &Joins) -> (JoinToken, Zeroizing<String>) {
    joins.create(new(), "ann", now()).expect("made")
}

/// A certificate, as far as this is concerned.
fn certificate(content: u8) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(vec![content; 4]), CertificateDer::from(vec![0])]
}

fn redeem(joins: &Joins, text: &str, key: &[u8; 32], at: Timestamp) -> Result<Redeemed, Reason> {
    let verified = joins.verify(text).map_err(|refusal| refusal.reason)?;
    let issue = |_: &JoinToken| Ok(("0a".to_owned(), certificate(key[0])));
    joins.redeem(&verified, key, at, issue).map_err(|refusal| refusal.reason)
}

fn reason(result: Result<Redeemed, Reason>) -> Reason {
    result.map(|redeemed| redeemed.chain).expect_err("refused")
}

#[test]
fn a_token_gets_one_certificate_and_a_lost_answer_comes_again_for_the_same_key_only() {
    let joins = Joins::memory().expect("a database");
    let (token, text) = create(&joins);
    assert!(text.starts_with("weft1j.") && text.len() == 7 + 16 + 1 + 64, "256 bits");
    let first = redeem(&joins, &text, &KEY, now()).expect("valid");
    assert!(!first.again && first.chain == certificate(KEY[0]) && first.token.id == token.id);
    let again = redeem(&joins, &text, &KEY, later(59)).expect("the same key");
    assert!(again.again && again.chain == certificate(KEY[0]), "and no other certificate");
    assert_eq!(reason(redeem(&joins, &text, &OTHER, later(1))), Reason::OtherKey);
    assert_eq!(reason(redeem(&joins, &text, &KEY, later(60))), Reason::Used, "its time is over");
    assert_eq!(reason(redeem(&joins, &text, &OTHER, later(60))), Reason::OtherKey);
}

#[test]
fn a_token_ends_with_its_time_and_with_its_revocation() {
    let joins = Joins::memory().expect("a database");
    let ((_, late), (revoked, text)) = (create(&joins), create(&joins));
    assert_eq!(reason(redeem(&joins, &late, &KEY, later(60))), Reason::Expired);
    assert_eq!(reason(redeem(&joins, &late, &KEY, later(9_999_999))), Reason::Expired);
    redeem(&joins, &late, &KEY, later(59)).expect("in time");
    joins.revoke(&revoked.id, now()).expect("there");
    assert_eq!(reason(redeem(&joins, &text, &KEY, now())), Reason::Revoked);
    let (used, text) = create(&joins);
    redeem(&joins, &text, &KEY, now()).expect("valid");
    joins.revoke(&used.id, now()).expect("there");
    assert_eq!(reason(redeem(&joins, &text, &KEY, now())), Reason::Revoked, "its answer does not come again either");
    assert!(matches!(joins.revoke("0000000000000000", now()), Err(JoinError::NotFound(_))));
}

#[test]
fn a_wrong_secret_is_no_token_and_uses_none_up() {
    let joins = Joins::memory().expect("a database");
    let ((token, text), (_, other)) = (create(&joins), create(&joins));
    let (_, secret) = other.rsplit_once('.').expect("a secret");
    for bad in [
        String::new(),
        PREFIX.into(),
        "weft1j..".into(),
        text[..text.len() - 1].into(),
        format!("{}0", *text),
        text.to_uppercase(),
        text.replace(PREFIX, "weft1."),
        format!("{PREFIX}{}.{secret}", token.id),
        format!("{PREFIX}0000000000000000.{secret}"),
        // Whoever reads the file has no token yet.
        format!("{PREFIX}{}.{}", token.id, hexadecimal::text(&token.hash)),
    ] {
        assert_eq!(reason(redeem(&joins, &bad, &KEY, now())), Reason::Invalid, "{bad}");
    }
    redeem(&joins, &text, &KEY, now()).expect("still there");
}

#[test]
fn of_32_that_use_a_token_at_the_same_instant_exactly_one_wins() {
    let directory = tempfile::tempdir().expect("a directory");
    let joins = Joins::open(directory.path()).expect("opened");
    let (_, text) = create(&joins);
    let (barrier, issued) = (Barrier::new(32), AtomicU32::new(0));
    let results: Vec<_> = std::thread::scope(|scope| {
        let (joins, text, barrier, issued) = (&joins, &text, &barrier, &issued);
        let user = |number: u8| {
            scope.spawn(move || {
                let verified = joins.verify(text).expect("its secret is right");
                barrier.wait();
                joins.redeem(&verified, &[number; 32], now(), |_| {
                    issued.fetch_add(1, Relaxed);
                    Ok(("0a".into(), certificate(number)))
                })
            })
        };
        let users: Vec<_> = (0..32).map(user).collect();
        users.into_iter().map(|user| user.join().expect("no panic")).collect()
    });
    assert_eq!(issued.load(Relaxed), 1);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        results.iter().filter_map(|result| result.as_ref().err()).all(|refusal| refusal.reason == Reason::OtherKey)
    );
}

#[test]
fn what_was_issued_is_on_disk_before_it_is_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let joins = Joins::open(directory.path()).expect("opened");
    let ((_, text), (_, unused)) = (create(&joins), create(&joins));
    redeem(&joins, &text, &KEY, now()).expect("valid");
    // The machine stops here: what the next process finds is the file as it is now, not closed.
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::copy(directory.path().join("identity.redb"), copy.path().join("identity.redb")).expect("copied");
    let after = Joins::open(copy.path()).expect("recovered");
    assert_eq!(reason(redeem(&after, &text, &OTHER, now())), Reason::OtherKey, "it is used up");
    let again = redeem(&after, &text, &KEY, now()).expect("the same key");
    assert!(again.again && again.chain == certificate(KEY[0]));
    assert!(!redeem(&after, &unused, &OTHER, now()).expect("not used").again);
}

#[test]
fn what_is_not_issued_is_not_used() {
    let joins = Joins::memory().expect("a database");
    let (_, text) = create(&joins);
    let verified = joins.verify(&text).expect("valid");
    let refused = joins.redeem(&verified, &KEY, now(), |_| Err(Refusal::new(Reason::Csr, "no")));
    assert_eq!(refused.expect_err("refused").reason, Reason::Csr);
    assert!(!redeem(&joins, &text, &OTHER, now()).expect("still there").again);
}

#[test]
fn a_file_that_is_cut_off_of_another_version_or_in_use_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("identity.redb");
    let joins = Joins::open(directory.path()).expect("opened");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(Joins::open(directory.path()).is_err(), "one process at a time");
    for _ in 0..50 {
        create(&joins);
    }
    drop(joins);
    let whole = std::fs::read(&path).expect("read");
    for length in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).expect("written");
        let error = format!("{:#}", Joins::open(directory.path()).err().unwrap_or_else(|| panic!("{length}")));
        assert!(error.contains("restore it from a backup, or remove it"), "{length}: {error}");
    }
    std::fs::write(&path, &whole).expect("written");
    assert_eq!(Joins::open(directory.path()).expect("whole again").list().expect("read").len(), 50);
}

#[test]
fn a_file_that_others_may_change_or_that_is_elsewhere_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("identity.redb");
    drop(Joins::open(directory.path()).expect("opened"));
    let refused = |words: &[&str]| {
        let error = format!("{:#}", Joins::open(directory.path()).err().expect("refused"));
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    for mode in [0o660, 0o604] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        refused(&["identity.redb", &format!("{mode:04o}"), "chmod 600"]);
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
    std::fs::rename(&path, directory.path().join("elsewhere")).expect("moved");
    std::os::unix::fs::symlink("elsewhere", &path).expect("linked");
    refused(&["identity.redb", "a link"]);
    std::fs::remove_file(directory.path().join("elsewhere")).expect("removed");
    refused(&["identity.redb", "a link"]);
    assert!(!directory.path().join("elsewhere").exists(), "and nothing is made where it leads");
}

#[test]
fn neither_the_list_nor_the_file_has_a_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let joins = Joins::open(directory.path()).expect("opened");
    let (token, text) = create(&joins);
    let secret = &text[text.len() - 32..];
    let file = std::fs::read(directory.path().join("identity.redb")).expect("read");
    assert!(!file.windows(32).any(|bytes| bytes == secret.as_bytes()));
    assert!(file.windows(16).any(|bytes| bytes == token.id.as_bytes()), "but it has the token");
    let shown = format!("{:?}", joins.list().expect("read"));
    assert!(shown.contains(&token.id) && !shown.contains(secret) && !shown.contains(&hexadecimal::text(&token.hash)));
}

#[test]
fn states_are_told_and_what_ended_a_day_ago_is_forgotten() {
    let joins = Joins::memory().expect("a database");
    let (_, used) = create(&joins);
    redeem(&joins, &used, &KEY, now()).expect("valid");
    let (revoked, _) = create(&joins);
    joins.revoke(&revoked.id, now()).expect("there");
    create(&joins);
    let states = |at| joins.list().expect("read").iter().map(|token| token.state(at)).collect::<Vec<_>>();
    let mut found = states(now());
    found.sort_unstable();
    assert_eq!(found, ["revoked", "used", "valid"]);
    assert!(states(later(61)).contains(&"expired"));
    let day = 24 * 3600;
    joins.create(new(), "ann", later(59 + day)).expect("made");
    assert_eq!(joins.list().expect("read").len(), 4, "not yet");
    joins.create(new(), "ann", later(61 + day)).expect("made");
    assert_eq!(joins.list().expect("read").len(), 2);
}

#[test]
fn a_token_that_makes_no_sense_is_not_made() {
    let joins = Joins::memory().expect("a database");
    let labels = |key: &str, value: &str| Attested {
        name: None,
        labels: [(key.to_owned(), value.to_owned())].into_iter().collect(),
    };
    let many = (0..17).map(|number| (format!("l{number}"), String::new())).collect();
    let long = (0..16).map(|number| (format!("l{number}"), "v".repeat(63))).collect();
    let named = |name: &str| Attested { name: Some(name.into()), labels: BTreeMap::new() };
    for (field, bad) in [
        ("namespace", NewJoin { namespace: "Shop".into(), ..new() }),
        ("namespace", NewJoin { namespace: String::new(), ..new() }),
        ("serviceAccount", NewJoin { service_account: "a/b".into(), ..new() }),
        ("serviceAccount", NewJoin { service_account: "..".into(), ..new() }),
        ("name", NewJoin { attested: named("-x"), ..new() }),
        ("ttlSeconds", NewJoin { ttl: Duration::ZERO, ..new() }),
        ("ttlSeconds", NewJoin { ttl: MAX_TTL + Duration::from_secs(1), ..new() }),
        ("labels", NewJoin { attested: labels("", "x"), ..new() }),
        ("labels", NewJoin { attested: labels("a b", "x"), ..new() }),
        ("labels", NewJoin { attested: labels("a/b/c", "x"), ..new() }),
        ("labels", NewJoin { attested: labels("app", "x\ny"), ..new() }),
        ("labels", NewJoin { attested: Attested { name: None, labels: many }, ..new() }),
        ("labels", NewJoin { attested: Attested { name: None, labels: long }, ..new() }),
    ] {
        let error = joins.create(bad, "ann", now()).expect_err(field).to_string();
        assert!(error.contains(field), "{field} in {error}");
    }
    assert!(joins.list().expect("read").is_empty());
    let good = NewJoin { attested: labels("app.kubernetes.io/name", "web_1.x"), ttl: MAX_TTL, ..new() };
    joins.create(good, "ann", now()).expect("made");
}
