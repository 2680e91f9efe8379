//! What is refused of an authentication, with the path of the field.

use super::*;

fn rsa(bits: usize) -> v1::JwtKey {
    let modulus = vec![0xff; bits / 8].into();
    let rsa = v1::JwtRsaKey { modulus, exponent: vec![1, 0, 1].into() };
    v1::JwtKey { id: "a".into(), key: Some(v1::jwt_key::Key::Rsa(rsa)), ..Default::default() }
}

fn ec(curve: v1::JwtCurve, length: usize) -> v1::JwtKey {
    let coordinate = || vec![7; length].into();
    let ec = v1::JwtEcKey { curve: curve.into(), x: coordinate(), y: coordinate() };
    v1::JwtKey { key: Some(v1::jwt_key::Key::Ec(ec)), ..Default::default() }
}

fn wire() -> v1::RequestAuthentication {
    let issuer = v1::JwtIssuer {
        issuer: "https://id.example".into(),
        audiences: vec!["shop".into()],
        keys: vec![rsa(2048), ec(v1::JwtCurve::P256, 32), ec(v1::JwtCurve::P384, 48)],
        algorithms: vec![v1::JwtAlgorithm::Rs256.into()],
        claims_to_headers: vec![v1::ClaimHeader { claim: "sub".into(), header: "x-user".into() }],
        ..Default::default()
    };
    v1::RequestAuthentication { name: "shop/users".into(), issuers: vec![issuer], required: true }
}

fn broken(change: impl FnOnce(&mut v1::JwtIssuer)) -> String {
    let mut wire = wire();
    change(&mut wire.issuers[0]);
    request_authentication(wire).expect_err("the change breaks it").to_string()
}

#[test]
fn what_is_valid_is_converted_whole() {
    let found = request_authentication(wire()).expect("valid");
    let issuer = &found.issuers[0];
    assert_eq!((&*issuer.issuer, found.required, issuer.clock_skew), ("https://id.example", true, DEFAULT_SKEW));
    assert_eq!(issuer.from_headers, [AUTHORIZATION]);
    assert!(matches!(&issuer.keys[1].material, KeyMaterial::P256(point) if point.len() == 65 && point[0] == 4));
    assert!(matches!(&issuer.keys[2].material, KeyMaterial::P384(point) if point.len() == 97 && point[0] == 4));
    let mut none = wire();
    none.issuers[0].clock_skew = Some(prost_types::Duration::default());
    let found = request_authentication(none).expect("valid");
    assert_eq!(found.issuers[0].clock_skew, Duration::ZERO, "zero is not the default");
}

#[test]
fn an_issuer_says_which_field_is_wrong() {
    let expected = "issuers[0].keys[0].rsa.modulus: \"2040 bits\": must have 2048 to 8192 bits";
    assert_eq!(broken(|i| i.keys[0] = rsa(2040)), expected);
    assert!(broken(|i| i.keys[0] = rsa(8200)).contains("8200 bits"));
    let exponent = |bytes: &'static [u8]| {
        broken(|i| {
            let Some(v1::jwt_key::Key::Rsa(rsa)) = &mut i.keys[0].key else { panic!("RSA") };
            rsa.exponent = bytes.into();
        })
    };
    for bytes in [&[][..], &[1], &[2], &[0, 3], &[1, 0, 0], &[255, 1, 1, 1, 1, 1]] {
        assert!(exponent(bytes).contains("rsa.exponent"), "{bytes:?}");
    }
    assert!(broken(|i| i.keys[1] = ec(v1::JwtCurve::P256, 31)).contains("keys[1].ec.x: \"31 bytes\""));
    assert!(broken(|i| i.keys[1] = ec(v1::JwtCurve::Unspecified, 32)).contains("keys[1].ec.curve"));
    assert!(broken(|i| i.keys[1].key = None).contains("keys[1].key"));
    assert!(broken(|i| i.keys[1].key = Some(v1::jwt_key::Key::Ed25519(vec![1; 31].into()))).contains("32 bytes"));
    assert!(broken(|i| i.keys[0].algorithm = v1::JwtAlgorithm::Es256.into()).contains("does not fit"));
    assert!(broken(|i| i.keys[0].algorithm = 99).contains("keys[0].algorithm"));
    assert!(broken(|i| i.keys[0].id = "k".repeat(257)).contains("keys[0].id"));
    assert!(broken(|i| i.keys = vec![rsa(2048); 33]).contains("keys: \"33\": must be at most 32"));
    assert!(broken(|i| i.algorithms.clear()).contains("algorithms"));
    assert!(broken(|i| i.algorithms = vec![0]).contains("algorithms[0]"));
    assert!(broken(|i| i.issuer.clear()).contains("issuers[0].issuer"));
    assert!(broken(|i| i.audiences = vec![String::new()]).contains("audiences[0]"));
    assert!(broken(|i| i.clock_skew = Some(prost_types::Duration { seconds: 301, nanos: 0 })).contains("clock_skew"));
    assert!(broken(|i| i.clock_skew = Some(prost_types::Duration { seconds: -1, nanos: 0 })).contains("clock_skew"));
}

#[test]
fn headers_that_frame_a_message_hold_neither_tokens_nor_claims() {
    for header in ["host", "content-length", "transfer-encoding", "connection", "x-forwarded-client-cert", "cookie"] {
        assert!(broken(|i| i.from_headers = vec![header.into()]).contains("from_headers[0]"), "{header}");
        assert!(broken(|i| i.claims_to_headers[0].header = header.into()).contains(".header"), "{header}");
    }
    assert!(broken(|i| i.claims_to_headers[0].header = "authorization".into()).contains(".header"));
    assert!(broken(|i| i.claims_to_headers[0].header = "X-User".into()).contains("lower-case"));
    assert!(broken(|i| i.from_headers = vec!["x-a".into(), "x-a".into()]).contains("from_headers[1]"));
    assert!(broken(|i| i.claims_to_headers.push(i.claims_to_headers[0].clone())).contains("claims_to_headers[1]"));
    let mut bearer = wire();
    bearer.issuers[0].from_headers = vec!["authorization".into(), "x-token".into()];
    assert!(request_authentication(bearer).is_ok());
}

#[test]
fn an_issuer_is_given_once_and_there_is_one() {
    let mut twice = wire();
    twice.issuers.push(twice.issuers[0].clone());
    let error = request_authentication(twice).expect_err("twice").to_string();
    assert_eq!(error, "issuers[1].issuer: \"https://id.example\": must be unique");
    let none = v1::RequestAuthentication { issuers: vec![], ..wire() };
    assert!(request_authentication(none).is_err());
    assert!(inbound_authentication(v1::InboundAuthentication::default()).is_err(), "what is missing is not nothing");
}
