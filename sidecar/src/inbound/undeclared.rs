//! Ports of the app that nobody declared. Where all that comes to a pod is redirected, a call to one has it told to the
//! control plane, and goes on as at every other port once the configuration says who is let in there; until then, and
//! while the control plane is away, it does not.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use weft_proto::v1::{Registration, WorkloadPort};

use super::{declared, plaintext};
use crate::{app::worker::Worker, opaque::Stream as _, outbound};

/// Ports that a registration may have.
const PORTS: usize = 128;
/// What the configuration of a port may take.
const WAIT: Duration = Duration::from_secs(5);
/// The list of who listens is not read again within this time, whoever asks.
const FRESH: Duration = Duration::from_secs(1);
/// In /proc/net/tcp, the state of a socket that listens.
const LISTEN: &str = "0A";

/// A port that is asked for; the answer says whether the control plane is told of it.
pub type Undeclared = (u16, oneshot::Sender<bool>);

/// A plaintext connection to a port of the app, which is known by where the caller wanted to go.
pub async fn undeclared(worker: Rc<Worker>, io: TcpStream) {
    let refused = match outbound::original(&io) {
        Err(error) => error.to_string(),
        Ok(wanted) if is_ready(&worker, wanted.port()).await => return plaintext(worker, wanted.port(), io).await,
        Ok(wanted) => format!("nobody declared port {}, and it cannot be declared now", wanted.port()),
    };
    tracing::info!(refused, "plaintext connection refused");
    io.abort();
}

/// Whether the configuration has the port, or has it in time.
async fn is_ready(worker: &Worker, port: u16) -> bool {
    let mut reader = worker.snapshot();
    let mut known = || reader.load().workload.as_ref().is_some_and(|workload| declared(workload, port).is_some());
    if known() {
        return true;
    }
    let (answer, answered) = oneshot::channel();
    if worker.context.undeclared.try_send((port, answer)).is_err() || !answered.await.unwrap_or_default() {
        return false;
    }
    let wait = async {
        loop {
            if reader.load().workload.as_ref().is_some_and(|workload| declared(workload, port).is_some()) {
                return true;
            }
            if !reader.changed().await {
                return false;
            }
        }
    };
    tokio::time::timeout(WAIT, wait).await.unwrap_or_default()
}

/// Tells the control plane of the ports that are asked for, if somebody but this sidecar (`own`) listens on them for
/// others than this machine.
pub async fn declare(
    mut asked: mpsc::Receiver<Undeclared>,
    own: BTreeSet<u16>,
    registration: watch::Sender<Registration>,
) {
    let (mut listening, mut read) = (BTreeSet::new(), None::<Instant>);
    while let Some((port, answer)) = asked.recv().await {
        let (known, full) = {
            let ports = &registration.borrow().ports;
            (ports.iter().any(|known| known.port == u32::from(port)), ports.len() >= PORTS)
        };
        if !known && read.is_none_or(|read| read.elapsed() >= FRESH) {
            (listening, read) = (listeners(), Some(Instant::now()));
        }
        let new = !known && !full && !own.contains(&port) && listening.contains(&port);
        if new {
            tracing::warn!(port, "a port that nobody declared is called: policies hold there from now on; declare it");
            let port = WorkloadPort { port: port.into(), undeclared: true, ..WorkloadPort::default() };
            registration.send_modify(|registration| registration.ports.push(port));
        }
        // Whoever asked may be gone.
        let _ = answer.send(known || new);
    }
}

/// The ports of this network namespace on which somebody listens, other than on loopback alone.
fn listeners() -> BTreeSet<u16> {
    let read = |table| std::fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
    ["tcp", "tcp6"].iter().flat_map(|table| parse(&read(table)).collect::<Vec<_>>()).collect()
}

/// Whether an address of /proc/net/tcp or tcp6 is one of loopback. A socket for both families that is bound to 127.0.0.1,
/// which is what a JVM makes of it, has it as an address of IPv6 (RFC 4291 section 2.5.5.2).
fn is_loopback(address: &str) -> bool {
    const V6: [&str; 2] = ["00000000000000000000000001000000", "00000000000000000000000000000001"];
    const MAPPED: [&str; 2] = ["0000000000000000FFFF0000", "00000000000000000000FFFF"];
    let (before, last) = address.split_at(address.len().saturating_sub(8));
    let v4 = last.ends_with("7F") || last.starts_with("7F") && cfg!(target_endian = "big");
    V6.contains(&address) || (before.is_empty() || MAPPED.contains(&before)) && v4
}

/// The lines of /proc/net/tcp: number, local and remote address (hexadecimal, words in the machine's order), state.
fn parse(table: &str) -> impl Iterator<Item = u16> {
    table.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        (words.nth(1)? == LISTEN && !is_loopback(address)).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_on_loopback_alone_or_does_not_listen_is_left_out() {
        let table = "  sl  local_address rem_address   st\n\
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:3AAC 00000000:0000 0A 00000000:00000000\n\
            2: 0500010A:1F91 00000000:0000 0A 00000000:00000000\n\
            3: 0500010A:1F92 0600010A:0050 01 00000000:00000000\n\
            4: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0\n\
            5: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0\n\
            6: 0000000000000000FFFF00000100007F:138D 00000000000000000000000000000000:0000 0A 0\n\
            7: 0000000000000000FFFF00000500010A:138E 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(parse(table).collect::<Vec<_>>(), [0x1f90, 0x1f91, 0x50, 0x138e]);
    }

    #[tokio::test]
    async fn a_port_is_declared_once_if_somebody_else_listens_on_it() {
        let socket = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
        let loopback = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = |socket: &std::net::TcpListener| socket.local_addr().expect("bound").port();
        if !listeners().contains(&port(&socket)) {
            return; // There is no /proc here.
        }
        let (sender, asked) = mpsc::channel(1);
        let registration = watch::Sender::new(Registration::default());
        let seen = registration.subscribe();
        tokio::spawn(declare(asked, [port(&own)].into(), registration));
        let ask = async |port| {
            let (answer, answered) = oneshot::channel();
            sender.send((port, answer)).await.expect("it goes on");
            answered.await.expect("an answer")
        };
        for _ in 0..2 {
            assert!(ask(port(&socket)).await);
            assert!(!ask(port(&loopback)).await && !ask(port(&own)).await);
        }
        let ports = &seen.borrow().ports;
        assert_eq!(ports.len(), 1);
        assert_eq!((ports[0].port, ports[0].undeclared), (port(&socket).into(), true));
    }
}
