//! Keys and tokens of the tests.

use std::{
    rc::Rc,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
        RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use weft_policy::model::{
    Access, InboundAuthentication, InboundPort, Issuer, Key, KeyMaterial, Protocol, RequestAuthentication,
    SignatureAlgorithm as Alg, TlsMode,
};

use crate::{inbound::jwt::Authenticator, outbound::tests::net::target, telemetry::Telemetry};

/// When it is, since the Unix epoch.
pub const NOW: Duration = Duration::from_secs(1000);

/// Who signs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signer {
    Rsa,
    Ec,
    Ec384,
    Ed,
    /// A key that nobody knows.
    Stranger,
}

struct Pairs {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ec384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    stranger: EcdsaKeyPair,
}

fn pairs() -> &'static Pairs {
    static PAIRS: OnceLock<Pairs> = OnceLock::new();
    PAIRS.get_or_init(|| Pairs {
        rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
        ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
        ec384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"),
        ed: Ed25519KeyPair::generate().expect("a key"),
        stranger: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
    })
}

impl Signer {
    pub const ALL: [(Alg, Self); 9] = [
        (Alg::Rs256, Self::Rsa),
        (Alg::Rs384, Self::Rsa),
        (Alg::Rs512, Self::Rsa),
        (Alg::Ps256, Self::Rsa),
        (Alg::Ps384, Self::Rsa),
        (Alg::Ps512, Self::Rsa),
        (Alg::Es256, Self::Ec),
        (Alg::Es384, Self::Ec384),
        (Alg::EdDsa, Self::Ed),
    ];

    pub const fn id(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ec => "ec",
            Self::Ec384 => "ec384",
            Self::Ed => "ed",
            Self::Stranger => "stranger",
        }
    }

    fn sign(self, alg: Alg, message: &[u8]) -> Vec<u8> {
        let (pairs, random) = (pairs(), SystemRandom::new());
        let ecdsa = |pair: &EcdsaKeyPair| pair.sign(&random, message).expect("signs").as_ref().to_vec();
        match self {
            Self::Ec => ecdsa(&pairs.ec),
            Self::Ec384 => ecdsa(&pairs.ec384),
            Self::Stranger => ecdsa(&pairs.stranger),
            Self::Ed => pairs.ed.sign(message).as_ref().to_vec(),
            Self::Rsa => {
                let padding: &'static dyn aws_lc_rs::signature::RsaEncoding = match alg {
                    Alg::Rs384 => &RSA_PKCS1_SHA384,
                    Alg::Rs512 => &RSA_PKCS1_SHA512,
                    Alg::Ps256 => &RSA_PSS_SHA256,
                    Alg::Ps384 => &RSA_PSS_SHA384,
                    Alg::Ps512 => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pairs.rsa.public_modulus_len()];
                pairs.rsa.sign(padding, &random, message, &mut signature).expect("signs");
                signature
            }
        }
    }
}

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token of these parts, signed by the key of `signer` in the way of `alg`, whatever the header says.
pub fn sign(header: &str, payload: &str, alg: Alg, signer: Signer) -> String {
    let signed = format!("{}.{}", encode(header.as_bytes()), encode(payload.as_bytes()));
    format!("{signed}.{}", encode(&signer.sign(alg, signed.as_bytes())))
}

/// The claims of a good token and, with a comma before them, more.
pub fn claims(more: &str) -> String {
    format!(r#"{{"iss":"https://id.example","aud":"shop","exp":2000{more}}}"#)
}

/// A good token with more claims.
pub fn token(more: &str) -> String {
    sign(r#"{"alg":"ES256","kid":"ec"}"#, &claims(more), Alg::Es256, Signer::Ec)
}

/// The public keys: RSA first.
pub fn keys() -> Vec<Key> {
    let pairs = pairs();
    let key = |signer: Signer, material| Key { id: Some(signer.id().into()), algorithm: None, material };
    let point = |pair: &EcdsaKeyPair| pair.public_key().as_ref().into();
    vec![
        key(Signer::Rsa, rsa(pairs.rsa.public_key().as_ref())),
        key(Signer::Ec, KeyMaterial::P256(point(&pairs.ec))),
        key(Signer::Ec384, KeyMaterial::P384(point(&pairs.ec384))),
        key(Signer::Ed, KeyMaterial::Ed25519(pairs.ed.public_key().as_ref().try_into().expect("32 bytes"))),
    ]
}

/// Takes `SEQUENCE { INTEGER n, INTEGER e }` apart (RFC 8017 appendix A.1.1).
fn rsa(der: &[u8]) -> KeyMaterial {
    fn take(der: &[u8]) -> (&[u8], &[u8]) {
        let (length, head) = match der[1] {
            0x82 => (usize::from(der[2]) << 8 | usize::from(der[3]), 4),
            0x81 => (usize::from(der[2]), 3),
            short => (usize::from(short), 2),
        };
        (&der[head..head + length], &der[head + length..])
    }
    let positive = |number: &[u8]| number.strip_prefix(&[0]).unwrap_or(number).into();
    let (modulus, rest) = take(take(der).0);
    KeyMaterial::Rsa { modulus: positive(modulus), exponent: positive(take(rest).0) }
}

/// An issuer with all keys and algorithms, for the audience `shop`.
pub fn issuer() -> Issuer {
    Issuer {
        issuer: "https://id.example".into(),
        audiences: vec!["shop".into()],
        keys: keys(),
        algorithms: Alg::ALL.to_vec(),
        clock_skew: Duration::from_secs(60),
        from_headers: vec![header::AUTHORIZATION],
        forward: false,
        claims_to_headers: vec![],
    }
}

pub fn policy(issuer: Issuer, required: bool) -> InboundAuthentication {
    let authentication = RequestAuthentication { name: "shop/users".into(), issuers: vec![issuer], required };
    InboundAuthentication { authentication: Arc::new(authentication), services: vec![target("web")] }
}

pub fn port(issuer: Issuer, required: bool) -> InboundPort {
    InboundPort {
        port: 8080,
        protocol: Protocol::Http,
        services: vec![target("web")],
        rate_limits: vec![],
        access: Access::without_policies(TlsMode::Permissive),
        request_authentications: vec![policy(issuer, required)],
    }
}

pub fn with(issuer: Issuer, required: bool) -> Rc<Authenticator> {
    Rc::new(Authenticator::new(&policy(issuer, required).authentication, &Telemetry::default()))
}

pub fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("ASCII");
    HeaderMap::from_iter([(header::AUTHORIZATION, value)])
}
