//! Ports of a demo, of which no other demo takes any meanwhile.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::Context as _;

/// Ports that one demo may take.
const PORTS: u16 = 100;

/// The first port of a range that no other demo takes while we hold it: two that start together would else find the
/// same ports free.
fn own_range() -> Option<TcpListener> {
    let ranges = 8_000 / PORTS;
    let first = u16::try_from(std::process::id() % u32::from(ranges)).ok()?;
    let port = |n: u16| 10_000 + (first + n) % ranges * PORTS;
    (0..ranges).find_map(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, port(n))).ok())
}

/// Held together before they are let go, so that they differ.
pub fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    // Below the kernel's ephemeral range: a port from inside it could be given to a sidecar's own listener before it is
    // used. Each call goes on where the last one stopped.
    static NEXT: AtomicU16 = AtomicU16::new(1);
    static RANGE: OnceLock<Option<TcpListener>> = OnceLock::new();
    let range = RANGE.get_or_init(own_range).as_ref().context("ports from 10000 to 18000 are all taken")?;
    let start = range.local_addr()?.port();
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    for address in &mut addresses {
        *address = loop {
            let offset = NEXT.fetch_add(1, Ordering::Relaxed);
            anyhow::ensure!(offset < PORTS, "no free port among {PORTS} from {start}");
            let candidate = SocketAddr::from((Ipv4Addr::LOCALHOST, start + offset));
            if TcpListener::bind(candidate).is_ok() {
                break candidate;
            }
        };
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_addresses_differ() {
        let [a, b] = free_addresses().unwrap();
        assert_ne!(a, b);
    }
}
