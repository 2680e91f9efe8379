//! Sockets that this sidecar opens. In transparent mode each carries a mark, by which the rules of redirection leave it
//! alone: what the sidecar sends can never come back to it. Used for calls to apps, sidecars, the control plane and
//! resolvers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::OnceLock,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket, lookup_host};

/// The same for all sockets of the process, as the rules know it.
static MARK: OnceLock<u32> = OnceLock::new();

/// Marks every socket that is opened from now on.
///
/// # Errors
/// When this process may not mark sockets: that takes CAP_NET_ADMIN.
pub fn mark(mark: u32) -> io::Result<()> {
    set_mark(&Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?, mark)?;
    MARK.get_or_init(|| mark);
    Ok(())
}

#[cfg(target_os = "linux")]
fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_mark(mark)
}

#[cfg(not(target_os = "linux"))]
fn set_mark(_: &Socket, _: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A TCP connection.
///
/// # Errors
/// When there is none.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let Some(mark) = MARK.get() else { return TcpStream::connect(address).await };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    set_mark(&socket, *mark)?;
    socket.set_nonblocking(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// A TCP connection to `host:port`: the first of its addresses that takes one.
///
/// # Errors
/// When it has no address, or none takes one.
pub async fn connect_name(name: &str) -> io::Result<TcpStream> {
    let mut failed = None;
    for address in lookup_host(name).await? {
        match connect(address).await {
            Ok(io) => return Ok(io),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{name}: no address"))))
}

/// A UDP socket that speaks with this peer only.
///
/// # Errors
/// When the system has none, or no route to the peer.
pub async fn udp(peer: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(mark) = MARK.get() {
        set_mark(&socket, *mark)?;
    }
    socket.set_nonblocking(true)?;
    let any = match peer.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(peer).await?;
    Ok(socket)
}
