//! Addresses, waiting, and HTTP/1.1 by hand: what every test needs that is not a process.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A free port below the kernel's ephemeral range: one from inside it could be given to a sidecar's own listener
/// before we use it. Test runs that go on at the same time have ranges of their own, whose first port they hold.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    static RANGE: OnceLock<TcpListener> = OnceLock::new();
    let range = RANGE.get_or_init(|| {
        let port = |n: u16| 20_000 + n * 800;
        (0..10).find_map(|n| TcpListener::bind(("127.0.0.1", port(n))).ok()).expect("a range of ports")
    });
    let start = range.local_addr().expect("bound").port();
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Tries until it works; the last failure is the message.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > LIMIT => panic!("{what}: {error}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    }
}

/// A connection on which no read or write waits for ever.
pub fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(LIMIT)).map_err(|error| error.to_string())?;
    stream.set_write_timeout(Some(LIMIT)).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// One HTTP/1.1 exchange on a connection of its own: status and everything that came.
pub fn call(address: SocketAddr, request: &str) -> Result<(u16, String), String> {
    let mut stream = connect(address)?;
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| format!("{text:?}"))?;
    Ok((status, text))
}

/// A GET; see [`call`].
pub fn get(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String), String> {
    call(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

/// Only a 200 is good.
pub fn ok(result: Result<(u16, String), String>) -> Result<String, String> {
    match result? {
        (200, text) => Ok(text),
        (_, text) => Err(text),
    }
}

/// The sum of a sidecar's series of this name whose labels contain all of `labels`.
pub fn metric(admin: SocketAddr, name: &str, labels: &[&str]) -> f64 {
    let text = eventually("metrics", || ok(get(admin, "localhost", "/metrics")));
    let line = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    };
    text.lines().filter(line).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
