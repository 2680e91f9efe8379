//! Who connects to which port, in plaintext or over mutual TLS: counted for all workers, and told to the control plane, so
//! that an operator knows who would break under the mode `STRICT` before switching to it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use weft_policy::{SpiffeId, model::TlsMode};
use weft_proto::v1::{PortConnections, Registration};

use super::declared;
use crate::{snapshot::Snapshot, telemetry::Telemetry};

/// Peers with a series of their own for each port; all others share one.
const PEERS: usize = 64;
/// A first plaintext connection is told within the first time, more of them within the second.
const FIRST: Duration = Duration::from_secs(1);
const MORE: Duration = Duration::from_secs(10);

/// What was seen at each port of the app, which the configuration names.
#[derive(Default)]
pub struct Seen(Mutex<BTreeMap<u16, Port>>);

#[derive(Default)]
struct Port {
    plaintext: u64,
    mtls: u64,
    peers: HashMap<Box<str>, metrics::Counter>,
}

impl Seen {
    /// A connection was taken at a port of the app. `peer` is `None` in plaintext.
    pub fn connected(&self, port: u16, peer: Option<&SpiffeId>, source: IpAddr, telemetry: &Telemetry) {
        let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = ports.entry(port).or_default();
        match peer {
            Some(_) => seen.mtls += 1,
            None => seen.plaintext += 1,
        }
        // Plaintext proves nothing but where it comes from.
        let key = peer.map_or(network(source), SpiffeId::as_str);
        if let Some(counter) = seen.peers.get(key) {
            return counter.increment(1);
        }
        let key = if seen.peers.len() < PEERS { key } else { "other" };
        let (tls, name) = match peer {
            Some(_) => ("mtls", key),
            None => ("none", "unknown"),
        };
        let labels = [("port", &*port.to_string()), ("tls", tls), ("peer", name), ("source", network(source))];
        let counter = telemetry.counter("weft_inbound_connections_total", "Connections taken at a port", &labels);
        counter.increment(1);
        if key != "other" {
            seen.peers.insert(key.into(), counter);
        }
    }

    /// What the control plane is told.
    fn report(&self, snapshot: &Snapshot) -> Vec<PortConnections> {
        let strict = |port| {
            let workload = snapshot.workload.as_ref()?;
            Some(declared(workload, port)?.access.tls_mode == TlsMode::Strict)
        };
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = ports.iter().map(|(port, seen)| PortConnections {
            port: u32::from(*port),
            plaintext: seen.plaintext,
            mtls: seen.mtls,
            strict: strict(*port).unwrap_or_default(),
        });
        told.collect()
    }
}

/// Tells the control plane, beside everything else that a registration says, what plaintext was seen.
pub async fn tell(
    seen: Arc<Seen>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    registration: watch::Sender<Registration>,
) {
    let mut tick = tokio::time::interval(FIRST);
    let mut last: Option<Instant> = None;
    loop {
        tick.tick().await;
        let report = seen.report(&snapshot.borrow());
        let due = last.is_none_or(|last| last.elapsed() >= MORE);
        registration.send_if_modified(|registration| {
            let told = &registration.connections;
            let new = differs(told, &report, |port| (port.plaintext > 0, port.strict));
            let more = due && differs(told, &report, |port| (port.plaintext, port.strict));
            if new || more {
                registration.connections = report;
                last = Some(Instant::now());
            }
            new || more
        });
    }
}

/// Whether what `what` looks at is not the same.
fn differs<T: PartialEq>(a: &[PortConnections], b: &[PortConnections], what: fn(&PortConnections) -> T) -> bool {
    a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.port != b.port || what(a) != what(b))
}

/// Where an address is: few enough words for a label.
fn network(address: IpAddr) -> &'static str {
    let (loopback, private) = match address.to_canonical() {
        IpAddr::V4(v4) => (v4.is_loopback(), v4.is_private() || v4.is_link_local()),
        IpAddr::V6(v6) => (v6.is_loopback(), v6.is_unique_local() || v6.is_unicast_link_local()),
    };
    match (loopback, private) {
        (true, _) => "loopback",
        (_, true) => "private",
        _ => "public",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::workload("weft.local", "shop", name).expect("valid")
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn peers_beyond_the_bound_share_a_series() {
        let (seen, telemetry) = (Seen::default(), Telemetry::default());
        for number in 0..PEERS + 10 {
            seen.connected(80, Some(&id(&format!("a{number}"))), HERE, &telemetry);
        }
        seen.connected(80, Some(&id("a0")), HERE, &telemetry);
        let text = telemetry.render();
        let series = text.lines().filter(|line| line.starts_with("weft_inbound_connections_total{"));
        assert_eq!(series.count(), PEERS + 1, "{text}");
        assert!(text.contains("peer=\"other\",source=\"loopback\"} 10"), "{text}");
        assert!(text.contains("peer=\"spiffe://weft.local/ns/shop/sa/a0\",source=\"loopback\"} 2"), "{text}");
    }

    #[test]
    fn plaintext_has_no_peer_but_a_network() {
        let (seen, telemetry) = (Seen::default(), Telemetry::default());
        for source in ["127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "8.8.8.8", "fd00::1", "2001:db8::1"] {
            seen.connected(80, None, source.parse().expect("an address"), &telemetry);
        }
        let text = telemetry.render();
        for (source, count) in [("loopback", 1), ("private", 3), ("public", 2)] {
            let series = format!("tls=\"none\",peer=\"unknown\",source=\"{source}\"}} {count}");
            assert!(text.contains(&series), "{series} in {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_plaintext_connection_is_told_soon_and_more_of_them_now_and_then() {
        let (seen, telemetry) = (Arc::new(Seen::default()), Telemetry::default());
        let snapshot = watch::Sender::new(Arc::new(Snapshot::default()));
        let registration = watch::Sender::new(Registration::default());
        let mut news = registration.subscribe();
        tokio::spawn(tell(Arc::clone(&seen), snapshot.subscribe(), registration));
        seen.connected(80, Some(&id("a")), HERE, &telemetry);
        let start = Instant::now();
        let mut told = async || {
            news.changed().await.expect("told");
            let connections = news.borrow_and_update().connections.clone();
            (start.elapsed().as_secs(), connections[0].plaintext, connections[0].mtls)
        };
        assert_eq!(told().await, (0, 0, 1));
        seen.connected(80, None, HERE, &telemetry);
        assert_eq!(told().await, (1, 1, 1));
        seen.connected(80, None, HERE, &telemetry);
        assert_eq!(told().await, (11, 2, 1));
    }
}
