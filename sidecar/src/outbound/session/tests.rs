use std::time::Duration;

use http::HeaderName;
use weft_policy::model::Carrier;

use super::*;

const TOKEN: Token = Token { began: 1000, seen: 1060, backend: 7, endpoint: 8 };

fn session(key: Option<u8>) -> Session {
    let carrier = Carrier::Header(HeaderName::from_static("x-session"));
    let key = key.map(|byte| SessionKey([byte; 32]));
    Session { carrier, absolute: Some(Duration::from_secs(100)), idle: None, key }
}

fn sealers(own: u8) -> Sealers {
    Sealers::new(SessionKey([own; 32]))
}

fn seal(sealers: &Sealers, session: &Session, seed: u64) -> String {
    let mut random = seed;
    let mut random = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random
    };
    sealers.seal(session, TOKEN, &mut random).expect("sealed")
}

#[test]
fn a_token_is_read_by_who_has_the_key_of_its_rule_and_by_nobody_else() {
    let shared = session(Some(1));
    let text = seal(&sealers(7), &shared, 1);
    assert_eq!(text.len(), TEXT);
    assert_eq!(sealers(9).open(&shared, text.as_bytes()), Some(TOKEN), "another sidecar");
    assert_eq!(sealers(7).open(&session(Some(2)), text.as_bytes()), None, "another rule");
    let own = session(None);
    let text = seal(&sealers(7), &own, 1);
    assert_eq!(sealers(7).open(&own, text.as_bytes()), Some(TOKEN));
    assert_eq!(sealers(9).open(&own, text.as_bytes()), None, "a rule without a key");
}

#[test]
fn a_token_that_was_changed_or_cut_is_none_and_two_are_never_alike() {
    let (sealers, session) = (sealers(7), session(Some(1)));
    let text = seal(&sealers, &session, 1);
    for place in 0..text.len() {
        let mut other = text.clone().into_bytes();
        other[place] = if other[place] == b'A' { b'B' } else { b'A' };
        assert_eq!(sealers.open(&session, &other), None, "{place}");
        assert_eq!(sealers.open(&session, &text.as_bytes()[..place]), None, "{place}");
    }
    assert_eq!(sealers.open(&session, format!("{text}A").as_bytes()), None);
    assert_eq!(sealers.open(&session, &[0xFF; TEXT]), None);
    assert_ne!(seal(&sealers, &session, 2), text, "nobody can tell that two callers have the same endpoint");
}

#[test]
fn keys_are_held_up_to_a_bound() {
    let sealers = sealers(7);
    for key in 0..=255 {
        assert!(sealers.of(&session(Some(key))).is_some());
    }
    assert_eq!(sealers.ready.borrow().len(), KEYS);
    assert!(sealers.of(&session(None)).is_some());
    assert!(sealers.ready.borrow().len() <= KEYS);
}
