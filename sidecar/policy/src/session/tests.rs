use http::HeaderName;
use proptest::prelude::*;

use super::*;
use crate::pattern::Pattern;

const TOKEN: Token = Token { began: 1000, seen: 1060, backend: 7, endpoint: 8 };

fn cookie(permanent: bool) -> Session {
    let carrier = Carrier::Cookie { name: "sid".into(), permanent };
    Session { carrier, absolute: Some(Duration::from_secs(100)), idle: None, key: None }
}

fn told(session: &Session, matched: &PathMatch, age: u32) -> String {
    let mut headers = HeaderMap::new();
    session.answer(&mut headers, "SEALED", matched, age);
    let line = headers.values().next().expect("a field");
    format!("{}: {}", headers.keys().next().expect("a field"), line.to_str().expect("text"))
}

#[test]
fn a_token_is_read_as_it_was_written_and_nothing_else_is_one() {
    assert_eq!(Token::from_bytes(&TOKEN.to_bytes()), Some(TOKEN));
    let mut other = TOKEN.to_bytes();
    other[0] = 2;
    assert_eq!(Token::from_bytes(&other), None, "another form");
    assert_eq!(Token::from_bytes(&TOKEN.to_bytes()[1..]), None);
    assert_eq!(Token::from_bytes(&[&TOKEN.to_bytes()[..], b"x"].concat()), None);
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Some(token) = Token::from_bytes(&bytes) {
            prop_assert_eq!(&token.to_bytes()[..], &bytes[..]);
        }
    }
}

#[test]
fn a_session_ends_by_its_age_or_when_it_was_idle() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let with = |absolute, idle| Session { absolute, idle, ..cookie(false) };
    let valid = |absolute, idle, now| TOKEN.is_valid(&with(absolute, idle), now);
    assert!(valid(None, None, u32::MAX));
    assert!(valid(seconds(100), None, 1099) && !valid(seconds(100), None, 1100));
    assert!(valid(None, seconds(30), 1089) && !valid(None, seconds(30), 1090));
    assert!(!valid(seconds(100), seconds(1000), 1100) && !valid(seconds(1000), seconds(30), 1090));
    assert!(valid(seconds(1), seconds(1), 900), "the clock of another sidecar is ahead");
}

#[test]
fn another_workload_service_or_port_is_somebody_else() {
    let address = "10.0.0.1:80".parse().expect("valid");
    let workload = ObjectName::new("shop", "web-1");
    let other = ObjectName::new("shop", "web-2");
    let of = |workload| of_endpoint(address, workload);
    assert_ne!(of(Some(&workload)), of(Some(&other)));
    assert_ne!(of(Some(&workload)), of(None));
    assert_ne!(of(None), of_endpoint("10.0.0.2:80".parse().expect("valid"), None));
    let target = |service, port| of_target(&Target { service: ObjectName::new("shop", service), port });
    assert_ne!(target("web", 80), target("web", 81));
    assert_ne!(target("web", 80), target("api", 80));
}

#[test]
fn a_request_brings_its_token_where_the_rule_says() {
    let mut headers = HeaderMap::new();
    headers.insert("cookie", HeaderValue::from_static("a=1; sid=from-cookie; sid=second"));
    headers.insert("x-session", HeaderValue::from_static("from-header"));
    assert_eq!(cookie(false).of_request(&headers), Some(&b"from-cookie"[..]));
    let header = Session { carrier: Carrier::Header(HeaderName::from_static("x-session")), ..cookie(false) };
    assert_eq!(header.of_request(&headers), Some(&b"from-header"[..]));
    assert_eq!(header.of_request(&HeaderMap::new()), None);
}

#[test]
fn the_answer_gives_a_cookie_for_a_while_or_until_the_caller_ends_or_a_field() {
    let matched = PathMatch::Prefix("/shop".into());
    let line = told(&cookie(false), &matched, 30);
    assert_eq!(line, "set-cookie: sid=SEALED; Path=/shop; HttpOnly; SameSite=Strict");
    let line = told(&cookie(true), &matched, 30);
    assert_eq!(line, "set-cookie: sid=SEALED; Path=/shop; Max-Age=70; HttpOnly; SameSite=Strict");
    let header = Session { carrier: Carrier::Header(HeaderName::from_static("x-session")), ..cookie(false) };
    assert_eq!(told(&header, &matched, 30), "x-session: SEALED");
}

#[test]
fn a_cookie_of_the_app_stays_beside_ours() {
    let mut headers = HeaderMap::new();
    headers.insert(header::SET_COOKIE, HeaderValue::from_static("app=1"));
    cookie(false).answer(&mut headers, "SEALED", &PathMatch::Any, 0);
    assert_eq!(headers.get_all(header::SET_COOKIE).iter().count(), 2);
}

#[test]
fn a_cookie_is_for_the_paths_of_the_match() {
    for (matched, path) in [
        (PathMatch::Any, "/"),
        (PathMatch::Exact("/a/b".into()), "/a/b"),
        (PathMatch::Prefix("/".into()), "/"),
        (PathMatch::Prefix("/a;v=1/b".into()), "/"),
        (PathMatch::Prefix("/x/a;v=1/b".into()), "/x"),
    ] {
        assert_eq!(cookie_path(&matched), path, "{matched:?}");
    }
    for (pattern, path) in [
        ("/p1/p2/[^/]*/p3", "/p1/p2"),
        ("/p1/p2", "/p1"),
        ("/items/[0-9]+", "/items"),
        ("/a/bc?", "/a"),
        ("/a/.*", "/a"),
        ("(?i)/a/b/.*", "/"),
        ("/a/b/x|/c", "/"),
        (".*", "/"),
    ] {
        let pattern = Pattern::new(pattern).expect("valid");
        assert_eq!(cookie_path(&PathMatch::Regex(pattern.clone())), path, "{}", pattern.as_str());
    }
}

#[test]
fn the_token_is_told_when_it_is_new_or_has_to_stay_fresh() {
    let (plain, fresh) = (cookie(false), Session { idle: Some(Duration::from_secs(9)), ..cookie(false) });
    assert!(plain.is_told(None, 8) && plain.is_told(Some(&TOKEN), 9) && !plain.is_told(Some(&TOKEN), 8));
    assert!(fresh.is_told(Some(&TOKEN), 8));
}

#[test]
fn a_key_never_shows() {
    let key = crate::model::SessionKey([0xAB; 32]);
    assert_eq!(format!("{key:?}"), "SessionKey(..)");
}
