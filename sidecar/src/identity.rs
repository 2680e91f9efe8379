//! The sidecar's certificate: who signs it and with what proof (here), when it is renewed (`renewal`, `life`), and the
//! TLS configurations that the workers use. `failure` names what goes wrong, `channel` reaches the control plane.

mod channel;
mod failure;
pub mod life;
pub mod renewal;
#[cfg(test)]
pub mod testing;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use weft_policy::SpiffeId;
use weft_proto::identity::{SignCertificateRequest, SignCertificateResponse, identity_client::IdentityClient};
use weft_svid::{ClientAuth, PeerIdentity, Svid, TrustStore};
use zeroize::Zeroizing;

use self::renewal::{Proof, Signed, Signer};
pub use self::{
    channel::{channel, endpoint},
    failure::{Failure, FailureReason},
};
use crate::{
    live,
    token::{PendingKey, Token, load_dev_token, load_token},
    tunnel,
};

/// A mesh connection takes no new streams after this time, give or take a tenth, so that load spreads and identities
/// are checked again.
pub const MAX_AGE: Duration = Duration::from_secs(3600);

/// What one certificate gives the workers.
pub struct MeshIdentity {
    /// Whose it is.
    pub id: SpiffeId,
    /// For calls to other sidecars.
    pub client: Arc<rustls::ClientConfig>,
    /// For tunnels to other sidecars.
    pub tunnel: Arc<rustls::ClientConfig>,
    /// For calls from other sidecars.
    pub server: Arc<rustls::ServerConfig>,
    /// Whose signature it has: another one after a rotation of the issuer or of the root.
    pub signer: Box<[u8]>,
    /// When it ends.
    pub not_after: SystemTime,
    /// Counts certificates from 1.
    pub generation: u64,
}

/// The newest identity; `None` before the first.
pub type IdentityReceiver = watch::Receiver<Option<Arc<MeshIdentity>>>;

/// Who wants a certificate, and from where.
pub struct Enrolment {
    /// `host:port` of the control plane.
    pub xds: String,
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub account: String,
    /// The token file; `None`: the development token of this machine.
    pub token: Option<PathBuf>,
    /// The file with the roots; `None`: they are in the token file.
    pub roots: Option<PathBuf>,
    /// The key that has no certificate yet.
    pub pending: PendingKey,
    /// Roots, shared with the workers' TLS configurations.
    pub trust: TrustStore,
}

/// Before `live` closes the connections of a peer whose certificate ends, what is in flight on them has this time, and at
/// most half of what was left when the connection began.
const GRACE: Duration = Duration::from_secs(10);

/// For how long a connection with this peer takes new streams: [`MAX_AGE`] with jitter, and never up to the end of the
/// peer's certificate, just before which `live` closes it.
#[must_use]
pub fn connection_life(peer: &PeerIdentity, random: u64) -> Duration {
    let jitter = MAX_AGE.mul_f64(0.2 * f64::from(u8::try_from(random >> 56).unwrap_or(0)) / 255.0);
    let left = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let left = left.saturating_sub(live::TICK);
    (MAX_AGE.mul_f64(0.9) + jitter).min(left - GRACE.min(left / 2))
}

/// The identity to begin a handshake with. After a jump of the clock an ended one may be held for a moment.
///
/// # Errors
/// When there is none, or it has ended by now: what to say.
pub fn in_force(held: Option<Arc<MeshIdentity>>, now: SystemTime) -> Result<Arc<MeshIdentity>, &'static str> {
    match held {
        None => Err("this sidecar has no certificate yet"),
        Some(own) if own.not_after <= now => Err("this sidecar's certificate has ended"),
        Some(own) => Ok(own),
    }
}

impl Enrolment {
    fn token_path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.token {
            return Ok(path.clone());
        }
        let (host, port) = self.xds.rsplit_once(':').context("--xds: expected host:port")?;
        if !matches!(host, "127.0.0.1" | "localhost" | "[::1]") {
            bail!("--xds {}: a control plane on another machine needs --token FILE", self.xds);
        }
        let base = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(base) if !base.is_empty() => PathBuf::from(base).join("weft"),
            _ => PathBuf::from(format!("/tmp/weft-{}", rustix::process::getuid().as_raw())),
        };
        Ok(base.join(format!("dev-{port}.token")))
    }

    fn load_token(&self) -> Result<(Token, String)> {
        let (path, roots) = (self.token_path()?, self.roots.as_deref());
        let token = if self.token.is_some() { load_token(&path, roots) } else { load_dev_token(&path, roots) };
        let token = token.context("no enrolment token")?;
        let domain = root_domain(&token.roots)?;
        Ok((token, domain))
    }

    /// The trust domain that the token at hand names; `None`: there is no token that can be read.
    #[must_use]
    pub fn trust_domain(&self) -> Option<String> {
        self.load_token().ok().map(|(_, domain)| domain)
    }

    /// A request for the key that has no certificate yet, and that key.
    fn request(&self) -> Result<(SignCertificateRequest, Zeroizing<Vec<u8>>)> {
        let (private, csr) = self.pending.request()?;
        let request = SignCertificateRequest {
            csr: csr.into(),
            namespace: self.namespace.clone(),
            service_account: self.account.clone(),
            lifetime: None,
        };
        Ok((request, private))
    }

    /// Checks that the answer is what was asked for.
    fn signed(&self, answer: SignCertificateResponse, domain: &str, key: Zeroizing<Vec<u8>>) -> Result<Signed> {
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = Svid::new(chain, key)?;
        let expected = SpiffeId::workload(domain, &self.namespace, &self.account);
        if Some(&svid.identity.id) != expected.as_ref() {
            bail!("the control plane issued {} and not the identity that was asked for", svid.identity.id);
        }
        Ok(Signed { svid, roots: answer.roots.iter().map(|root| root.to_vec()).collect() })
    }
}

impl Signer for Enrolment {
    async fn sign(&self, proof: Proof) -> Result<Signed, Failure> {
        // A token's roots are trusted for this one connection: what is held stays until the answer is there.
        let (channel, bearer, domain) = match &proof {
            Proof::Certificate(svid) => {
                let domain = svid.identity.id.trust_domain().to_owned();
                (channel(&self.xds, Some(svid), &self.trust, &domain).await?, None, domain)
            }
            Proof::Token => {
                let (token, domain) = self.load_token().map_err(|error| Failure::new(FailureReason::NoToken, error))?;
                let trust = TrustStore::default();
                trust.set_roots(&domain, &token.roots).map_err(anyhow::Error::from)?;
                let bearer = Zeroizing::new(format!("Bearer {}", *token.secret));
                (channel(&self.xds, None, &trust, &domain).await?, Some(bearer), domain)
            }
        };
        let first = bearer.is_some();
        let (message, key) = self.request()?;
        let mut request = tonic::Request::new(message);
        if let Some(bearer) = bearer {
            let mut value: MetadataValue<_> = bearer.parse().context("token")?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        let answer = IdentityClient::new(channel).sign_certificate(request).await.map_err(|status| {
            // What broke the connection is said by what caused the error, and what the control plane says by its message.
            let text = match std::error::Error::source(&status) {
                Some(_) => crate::upstream::chain(&status),
                None => status.message().to_owned(),
            };
            let error = anyhow::anyhow!("the control plane at {} refused a certificate: {text}", self.xds);
            Failure::new(FailureReason::of_status(&status), error)
        })?;
        let failed = |error| Failure::new(FailureReason::Answer, error);
        let signed = self.signed(answer.into_inner(), &domain, key).map_err(failed)?;
        // Afterwards trust comes from bundles alone: an answer could be older than the newest.
        if first {
            self.trust.set_roots(&domain, &signed.roots).map_err(|error| failed(error.into()))?;
        }
        self.pending.certified();
        Ok(signed)
    }

    fn has_token(&self) -> bool {
        self.token_path().is_ok_and(|path| path.exists())
    }
}

impl MeshIdentity {
    /// The configurations that the workers use with this certificate.
    ///
    /// # Errors
    /// When rustls does not take it.
    pub fn new(svid: &Svid, trust: &TrustStore, generation: u64) -> Result<Self> {
        Ok(Self {
            id: svid.identity.id.clone(),
            client: Arc::new(weft_svid::client_config(Some(svid), trust, &[b"h2"])?),
            tunnel: Arc::new(weft_svid::client_config(Some(svid), trust, &[tunnel::ALPN])?),
            server: Arc::new(weft_svid::server_config(svid, trust, ClientAuth::Required, &[b"h2", tunnel::ALPN])?),
            signer: svid.signer(),
            not_after: svid.identity.not_after,
            generation,
        })
    }
}

/// The trust domain of a root: its URI SAN without a path.
fn root_domain(roots: &[Vec<u8>]) -> Result<String> {
    weft_svid::root_trust_domain(roots).context("the token's root certificate names no trust domain")
}

#[cfg(test)]
mod tests {
    use super::{testing::Authority, *};

    #[test]
    fn no_handshake_begins_with_a_certificate_that_has_ended() {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let svid = Authority::default().sign("spiffe://weft.local/ns/shop/sa/web", now - hour, now + hour);
        let own = Arc::new(MeshIdentity::new(&svid, &TrustStore::default(), 1).expect("an identity"));
        let at = |now| in_force(Some(Arc::clone(&own)), now).map(|_| ());
        let end = own.not_after;
        assert_eq!((at(now), at(end - Duration::from_nanos(1))), (Ok(()), Ok(())));
        let ended = Err("this sidecar's certificate has ended");
        assert_eq!((at(end), at(end + hour)), (ended, ended));
        assert_eq!(in_force(None, now).err(), Some("this sidecar has no certificate yet"));
    }

    #[test]
    fn a_connection_takes_no_new_streams_well_before_it_is_closed_with_its_peers_certificate() {
        for seconds in [1_u64, 3, 5, 10, 60, 600, 86_400] {
            let left = Duration::from_secs(seconds);
            let id = SpiffeId::workload("weft.local", "shop", "a").expect("valid");
            let life = connection_life(&PeerIdentity { id, not_after: SystemTime::now() + left }, u64::MAX);
            let until_closed = left.saturating_sub(live::TICK);
            assert!(life <= until_closed - GRACE.min(until_closed / 2), "{left:?}: {life:?}");
        }
    }
}
