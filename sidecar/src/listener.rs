//! Listening sockets and the accept loop, which nothing that a peer does can end. Used by every worker.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::drain::{Drain, Phase};

const BACKLOG: i32 = 1024;
/// Ports that are tried until one is free in both families.
const BOTH: u32 = 10;
const USER_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A non-blocking listening socket; with `reuse_port` several may share the address.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let socket = socket(address, reuse_port)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Fixes an address without listening on it: with port 0 the port that the kernel chose. The socket must live until
/// the workers have bound theirs.
///
/// # Errors
/// When the address cannot be bound.
pub fn reserve(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    // Another process of the same user could share the port and take half of the connections: ask for it alone first.
    drop(socket(address, false)?);
    let socket = socket(address, true)?;
    let address = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, address))
}

/// The same port on all addresses of this machine, or on loopback only, for both families; without IPv6 for one. With
/// port 0 a port that is free in both.
///
/// # Errors
/// When there is no such port.
pub fn reserve_both(loopback: bool, port: u16) -> io::Result<Vec<(Socket, SocketAddr)>> {
    let (v4, v6) = match loopback {
        true => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        false => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..BOTH {
        let (socket, address) = reserve((v4, port).into())?;
        match reserve((v6, address.port()).into()) {
            Ok(other) => return Ok(vec![(socket, address), other]),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            // No IPv6 on this machine.
            Err(_) => return Ok(vec![(socket, address)]),
        }
    }
    Err(last)
}

fn socket(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // The other family has a socket of its own, so that nobody's IPv4 address is written as an IPv6 one.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Options of every connection: no delay, and dead peers are noticed. On loopback there are none; the user timeout would
/// reset a connection whose reader pauses for that time, since it counts a closed window too (tcp(7)).
///
/// # Errors
/// When the socket refuses an option.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    if !stream.peer_addr()?.ip().is_loopback() {
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    }
    Ok(())
}

/// Accepts until the drain has reached `end`. A connection for which `admit` has no permit is closed at once; an error of
/// accept (out of descriptors, above all) waits and goes on.
pub async fn accept_loop<P>(
    listener: TcpListener,
    admit: impl Fn() -> Option<P>,
    drain: Drain,
    end: Phase,
    on_connection: impl Fn(TcpStream, SocketAddr, P),
) {
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.reached(end) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                failures = 0;
                match admit() {
                    Some(permit) => on_connection(stream, peer, permit),
                    None => tracing::warn!(%peer, "connection closed: as many as the limit allows are open"),
                }
            }
            Err(error) => {
                failures += 1;
                let wait = backoff(&error, failures);
                if !wait.is_zero() {
                    tracing::warn!(%error, ?wait, "accept failed; waiting");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// A connection that died in the queue costs nothing; everything else waits, longer each time, up to a second.
fn backoff(error: &io::Error, failures: u32) -> Duration {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => {
            Duration::ZERO
        }
        _ => Duration::from_millis(10).saturating_mul(1 << failures.min(10)).min(Duration::from_secs(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sockets_share_a_reserved_port() {
        let (_reserved, address) = reserve("127.0.0.1:0".parse().expect("an address")).expect("free");
        let first = bind(address, true).expect("shared");
        let second = bind(address, true).expect("shared");
        assert_eq!(first.local_addr().expect("bound"), second.local_addr().expect("bound"));
    }

    #[test]
    fn a_port_that_another_process_shares_is_not_reserved() {
        let taken = bind("127.0.0.1:0".parse().expect("an address"), true).expect("free");
        assert!(reserve(taken.local_addr().expect("bound")).is_err());
    }

    #[test]
    fn running_out_of_descriptors_waits_and_an_aborted_connection_does_not() {
        let out = io::Error::from_raw_os_error(24);
        assert_eq!(backoff(&out, 1), Duration::from_millis(20));
        assert_eq!(backoff(&out, 1000), Duration::from_secs(1));
        assert_eq!(backoff(&io::ErrorKind::ConnectionAborted.into(), 5), Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_reader_on_this_machine_may_pause_for_as_long_as_it_likes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listening");
        tune(&stream).expect("open");
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().expect("open"), None);
    }

    #[tokio::test]
    async fn a_connection_without_a_permit_is_closed() {
        use tokio::io::AsyncReadExt;
        let listener = bind("127.0.0.1:0".parse().expect("an address"), false).expect("free");
        let address = listener.local_addr().expect("bound");
        let listener = TcpListener::from_std(listener).expect("non-blocking");
        let none = || None::<()>;
        tokio::spawn(accept_loop(listener, none, Drain::default(), Phase::Draining, |_, _, ()| {
            unreachable!("nothing is admitted")
        }));
        let mut client = TcpStream::connect(address).await.expect("accepted by the kernel");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_listener_accepts_until_its_own_end_and_not_after() {
        let listener = bind("127.0.0.1:0".parse().expect("an address"), false).expect("free");
        let address = listener.local_addr().expect("bound");
        let listener = TcpListener::from_std(listener).expect("non-blocking");
        let (drain, (accepted, mut connections)) = (Drain::default(), tokio::sync::mpsc::unbounded_channel());
        let accepting = accept_loop(
            listener,
            || Some(()),
            drain.clone(),
            Phase::Stopped,
            move |stream, _, ()| {
                accepted.send(stream).expect("the test waits");
            },
        );
        let accepting = tokio::spawn(accepting);
        drain.advance(Phase::Draining);
        let _client = TcpStream::connect(address).await.expect("listening");
        assert!(connections.recv().await.is_some(), "draining is not its end");
        drain.advance(Phase::Stopped);
        accepting.await.expect("no panic");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
