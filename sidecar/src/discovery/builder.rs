//! From what is held to the snapshot that the workers read. Keeps what outlives a snapshot: loads, health, limits, budgets
//! and breakers are of an endpoint or a service, not of one version of them.

mod alone;
#[cfg(test)]
mod memory;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_policy::{
    balance::Balancer,
    model::{BackendPolicy, Endpoint, Locality, Service, ServicePort, Target},
    outlier::Health,
};

use super::state::State;
use crate::{
    app::worker::Clock,
    snapshot::{Cluster, ClusterShared, EndpointState, RouteMetrics, Snapshot},
    telemetry::{Telemetry, gauges},
};

/// Keeps what outlives a snapshot.
pub struct Builder {
    telemetry: Telemetry,
    /// Where this workload is.
    own: Locality,
    clock: Clock,
    /// Of the last snapshot.
    clusters: HashMap<Target, Built>,
    /// Also read by who wants metrics.
    shared: Arc<Mutex<BTreeMap<Target, Arc<ClusterShared>>>>,
    /// Each endpoint is wanted alone too; by its address, as in the last snapshot.
    alone: Option<HashMap<SocketAddr, Arc<Cluster>>>,
    /// Names of the rules that lead to a target, for metrics.
    rules: HashMap<Target, BTreeSet<Box<str>>>,
}

/// A cluster, and the endpoint set that it was built of or would have been.
struct Built {
    all: Arc<[Arc<Endpoint>]>,
    cluster: Arc<Cluster>,
}

impl Builder {
    /// With nothing built yet.
    #[must_use]
    pub fn new(telemetry: Telemetry, own: Locality, clock: Clock) -> Self {
        let (clusters, shared, rules) = Default::default();
        gauges::upstreams(&telemetry, &shared);
        Self { telemetry, own, clock, clusters, shared, rules, alone: None }
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
        let mut clusters = HashMap::with_capacity(self.clusters.len());
        for service in services {
            let endpoints = state.endpoints(&service.id);
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
                let cluster = self.cluster(&target, port, &endpoints);
                self.alone(&mut snapshot, &cluster, &endpoints);
                snapshot.clusters.insert(target.clone(), Arc::clone(&cluster));
                clusters.insert(target, Built { all: Arc::clone(&endpoints), cluster });
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
        self.clusters = clusters;
        lock(&self.shared).retain(|target, _| snapshot.clusters.contains_key(target));
        snapshot
    }

    /// One service port with its endpoints; the cluster of before when nothing of it has changed.
    pub(crate) fn cluster(&self, target: &Target, port: &ServicePort, all: &Arc<[Arc<Endpoint>]>) -> Arc<Cluster> {
        let shared = self.shared(target, &port.backend);
        let before = self.clusters.get(target);
        let previous = before.map(|before| &before.cluster);
        let none = BTreeSet::new();
        let rules = self.rules.get(target).unwrap_or(&none);
        let settled = previous.filter(|cluster| {
            (Arc::ptr_eq(&cluster.policy, &port.backend) || cluster.policy == port.backend)
                && cluster.protocol == port.protocol
                && cluster.routes.iter().skip(1).map(|route| &route.rule).eq(rules)
        });
        // Most changes are of other services: nothing of this one is looked at or built again for them.
        if let Some(cluster) = settled.filter(|_| before.is_some_and(|before| Arc::ptr_eq(&before.all, all))) {
            return Arc::clone(cluster);
        }
        let (endpoints, came) = endpoints(target, all, previous.map(|cluster| &*cluster.endpoints), &shared);
        let same = |cluster: &&Arc<Cluster>| {
            let mut pairs = cluster.endpoints.iter().zip(&*endpoints);
            cluster.endpoints.len() == endpoints.len() && pairs.all(|(old, new)| Arc::ptr_eq(old, new))
        };
        if let Some(cluster) = settled.filter(same) {
            return Arc::clone(cluster);
        }
        let before = previous.map(|cluster| (&cluster.balancer, &*cluster.endpoints));
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
        // What was counted before goes on, also where nothing is counted for long.
        let known = |rule: &str| previous?.routes.iter().find(|route| *route.rule == *rule).cloned();
        let routes = std::iter::once("").chain(rules.iter().map(|rule| &**rule));
        let routes = routes.map(|rule| known(rule).unwrap_or_else(|| RouteMetrics::new(rule))).collect();
        let policy = Arc::clone(&port.backend);
        Arc::new(Cluster {
            target: target.clone(),
            protocol: port.protocol,
            endpoints,
            balancer,
            routes,
            policy,
            shared,
        })
    }

    /// What outlives the snapshot, with the ceilings that the policy has now.
    fn shared(&self, target: &Target, policy: &BackendPolicy) -> Arc<ClusterShared> {
        let mut all = lock(&self.shared);
        let shared = all.entry(target.clone()).or_insert_with(|| Arc::new(ClusterShared::new(&self.telemetry, target)));
        shared.limits.set(&policy.limits);
        shared.budget.set(&policy.retry_budget);
        Arc::clone(shared)
    }
}

/// A panic elsewhere cannot leave the list half changed.
fn lock(all: &Mutex<BTreeMap<Target, Arc<ClusterShared>>>) -> MutexGuard<'_, BTreeMap<Target, Arc<ClusterShared>>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The endpoints that may take requests of a target, each with its state of before if it had one; whether one has come.
fn endpoints(
    target: &Target,
    all: &[Arc<Endpoint>],
    before: Option<&[Arc<EndpointState>]>,
    shared: &ClusterShared,
) -> (Arc<[Arc<EndpointState>]>, bool) {
    let key = |endpoint: &Endpoint, address| (address, endpoint.mesh.as_ref().map(|mesh| mesh.address));
    let before: HashMap<_, _> =
        before.unwrap_or_default().iter().map(|state| (key(&state.endpoint, state.address), state)).collect();
    let mut came = false;
    let usable = all.iter().filter(|endpoint| endpoint.healthy && !endpoint.draining);
    let endpoints = usable.filter_map(|endpoint| {
        let address = SocketAddr::new(endpoint.address, endpoint.ports.get(target.port)?);
        let known = before.get(&key(endpoint, address)).copied();
        if let Some(state) = known.filter(|state| state.endpoint == *endpoint) {
            return Some(Arc::clone(state));
        }
        // Another weight or label does not make an ill endpoint healthy; another identity is another endpoint.
        let same = known.filter(|state| state.endpoint.mesh == endpoint.mesh);
        let health = same.map(|state| Arc::clone(&state.health));
        came |= health.is_none();
        let health = health.unwrap_or_else(|| Arc::new(Health::new(&shared.ejections)));
        Some(Arc::new(EndpointState::new(endpoint, address, health)))
    });
    let endpoints = endpoints.collect();
    (endpoints, came)
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
            ports: [(80, 8000)].into_iter().collect(),
            mesh: None,
            weight: 1,
            locality: Arc::default(),
            healthy: true,
            draining: false,
            workload: None,
        };
        let target = Target { service: ObjectName::new("a", "x"), port: 80 };
        let mut policy = LoadBalancing::default();
        let mut build = |policy: &LoadBalancing, endpoints: &[Endpoint]| {
            let backend = BackendPolicy { load_balancing: policy.clone(), ..BackendPolicy::default() };
            let port = ServicePort {
                port: 80,
                name: "".into(),
                protocol: Protocol::Http,
                routing: None,
                direct: Arc::default(),
                backend: Arc::new(backend),
            };
            let all = endpoints.iter().cloned().map(Arc::new).collect();
            let cluster = builder.cluster(&target, &port, &all);
            builder.clusters.insert(target.clone(), Built { all, cluster: Arc::clone(&cluster) });
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
