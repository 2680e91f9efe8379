//! An authority for tests: certificates of any validity.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use weft_svid::Svid;
use zeroize::Zeroizing;

/// A root that signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Of the trust domain `weft.local`.
impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![SanType::URI("spiffe://weft.local".try_into().expect("ASCII"))];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a root"))
    }
}

impl Authority {
    /// Its root certificate.
    #[must_use]
    pub fn root(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// A certificate of this identity and validity.
    #[must_use]
    pub fn sign(&self, id: &str, from: SystemTime, until: SystemTime) -> Svid {
        let date = |time: SystemTime| {
            rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (date(from), date(until));
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.0).expect("a certificate").der().clone();
        Svid::new(vec![leaf], Zeroizing::new(key.serialize_der())).expect("an SVID")
    }
}
