//! Callers that make up a Host, a path, a method, a user agent and an identity for each of 100,000 requests, from many
//! addresses: what a mesh exports is as much as before.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use super::scrape;
use crate::{
    mesh::{TestMesh, Workload},
    net::{LIMIT, eventually, free, get, ok},
};

/// Requests on their way on one connection.
const AT_ONCE: usize = 64;
/// To nobody that there is, through the mesh to an app, and in plaintext to the front of one.
const LOADS: [usize; 3] = [60_000, 10_000, 30_000];
/// Connections of each load at once, and addresses that they come from.
const CALLERS: u8 = 4;
const ADDRESSES: u8 = 100;

/// An app that answers what comes on a connection, and keeps it.
fn keeping() -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut seen, mut bytes) = (Vec::new(), [0; 16384]);
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    seen.extend_from_slice(&bytes[..length]);
                    let heads = ends(&seen);
                    if let Some(end) = heads.last() {
                        seen.drain(..*end);
                    }
                    let answers = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".repeat(heads.len());
                    if stream.write_all(&answers).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Where heads end.
fn ends(bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, four) in bytes.windows(4).enumerate() {
        if four == b"\r\n\r\n" {
            found.push(at + 4);
        }
    }
    found
}

/// Everything about it is made up.
fn request(number: usize) -> String {
    let method: String = number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'A')).collect();
    // Some could be services of the mesh: then the control plane is asked.
    let host =
        if number.is_multiple_of(500) { format!("h{number}.ns{number}") } else { format!("h{number}.x.example") };
    format!(
        "M{method} /p{number}/x?q={number} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: agent-{number}\r\n\
         X-Forwarded-Client-Cert: By=spiffe://x;URI=spiffe://weft.local/ns/n{number}/sa/s{number}\r\n\
         X-Forwarded-For: 10.{}.{}.7\r\nX-Request-Id: {number}\r\nTraceparent: 00-{number:032x}-{number:016x}-00\r\n\r\n",
        number / 256 % 256,
        number % 256,
    )
}

/// A connection from this address.
fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("an address of loopback");
        socket.connect(to).await.expect("listens")
    });
    let stream = stream.into_std().expect("a stream");
    stream.set_nonblocking(false).expect("a stream");
    stream.set_read_timeout(Some(LIMIT)).expect("a stream");
    stream.set_write_timeout(Some(LIMIT)).expect("a stream");
    stream
}

/// Sends these requests on one connection, many at once: how many were answered with which status.
fn send(stream: &mut TcpStream, numbers: std::ops::Range<usize>) -> BTreeMap<u16, usize> {
    let (mut statuses, mut bytes) = (BTreeMap::new(), vec![0; 65536]);
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(AT_ONCE) {
        let text: String = some.iter().map(|number| request(*number)).collect();
        stream.write_all(text.as_bytes()).expect("open");
        let (mut left, mut seen) = (some.len(), Vec::new());
        while left > 0 {
            let length = stream.read(&mut bytes).expect("an answer");
            assert!(length > 0, "closed with {left} answers missing: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&bytes[..length]);
            // The last head may not be whole yet: what could be one is kept.
            let mut from = 0;
            while let Some(at) = seen[from..].windows(12).position(|start| start.starts_with(b"HTTP/1.1 ")) {
                let status = String::from_utf8_lossy(&seen[from + at + 9..from + at + 12]).parse().expect("a status");
                *statuses.entry(status).or_default() += 1;
                left -= 1;
                from += at + 12;
            }
            seen.drain(..from.max(seen.len().saturating_sub(11)));
        }
    }
    statuses
}

/// All of a load, from many addresses, on connections of which a few are open at once.
fn load(to: SocketAddr, numbers: std::ops::Range<usize>) -> BTreeMap<u16, usize> {
    let each = numbers.len() / usize::from(ADDRESSES);
    let all = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let start = numbers.start;
                scope.spawn(move || {
                    let mut statuses = BTreeMap::new();
                    for address in (caller..ADDRESSES).step_by(usize::from(CALLERS)) {
                        let first = start + usize::from(address) * each;
                        let mut stream = connect_from(Ipv4Addr::new(127, 0, 7, address + 1), to);
                        for (status, count) in send(&mut stream, first..first + each) {
                            *statuses.entry(status).or_default() += count;
                        }
                    }
                    statuses
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).collect::<Vec<BTreeMap<u16, usize>>>()
    });
    let mut sum = BTreeMap::new();
    for (status, count) in all.into_iter().flatten() {
        *sum.entry(status).or_default() += count;
    }
    sum
}

/// Names with labels of everything that is exported of requests and connections.
fn series(admin: SocketAddr) -> BTreeSet<String> {
    let text = scrape(admin, "text/plain");
    let names = text.lines().filter(|line| line.starts_with("weft_")).filter_map(|line| line.rsplit_once(' '));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn a_hundred_thousand_hosts_paths_and_identities_that_callers_make_up_are_no_series() {
    let front = free();
    let mesh = TestMesh::builder("hostile")
        .replicas("web", "http", &[keeping()])
        .workload(Workload::beside("plain", keeping(), "http").front(front))
        .calls("web")
        .start();
    eventually("web", || ok(get(mesh.local("web"), "web", "/")));
    eventually("the front", || ok(get(front, "plain", "/")));
    let loads = [mesh.outbound(), mesh.local("web"), front];
    let whole: usize = LOADS.iter().sum();
    assert_eq!(whole, 100_000);
    // What the first of each kind makes is there before.
    for (number, to) in loads.into_iter().enumerate() {
        for address in [1, ADDRESSES] {
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 7, address), to);
            send(&mut stream, whole + 1000 * (number + 1)..whole + 1000 * (number + 1) + 2);
        }
    }
    let admins = [mesh.client_admin(), mesh.admin("web-0"), mesh.admin("plain")];
    let before = admins.map(series);
    let mut first = 0;
    let mut answered = Vec::new();
    for (to, count) in loads.into_iter().zip(LOADS) {
        answered.push(load(to, first..first + count));
        first += count;
    }
    let expected: Vec<_> = LOADS.into_iter().zip([404, 200, 200]).map(|(count, status)| (status, count)).collect();
    let found: Vec<_> =
        answered.iter().map(|statuses| statuses.iter().map(|(s, c)| (*s, *c)).collect::<Vec<_>>()).collect();
    assert_eq!(found, expected.into_iter().map(|of| vec![of]).collect::<Vec<_>>(), "all are answered");
    for (before, admin) in before.iter().zip(admins) {
        let after = series(admin);
        let made: Vec<_> = after.difference(before).collect();
        assert!(made.is_empty() && after.len() == before.len(), "{} of {}: {made:#?}", made.len(), after.len());
    }
}
