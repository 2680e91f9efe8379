//! Public keys, parsed once, each for one algorithm: `alg` of a token can only ever select among what the configuration
//! paired, so that no key is used in another way than its own.
//!
//! Signatures are verified with aws-lc-rs itself, which TLS uses already, and not with a library for tokens: those parse
//! the key for each token, take `crit`, duplicate members and all types of token, and would be one more to follow.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
};
use weft_policy::model::{Key, KeyMaterial, SignatureAlgorithm};

/// A key for one algorithm.
pub struct VerifyingKey {
    id: Option<Box<str>>,
    algorithm: SignatureAlgorithm,
    key: ParsedPublicKey,
}

impl VerifyingKey {
    /// The key for each of these algorithms that it fits, and how often the numbers are no such key.
    pub fn all(keys: &[Key], algorithms: &[SignatureAlgorithm]) -> (Vec<Self>, usize) {
        let (mut found, mut refused) = (Vec::new(), 0);
        for key in keys {
            let wanted = |algorithm: &&SignatureAlgorithm| {
                algorithm.fits(&key.material) && key.algorithm.is_none_or(|only| only == **algorithm)
            };
            for &algorithm in algorithms.iter().filter(wanted) {
                match parse(&key.material, algorithm) {
                    Some(parsed) => found.push(Self { id: key.id.clone(), algorithm, key: parsed }),
                    None => refused += 1,
                }
            }
        }
        (found, refused)
    }

    /// Whether a token with this `alg` and `kid` may be of this key.
    pub fn is_for(&self, algorithm: SignatureAlgorithm, id: Option<&str>) -> bool {
        self.algorithm == algorithm && id.is_none_or(|id| self.id.as_deref() == Some(id))
    }

    /// Whether the key has made this signature.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }
}

fn parse(material: &KeyMaterial, algorithm: SignatureAlgorithm) -> Option<ParsedPublicKey> {
    match (material, algorithm) {
        (KeyMaterial::Rsa { modulus, exponent }, algorithm) => {
            RsaPublicKeyComponents { n: modulus, e: exponent }.to_parsed_public_key(rsa(algorithm)?).ok()
        }
        (KeyMaterial::P256(point), SignatureAlgorithm::Es256) => {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()
        }
        (KeyMaterial::P384(point), SignatureAlgorithm::Es384) => {
            ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).ok()
        }
        (KeyMaterial::Ed25519(key), SignatureAlgorithm::EdDsa) => ParsedPublicKey::new(&ED25519, key).ok(),
        _ => None,
    }
}

const fn rsa(algorithm: SignatureAlgorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        SignatureAlgorithm::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        SignatureAlgorithm::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
        SignatureAlgorithm::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
        SignatureAlgorithm::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
        SignatureAlgorithm::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
        SignatureAlgorithm::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
        SignatureAlgorithm::Es256 | SignatureAlgorithm::Es384 | SignatureAlgorithm::EdDsa => None,
    }
}
