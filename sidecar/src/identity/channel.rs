//! The TLS channel to the control plane. Whose it is is checked before anything is said.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_policy::SpiffeId;
use weft_svid::{Svid, TrustStore};

use super::{Failure, FailureReason};
use crate::egress;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Somebody else answers where the control plane should be.
#[derive(Debug, thiserror::Error)]
#[error("expected {0}, got {1}")]
pub(super) struct WrongPeer(SpiffeId, SpiffeId);

/// A TLS channel to the control plane, whose identity is checked before anything is sent.
///
/// # Errors
/// When it cannot be reached or is somebody else.
pub async fn channel(
    xds: &str,
    svid: Option<&Svid>,
    trust: &TrustStore,
    trust_domain: &str,
) -> Result<Channel, Failure> {
    let other = |error: anyhow::Error| Failure::new(FailureReason::Other, error);
    let config = weft_svid::client_config(svid, trust, &[b"h2"]).map_err(|error| other(error.into()))?;
    let config = Arc::new(config);
    let expected = weft_svid::control_plane_id(trust_domain).context("trust domain").map_err(other)?;
    let address = xds.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (config, expected, address) = (Arc::clone(&config), expected.clone(), address.clone());
        async move { dial(&address, config, &expected).await }
    });
    endpoint(xds).map_err(other)?.connect_with_connector(connector).await.map_err(|error| {
        let text = format!("control plane at {xds}: {}", crate::upstream::chain(&error));
        Failure::new(FailureReason::of(&error), anyhow::anyhow!(text))
    })
}

/// The HTTP/2 settings of a connection to the control plane: a dead one is noticed within 20 s (rule 11).
///
/// # Errors
/// When the address is none.
pub fn endpoint(xds: &str) -> anyhow::Result<Endpoint> {
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
    let io = egress::connect_name(address).await?;
    io.set_nodelay(true)?;
    let name = ServerName::try_from("control-plane.weft-system.weft").map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, io).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = weft_svid::peer_identity(chain).map_err(std::io::Error::other)?;
    if peer.id != *expected {
        return Err(std::io::Error::other(WrongPeer(expected.clone(), peer.id)));
    }
    Ok(TokioIo::new(stream))
}
