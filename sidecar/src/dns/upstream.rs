//! The resolvers of this machine, for names that are not the mesh's: a query goes to them as it came, under a number of
//! our own, over the transport that the app has chosen.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::message::Query;
use crate::egress;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The file may be written anew when the machine moves to another network.
const REREAD: Duration = Duration::from_secs(5);
/// As long as one resolver may take. The app's own resolver waits for five seconds (resolv.conf(5)).
const ANSWER: Duration = Duration::from_secs(2);
/// Resolvers that are asked, as in resolv.conf(5).
const SERVERS: usize = 3;
/// Longest answer over UDP.
const DATAGRAM: usize = 64 * 1024;

/// Which transport.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// One datagram each way.
    Udp,
    /// Messages with their length before them.
    Tcp,
}

/// The resolvers, read again when they may have changed.
#[derive(Debug, Default)]
pub struct Resolvers(Mutex<Option<(Instant, Arc<[SocketAddr]>)>>);

impl Resolvers {
    fn now(&self) -> Arc<[SocketAddr]> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((read, servers)) if read.elapsed() < REREAD => Arc::clone(servers),
            _ => {
                let servers: Arc<[SocketAddr]> = read(Path::new(RESOLV_CONF)).into();
                *known = Some((Instant::now(), Arc::clone(&servers)));
                servers
            }
        }
    }

    /// The answer of the first that gives one; `None`: nobody does.
    pub async fn ask(&self, query: &Query, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let servers = self.now();
        ask(&servers, query, message, transport).await
    }
}

async fn ask(servers: &[SocketAddr], query: &Query, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let (id, ours) = (super::message::id(message)?, rand::random::<[u8; 2]>());
    let mut asked = message.to_vec();
    asked[..2].copy_from_slice(&ours);
    for server in servers {
        let one = async {
            match transport {
                Transport::Udp => by_udp(*server, query, ours, &asked).await,
                Transport::Tcp => by_tcp(*server, query, ours, &asked).await,
            }
        };
        match tokio::time::timeout(ANSWER, one).await {
            Ok(Ok(mut answer)) => {
                answer[..2].copy_from_slice(&id);
                return Some(answer);
            }
            Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver failed"),
            Err(_) => tracing::debug!(%server, "a resolver did not answer in time"),
        }
    }
    None
}

async fn by_udp(server: SocketAddr, query: &Query, id: [u8; 2], message: &[u8]) -> io::Result<Vec<u8>> {
    let socket = egress::udp(server).await?;
    socket.send(message).await?;
    let mut answer = vec![0; DATAGRAM];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Whatever else comes may be somebody's guess.
        if query.is_answered_by(id, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &Query, id: [u8; 2], message: &[u8]) -> io::Result<Vec<u8>> {
    let mut io = egress::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    io.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
    let length = io.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    io.read_exact(&mut answer).await?;
    if query.is_answered_by(id, &answer) {
        return Ok(answer);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
}

fn read(path: &Path) -> Vec<SocketAddr> {
    std::fs::read_to_string(path).map(|text| servers(&text)).unwrap_or_default()
}

fn servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A scope, as in fe80::1%eth0, needs the interface's number: such a resolver is left out.
        Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, 53))
    };
    text.lines().filter_map(server).take(SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    /// A question for `a.` of type A.
    const QUERY: [u8; 19] = [9, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];

    #[test]
    fn the_first_three_resolvers_count() {
        let text = "# c\nsearch a b\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver 10.0.0.2\n\
                    nameserver 10.0.0.3\n";
        let found = servers(text);
        assert_eq!(found, ["10.0.0.1:53", "[::1]:53", "10.0.0.2:53"].map(|text| text.parse().expect("valid")));
    }

    #[tokio::test]
    async fn a_silent_resolver_is_followed_by_the_next_and_a_guess_is_not_believed() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let speaks = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let servers = [&silent, &speaks].map(|socket| socket.local_addr().expect("bound"));
        tokio::spawn(async move {
            let mut message = [0; 512];
            let (length, peer) = speaks.recv_from(&mut message).await.expect("a query");
            message[2] |= 0x80;
            let mut guess = message;
            guess[0] ^= 0xff;
            speaks.send_to(&guess[..length], peer).await.expect("sent");
            message[3] = 0x83;
            speaks.send_to(&message[..length], peer).await.expect("sent");
        });
        let query = Query::parse(&QUERY).expect("a question");
        let answer = ask(&servers, &query, &QUERY, Transport::Udp).await.expect("an answer");
        assert_eq!((answer[..2].to_vec(), answer[3]), (vec![9, 9], 0x83));
    }

    #[tokio::test]
    async fn over_tcp_the_whole_answer_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.expect("a connection");
            let length = usize::from(io.read_u16().await.expect("a length"));
            let mut message = vec![0; length];
            io.read_exact(&mut message).await.expect("a query");
            message[2] |= 0x80;
            message.extend_from_slice(&[7; 2000]);
            io.write_u16(u16::try_from(message.len()).expect("short")).await.expect("written");
            io.write_all(&message).await.expect("written");
        });
        let query = Query::parse(&QUERY).expect("a question");
        let answer = ask(&[server], &query, &QUERY, Transport::Tcp).await.expect("an answer");
        assert_eq!((answer.len(), &answer[..2]), (QUERY.len() + 2000, &[9, 9][..]));
    }

    #[tokio::test]
    async fn without_resolvers_there_is_no_answer() {
        let query = Query::parse(&QUERY).expect("a question");
        assert_eq!(ask(&[], &query, &QUERY, Transport::Udp).await, None);
    }
}
