//! The sidecar's certificate: enrolment with a token, renewal with the current certificate, and the TLS
//! configurations that the workers use. A failed renewal keeps the old one and tries again.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_policy::SpiffeId;
use weft_proto::identity::{SignCertificateRequest, identity_client::IdentityClient};
use weft_svid::{ClientAuth, PeerIdentity, Svid, TrustStore};
use zeroize::{Zeroize as _, Zeroizing};

use crate::tunnel;

const TIMEOUT: Duration = Duration::from_secs(5);
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
    /// When it ends.
    pub not_after: SystemTime,
    /// Counts certificates from 1.
    pub generation: u64,
}

/// The newest identity; `None` before the first.
pub type IdentityReceiver = watch::Receiver<Option<Arc<MeshIdentity>>>;

/// A token file: the secret, and the roots that the control plane must prove.
pub struct Token {
    secret: Zeroizing<String>,
    roots: Vec<Vec<u8>>,
}

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
    /// Roots, shared with the workers' TLS configurations.
    pub trust: TrustStore,
}

/// Before a peer's certificate ends, what is in flight on its connections has at most this time, and at most a fifth of
/// what was left of the certificate when the connection began: then they are closed.
const GRACE: Duration = Duration::from_secs(10);

/// For how long a connection with this peer takes new streams: [`MAX_AGE`] with jitter, and never up to the end of the
/// peer's certificate, where `live` closes it.
#[must_use]
pub fn connection_life(peer: &PeerIdentity, random: u64) -> Duration {
    let jitter = MAX_AGE.mul_f64(0.2 * f64::from(u8::try_from(random >> 56).unwrap_or(0)) / 255.0);
    let left = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    (MAX_AGE.mul_f64(0.9) + jitter).min(left - GRACE.min(left / 5))
}

/// Reads a token file.
///
/// # Errors
/// What is wrong with it.
pub fn load_token(path: &Path) -> Result<Token> {
    let text = Zeroizing::new(std::fs::read_to_string(path).with_context(|| format!("read token {}", path.display()))?);
    let secret =
        text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    if !secret.starts_with("weft1.") {
        bail!("token {}: the first line must be a token (weft1....)", path.display());
    }
    let roots: Vec<_> =
        CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).map(|der| der.to_vec()).collect();
    if roots.is_empty() {
        bail!("token {}: no root certificate follows the token", path.display());
    }
    Ok(Token { secret: Zeroizing::new(secret.to_owned()), roots })
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

    /// Gets a certificate: with `current` if there is one, else with the token.
    async fn sign(&self, current: Option<&Svid>) -> Result<(Svid, String)> {
        let (token, domain) = match current {
            Some(current) => (None, current.identity.id.trust_domain().to_owned()),
            None => {
                let path = self.token_path()?;
                let token = load_token(&path)
                    .context("no enrolment token; start the control plane with --dev, or give --token FILE")?;
                let domain = root_domain(&token.roots)?;
                self.trust.set_roots(&domain, &token.roots)?;
                (Some(token), domain)
            }
        };
        let channel = channel(&self.xds, current, &self.trust, &domain).await?;
        let mut key = rcgen::KeyPair::generate()?;
        let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
        let private = Zeroizing::new(key.serialize_der());
        key.zeroize();
        let mut request = tonic::Request::new(SignCertificateRequest {
            csr: csr.der().to_vec().into(),
            namespace: self.namespace.clone(),
            service_account: self.account.clone(),
            lifetime: None,
        });
        if let Some(token) = token {
            let bearer = Zeroizing::new(format!("Bearer {}", *token.secret));
            request.metadata_mut().insert("authorization", bearer.parse().context("token")?);
        }
        let answer = IdentityClient::new(channel)
            .sign_certificate(request)
            .await
            .map_err(|status| anyhow::anyhow!("the control plane refused a certificate: {}", status.message()))?;
        let answer = answer.into_inner();
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = Svid::new(chain, private)?;
        let expected = SpiffeId::workload(&answer.trust_domain, &self.namespace, &self.account);
        if Some(&svid.identity.id) != expected.as_ref() {
            bail!("the control plane issued {} and not the identity that was asked for", svid.identity.id);
        }
        let roots: Vec<Vec<u8>> = answer.roots.iter().map(|root| root.to_vec()).collect();
        // Afterwards trust comes from bundles alone: an answer could be older than the newest.
        if current.is_none() {
            self.trust.set_roots(&answer.trust_domain, &roots)?;
        }
        Ok((svid, answer.trust_domain))
    }

    /// Enrols, then renews for ever; every certificate is published with the SVID for discovery's own use.
    /// `report` is told of each outcome.
    pub async fn run(
        self,
        publish: watch::Sender<Option<Arc<MeshIdentity>>>,
        discovery: watch::Sender<Option<Arc<Svid>>>,
        report: impl Fn(std::result::Result<SystemTime, &anyhow::Error>),
    ) {
        let mut current: Option<Arc<Svid>> = None;
        let (mut generation, mut failures) = (0_u64, 0_u32);
        loop {
            let expired = current.as_ref().is_some_and(|svid| svid.identity.not_after <= SystemTime::now());
            let result = self.sign(current.as_deref().filter(|_| !expired)).await;
            match result.and_then(|(svid, _)| self.identity(&svid, generation + 1).map(|identity| (svid, identity))) {
                Ok((svid, identity)) => {
                    (generation, failures) = (generation + 1, 0);
                    let (not_after, from) = (svid.identity.not_after, SystemTime::now());
                    report(Ok(not_after));
                    let svid = Arc::new(svid);
                    current = Some(Arc::clone(&svid));
                    publish.send_replace(Some(Arc::new(identity)));
                    discovery.send_replace(Some(svid));
                    // A random point in 50 to 70 % of what is left.
                    let life = not_after.duration_since(from).unwrap_or_default();
                    wait_until(from + life.mul_f64(0.5 + 0.2 * rand::random::<f64>())).await;
                }
                Err(error) => {
                    failures += 1;
                    report(Err(&error));
                    let left = current
                        .as_ref()
                        .and_then(|svid| svid.identity.not_after.duration_since(SystemTime::now()).ok())
                        .unwrap_or(Duration::MAX);
                    tokio::time::sleep(retry_after(failures, left, rand::random())).await;
                }
            }
        }
    }

    fn identity(&self, svid: &Svid, generation: u64) -> Result<MeshIdentity> {
        Ok(MeshIdentity {
            id: svid.identity.id.clone(),
            client: Arc::new(weft_svid::client_config(Some(svid), &self.trust, &[b"h2"])?),
            tunnel: Arc::new(weft_svid::client_config(Some(svid), &self.trust, &[tunnel::ALPN])?),
            server: Arc::new(weft_svid::server_config(
                svid,
                &self.trust,
                ClientAuth::Required,
                &[b"h2", tunnel::ALPN],
            )?),
            not_after: svid.identity.not_after,
            generation,
        })
    }
}

/// How long to wait after a failure: doubling to 10 s with jitter, and never more than a quarter of what is `left` of the
/// certificate, so that a control plane that comes back in its last moments still finds somebody who asks.
fn retry_after(failures: u32, left: Duration, random: f64) -> Duration {
    const FIRST: Duration = Duration::from_millis(100);
    let doubled = FIRST.saturating_mul(1 << failures.min(7)).min(Duration::from_secs(10));
    doubled.min((left / 4).max(FIRST)).mul_f64(0.5 + 0.5 * random)
}

/// Waits by the wall clock, looked at every few seconds: the monotonic one stops while a laptop sleeps.
async fn wait_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(Duration::from_secs(5)).max(Duration::from_millis(1))).await;
    }
}

/// The trust domain of a root: its URI SAN without a path.
fn root_domain(roots: &[Vec<u8>]) -> Result<String> {
    weft_svid::root_trust_domain(roots).context("the token's root certificate names no trust domain")
}

/// A TLS channel to the control plane, whose identity is checked before anything is sent.
///
/// # Errors
/// When it cannot be reached or is somebody else.
pub async fn channel(xds: &str, svid: Option<&Svid>, trust: &TrustStore, trust_domain: &str) -> Result<Channel> {
    let config = Arc::new(weft_svid::client_config(svid, trust, &[b"h2"])?);
    let expected = weft_svid::control_plane_id(trust_domain).context("trust domain")?;
    let address = xds.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (config, expected, address) = (Arc::clone(&config), expected.clone(), address.clone());
        async move { dial(&address, config, &expected).await }
    });
    endpoint(xds)?
        .connect_with_connector(connector)
        .await
        .map_err(|error| anyhow::anyhow!("control plane at {xds}: {}", crate::upstream::chain(&error)))
}

/// The HTTP/2 settings of a connection to the control plane: a dead one is noticed within 20 s (rule 11).
///
/// # Errors
/// When the address is none.
pub fn endpoint(xds: &str) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("http://{xds}"))
        .with_context(|| format!("--xds {xds:?}"))?
        .connect_timeout(TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true))
}

async fn dial(
    address: &str,
    config: Arc<rustls::ClientConfig>,
    expected: &SpiffeId,
) -> std::io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let io = TcpStream::connect(address).await?;
    io.set_nodelay(true)?;
    let name = ServerName::try_from("control-plane.weft-system.weft").map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, io).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = weft_svid::peer_identity(chain).map_err(std::io::Error::other)?;
    if peer.id != *expected {
        return Err(std::io::Error::other(format!("expected {expected}, got {}", peer.id)));
    }
    Ok(TokioIo::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_back_off_and_come_closer_as_the_certificate_ends() {
        let hour = Duration::from_secs(3600);
        assert_eq!(retry_after(1, hour, 1.0), Duration::from_millis(200));
        assert_eq!(retry_after(40, hour, 1.0), Duration::from_secs(10));
        assert_eq!(retry_after(40, hour, 0.0), Duration::from_secs(5));
        // Of a certificate with two seconds left: four tries at least, and never a storm.
        assert_eq!(retry_after(40, Duration::from_secs(2), 1.0), Duration::from_millis(500));
        assert_eq!(retry_after(40, Duration::ZERO, 1.0), Duration::from_millis(100));
    }
}
