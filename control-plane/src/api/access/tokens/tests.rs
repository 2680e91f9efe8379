use k8s_openapi::jiff::SignedDuration;

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

fn new(name: &str, role: Role) -> NewToken {
    NewToken { name: name.into(), role, namespace: None, expires: None }
}

#[test]
fn a_token_is_valid_with_its_own_secret_until_it_ends() {
    let tokens = Tokens::memory();
    let expires = Some(later(60));
    let (token, text) = tokens.create(NewToken { expires, ..new("ci", Role::Editor) }, now()).expect("made");
    assert_eq!(tokens.verify(&text, later(59)).map(|token| token.name), Ok("ci".to_owned()));
    assert_eq!(tokens.verify(&text, later(60)).map(drop), Err(Refused::Expired));
    let (_, other) = tokens.create(new("other", Role::Admin), now()).expect("made");
    let (_, secret) = other.rsplit_once('.').expect("a secret");
    for bad in [
        String::new(),
        "weft1a".into(),
        "weft1a..".into(),
        text[..text.len() - 1].into(),
        format!("{}0", *text),
        text.to_uppercase(),
        text.replace(PREFIX, "weft1"),
        format!("{PREFIX}.{}.{secret}", token.id),
        format!("{PREFIX}.0000000000000000.{secret}"),
        // Whoever reads the file has no token yet.
        format!("{PREFIX}.{}.{}", token.id, hexadecimal::text(&token.hash)),
    ] {
        assert_eq!(tokens.verify(&bad, later(60)).map(drop), Err(Refused::Invalid), "{bad}");
    }
    tokens.revoke(&token.id).expect("revoked");
    assert_eq!(tokens.verify(&text, now()).map(drop), Err(Refused::Invalid));
    assert!(matches!(tokens.revoke(&token.id), Err(ChangeError::NotFound(_))));
}

#[test]
fn a_list_of_tokens_that_others_may_change_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    drop(Tokens::open(directory.path(), now()).expect("opened"));
    let path = directory.path().join("tokens.json");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("set");
    let error = format!("{:#}", Tokens::open(directory.path(), now()).err().expect("refused"));
    assert!(error.contains("tokens.json") && error.contains("chmod 600"), "{error}");
}

#[test]
fn the_first_start_makes_an_administrators_token_in_a_private_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let (_, made) = Tokens::open(directory.path(), now()).expect("opened");
    let file = made.expect("a file");
    let text = std::fs::read_to_string(&file).expect("read");
    for path in [file, directory.path().join("tokens.json")] {
        assert_eq!(std::fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o600);
    }
    let (tokens, made) = Tokens::open(directory.path(), now()).expect("opened");
    assert_eq!(made, None, "the next start finds it");
    let token = tokens.verify(text.trim(), now()).expect("valid");
    assert_eq!((token.name.as_str(), token.role), ("admin", Role::Admin));

    tokens.revoke(&token.id).expect("revoked");
    tokens.create(new("admin", Role::Viewer), now()).expect("made");
    let (tokens, made) = Tokens::open(directory.path(), now()).expect("opened");
    let text = std::fs::read_to_string(made.expect("a way in when there is no administrator left")).expect("read");
    let token = tokens.verify(text.trim(), now()).expect("valid");
    assert!(token.role == Role::Admin && token.name.starts_with("admin-"), "{token:?}");
}

#[test]
fn tokens_survive_a_restart_and_their_secrets_are_not_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tokens, _) = Tokens::open(directory.path(), now()).expect("opened");
    let wanted = NewToken { namespace: Some("shop".into()), expires: Some(later(60)), ..new("ci@shop", Role::Viewer) };
    let (token, text) = tokens.create(wanted, now()).expect("made");
    assert!(tokens.used(&token.id, now()));
    assert!(!tokens.used(&token.id, later(1)), "the same day");
    tokens.save().expect("saved");
    let content = std::fs::read_to_string(directory.path().join("tokens.json")).expect("read");
    let (_, secret) = text.rsplit_once('.').expect("a secret");
    assert!(!content.contains(secret), "{content}");
    let (again, _) = Tokens::open(directory.path(), now()).expect("opened");
    let token = again.verify(&text, now()).expect("valid");
    assert_eq!((token.name.as_str(), token.role, token.namespace.as_deref()), ("ci@shop", Role::Viewer, Some("shop")));
    assert_eq!(
        (token.expires, token.last_used.map(|day| day.to_string())),
        (Some(later(60)), Some("2027-01-15".into()))
    );
    again.revoke(&token.id).expect("revoked");
    let (third, _) = Tokens::open(directory.path(), now()).expect("opened");
    assert_eq!(third.verify(&text, now()).map(drop), Err(Refused::Invalid), "revocations survive too");
}

#[test]
fn a_damaged_file_stops_the_start_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tokens, _) = Tokens::open(directory.path(), now()).expect("opened");
    let file = directory.path().join("tokens.json");
    let good = std::fs::read_to_string(&file).expect("read");
    let hash = hexadecimal::text(&tokens.list()[0].hash);
    for bad in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.replace(&hash, &hash[1..]),
        good.replace(&hash, &"é".repeat(32)),
        good.replace("\"admin\"", "\"root\""),
        good.replace("\"version\": 1", "\"version\": 2"),
    ] {
        std::fs::write(&file, &bad).expect("written");
        let error = format!("{:#}", Tokens::open(directory.path(), now()).map(drop).expect_err(&bad));
        assert!(error.contains("tokens.json: restore it from a backup, or remove it"), "{error}");
        assert!(!error.contains(&hash[1..]), "{error}");
    }
}

#[test]
fn what_is_no_name_or_namespace_and_what_is_taken_is_refused() {
    let tokens = Tokens::memory();
    tokens.create(new("ci", Role::Viewer), now()).expect("made");
    assert!(matches!(tokens.create(new("ci", Role::Admin), now()), Err(ChangeError::Exists(_))));
    for bad in ["", "a b", "a\nb", "\u{e9}", &"x".repeat(101)] {
        assert!(matches!(tokens.create(new(bad, Role::Viewer), now()), Err(ChangeError::Invalid(_))), "{bad:?}");
    }
    for (role, namespace) in [(Role::Admin, "shop"), (Role::Editor, ""), (Role::Editor, "a/b"), (Role::Editor, "A")] {
        let wanted = NewToken { namespace: Some(namespace.into()), ..new("x", role) };
        assert!(matches!(tokens.create(wanted, now()), Err(ChangeError::Invalid(_))), "{namespace:?}");
    }
    for index in 1..MAX_TOKENS {
        tokens.create(new(&format!("t{index}"), Role::Viewer), now()).expect("made");
    }
    assert!(matches!(tokens.create(new("more", Role::Viewer), now()), Err(ChangeError::Invalid(_))));
}

#[test]
fn when_the_file_cannot_be_written_nothing_is_made_and_what_is_revoked_is_refused_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tokens, _) = Tokens::open(directory.path(), now()).expect("opened");
    let (token, text) = tokens.create(new("ci", Role::Editor), now()).expect("made");
    std::fs::remove_dir_all(directory.path()).expect("removed");
    assert!(matches!(tokens.create(new("more", Role::Editor), now()), Err(ChangeError::Write { .. })));
    assert_eq!(tokens.list().len(), 2);
    assert!(matches!(tokens.revoke(&token.id), Err(ChangeError::Write { .. })));
    assert_eq!(tokens.verify(&text, now()).map(drop), Err(Refused::Expired));
    std::fs::create_dir(directory.path()).expect("made");
    tokens.revoke(&token.id).expect("the second try");
    assert_eq!(tokens.verify(&text, now()).map(drop), Err(Refused::Invalid));
}

#[test]
fn nothing_secret_is_printed() {
    let tokens = Tokens::memory();
    let (token, _) = tokens.create(new("ci", Role::Editor), now()).expect("made");
    let printed = format!("{token:?}");
    let first = format!("{}, {}", token.hash[0], token.hash[1]);
    assert!(!printed.contains(&hexadecimal::text(&token.hash)) && !printed.contains(&first), "{printed}");
}

#[test]
fn nobody_writes_under_the_name_of_the_control_plane() {
    let refused = Tokens::memory().create(new("weft", Role::Editor), now());
    assert!(matches!(refused, Err(ChangeError::Invalid(_))), "{refused:?}");
}
