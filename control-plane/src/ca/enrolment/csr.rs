//! What a signing request may ask for. Nothing in it but its key gets into a certificate; a request that asks for more
//! than an SVID of its own identity is refused all the same, because whoever sends it means something else.

use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use sha2::{Digest, Sha256};
use weft_policy::SpiffeId;

/// Ours have 250 bytes.
const MAX_BYTES: usize = 8 * 1024;
/// Bytes of an uncompressed point on P-256 and P-384.
const P256: usize = 65;
const P384: usize = 97;

/// Checks a request for a certificate of `id`, its signature too; the result is the hash of its public key.
///
/// # Errors
/// What is wrong with it.
pub fn check(csr: &[u8], id: &SpiffeId) -> Result<[u8; 32], String> {
    if csr.len() > MAX_BYTES {
        return Err(format!("{} bytes are more than {MAX_BYTES}", csr.len()));
    }
    let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| error.to_string())?;
    let (algorithm, key) = (csr.public_key.algorithm(), csr.public_key.der_bytes());
    // The algorithm is that of the signature: only the point tells the curve.
    let known = (*algorithm == PKCS_ECDSA_P256_SHA256 && key.len() == P256)
        || (*algorithm == PKCS_ECDSA_P384_SHA384 && key.len() == P384);
    if !known {
        return Err("the key must be ECDSA, on P-256 with SHA-256 or on P-384 with SHA-384".into());
    }
    let wanted = &csr.params;
    if matches!(wanted.is_ca, IsCa::Ca(_)) {
        return Err("basic constraints ask for a certificate authority".into());
    }
    let own = |name: &SanType| matches!(name, SanType::URI(uri) if uri.as_str() == id.as_str());
    if wanted.subject_alt_names.len() > 1 || !wanted.subject_alt_names.iter().all(own) {
        return Err(format!("subject alternative names: leave them out, or ask for {id} alone"));
    }
    if wanted.key_usages.iter().any(|usage| *usage != KeyUsagePurpose::DigitalSignature) {
        return Err("key usage: digitalSignature is all that is issued".into());
    }
    let tls = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    if wanted.extended_key_usages.iter().any(|usage| !tls.contains(usage)) {
        return Err("extended key usage: serverAuth and clientAuth are all that is issued".into());
    }
    let mut hash = Sha256::new();
    hash.update(key.len().to_be_bytes());
    hash.update(key);
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CustomExtension, KeyPair, SignatureAlgorithm};

    use super::*;

    fn id() -> SpiffeId {
        SpiffeId::workload("weft.local", "shop", "catalog").expect("valid")
    }

    fn request(algorithm: &'static SignatureAlgorithm, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        params.serialize_request(&key).expect("a request").der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ASCII"))
    }

    #[test]
    fn a_request_of_an_svid_is_taken_whatever_its_subject_says() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384] {
            let plain = request(algorithm, |_| {});
            let named = request(algorithm, |params| {
                params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
                params.subject_alt_names = vec![uri(id().as_str())];
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages =
                    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            });
            let hashes = [check(&plain, &id()).expect("plain"), check(&named, &id()).expect("named")];
            assert_eq!(check(&plain, &id()), Ok(hashes[0]), "the same key");
            assert_ne!(hashes[0], hashes[1], "another key");
        }
    }

    #[test]
    fn a_request_of_anything_else_is_refused() {
        let p256 = |change: fn(&mut CertificateParams)| request(&PKCS_ECDSA_P256_SHA256, change);
        let sans = |names: Vec<SanType>| {
            request(&PKCS_ECDSA_P256_SHA256, move |params: &mut CertificateParams| params.subject_alt_names = names)
        };
        let dns = |name: &str| SanType::DnsName(name.try_into().expect("ASCII"));
        let mut damaged = p256(|_| {});
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let mut other_key = p256(|_| {});
        let at = other_key.len() / 3;
        other_key[at] ^= 1;
        let cut = |mut bytes: Vec<u8>| {
            bytes.truncate(100);
            bytes
        };
        let cases = [
            ("nothing", Vec::new()),
            ("no request", b"-----BEGIN CERTIFICATE REQUEST-----".to_vec()),
            ("cut off", cut(p256(|_| {}))),
            ("a wrong signature", damaged),
            ("changed after it was signed", other_key),
            ("too long", vec![0x30; MAX_BYTES + 1]),
            ("Ed25519", request(&rcgen::PKCS_ED25519, |_| {})),
            ("P-521", request(&rcgen::PKCS_ECDSA_P521_SHA512, |_| {})),
            ("RSA", request(&rcgen::PKCS_RSA_SHA256, |_| {})),
            // Its algorithm alone reads as P-256 with SHA-256.
            ("P-521 signed with SHA-256", request(&rcgen::PKCS_ECDSA_P521_SHA256, |_| {})),
            ("an authority", p256(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
            ("an authority of leaves", p256(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))),
            ("certificates", p256(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign])),
            ("lists", p256(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign])),
            ("code", p256(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning])),
            ("any use", p256(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])),
            ("a DNS name", sans(vec![dns("catalog.shop")])),
            ("its own and a DNS name", sans(vec![uri(id().as_str()), dns("catalog.shop")])),
            ("its own twice", sans(vec![uri(id().as_str()), uri(id().as_str())])),
            ("an address", sans(vec![SanType::IpAddress([127, 0, 0, 1].into())])),
            ("mail", sans(vec![SanType::Rfc822Name("a@b".try_into().expect("ASCII"))])),
            ("another identity", sans(vec![uri("spiffe://weft.local/ns/shop/sa/admin")])),
            ("a longer identity", sans(vec![uri("spiffe://weft.local/ns/shop/sa/catalog/x")])),
            ("its own in capitals", sans(vec![uri("SPIFFE://weft.local/ns/shop/sa/catalog")])),
            (
                "what only we attest",
                p256(|params| {
                    let oid = &crate::ca::enrolment::attested::OID;
                    params.custom_extensions =
                        vec![CustomExtension::from_oid_content(oid, vec![0x0c, 0x02, b'{', b'}'])];
                }),
            ),
        ];
        for (case, csr) in cases {
            assert!(check(&csr, &id()).is_err(), "{case}");
        }
    }
}
