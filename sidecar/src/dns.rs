//! DNS for the app in transparent mode, on the control thread: names of services have addresses that lead here, whatever
//! else is asked goes to the machine's resolvers. The rules of redirection bring the app's queries; `app` starts it.

mod message;
mod upstream;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp},
    sync::Arc,
    time::Duration,
};

use metrics::Counter;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
};
use weft_policy::model::{ObjectName, Service};

use self::{
    message::{Code, Query},
    upstream::{Resolvers, Transport},
};
use crate::{
    discovery::Demand,
    listener, outbound,
    snapshot::{Snapshot, SnapshotReader},
    telemetry::Telemetry,
    virtual_ips::VirtualIps,
};

/// Seconds for which an address may be kept: it stays the same, but the service may go.
const TTL: u32 = 30;
/// Seconds for which an absence may be kept: the service may come.
const ABSENT: u32 = 5;
/// How long discovery may take to answer.
const DISCOVERY: Duration = Duration::from_secs(2);
/// Queries under way at a time; more are dropped, and the app asks again.
const QUERIES: usize = 256;
/// Connections at a time.
const CONNECTIONS: usize = 64;
/// A connection without a query.
const IDLE: Duration = Duration::from_secs(10);
/// Ports that are tried until one is free for all sockets.
const PORTS: u32 = 20;
/// The zone in which nobody else has names.
const OWN_ZONE: &str = ".mesh";

/// The sockets, all with one port.
pub struct DnsSockets {
    udp: Vec<StdUdp>,
    tcp: Vec<StdListener>,
    port: u16,
}

impl DnsSockets {
    /// Their port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

/// UDP and TCP on loopback, IPv4 and, if the machine has it, IPv6. Port 0: one that is free for all.
///
/// # Errors
/// When there is none.
pub fn bind(port: u16) -> io::Result<DnsSockets> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORTS {
        let first = StdUdp::bind((Ipv4Addr::LOCALHOST, port))?;
        let number = first.local_addr()?.port();
        match beside(first, number) {
            Ok(sockets) => return Ok(sockets),
            Err(error) => last = error,
        }
        if port != 0 {
            break;
        }
    }
    Err(last)
}

fn beside(first: StdUdp, port: u16) -> io::Result<DnsSockets> {
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let (mut udp, mut tcp) = (vec![first], vec![listener::bind((Ipv4Addr::LOCALHOST, port).into(), false)?]);
    match StdUdp::bind(v6) {
        Ok(socket) => {
            udp.push(socket);
            tcp.push(listener::bind(v6, false)?);
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        Err(error) => tracing::debug!(%error, "no DNS over IPv6"),
    }
    for socket in &udp {
        socket.set_nonblocking(true)?;
    }
    Ok(DnsSockets { udp, tcp, port })
}

/// What answers.
pub struct Dns {
    namespace: String,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    demand: Demand,
    virtual_ips: Arc<VirtualIps>,
    resolvers: Resolvers,
    queries: Arc<Semaphore>,
    answered: [Counter; 3],
}

/// What is known of a name.
enum Known {
    /// A service has it.
    Service(Arc<Service>),
    /// No service has it.
    Absent,
    /// Discovery does not say.
    Unknown,
}

impl Dns {
    /// For an app of this namespace.
    #[must_use]
    pub fn new(
        namespace: &str,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        demand: Demand,
        virtual_ips: Arc<VirtualIps>,
        telemetry: &Telemetry,
    ) -> Self {
        let answered = ["mesh", "upstream", "failed"].map(|by| {
            telemetry.counter("weft_dns_queries_total", "Queries of the app, by who answered", &[("answer", by)])
        });
        let (queries, resolvers) = (Arc::new(Semaphore::new(QUERIES)), Resolvers::default());
        Self { namespace: namespace.into(), snapshot, demand, virtual_ips, resolvers, queries, answered }
    }

    /// Answers for as long as the runtime lives.
    pub async fn run(self, sockets: DnsSockets) {
        let dns = Arc::new(self);
        for socket in sockets.udp {
            match UdpSocket::from_std(socket) {
                Ok(socket) => drop(tokio::spawn(Arc::clone(&dns).datagrams(Arc::new(socket)))),
                Err(error) => tracing::error!(%error, "DNS over UDP cannot be served"),
            }
        }
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        for socket in sockets.tcp {
            match TcpListener::from_std(socket) {
                Ok(socket) => drop(tokio::spawn(Arc::clone(&dns).connections(socket, Arc::clone(&connections)))),
                Err(error) => tracing::error!(%error, "DNS over TCP cannot be served"),
            }
        }
    }

    async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // Of an earlier answer that nobody waited for.
                Err(error) => {
                    tracing::debug!(%error, "DNS over UDP");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.queries).try_acquire_owned() else { continue };
            let (dns, socket, message) = (Arc::clone(&self), Arc::clone(&socket), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(answer) = dns.answer(&message, Transport::Udp).await
                    && let Err(error) = socket.send_to(&answer, peer).await
                {
                    tracing::debug!(%error, "DNS answer not sent");
                }
                drop(permit);
            });
        }
    }

    async fn connections(self: Arc<Self>, listener: TcpListener, permits: Arc<Semaphore>) {
        loop {
            match listener.accept().await {
                Ok((io, _)) => {
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                    let dns = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = dns.connection(io).await {
                            tracing::debug!(%error, "DNS over TCP");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "DNS over TCP: accept failed; waiting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// One query after the other, until the app has none.
    async fn connection(&self, mut io: TcpStream) -> io::Result<()> {
        loop {
            let read = async {
                let length = usize::from(io.read_u16().await?);
                let mut message = vec![0; length];
                io.read_exact(&mut message).await?;
                Ok::<_, io::Error>(message)
            };
            let message = match tokio::time::timeout(IDLE, read).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(message) => message?,
                Err(_) => return Ok(()),
            };
            let Some(answer) = self.answer(&message, Transport::Tcp).await else { return Ok(()) };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            tokio::time::timeout(IDLE, io.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
        }
    }

    /// The answer to a message; `None`: it gets none.
    async fn answer(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let [mesh, upstream, failed] = &self.answered;
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(refused) => {
                failed.increment(1);
                return refused;
            }
        };
        let own_zone = query.name.ends_with(OWN_ZONE);
        let name = outbound::named(&query.name, &self.namespace).filter(|_| query.name != "localhost");
        let known = match name {
            Some(name) => self.look_up(&query.name, &name).await,
            None => Known::Absent,
        };
        match known {
            Known::Service(service) => {
                mesh.increment(1);
                return Some(query.addresses(&self.addresses(&service), TTL));
            }
            Known::Absent if own_zone => {
                mesh.increment(1);
                return Some(query.nothing(Code::NameError, ABSENT));
            }
            Known::Unknown if own_zone => {
                failed.increment(1);
                return Some(query.nothing(Code::ServerFailure, 0));
            }
            Known::Absent | Known::Unknown => {}
        }
        if let Some(answer) = self.resolvers.ask(&query, message, transport).await {
            upstream.increment(1);
            return Some(answer);
        }
        failed.increment(1);
        Some(query.nothing(Code::ServerFailure, 0))
    }

    /// The service of a name, asking discovery when it is not known yet.
    async fn look_up(&self, host: &str, name: &ObjectName) -> Known {
        let mut reader = SnapshotReader::new(self.snapshot.clone());
        if let Some(known) = known(reader.load(), host, name) {
            return known;
        }
        if !self.demand.is_answered() {
            return Known::Unknown;
        }
        self.demand.want(name);
        let wait = async {
            loop {
                if let Some(known) = known(reader.load(), host, name) {
                    return known;
                }
                if !reader.changed().await {
                    return Known::Unknown;
                }
            }
        };
        tokio::time::timeout(DISCOVERY, wait).await.unwrap_or(Known::Unknown)
    }

    /// A service's own virtual addresses, else the one that is made for it here.
    fn addresses(&self, service: &Service) -> Vec<IpAddr> {
        if !service.virtual_ips.is_empty() {
            return service.virtual_ips.clone();
        }
        self.virtual_ips.address(&service.id).map(IpAddr::V4).into_iter().collect()
    }
}

fn known(snapshot: &Snapshot, host: &str, name: &ObjectName) -> Option<Known> {
    let held = snapshot.by_host(host).or(Some(name)).and_then(|name| snapshot.services.get(name));
    if let Some(service) = held {
        return Some(Known::Service(Arc::clone(service)));
    }
    snapshot.absent.contains(name).then_some(Known::Absent)
}

#[cfg(test)]
mod tests;
