//! Making one connection: TCP, for the mesh TLS with the peer's identity checked, then the HTTP handshake.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_policy::model::{MeshAddress, Target};
use weft_svid::{PeerIdentity, Role};

use super::{Key, chain, http1, tunnel::Carrier, watched::Watched};
use crate::{
    egress,
    error::{ProxyError, Reason},
    http::{body::Body, serve::LocalExecutor},
    identity::{self, IdentityReceiver, MeshIdentity},
    listener,
    live::{Cut, Session, Sessions},
};

/// A new HTTP/1.1 connection to an application.
pub async fn http1(key: &Key, limit: Duration) -> Result<http1::Connection, ProxyError> {
    let Key::Plain { address, .. } = key else {
        return Err(ProxyError::unsent(Reason::Internal, "the mesh transport is HTTP/2"));
    };
    Ok(http1::Connection::new(tcp(*address, limit).await?))
}

/// What this sidecar brings to a session.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// Its certificate.
    pub identity: &'a IdentityReceiver,
    /// Where its sessions are kept.
    pub sessions: &'a Rc<Sessions>,
}

/// A TLS session: its stream, its place among the live ones, and for how long it takes new streams.
type Proved = (TlsStream<TcpStream>, Session, Duration);

/// A new connection for tunnels.
pub async fn carrier(
    mesh: &MeshAddress,
    target: &Target,
    own: Own<'_>,
    limit: Duration,
) -> Result<Carrier, ProxyError> {
    let (stream, session, life) = session(mesh, target, own, limit, |own| &own.tunnel).await?;
    Carrier::new(mesh.address, stream, session, life).await
}

/// A new HTTP/2 connection, over mutual TLS or in the clear; what is fired when it is to take no new streams; and for how
/// long it takes them at most.
pub async fn http2(
    key: &Key,
    own: Own<'_>,
    limit: Duration,
) -> Result<(http2::SendRequest<Body>, Option<Rc<Cut<()>>>, Duration), ProxyError> {
    match key {
        Key::Plain { address, .. } => {
            let sender = handshake(tcp(*address, limit).await?, None).await?;
            Ok((sender, None, identity::MAX_AGE))
        }
        Key::Mesh { address, identity: expected, target } => {
            let mesh = MeshAddress { address: *address, identity: expected.clone() };
            let (stream, session, life) = session(&mesh, target, own, limit, |own| &own.client).await?;
            let leaving = Rc::clone(session.leaving());
            Ok((handshake(stream, Some(session)).await?, Some(leaving), life))
        }
    }
}

/// A TCP connection within `limit`, with the options of every upstream socket.
pub async fn tcp(address: SocketAddr, limit: Duration) -> Result<TcpStream, ProxyError> {
    let io = match tokio::time::timeout(limit, egress::connect(address)).await {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => {
            let reason = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => Reason::ConnectionRefused,
                std::io::ErrorKind::TimedOut => Reason::ConnectTimeout,
                _ => Reason::ConnectFailed,
            };
            return Err(ProxyError::unsent(reason, format!("{address}: {error}")));
        }
        Err(_) => {
            let detail = format!("{address}: no connection within {limit:?}");
            return Err(ProxyError::unsent(Reason::ConnectTimeout, detail));
        }
    };
    if let Err(error) = listener::tune(&io) {
        tracing::debug!(%address, %error, "could not set socket options");
    }
    Ok(io)
}

/// A TLS session within `limit`. `config` chooses what for.
async fn session(
    mesh: &MeshAddress,
    target: &Target,
    own: Own<'_>,
    limit: Duration,
    config: fn(&MeshIdentity) -> &Arc<ClientConfig>,
) -> Result<Proved, ProxyError> {
    let identity = own.identity.borrow().clone();
    let identity =
        identity::in_force(identity, SystemTime::now()).map_err(|why| ProxyError::unsent(Reason::NotReady, why))?;
    let trusted = own.sessions.trusted();
    let session = tls(mesh, target, Arc::clone(config(&identity)), limit);
    let (stream, peer) = tokio::time::timeout(limit, session).await.map_err(|_| {
        ProxyError::unsent(Reason::ConnectTimeout, format!("{}: no TLS session within {limit:?}", mesh.address))
    })??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let session = own.sessions.enter(&trusted, Role::Server, chain, &peer);
    Ok((stream, session, identity::connection_life(&peer, rand::random())))
}

async fn tls(
    mesh: &MeshAddress,
    target: &Target,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> Result<(TlsStream<TcpStream>, PeerIdentity), ProxyError> {
    let MeshAddress { address, identity: expected } = mesh;
    let name = format!("p{}.{}.{}.weft", target.port, target.service.name(), target.service.namespace());
    let name = ServerName::try_from(name)
        .map_err(|error| ProxyError::unsent(Reason::Internal, format!("SNI for {}: {error}", target.service)))?;
    let io = tcp(*address, limit).await?;
    let stream =
        TlsConnector::from(config).connect(name, io).await.map_err(|error| match weft_svid::reason_of_io(&error) {
            Some(reason) => {
                ProxyError::unsent(Reason::TlsCertificate, format!("{address}: {}: {error}", reason.as_str()))
            }
            None => ProxyError::unsent(Reason::TlsHandshake, format!("{address}: {error}")),
        })?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = weft_svid::peer_identity(certificates)
        .map_err(|reason| ProxyError::unsent(Reason::TlsCertificate, format!("{address}: {}", reason.as_str())))?;
    if peer.id != *expected {
        let detail = format!("{address}: expected {expected}, got {}", peer.id);
        return Err(ProxyError::unsent(Reason::TlsIdentityMismatch, detail));
    }
    Ok((stream, peer))
}

/// HTTP/2 over bytes that end with the session.
pub async fn handshake<IO>(io: IO, session: Option<Session>) -> Result<http2::SendRequest<Body>, ProxyError>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_header_list_size(64 * 1024)
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(false)
        .handshake(TokioIo::new(Watched::new(io, session)))
        .await
        .map_err(|error| ProxyError::unsent(Reason::ConnectFailed, chain(&error)))?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = chain(&error), "HTTP/2 connection ended");
        }
    });
    Ok(sender)
}
