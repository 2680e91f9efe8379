//! From what is held to the snapshot that the workers read. Keeps what outlives a snapshot: loads, health, limits, budgets
//! and breakers are of an endpoint or a service, not of one version of them.

mod alone;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
};

use weft_policy::{
    balance::{Balancer, EndpointLoad},
    breaker::Breaker,
    limits::Limits,
    model::{BackendPolicy, Endpoint, Locality, Service, ServicePort, Target},
    outlier::{Ejections, Health},
    retry::Budget,
    session,
};

use super::state::State;
use crate::{
    app::worker::Clock,
    snapshot::{Cluster, ClusterShared, EndpointState, RouteMetrics, Snapshot},
    telemetry::{CircuitMetrics, Direction, Hop, Telemetry, gauges},
};

/// Keeps what outlives a snapshot.
pub struct Builder {
    telemetry: Telemetry,
    /// Where this workload is.
    own: Locality,
    clock: Clock,
    /// Of the last snapshot.
    clusters: HashMap<Target, Arc<Cluster>>,
    shared: HashMap<Target, Arc<ClusterShared>>,
    endpoints: HashMap<(Target, SocketAddr, Option<SocketAddr>), Arc<EndpointState>>,
    /// Each endpoint is wanted alone too; by its address, as in the last snapshot.
    alone: Option<HashMap<SocketAddr, Arc<Cluster>>>,
    /// Names of the rules that lead to a target, for metrics.
    rules: HashMap<Target, BTreeSet<Box<str>>>,
}

impl Builder {
    /// With nothing built yet.
    #[must_use]
    pub fn new(telemetry: Telemetry, own: Locality, clock: Clock) -> Self {
        let (clusters, shared, endpoints, rules) = Default::default();
        Self { telemetry, own, clock, clusters, shared, endpoints, rules, alone: None }
    }

    /// Whether the app's calls are found by address: services by their virtual ones, and each endpoint alone.
    #[must_use]
    pub fn by_address(self, wanted: bool) -> Self {
        Self { alone: wanted.then(HashMap::new), ..self }
    }

    /// The snapshot of what is held and may be used.
    pub fn build(&mut self, state: &mut State, namespace: &str) -> Snapshot {
        let services = state.usable();
        let mut snapshot =
            Snapshot { absent: state.absent(), workload: state.workload_config(), ..Snapshot::default() };
        let services: Vec<_> = services.into_iter().collect();
        self.rules = rules(&services);
        let mut kept = HashMap::new();
        for service in services {
            for host in &service.hostnames {
                snapshot.hosts.entry(host.clone()).or_insert_with(|| service.id.clone());
            }
            if service.id.namespace() == namespace {
                snapshot.hosts.insert(service.id.name().into(), service.id.clone());
            }
            for ip in &service.virtual_ips {
                snapshot.hosts.entry(ip.to_string().into()).or_insert_with(|| service.id.clone());
            }
            for port in &service.ports {
                let target = Target { service: service.id.clone(), port: port.port };
                let cluster = self.cluster(&target, port, state.endpoints(&service.id), &mut kept);
                self.alone(&mut snapshot, &cluster, state.endpoints(&service.id));
                snapshot.clusters.insert(target, cluster);
            }
            if self.alone.is_some() {
                for ip in &service.virtual_ips {
                    snapshot.virtual_ips.insert(*ip, service.id.clone());
                    snapshot.inside.insert(*ip);
                }
            }
            snapshot.services.insert(service.id.clone(), service);
        }
        if let Some(alone) = &mut self.alone {
            alone.clone_from(&snapshot.endpoints);
            snapshot.outside = state.absent_addresses();
        }
        self.endpoints = kept;
        self.clusters.clone_from(&snapshot.clusters);
        self.shared.retain(|target, _| snapshot.clusters.contains_key(target));
        snapshot
    }

    /// One service port with its endpoints; the cluster of before when nothing of it has changed.
    pub(crate) fn cluster(
        &mut self,
        target: &Target,
        port: &ServicePort,
        all: &[Endpoint],
        kept: &mut HashMap<(Target, SocketAddr, Option<SocketAddr>), Arc<EndpointState>>,
    ) -> Arc<Cluster> {
        let shared = self.shared(target, &port.backend);
        let mut endpoints = Vec::new();
        let mut came = false;
        for endpoint in all.iter().filter(|endpoint| endpoint.healthy && !endpoint.draining) {
            let Some(&port) = endpoint.ports.get(&target.port) else { continue };
            let address = SocketAddr::new(endpoint.address, port);
            let key = (target.clone(), address, endpoint.mesh.as_ref().map(|mesh| mesh.address));
            let state = match self.endpoints.get(&key) {
                Some(state) if state.endpoint == *endpoint => Arc::clone(state),
                before => {
                    // Another weight or label does not make an ill endpoint healthy; another identity is another endpoint.
                    let same = |state: &&Arc<EndpointState>| state.endpoint.mesh == endpoint.mesh;
                    let health = before.filter(same).map(|state| Arc::clone(&state.health));
                    came |= health.is_none();
                    Arc::new(EndpointState {
                        endpoint: endpoint.clone(),
                        address,
                        session: session::of_endpoint(address, endpoint.workload.as_ref()),
                        load: EndpointLoad::default(),
                        health: health.unwrap_or_else(|| Arc::new(Health::new(&shared.ejections))),
                        unreachable: AtomicBool::new(false),
                    })
                }
            };
            kept.insert(key, Arc::clone(&state));
            endpoints.push(state);
        }
        // Most changes are of other services: the tables of this one are not built again for them.
        let previous = self.clusters.get(target);
        let none = BTreeSet::new();
        let rules = self.rules.get(target).unwrap_or(&none);
        if let Some(cluster) = previous
            && cluster.policy == port.backend
            && cluster.protocol == port.protocol
            && cluster.routes.iter().skip(1).map(|route| &route.rule).eq(rules)
            && cluster.endpoints.len() == endpoints.len()
            && cluster.endpoints.iter().zip(&endpoints).all(|(old, new)| Arc::ptr_eq(old, new))
        {
            return Arc::clone(cluster);
        }
        let before = previous.map(|cluster| &cluster.balancer);
        let now = self.clock.now();
        let balancer = Balancer::new(&port.backend.load_balancing, &self.own, &endpoints, now, before);
        if came {
            shared.breaker.endpoint_came(now);
        }
        let healths = endpoints.iter().map(|state| &state.health);
        for (index, change) in shared.ejections.sync(&port.backend.outlier_detection, healths) {
            shared.circuit.endpoint_changed(endpoints[index].address, change);
        }
        shared.circuit.endpoints_changed(endpoints.len());
        let (service, own) = (target.service.as_str(), self.telemetry.own());
        let routes = std::iter::once("").chain(rules.iter().map(|rule| &**rule)).map(|rule| {
            let hop = Hop { direction: Direction::Outbound, service, port: target.port, peer: own, route: rule };
            RouteMetrics { rule: rule.into(), http: [false, true].map(|mtls| self.telemetry.http(&hop, mtls)) }
        });
        let routes = routes.collect();
        let policy = Arc::clone(&port.backend);
        Arc::new(Cluster {
            target: target.clone(),
            protocol: port.protocol,
            endpoints: endpoints.into(),
            balancer,
            routes,
            policy,
            shared,
        })
    }

    /// What outlives the snapshot, with the ceilings that the policy has now.
    fn shared(&mut self, target: &Target, policy: &BackendPolicy) -> Arc<ClusterShared> {
        let telemetry = &self.telemetry;
        let shared = self.shared.entry(target.clone()).or_insert_with(|| {
            let service = target.service.as_str();
            let hop =
                Hop { direction: Direction::Outbound, service, port: target.port, peer: telemetry.own(), route: "" };
            let ejections = Arc::new(Ejections::default());
            let shared = Arc::new(ClusterShared {
                limits: Limits::default(),
                budget: Budget::default(),
                breaker: Arc::new(Breaker::default()),
                circuit: CircuitMetrics::new(telemetry, target, &ejections),
                ejections,
                tcp: [false, true].map(|mtls| telemetry.tcp(&hop, mtls)),
            });
            gauges::upstream(telemetry, target, &shared);
            shared
        });
        shared.limits.set(&policy.limits);
        shared.budget.set(&policy.retry_budget);
        Arc::clone(shared)
    }
}

/// Which rules lead to which targets. A rule that answers by itself has its answers at the service that was called.
fn rules(services: &[Arc<Service>]) -> HashMap<Target, BTreeSet<Box<str>>> {
    let mut found: HashMap<Target, BTreeSet<Box<str>>> = HashMap::new();
    for service in services {
        for port in &service.ports {
            let own = Target { service: service.id.clone(), port: port.port };
            for rule in port.routing.iter().flat_map(|routing| &routing.rules).filter(|rule| !rule.name.is_empty()) {
                let backends = rule.backends.iter().filter_map(|backend| backend.target.clone());
                let answers = rule.filters.redirect.is_some() || rule.filters.cors.is_some();
                for target in backends.chain(answers.then(|| own.clone())) {
                    found.entry(target).or_default().insert(rule.name.clone());
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use weft_policy::model::{Algorithm, LoadBalancing, ObjectName, Protocol, RouteRule, Routing, WeightedBackend};

    use super::*;

    #[test]
    fn the_balancer_of_a_service_is_built_again_only_when_its_endpoints_or_its_policy_change() {
        let own = Locality { region: "r".into(), zone: "z".into() };
        let mut builder = Builder::new(Telemetry::default(), own, Clock::start());
        let endpoint = |address: &str| Endpoint {
            address: address.parse().expect("valid"),
            ports: [(80, 8000)].into(),
            mesh: None,
            weight: 1,
            locality: Locality::default(),
            healthy: true,
            draining: false,
            workload: None,
        };
        let target = Target { service: ObjectName::new("a", "x"), port: 80 };
        let mut policy = LoadBalancing::default();
        let mut build = |policy: &LoadBalancing, endpoints: &[Endpoint]| {
            let mut kept = HashMap::new();
            let backend = BackendPolicy { load_balancing: policy.clone(), ..BackendPolicy::default() };
            let port = ServicePort {
                port: 80,
                name: "".into(),
                protocol: Protocol::Http,
                routing: None,
                direct: Arc::default(),
                backend: Arc::new(backend),
            };
            let cluster = builder.cluster(&target, &port, endpoints, &mut kept);
            builder.endpoints = kept;
            builder.clusters.insert(target.clone(), Arc::clone(&cluster));
            cluster
        };
        let first = build(&policy, &[endpoint("10.0.0.1")]);
        assert!(Arc::ptr_eq(&first, &build(&policy, &[endpoint("10.0.0.1")])));
        let grown = build(&policy, &[endpoint("10.0.0.1"), endpoint("10.0.0.2")]);
        assert_eq!(grown.endpoints.len(), 2);
        assert!(Arc::ptr_eq(&first.endpoints[0], &grown.endpoints[0]), "its load is kept");
        policy.algorithm = Algorithm::RoundRobin;
        assert_eq!(build(&policy, &[endpoint("10.0.0.1"), endpoint("10.0.0.2")]).balancer.policy(), &policy);
    }

    #[test]
    fn the_rules_that_lead_to_a_target_are_known_by_name() {
        let target = |name: &str| Target { service: ObjectName::new("a", name), port: 80 };
        let rule = |name: &str, to: &[&str]| {
            let to = to.iter().map(|to| WeightedBackend {
                target: Some(target(to)),
                weight: 1,
                filters: Default::default(),
            });
            Arc::new(RouteRule { name: name.into(), backends: to.collect(), ..RouteRule::default() })
        };
        let port = ServicePort {
            port: 80,
            name: "".into(),
            protocol: Protocol::Http,
            routing: Some(Routing { rules: vec![rule("a/r#0", &["x", "y"]), rule("a/r#1", &["y"])], matches: vec![] }),
            direct: Arc::default(),
            backend: Arc::default(),
        };
        let service =
            Service { id: ObjectName::new("a", "x"), hostnames: vec![], virtual_ips: vec![], ports: vec![port] };
        let found = rules(&[Arc::new(service)]);
        let names = |name: &str| found[&target(name)].iter().map(|rule| &**rule).collect::<Vec<_>>();
        assert_eq!((names("x"), names("y")), (vec!["a/r#0"], vec!["a/r#0", "a/r#1"]));
    }
}
