//! What requests carry: where the token is, what the app sees of it, and what a refused caller is told.

use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue};
use weft_policy::{claims::Claims, model::Issuer};

use super::maker::{NOW, issuer, token, with};
use crate::{
    error::Reason,
    inbound::jwt::{Authenticator, Refusal, Reserved, check},
};

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let one = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).expect("a name"), HeaderValue::from_str(value).expect("a value"))
    };
    let mut map = HeaderMap::new();
    fields.iter().map(one).for_each(|(name, value)| _ = map.append(name, value));
    map
}

fn reserved(authenticator: &Authenticator) -> Reserved {
    Reserved::new(authenticator.config.issuers.iter())
}

fn run(
    authenticator: &Rc<Authenticator>,
    fields: &[(&str, &str)],
) -> (Result<Option<Rc<Claims>>, Refusal>, Vec<String>) {
    let mut headers = headers(fields);
    let found = check(std::slice::from_ref(authenticator), &reserved(authenticator), &mut headers, NOW);
    let text =
        |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    let mut left: Vec<_> = headers.iter().map(text).collect();
    left.sort();
    (found, left)
}

fn told(refusal: &Refusal) -> (Reason, &str) {
    (refusal.error.reason, refusal.challenge.to_str().expect("ASCII"))
}

const NEEDED: &str = "Bearer realm=\"weft\"";
const INVALID: &str = "Bearer realm=\"weft\", error=\"invalid_token\", error_description=\"the token is not valid\"";

#[test]
fn a_request_without_a_token_passes_unless_one_is_required() {
    for fields in [&[][..], &[("authorization", "Basic YTpi")], &[("x-token", "a")], &[("authorization", "Bearerx a")]]
    {
        let (found, left) = run(&with(issuer(), false), fields);
        assert!(matches!(found, Ok(None)), "{fields:?}");
        assert_eq!(left.len(), fields.len(), "what is not ours stays: {fields:?}");
        let refusal = run(&with(issuer(), true), fields).0.expect_err("required");
        assert_eq!(told(&refusal), (Reason::TokenMissing, NEEDED), "{fields:?}");
    }
}

#[test]
fn a_token_that_is_there_must_be_valid_also_where_none_is_required() {
    let (good, expired) = (format!("Bearer {}", token("")), format!("Bearer {}", token("").replace('.', "..")));
    for value in
        ["Bearer", "Bearer ", "bearer x", "BEARER a.b.c", &expired, &format!("{good}, {good}"), &format!("{good} x")]
    {
        let refusal = run(&with(issuer(), false), &[("authorization", value)]).0.expect_err("not valid");
        assert_eq!(told(&refusal), (Reason::TokenInvalid, INVALID), "{value}");
        let text = refusal.error.to_string();
        assert_eq!(text, "token_invalid: the token is not valid", "callers learn no more");
    }
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let (found, left) = run(&with(issuer(), true), &[("authorization", &good.replace("Bearer", scheme))]);
        assert!(matches!(found, Ok(Some(_))), "{scheme}");
        assert_eq!(left, [""; 0], "the token does not go on");
    }
}

#[test]
fn two_tokens_and_two_fields_for_one_are_refused() {
    let good = format!("Bearer {}", token(""));
    let places = ["authorization", "x-token"].map(HeaderName::from_static).to_vec();
    let both = with(Issuer { from_headers: places, ..issuer() }, false);
    for fields in [
        [("authorization", good.as_str()), ("authorization", good.as_str())],
        [("authorization", good.as_str()), ("authorization", "Basic YTpi")],
        [("authorization", good.as_str()), ("x-token", good.as_str())],
        [("x-token", good.as_str()), ("x-token", "")],
    ] {
        assert!(run(&both, &fields).0.is_err(), "{fields:?}");
    }
    let (found, _) = run(&both, &[("authorization", "Basic YTpi"), ("x-token", &token(""))]);
    assert!(matches!(found, Ok(Some(_))), "other credentials beside it are not a token");
    let (found, _) = run(&with(issuer(), false), &[("x-token", "a.b.c")]);
    assert!(matches!(found, Ok(None)), "a field in which no token comes");
}

#[test]
fn the_app_sees_claims_from_the_token_alone_and_the_token_where_it_is_to() {
    let claims_to_headers = vec![("sub".into(), HeaderName::from_static("x-user-id"))];
    let told = Issuer { claims_to_headers, ..issuer() };
    let good = format!("Bearer {}", token(r#","sub":"ann""#));
    let spoofed =
        [("x-user-id", "root"), ("x_user_id", "root"), ("x.user~id", "root"), ("X-USER-ID", "a"), ("x_other", "kept")];
    for required in [false, true] {
        let fields = [&[("authorization", good.as_str())], &spoofed[..]].concat();
        let (found, left) = run(&with(told.clone(), required), &fields);
        assert_eq!(found.expect("valid").expect("claims").get("sub").collect::<Vec<_>>(), ["ann"]);
        assert_eq!(left, ["x-user-id: ann", "x_other: kept"]);
    }
    let (found, left) = run(&with(told.clone(), false), &spoofed);
    assert!(matches!(found, Ok(None)));
    assert_eq!(left, ["x_other: kept"], "also without a token");
    let nameless = format!("Bearer {}", token(""));
    let (_, left) = run(&with(told.clone(), false), &[("authorization", &nameless), ("x-user-id", "root")]);
    assert_eq!(left, [""; 0], "also without the claim");
    let (_, left) = run(&with(Issuer { forward: true, ..told }, false), &[("authorization", &good)]);
    assert_eq!(left, [format!("authorization: {good}"), "x-user-id: ann".to_owned()]);
}

#[test]
fn all_that_apply_must_be_satisfied() {
    let other = with(Issuer { issuer: "https://other.example".into(), ..issuer() }, false);
    let both = [with(issuer(), true), other];
    let good = format!("Bearer {}", token(""));
    assert!(
        check(&both, &reserved(&both[0]), &mut headers(&[("authorization", &good)]), NOW).is_err(),
        "the second does not know the issuer"
    );
    assert!(check(&both, &reserved(&both[0]), &mut headers(&[]), NOW).is_err(), "the first requires a token");
    let same = [with(issuer(), true), with(issuer(), false)];
    let mut fields = headers(&[("authorization", &good)]);
    assert!(matches!(check(&same, &reserved(&same[0]), &mut fields, NOW), Ok(Some(_))));
    assert!(fields.is_empty());
}
