//! Key sets as issuers publish them, and what is never taken.

use super::*;

/// The keys of RFC 7517 appendix A.1 and RFC 8037 appendix A.2.
const EC: &str = r#""kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM""#;
const RSA: &str = r#""kty":"RSA","e":"AQAB","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw""#;
const ED: &str = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;

fn set(keys: &[&str]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("{{{key}}}")).collect();
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}

fn refused(keys: &[&str]) -> String {
    parse(&set(keys)).expect_err("refused")
}

#[test]
fn keys_of_every_type_are_taken_with_their_names() {
    let text = set(&[&format!("{EC},\"kid\":\"a\",\"use\":\"sig\""), &format!("{RSA},\"alg\":\"RS256\""), ED]);
    let parsed = parse(&text).unwrap();
    assert_eq!((parsed.keys.len(), parsed.broken.len()), (3, 0));
    assert_eq!((parsed.keys[0].id.as_str(), parsed.keys[1].algorithm()), ("a", v1::JwtAlgorithm::Rs256));
}

#[test]
fn a_set_with_a_secret_is_refused_as_a_whole_and_the_secret_is_not_repeated() {
    for secret in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
        let why = refused(&[ED, &format!("{EC},\"{secret}\":\"hunter2\"")]);
        assert!(why.contains(&format!("key 1 has the member \"{secret}\"")) && !why.contains("hunter2"), "{why}");
    }
    assert!(refused(&[ED, r#""kty":"oct""#]).contains("oct"));
    for hmac in ["HS256", "HS384", "HS512"] {
        assert!(refused(&[ED, &format!("{EC},\"alg\":\"{hmac}\"")]).contains("HMAC"));
    }
    assert!(!parse(r#"{"keys":[{"kty":"EC","d":"hunter2"}"#).unwrap_err().contains("hunter2"));
}

#[test]
fn what_is_for_something_else_is_left_out_and_what_is_broken_is_told() {
    let others = [
        format!("{EC},\"use\":\"enc\""),
        format!("{EC},\"key_ops\":[\"encrypt\"]"),
        r#""kty":"EC","crv":"secp256k1","x":"AA","y":"AA""#.to_owned(),
        r#""kty":"OKP","crv":"X25519","x":"AA""#.to_owned(),
        r#""kty":"AKP","alg":"ML-DSA-44","pub":"AA""#.to_owned(),
        format!("{EC},\"alg\":\"ECDH-ES\""),
    ];
    for other in &others {
        let parsed = parse(&set(&[other, ED])).unwrap();
        assert_eq!((parsed.keys.len(), parsed.broken.len()), (1, 0), "{other}");
        assert!(refused(&[other]).contains("no key that can be used: key 0 is "), "{other}");
    }
    let off = EC.replace("4Etl", "5Etl");
    let short = RSA.replace("0vx7", "");
    for (broken, expected) in [
        (off.as_str(), "no key of its type"),
        (&format!("{EC},\"alg\":\"ES384\""), "does not fit"),
        (&short, "2048 to 8192 bits"),
        (&EC.replace("MKBC", "MKB="), "no \"x\" in base64url"),
        (&EC.replace("MKBC", ""), "must have 32 bytes"),
        (r#""kid":"a""#, "no \"kty\""),
    ] {
        let parsed = parse(&set(&[ED, broken])).unwrap();
        let [(1, why)] = parsed.broken.as_slice() else { panic!("{broken}: {:?}", parsed.broken) };
        assert!(why.contains(expected), "{broken}: {why}");
    }
}

#[test]
fn what_is_no_set_or_too_large_is_refused() {
    for text in ["", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[7]}"#, r#"{"keys":[]}"#, "<html>"] {
        assert!(parse(text).is_err(), "{text}");
    }
    assert!(parse(&set(&[ED; MAX_KEYS])).is_ok());
    assert!(refused(&[ED; MAX_KEYS + 1]).contains("33 keys"));
    assert!(parse(&format!("{}{}", set(&[ED]), " ".repeat(MAX_BYTES))).unwrap_err().contains("more than"));
}
