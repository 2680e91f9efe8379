//! What the workers see of the mesh: an immutable snapshot, published by the control thread, read without locks.
//! `discovery` builds it; `outbound` and `inbound` read it. Mutable state of an endpoint or a target lives in
//! atomics that survive from one snapshot to the next.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use tokio::sync::watch;
use weft_policy::{
    balance::{Balancer, Candidate, EndpointLoad},
    breaker::Breaker,
    limits::Limits,
    model::{BackendPolicy, Endpoint, Locality, ObjectName, Protocol, Service, Target, WorkloadConfig},
    outlier::{Ejections, Health},
    retry::Budget,
    session,
};

use crate::telemetry::{CircuitMetrics, HttpMetrics, TcpMetrics, Telemetry};

/// One consistent view of the mesh.
#[derive(Default)]
pub struct Snapshot {
    /// Lower-case host name, without a port, or virtual IP address to the service.
    pub hosts: HashMap<Arc<str>, ObjectName>,
    /// The services that this workload uses.
    pub services: HashMap<ObjectName, Arc<Service>>,
    /// Every port of every service above, with its endpoints.
    pub clusters: HashMap<Target, Arc<Cluster>>,
    /// In transparent mode, the service that has a virtual IP address.
    pub virtual_ips: HashMap<IpAddr, ObjectName>,
    /// In transparent mode, each endpoint alone, under its own address: for who dials it and not its service.
    pub endpoints: HashMap<SocketAddr, Arc<Cluster>>,
    /// In transparent mode, addresses of services and endpoints, whatever the port.
    pub inside: HashSet<IpAddr>,
    /// In transparent mode, addresses that nothing in the mesh has.
    pub outside: HashSet<IpAddr>,
    /// Asked for and answered as not existing.
    pub absent: HashSet<ObjectName>,
    /// The inbound side; `None` until the control plane has sent it.
    pub workload: Option<Arc<WorkloadConfig>>,
}

impl Snapshot {
    /// The service of a lower-case host name or of a virtual IP address, however the address is written.
    #[must_use]
    pub fn by_host(&self, host: &str) -> Option<&ObjectName> {
        let by_ip = || self.hosts.get(host.parse::<IpAddr>().ok()?.to_string().as_str());
        self.hosts.get(host).or_else(by_ip)
    }

    /// Whether it is known what has an address, or that nothing has.
    #[must_use]
    pub fn knows(&self, address: IpAddr) -> bool {
        self.inside.contains(&address) || self.outside.contains(&address)
    }

    /// The mesh listeners of all endpoints.
    #[must_use]
    pub fn mesh_addresses(&self) -> HashSet<SocketAddr> {
        let endpoints = self.clusters.values().flat_map(|cluster| cluster.endpoints.iter());
        endpoints.filter_map(|state| state.endpoint.mesh.as_ref().map(|mesh| mesh.address)).collect()
    }
}

/// The endpoints of one service port, as of one snapshot.
pub struct Cluster {
    /// Which service port.
    pub target: Target,
    /// What its endpoints speak.
    pub protocol: Protocol,
    /// Candidates for a new request: healthy, not draining, serving this port.
    pub endpoints: Arc<[Arc<EndpointState>]>,
    /// How they are used.
    pub policy: Arc<BackendPolicy>,
    /// Chooses one of `endpoints`.
    pub balancer: Balancer,
    /// Metrics of its requests by the rule that leads here, in the order of the names; first those without a rule.
    pub routes: Box<[RouteMetrics]>,
    /// State shared by all snapshots of this target.
    pub shared: Arc<ClusterShared>,
}

/// Metrics of the requests that a rule sends to a target.
#[derive(Clone)]
pub struct RouteMetrics {
    /// Name of the rule; empty for a port without routes.
    pub rule: Box<str>,
    http: Handles<HttpMetrics>,
}

/// Handles by whether the hop was mutual TLS, `[plaintext, mtls]`: each made when the first request or connection comes,
/// since of most targets only one is ever wanted.
type Handles<T> = [OnceLock<T>; 2];

impl RouteMetrics {
    /// Of a rule of this name.
    #[must_use]
    pub fn new(rule: &str) -> Self {
        Self { rule: rule.into(), http: Default::default() }
    }
}

impl Cluster {
    /// Which of `routes` a rule of this name has.
    #[must_use]
    pub fn route(&self, rule: &str) -> usize {
        if rule.is_empty() {
            return 0;
        }
        // A rule that is not there has come to this target by no way that a configuration has.
        self.routes.binary_search_by(|route| (*route.rule).cmp(rule)).unwrap_or(0)
    }

    /// Where the requests of one of `routes` are counted, by whether the hop was mutual TLS.
    pub fn http(&self, route: usize, mtls: bool) -> &HttpMetrics {
        let RouteMetrics { rule, http } = &self.routes[route];
        http[usize::from(mtls)].get_or_init(|| self.shared.circuit.http(rule, mtls))
    }
}

impl ClusterShared {
    /// Where opaque connections are counted, by whether the hop was mutual TLS.
    pub fn tcp(&self, mtls: bool) -> &TcpMetrics {
        self.tcp[usize::from(mtls)].get_or_init(|| self.circuit.tcp(mtls))
    }

    /// Of a target that was not there before.
    #[must_use]
    pub fn new(telemetry: &Telemetry, target: &Target) -> Self {
        Self {
            limits: Limits::default(),
            budget: Budget::default(),
            ejections: Arc::default(),
            breaker: Arc::default(),
            circuit: CircuitMetrics::new(telemetry, target),
            tcp: Default::default(),
        }
    }
}

/// What outlives a snapshot for one service port.
pub struct ClusterShared {
    /// Connections, requests and retries in flight.
    pub limits: Limits,
    /// Retry budget.
    pub budget: Budget,
    /// Endpoints that are left out.
    pub ejections: Arc<Ejections>,
    /// Whether the service as a whole is left alone.
    pub breaker: Arc<Breaker>,
    /// Changes of the circuits above, and retries.
    pub circuit: CircuitMetrics,
    tcp: Handles<TcpMetrics>,
}

/// One replica as a target of one service port; lives as long as the endpoint keeps its identity.
pub struct EndpointState {
    /// From discovery, which holds it too.
    pub endpoint: Arc<Endpoint>,
    /// Where the app of this endpoint serves this port, for plaintext.
    pub address: SocketAddr,
    /// What tokens of sessions call it.
    pub session: u64,
    /// Latency and requests in flight.
    pub load: EndpointLoad,
    /// Whether it is left out.
    pub health: Arc<Health>,
    /// The last try could not connect to it.
    pub unreachable: AtomicBool,
}

impl EndpointState {
    /// Without any load yet. `address` is where its app serves the port.
    #[must_use]
    pub fn new(endpoint: &Arc<Endpoint>, address: SocketAddr, health: Arc<Health>) -> Self {
        Self {
            session: session::of_endpoint(address, endpoint.workload.as_ref()),
            endpoint: Arc::clone(endpoint),
            address,
            load: EndpointLoad::default(),
            health,
            unreachable: AtomicBool::new(false),
        }
    }
}

impl Candidate for EndpointState {
    fn load(&self) -> &EndpointLoad {
        &self.load
    }

    fn weight(&self) -> u32 {
        self.endpoint.weight
    }

    fn locality(&self) -> &Locality {
        &self.endpoint.locality
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Publishing side, held by `discovery`.
pub type SnapshotSender = watch::Sender<Arc<Snapshot>>;

/// Reading side: one per connection, so that a request costs one atomic load.
#[derive(Clone)]
pub struct SnapshotReader {
    receiver: watch::Receiver<Arc<Snapshot>>,
    current: Arc<Snapshot>,
}

impl SnapshotReader {
    /// Wraps a subscription.
    #[must_use]
    pub fn new(mut receiver: watch::Receiver<Arc<Snapshot>>) -> Self {
        let current = Arc::clone(&receiver.borrow_and_update());
        Self { receiver, current }
    }

    /// The newest snapshot; one atomic load when nothing has changed.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        // An error means that the publisher is gone: the last value stays right.
        if self.receiver.has_changed().unwrap_or(false) {
            self.current = Arc::clone(&self.receiver.borrow_and_update());
        }
        &self.current
    }

    /// Waits for a snapshot that differs from the one last loaded. False when there will be none.
    pub async fn changed(&mut self) -> bool {
        let changed = self.receiver.changed().await.is_ok();
        // `changed` marks the value as seen, so that `load` would not look again.
        self.current = Arc::clone(&self.receiver.borrow_and_update());
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_that_waited_sees_the_snapshot_that_it_waited_for() {
        let sender = SnapshotSender::new(Arc::default());
        let mut reader = SnapshotReader::new(sender.subscribe());
        let name = ObjectName::new("a", "b");
        sender.send_replace(Arc::new(Snapshot { absent: HashSet::from([name.clone()]), ..Snapshot::default() }));
        assert!(reader.changed().await);
        assert!(reader.load().absent.contains(&name));
    }
}
