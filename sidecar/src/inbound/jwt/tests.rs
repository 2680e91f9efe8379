//! Tokens of every kind that somebody has tried: which are accepted, and why the others are not.

pub mod maker;
mod requests;

use std::{rc::Rc, sync::Arc, time::Duration};

use weft_policy::model::{Issuer, Key, KeyMaterial, SignatureAlgorithm as Alg};

use self::maker::{NOW, Signer, claims, encode, issuer, keys, sign, token, with};
use super::{
    Flaw, MAX_TOKEN,
    key::VerifyingKey,
    token::{KnownIssuer, verify},
};

fn known(config: Issuer) -> KnownIssuer {
    let (keys, refused) = VerifyingKey::all(&config.keys, &config.algorithms);
    assert_eq!(refused, 0);
    KnownIssuer { config, keys, places: 1 }
}

/// `ok`, or the word of the flaw.
fn word(issuers: &[KnownIssuer], token: &str) -> &'static str {
    verify(token.as_bytes(), 1, issuers, NOW).map_or_else(Flaw::as_str, |_| "ok")
}

#[test]
fn every_algorithm_is_verified_with_its_own_key() {
    let issuers = [known(issuer())];
    for (alg, signer) in Signer::ALL {
        let header = format!(r#"{{"alg":"{}","kid":"{}"}}"#, alg.as_str(), signer.id());
        assert_eq!(word(&issuers, &sign(&header, &claims(""), alg, signer)), "ok", "{alg:?}");
        let header = format!(r#"{{"alg":"{}"}}"#, alg.as_str());
        assert_eq!(word(&issuers, &sign(&header, &claims(""), alg, signer)), "ok", "{alg:?} without kid");
        for (other, _) in Signer::ALL.into_iter().filter(|(other, _)| *other != alg) {
            // What was signed in one way and says another.
            let header = format!(r#"{{"alg":"{}"}}"#, other.as_str());
            assert_eq!(word(&issuers, &sign(&header, &claims(""), alg, signer)), "signature", "{alg:?} as {other:?}");
        }
    }
}

/// What the header says, and what is found.
const HEADERS: &[(&str, &str)] = &[
    (r#"{"alg":"ES256","kid":"ec"}"#, "ok"),
    (r#"{"alg":"ES256","kid":"ec","typ":"JWT"}"#, "ok"),
    (r#"{"alg":"ES256","kid":"ec","typ":"at+jwt"}"#, "ok"),
    (r#"{"alg":"ES256","kid":"ec","typ":"application/AT+JWT"}"#, "ok"),
    (r#"{"alg":"ES256","kid":"ec","typ":"logout+jwt"}"#, "type"),
    (r#"{"alg":"ES256","kid":"ec","typ":"dpop+jwt"}"#, "type"),
    (r#"{"alg":"ES256","kid":"ec","typ":7}"#, "malformed"),
    (r#"{"alg":"ES256","kid":"ec","cty":"JWT"}"#, "type"),
    (r#"{"alg":"none"}"#, "algorithm"),
    (r#"{"alg":"None"}"#, "algorithm"),
    (r#"{"alg":"NONE"}"#, "algorithm"),
    (r#"{"alg":""}"#, "algorithm"),
    (r#"{"alg":null}"#, "malformed"),
    (r#"{"alg":["ES256"]}"#, "malformed"),
    (r#"{"alg":{"ES256":1}}"#, "malformed"),
    (r#"{"alg":256}"#, "malformed"),
    (r#"{}"#, "algorithm"),
    (r#"{"ALG":"ES256"}"#, "algorithm"),
    (r#"{"alg":"es256"}"#, "algorithm"),
    (r#"{"alg":"ES256 "}"#, "algorithm"),
    (r#"{"alg":"ES256\u0000"}"#, "algorithm"),
    (r#"{"alg":"ES256K"}"#, "algorithm"),
    (r#"{"alg":"ES512"}"#, "algorithm"),
    (r#"{"alg":"HS256","kid":"ec"}"#, "algorithm"),
    (r#"{"alg":"HS384","kid":"ec"}"#, "algorithm"),
    (r#"{"alg":"HS512","kid":"ec"}"#, "algorithm"),
    (r#"{"alg":"dir","enc":"A256GCM"}"#, "encrypted"),
    (r#"{"alg":"ES256","kid":"ec","enc":"A256GCM"}"#, "encrypted"),
    (r#"{"alg":"ES256","kid":"rsa"}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":"nobody"}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":"EC"}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":""}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":"../../dev/null"}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":"ec' OR '1'='1"}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":7}"#, "malformed"),
    (r#"{"alg":"ES256","kid":["ec"]}"#, "malformed"),
    (r#"{"alg":"ES384","kid":"ec"}"#, "unknown_key"),
    (r#"{"alg":"RS256","kid":"ec"}"#, "unknown_key"),
    (r#"{"alg":"EdDSA","kid":"ec"}"#, "unknown_key"),
    (r#"{"alg":"ES256","kid":"ec","crit":["exp"],"exp":1}"#, "critical"),
    (r#"{"alg":"ES256","kid":"ec","crit":[]}"#, "critical"),
    (r#"{"alg":"ES256","kid":"ec","crit":null}"#, "critical"),
    (r#"{"alg":"ES256","kid":"ec","b64":false}"#, "critical"),
    (r#"{"alg":"ES256","kid":"ec","zip":"DEF"}"#, "critical"),
    (r#"{"alg":"ES256","alg":"none","kid":"ec"}"#, "duplicate"),
    (r#"{"alg":"none","alg":"ES256","kid":"ec"}"#, "duplicate"),
    (r#"{"alg":"ES256","kid":"ec","\u0061lg":"none"}"#, "duplicate"),
    (r#"["ES256"]"#, "malformed"),
    (r#""ES256""#, "malformed"),
    ("null", "malformed"),
    (r#"{"alg":"ES256","kid":"ec"} "#, "ok"),
    (r#"{"alg":"ES256","kid":"ec"}x"#, "malformed"),
    (r#"{"alg":"ES256","kid":"ec""#, "malformed"),
    ("", "malformed"),
];

#[test]
fn what_the_header_says_cannot_choose_another_way_to_verify() {
    let issuers = [known(issuer())];
    for (header, expected) in HEADERS {
        let token = sign(header, &claims(""), Alg::Es256, Signer::Ec);
        assert_eq!(word(&issuers, &token), *expected, "{header}");
    }
    // A shared secret that everybody has: the public key.
    let signed = format!("{}.{}", encode(br#"{"alg":"HS256","kid":"rsa"}"#), encode(claims("").as_bytes()));
    for secret in keys().iter().map(|key| format!("{:?}", key.material)) {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
        assert_eq!(word(&issuers, &format!("{signed}.{}", encode(tag.as_ref()))), "algorithm");
    }
}

#[test]
fn keys_that_a_token_brings_are_not_looked_at() {
    let issuers = [known(issuer())];
    let brings = r#""jwk":{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},"jku":"https://evil.example/","x5u":"https://evil.example/","x5c":["AA"]"#;
    let header = format!(r#"{{"alg":"ES256","kid":"ec",{brings}}}"#);
    assert_eq!(word(&issuers, &sign(&header, &claims(""), Alg::Es256, Signer::Ec)), "ok", "they are ignored");
    assert_eq!(word(&issuers, &sign(&header, &claims(""), Alg::Es256, Signer::Stranger)), "signature");
    let header = format!(r#"{{"alg":"ES256",{brings}}}"#);
    assert_eq!(word(&issuers, &sign(&header, &claims(""), Alg::Es256, Signer::Stranger)), "signature");
}

/// What is beside or in place of the claims that every good token has, and what is found.
const CLAIMS: &[(&str, &str)] = &[
    (r#"{"iss":"https://id.example","exp":2000}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000.5}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2e3}"#, "ok"),
    (r#"{"iss":"https://id.example"}"#, "no_expiry"),
    (r#"{"iss":"https://id.example","exp":null}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":"2000"}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":[2000]}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":{"a":2000}}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":true}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":1e400}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":1e300}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":-1}"#, "expired"),
    (r#"{"iss":"https://id.example","exp":0}"#, "expired"),
    (r#"{"iss":"https://id.example","exp":939}"#, "expired"),
    (r#"{"iss":"https://id.example","exp":940}"#, "expired"),
    (r#"{"iss":"https://id.example","exp":941}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000,"exp":1}"#, "duplicate"),
    (r#"{"iss":"https://id.example","exp":1,"exp":2000}"#, "duplicate"),
    (r#"{"iss":"https://id.example","EXP":2000}"#, "no_expiry"),
    (r#"{"iss":"https://id.example","exp":2000,"nbf":1060}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000,"nbf":1061}"#, "not_yet_valid"),
    (r#"{"iss":"https://id.example","exp":2000,"nbf":"1"}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":2000,"iat":1060}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000,"iat":1061}"#, "not_yet_valid"),
    (r#"{"iss":"https://id.example","exp":2000,"iat":{}}"#, "malformed"),
    (r#"{"exp":2000}"#, "issuer"),
    (r#"{"iss":"","exp":2000}"#, "issuer"),
    (r#"{"iss":"https://id.example/","exp":2000}"#, "issuer"),
    (r#"{"iss":"https://ID.example","exp":2000}"#, "issuer"),
    (r#"{"iss":"https://id.example ","exp":2000}"#, "issuer"),
    (r#"{"iss":"https://id.exampl\u0435","exp":2000}"#, "issuer"),
    (r#"{"iss":"https://id.example\u0000","exp":2000}"#, "issuer"),
    (r#"{"iss":["https://id.example"],"exp":2000}"#, "malformed"),
    (r#"{"iss":{"a":"https://id.example"},"exp":2000}"#, "malformed"),
    (r#"{"iss":7,"exp":2000}"#, "malformed"),
    (r#"{"iss":"https://id.example","iss":"https://evil.example","exp":2000}"#, "duplicate"),
    (r#"{"\u0069ss":"https://id.example","exp":2000}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000,"a":{"b":1},"a.b":2}"#, "duplicate"),
    (r#"{"iss":"https://id.example","exp":2000,"a":{"b":1,"b":2}}"#, "duplicate"),
    (r#"{"iss":"https://id.example","exp":2000,"a":[{"b":1,"b":2}]}"#, "duplicate"),
    (r#"{"iss":"https://id.example","exp":2000,"n":12345678901234567890}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000,"n":123456789012345678901}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":2000,"name":"\ud83d\ude00 Jürgen 中"}"#, "ok"),
    (r#"{"iss":"https://id.example","exp":2000,"name":"\ud83d"}"#, "malformed"),
    (r#"[{"iss":"https://id.example","exp":2000}]"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":2000,}"#, "malformed"),
    (r#"{"iss":"https://id.example","exp":2000}{}"#, "malformed"),
    (r#"{'iss':'https://id.example','exp':2000}"#, "malformed"),
    ("", "malformed"),
];

#[test]
fn claims_have_the_types_of_the_standard_and_each_once() {
    let issuers = [known(Issuer { audiences: vec![], ..issuer() })];
    for (payload, expected) in CLAIMS {
        let token = sign(r#"{"alg":"ES256","kid":"ec"}"#, payload, Alg::Es256, Signer::Ec);
        assert_eq!(word(&issuers, &token), *expected, "{payload}");
    }
    let strict = [known(Issuer { audiences: vec![], clock_skew: Duration::ZERO, ..issuer() })];
    let at = |exp: u32| {
        sign(r#"{"alg":"ES256"}"#, &format!(r#"{{"iss":"https://id.example","exp":{exp}}}"#), Alg::Es256, Signer::Ec)
    };
    assert_eq!((word(&strict, &at(1000)), word(&strict, &at(1001))), ("expired", "ok"));
}

#[test]
fn one_of_the_audiences_must_be_there() {
    let issuers = [known(issuer())];
    for (audience, expected) in [
        (r#""shop""#, "ok"),
        (r#"["other","shop"]"#, "ok"),
        (r#"["other"]"#, "audience"),
        (r#""SHOP""#, "audience"),
        (r#""shop ""#, "audience"),
        (r#""shop,other""#, "audience"),
        ("[]", "audience"),
        ("null", "audience"),
        (r#"["shop",7]"#, "malformed"),
        (r#"{"shop":"shop"}"#, "malformed"),
        ("7", "malformed"),
    ] {
        let payload = format!(r#"{{"iss":"https://id.example","exp":2000,"aud":{audience}}}"#);
        let token = sign(r#"{"alg":"ES256"}"#, &payload, Alg::Es256, Signer::Ec);
        assert_eq!(word(&issuers, &token), expected, "{audience}");
    }
    let none = sign(r#"{"alg":"ES256"}"#, r#"{"iss":"https://id.example","exp":2000}"#, Alg::Es256, Signer::Ec);
    assert_eq!(word(&issuers, &none), "audience");
}

#[test]
fn no_change_of_a_token_leaves_it_valid() {
    let issuers = [known(issuer())];
    for (alg, signer) in [(Alg::Es256, Signer::Ec), (Alg::Rs256, Signer::Rsa), (Alg::EdDsa, Signer::Ed)] {
        let header = format!(r#"{{"alg":"{}"}}"#, alg.as_str());
        let token = sign(&header, &claims(""), alg, signer);
        assert_eq!(word(&issuers, &token), "ok");
        for length in 0..token.len() {
            assert_ne!(word(&issuers, &token[..length]), "ok", "the first {length} bytes");
        }
        for (index, byte) in token.bytes().enumerate() {
            for bit in 0..8 {
                let mut bytes = token.clone().into_bytes();
                bytes[index] = byte ^ (1 << bit);
                assert!(verify(&bytes, 1, &issuers, NOW).is_err(), "bit {bit} of byte {index}");
            }
        }
        for more in ["=", "A", ".", " ", "\n", ".e30", "\0"] {
            assert_ne!(word(&issuers, &format!("{token}{more}")), "ok", "{more:?} behind it");
            assert_ne!(word(&issuers, &format!("{more}{token}")), "ok", "{more:?} before it");
        }
    }
}

#[test]
fn what_is_not_three_parts_of_base64url_is_no_token() {
    let issuers = [known(issuer())];
    let good = token("");
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    for (text, expected) in [
        (String::new(), "malformed"),
        (".".into(), "malformed"),
        ("..".into(), "malformed"),
        ("...".into(), "malformed"),
        ("....".into(), "encrypted"),
        (format!("{header}.{payload}"), "malformed"),
        (format!("{header}.{payload}."), "malformed"),
        (format!("{header}..{signature}"), "malformed"),
        (format!(".{payload}.{signature}"), "malformed"),
        (format!("{header}.{payload}.{signature}.{signature}"), "malformed"),
        (format!("{header}.{payload}.{signature}.{signature}.{signature}"), "encrypted"),
        (format!("{header}.{payload}.{}", encode(&[0; 64])), "signature"),
        (format!("{header}.{payload}.{}", encode(&[0; 63])), "signature"),
        (format!("{header}.{payload}.{}", encode(&[0xff; 64])), "signature"),
        (format!("{header}.{}.{signature}", encode(claims(r#","admin":true"#).as_bytes())), "signature"),
        (format!("{header}.{payload}.{signature}é"), "malformed"),
        ("a".repeat(MAX_TOKEN + 1), "too_large"),
        ("a".repeat(MAX_TOKEN), "malformed"),
        (token(&format!(r#","pad":"{}""#, "x".repeat(MAX_TOKEN))), "too_large"),
    ] {
        assert_eq!(word(&issuers, &text), expected, "{text}");
    }
    assert_eq!(verify(&[0xff, b'.', 0xfe, b'.', 0xfd], 1, &issuers, NOW).err(), Some(Flaw::Malformed));
    let long = token(&format!(r#","pad":"{}""#, "x".repeat(5000)));
    assert!(long.len() < MAX_TOKEN);
    assert_eq!(word(&issuers, &long), "ok", "a long one is one too");
}

#[test]
fn deep_and_wide_claims_are_refused_and_not_cut() {
    let issuers = [known(issuer())];
    let deep = |depth: usize| format!(r#","a":{}1{}"#, r#"{"b":"#.repeat(depth), "}".repeat(depth));
    assert_eq!((word(&issuers, &token(&deep(15))), word(&issuers, &token(&deep(17)))), ("ok", "malformed"));
    let listed = |depth: usize| format!(r#","a":{}1{}"#, "[".repeat(depth), "]".repeat(depth));
    assert_eq!((word(&issuers, &token(&listed(15))), word(&issuers, &token(&listed(17)))), ("ok", "malformed"));
    assert_eq!(word(&issuers, &token(&listed(2000))), "malformed");
    let wide = |count: usize| format!(r#","a":[{}]"#, vec!["1"; count].join(","));
    assert_eq!((word(&issuers, &token(&wide(400))), word(&issuers, &token(&wide(600)))), ("ok", "too_many_claims"));
}

#[test]
fn an_issuer_is_bound_to_its_own_keys_algorithms_and_places() {
    let other = Issuer { issuer: "https://other.example".into(), keys: vec![keys().remove(0)], ..issuer() };
    let issuers = [known(issuer()), known(other.clone())];
    let payload = r#"{"iss":"https://other.example","exp":2000,"aud":"shop"}"#;
    let by = |alg, signer| sign(&format!(r#"{{"alg":"{}"}}"#, Alg::as_str(alg)), payload, alg, signer);
    assert_eq!(
        word(&issuers, &by(Alg::Es256, Signer::Ec)),
        "unknown_key",
        "the key of the first is not that of the second"
    );
    assert_eq!(word(&issuers, &by(Alg::Rs256, Signer::Rsa)), "ok");
    let narrow = [known(Issuer { algorithms: vec![Alg::Ps256], ..other.clone() })];
    assert_eq!(word(&narrow, &by(Alg::Rs256, Signer::Rsa)), "algorithm");
    assert_eq!(word(&narrow, &by(Alg::Ps256, Signer::Rsa)), "ok");
    let mut only = other.clone();
    only.keys[0].algorithm = Some(Alg::Ps512);
    let only = [known(only)];
    assert_eq!(word(&only, &by(Alg::Rs256, Signer::Rsa)), "unknown_key", "the key is for PS512");
    assert_eq!(word(&only, &by(Alg::Ps512, Signer::Rsa)), "ok");
    let none = [known(Issuer { keys: vec![], ..other })];
    assert_eq!(word(&none, &by(Alg::Rs256, Signer::Rsa)), "keys_missing");
    assert_eq!(verify(token("").as_bytes(), 2, &issuers, NOW).err(), Some(Flaw::Place));
}

#[test]
fn numbers_that_are_no_key_verify_nothing() {
    let mut point = vec![7; 65];
    point[0] = 4;
    let material = KeyMaterial::P256(point.into());
    let off = Key { id: None, algorithm: None, material };
    let (found, refused) = VerifyingKey::all(&[off], &Alg::ALL);
    assert_eq!((found.len(), refused), (0, 1));
}

#[test]
fn claims_are_flat_and_headers_hold_what_they_can() {
    let mut config = issuer();
    for (claim, header) in [
        ("sub", "x-sub"),
        ("roles", "x-roles"),
        ("one", "x-one"),
        ("odd", "x-odd"),
        ("n", "x-n"),
        ("realm.id", "x-realm"),
        ("evil", "x-evil"),
        ("missing", "x-missing"),
    ] {
        config.claims_to_headers.push((claim.into(), http::HeaderName::from_static(header)));
    }
    let more = r#","sub":"ann","roles":["a","b"],"one":["a"],"odd":["a,b","c"],"n":7,"ok":true,"realm":{"id":"r1"},"evil":"a\r\nx-admin: 1""#;
    let found = verify(token(more).as_bytes(), 1, &[known(config)], NOW).map_err(Flaw::as_str);
    let found = Rc::new(found.unwrap_or_else(|word| panic!("{word}")));
    assert_eq!(found.claims.get("roles").collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(found.claims.get("realm.id").collect::<Vec<_>>(), ["r1"]);
    assert_eq!(found.claims.get("ok").collect::<Vec<_>>(), ["true"]);
    let headers: Vec<_> = found.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let expected: [(&str, &[u8]); 5] =
        [("x-sub", b"ann"), ("x-roles", b"a,b"), ("x-one", b"a"), ("x-n", b"7"), ("x-realm", b"r1")];
    assert_eq!(headers, expected, "neither one value that reads as two nor one that ends its line");
}

#[test]
fn a_token_that_comes_again_is_not_verified_again_and_ends_in_time() {
    let authenticator = with(issuer(), true);
    let good = token("");
    let held = |now| authenticator.verify(&maker::bearer(&good), now).ok().flatten().map(|(token, _)| token);
    let first = held(NOW).expect("valid");
    assert!(Rc::ptr_eq(&first, &held(NOW).expect("valid")), "the same one");
    assert!(held(Duration::from_secs(2059)).is_some());
    assert!(held(Duration::from_secs(2060)).is_none(), "exp and the skew are over");
    for number in 0..2 * super::cache::MAX_ENTRIES {
        let other = token(&format!(r#","n":{number}"#));
        assert!(authenticator.verify(&maker::bearer(&other), NOW).is_ok());
    }
    assert_eq!(authenticator.cache.borrow().len(), super::cache::MAX_ENTRIES);
    let bad = format!("{good}A");
    assert!(authenticator.verify(&maker::bearer(&bad), NOW).is_err());
    assert!(authenticator.verify(&maker::bearer(&bad), NOW).is_err(), "what is refused is not kept");
}

#[test]
fn what_says_the_same_keeps_its_tokens_and_what_differs_does_not() {
    let all = super::Authenticators::default();
    let of = |config: Issuer| {
        let port = maker::port(config, true);
        super::Authenticators::of(&all, &port, &port.services, &crate::telemetry::Telemetry::default())
    };
    let (first, again) = (of(issuer()), of(issuer()));
    assert!(Rc::ptr_eq(&first[0], &again[0]));
    let changed = of(Issuer { keys: vec![], ..issuer() });
    assert!(!Rc::ptr_eq(&first[0], &changed[0]), "another set of keys is another");
    let port = maker::port(issuer(), true);
    let elsewhere = all.of(&port, &[], &crate::telemetry::Telemetry::default());
    assert_eq!(elsewhere.len(), 0, "it is for another service");
    drop((first, again, changed, elsewhere));
    let _ = of(issuer());
    assert!(all.0.borrow().len() <= 2, "what nobody uses is forgotten");
    let _ = Arc::new(());
}
