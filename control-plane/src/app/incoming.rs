//! TLS sessions on the discovery port, each with what it says of the peer. Bounded: a handshake that fails or hangs
//! costs nobody else anything, and the number of handshakes and connections has a limit.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use weft_svid::{ClientAuth, SvidReason};

use crate::ca::{
    Active, Ca, Presented,
    audit::{Credential, Refused},
    enrolment::attested::Attested,
    service::PeerInfo,
};

/// Life of the control plane's own certificate; it is made anew at half of it.
const OWN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once; more wait in the kernel's queue.
const HANDSHAKES: usize = 128;

/// The sessions of a TLS listener.
pub type Incoming = ReceiverStream<io::Result<PeerStream<Box<TlsStream<TcpStream>>>>>;

/// Accepts for as long as the result is kept, at most `connections` at once; one more is closed at once.
pub fn incoming(listener: TcpListener, ca: Arc<Ca>, connections: usize) -> Incoming {
    let (sender, receiver) = mpsc::channel(64);
    let accepting = Accepting {
        listener,
        ca,
        acceptor: None,
        connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        sender,
    };
    tokio::spawn(accepting.run());
    ReceiverStream::new(receiver)
}

struct Accepting {
    listener: TcpListener,
    ca: Arc<Ca>,
    acceptor: Option<Acceptor>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    sender: mpsc::Sender<io::Result<PeerStream<Box<TlsStream<TcpStream>>>>>,
}

impl Accepting {
    async fn run(mut self) {
        let mut full = false;
        loop {
            let Ok(handshake) = Arc::clone(&self.handshakes).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.sender.closed() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed; waiting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let permit = Arc::clone(&self.connections).try_acquire_owned().ok();
            if full != permit.is_none() {
                full = permit.is_none();
                tracing::warn!(full, "connection limit of the discovery port (--xds-max-connections)");
            }
            let (Some(permit), Some(acceptor)) = (permit, self.acceptor()) else { continue };
            let (sender, ca) = (self.sender.clone(), Arc::clone(&self.ca));
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, accept(&ca, acceptor, stream, address, permit)).await {
                    Ok(Ok(stream)) => _ = sender.send(Ok(stream)).await,
                    Ok(Err(error)) => refused(&ca, address, &error),
                    Err(_) => tracing::warn!(%address, "no TLS session in time"),
                }
                drop(handshake);
            });
        }
    }

    /// With a certificate that is fresh, and of the authority as it is now.
    fn acceptor(&mut self) -> Option<TlsAcceptor> {
        let now = SystemTime::now();
        let active = self.ca.active();
        if self.acceptor.as_ref().is_none_or(|own| now >= own.renew || !Arc::ptr_eq(&own.active, &active)) {
            match tls(&self.ca, active, now) {
                Ok(new) => self.acceptor = Some(new),
                Err(error) => tracing::error!(error = format!("{error:#}"), "no certificate for the discovery port"),
            }
        }
        self.acceptor.as_ref().map(|own| own.acceptor.clone())
    }
}

/// With a certificate of the control plane's own.
struct Acceptor {
    acceptor: TlsAcceptor,
    /// By the wall clock, as certificates have it: it goes on while a machine sleeps.
    renew: SystemTime,
    active: Arc<Active>,
}

fn tls(ca: &Ca, active: Arc<Active>, now: SystemTime) -> Result<Acceptor> {
    let svid = ca.own_svid(OWN_LIFE)?;
    let renew = now + svid.identity.not_after.duration_since(now).unwrap_or_default() / 2;
    let config = weft_svid::server_config(&svid, ca.trust(), ClientAuth::Optional, &[b"h2"])?;
    Ok(Acceptor { acceptor: TlsAcceptor::from(Arc::new(config)), renew, active })
}

async fn accept(
    ca: &Ca,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
) -> io::Result<PeerStream<Box<TlsStream<TcpStream>>>> {
    stream.set_nodelay(true)?;
    let io = Box::new(acceptor.accept(stream).await?);
    let mut info = PeerInfo { identity: None, presented: None, attested: Attested::default(), address };
    if let Some(chain) = io.get_ref().1.peer_certificates() {
        info.identity = Some(weft_svid::peer_identity(chain).map_err(io::Error::other)?);
        let read = Presented::of(chain).ok_or_else(|| io::Error::other("a certificate that cannot be read"))?;
        if let Some(identity) = info.identity.as_ref().filter(|of| ca.is_revoked(&of.id, &read)) {
            refuse(ca, (identity.id.as_str(), SvidReason::Revoked), &read, address);
            return Err(io::Error::other("the certificate is revoked"));
        }
        info.presented = Some(Arc::new(read));
        info.attested = chain.first().map(Attested::of).transpose().map_err(io::Error::other)?.unwrap_or_default();
    }
    Ok(PeerStream { io, info, _permit: Some(permit) })
}

/// Tells that there is no session, and of a bad certificate so in the authority's record.
fn refused(ca: &Ca, address: SocketAddr, error: &io::Error) {
    tracing::warn!(%address, %error, "TLS session refused");
    if let Some(reason) = weft_svid::reason_of_io(error) {
        let (by, from) = (Credential::Certificate, Some(address));
        let reason = reason.as_str();
        ca.audit().refused(&Refused { reason, identity: "", by, from, detail: "TLS session on the discovery port" });
    }
}

/// Tells that somebody came with a certificate that is not accepted, and why.
pub fn refuse(ca: &Ca, (identity, why): (&str, SvidReason), presented: &Presented, from: SocketAddr) {
    let detail = format!("serial {}", presented.serial());
    let (by, from) = (Credential::Certificate, Some(from));
    ca.audit().refused(&Refused { reason: why.as_str(), identity, by, from, detail: &detail });
}

/// A session with what is known of the peer.
pub struct PeerStream<S> {
    io: S,
    info: PeerInfo,
    /// Its place among the connections.
    _permit: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
impl<S> PeerStream<S> {
    /// A session whose peer is known beforehand.
    pub fn known(io: S, info: PeerInfo) -> Self {
        Self { io, info, _permit: None }
    }
}

impl<S: Unpin> Connected for PeerStream<S> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeerStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Whether the other end closes before it can have given up on a handshake.
    async fn closed_at_once(stream: &mut TcpStream) -> bool {
        matches!(tokio::time::timeout(HANDSHAKE / 2, stream.read(&mut [0; 1])).await, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn rule_10_a_connection_over_the_limit_is_closed_and_one_that_ends_makes_room() {
        let directory = std::env::temp_dir().join(format!("weft-incoming-{}", std::process::id()));
        crate::ca::private_dir(&directory).expect("a directory");
        let ca = Arc::new(Ca::open(&directory, "weft.local", Duration::from_secs(60)).expect("an authority"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let _incoming = incoming(listener, ca, 1);
        let first = TcpStream::connect(address).await.expect("connected");
        let mut second = TcpStream::connect(address).await.expect("connected");
        assert!(closed_at_once(&mut second).await, "one too many");
        drop(first);
        let room = async {
            loop {
                let mut next = TcpStream::connect(address).await.expect("connected");
                if !closed_at_once(&mut next).await {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, room).await.expect("a place");
        let _ = std::fs::remove_dir_all(&directory);
    }
}
