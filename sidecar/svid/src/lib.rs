//! Strict X.509-SVID validation for rustls (SPIFFE X509-SVID sections 2 to 5), and the TLS configurations of both
//! ends of every mesh and control-plane session. Who the peer must be is the caller's question, asked after the
//! handshake with [`peer_identity`].

mod certificate;
mod reason;
mod trust;
mod verify;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use certificate::{PeerIdentity, peer_identity};
pub use reason::SvidReason;
use rustls::{
    ClientConfig, InvalidMessage, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
pub use trust::{Role, TrustStore};
use verify::Verifier;
use weft_policy::SpiffeId;
use zeroize::Zeroizing;

/// A certificate chain with its key. The key's bytes are wiped on drop.
pub struct Svid {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whose it is, and until when.
    pub identity: PeerIdentity,
    /// When its life began.
    pub not_before: SystemTime,
    key: Zeroizing<Vec<u8>>,
}

/// Why a chain and key make no SVID, or no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The leaf breaks a rule.
    #[error("certificate refused: {}", .0.as_str())]
    Certificate(SvidReason),
    /// A trust root cannot be used.
    #[error("trust root refused: {0}")]
    Root(String),
    /// More of something than is kept.
    #[error("too many {0}: at most {1} are kept")]
    TooMany(&'static str, usize),
    /// rustls does not take it.
    #[error("TLS configuration")]
    Tls(#[from] rustls::Error),
}

/// Whether a server asks for, or insists on, a client certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    /// Asks; without one the peer has no identity.
    Optional,
    /// Insists.
    Required,
}

impl Svid {
    /// Checks the leaf by the rules of an SVID and takes the PKCS #8 key.
    ///
    /// # Errors
    /// The rule that the leaf breaks.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Zeroizing<Vec<u8>>) -> Result<Self, SvidError> {
        let first = chain.first().ok_or(SvidError::Certificate(SvidReason::NoCertificate))?;
        let leaf = certificate::leaf(first).map_err(SvidError::Certificate)?;
        let (identity, not_before) = (leaf.identity, leaf.not_before);
        Ok(Self { chain, identity, not_before, key })
    }

    /// What tells its authority from another one: the certificate that signed it, or where a root did so itself, the
    /// name and key identifier of that root.
    #[must_use]
    pub fn signer(&self) -> Box<[u8]> {
        match &self.chain[..] {
            [_, signer, ..] => signer.as_ref().into(),
            [leaf] => certificate::authority(leaf),
            [] => Box::default(),
        }
    }

    /// The private key in PKCS #8, for those who keep it. What is copied from it is theirs to wipe.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.key
    }

    /// Checks that the key is the leaf's.
    ///
    /// # Errors
    /// When it is no key, or another one's.
    pub fn check_key(&self) -> Result<(), SvidError> {
        self.certified().map(|_| ())
    }

    /// What rustls signs with. The key is read where it lies: rustls would not wipe a copy of its own, while what
    /// aws-lc makes of it is wiped when it is freed.
    fn certified(&self) -> Result<SingleCertAndKey, SvidError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.as_slice()));
        let certified = CertifiedKey::new(self.chain.clone(), aws_lc_rs::sign::any_supported_type(&key)?);
        certified.keys_match()?;
        Ok(certified.into())
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { identity, not_before, .. } = self;
        f.debug_struct("Svid").field("identity", identity).field("not_before", not_before).finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// TLS 1.3 server that verifies clients; no resumption, no tickets.
///
/// # Errors
/// When rustls does not take the certificate.
pub fn server_config(
    svid: &Svid,
    trust: &TrustStore,
    auth: ClientAuth,
    alpn: &[&[u8]],
) -> Result<ServerConfig, SvidError> {
    let provider = provider();
    let verifier = Arc::new(Verifier::new(trust.clone(), &provider, auth == ClientAuth::Required));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(svid.certified()?));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// TLS 1.3 client that verifies the chain and the SVID rules of the server, not its name; no resumption.
///
/// # Errors
/// When rustls does not take the certificate.
pub fn client_config(svid: Option<&Svid>, trust: &TrustStore, alpn: &[&[u8]]) -> Result<ClientConfig, SvidError> {
    let provider = provider();
    let verifier = Arc::new(Verifier::new(trust.clone(), &provider, true));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(svid.certified()?)),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Why our own verifier refused the peer, if that is what a TLS error is.
#[must_use]
pub fn reason(error: &rustls::Error) -> Option<SvidReason> {
    match error {
        rustls::Error::NoCertificatesPresented => Some(SvidReason::NoCertificate),
        rustls::Error::InvalidMessage(
            InvalidMessage::CertificatePayloadTooLarge | InvalidMessage::HandshakePayloadTooLarge,
        ) => Some(SvidReason::ChainTooLong),
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            other.0.downcast_ref::<SvidReason>().copied()
        }
        rustls::Error::InvalidCertificate(_) => Some(SvidReason::BadSignature),
        _ => None,
    }
}

/// The same for the I/O error into which tokio-rustls wraps a TLS error.
#[must_use]
pub fn reason_of_io(error: &std::io::Error) -> Option<SvidReason> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).and_then(reason)
}

/// `spiffe://<trust domain>/ns/weft-system/sa/control-plane`, whom every sidecar expects on the discovery port.
#[must_use]
pub fn control_plane_id(trust_domain: &str) -> Option<SpiffeId> {
    SpiffeId::workload(trust_domain, "weft-system", "control-plane")
}

/// The trust domain that the first of some roots names in its URI SAN.
#[must_use]
pub fn root_trust_domain(roots: &[Vec<u8>]) -> Option<String> {
    certificate::uri_of(roots.first()?)
        .and_then(|uri| SpiffeId::parse(&uri).ok())
        .map(|id| id.trust_domain().to_owned())
}

pub(crate) fn unix(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests;
