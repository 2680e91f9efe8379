//! The rustls verifier for both ends: the leaf's rules, then the chain to a root of the leaf's own trust domain.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use crate::{
    TrustStore,
    certificate::{SvidReason, peer_identity},
};

/// Longer chains are refused before they cost anything.
const MAX_CHAIN: usize = 8;

pub struct Verifier {
    trust: TrustStore,
    algorithms: WebPkiSupportedAlgorithms,
    mandatory: bool,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("mandatory", &self.mandatory).finish_non_exhaustive()
    }
}

impl Verifier {
    pub fn new(trust: TrustStore, provider: &CryptoProvider, mandatory: bool) -> Self {
        Self { trust, algorithms: provider.signature_verification_algorithms, mandatory }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), SvidReason> {
        if rest.len() >= MAX_CHAIN {
            return Err(SvidReason::BadChain);
        }
        let identity = peer_identity(std::slice::from_ref(leaf))?;
        let anchors = self.trust.anchors(identity.id.trust_domain()).ok_or(SvidReason::ForeignTrustDomain)?;
        if anchors.is_empty() {
            return Err(SvidReason::ForeignTrustDomain);
        }
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| SvidReason::Malformed)?;
        certificate
            .verify_for_usage(self.algorithms.all, &anchors, rest, now, usage, None, None)
            .map(|_| ())
            .map_err(|error| reason(&error))
    }

    fn checked(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        self.verify(leaf, rest, now, usage)
            .map_err(|reason| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason)))))
    }

    fn tls13(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }
}

fn reason(error: &webpki::Error) -> SvidReason {
    match error {
        webpki::Error::CertExpired { .. } => SvidReason::Expired,
        webpki::Error::CertNotValidYet { .. } => SvidReason::NotYetValid,
        webpki::Error::UnknownIssuer => SvidReason::UnknownRoot,
        webpki::Error::InvalidSignatureForPublicKey => SvidReason::BadSignature,
        webpki::Error::UnsupportedSignatureAlgorithmContext(_)
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => SvidReason::WeakKey,
        _ => SvidReason::BadChain,
    }
}

fn no_tls12() -> Error {
    Error::General("only TLS 1.3 is spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.checked(leaf, rest, now, KeyUsage::server_auth()).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.checked(leaf, rest, now, KeyUsage::client_auth()).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
