//! The sidecar's side of discovery: one stream to the control plane, its state kept while the control plane is away,
//! and the snapshot that the workers read.

pub mod state;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use weft_policy::{
    balance::EndpointLoad,
    limits::Limits,
    model::{Endpoint, ObjectName, Target},
    retry::Budget,
};
use weft_proto::{
    ResourceType,
    core::Node,
    discovery::{DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient},
    v1::Registration,
};
use weft_svid::{Svid, TrustStore};

use self::state::State;
use crate::{
    identity,
    snapshot::{Cluster, ClusterShared, EndpointState, Snapshot, SnapshotSender},
    telemetry::{Direction, Telemetry},
};

/// Names that the app may bring up by dialling them.
const ON_DEMAND: usize = 1024;

/// Asks for a service that nobody declared.
#[derive(Clone)]
pub struct Demand(mpsc::Sender<ObjectName>);

impl Demand {
    /// Wants a service; the snapshot will have it, or say that there is none.
    pub fn want(&self, name: &ObjectName) {
        // A full queue loses nothing: the caller waits for the snapshot and the app will ask again.
        let _ = self.0.try_send(name.clone());
    }
}

/// A demand and the end that discovery reads.
#[must_use]
pub fn demand() -> (Demand, mpsc::Receiver<ObjectName>) {
    let (sender, receiver) = mpsc::channel(256);
    (Demand(sender), receiver)
}

/// The parts of discovery.
pub struct Discovery {
    /// `host:port` of the control plane.
    pub xds: String,
    /// Namespace of the workload, for short host names.
    pub namespace: String,
    /// Current certificate, for the stream.
    pub svid: watch::Receiver<Option<Arc<Svid>>>,
    /// Roots, updated by trust bundles.
    pub trust: TrustStore,
    /// What to say of the workload.
    pub registration: watch::Receiver<Registration>,
    /// Services that the app dials.
    pub demand: mpsc::Receiver<ObjectName>,
    /// Where snapshots go.
    pub publish: SnapshotSender,
    /// What readiness still waits for.
    pub missing: watch::Sender<Vec<String>>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// What is held.
    pub state: State,
    /// Builds snapshots.
    pub builder: Builder,
}

impl Discovery {
    /// Runs for ever: connects, follows, reconnects with jitter.
    pub async fn run(mut self) {
        let mut wait = Duration::from_millis(100);
        loop {
            match self.session().await {
                Ok(()) => wait = Duration::from_millis(100),
                Err((error, answered)) => {
                    if answered {
                        wait = Duration::from_millis(100);
                    }
                    tracing::warn!(error = format!("{error:#}"), "discovery stream ended; what is held stays");
                }
            }
            // Decorrelated jitter, 0.1 to 15 s.
            let random = 0.1 + rand::random::<f64>() * (wait.as_secs_f64() * 3.0 - 0.1).max(0.0);
            wait = Duration::from_secs_f64(random.min(15.0));
            tokio::time::sleep(wait).await;
        }
    }

    async fn session(&mut self) -> Result<(), (anyhow::Error, bool)> {
        let _ = self.svid.wait_for(Option::is_some).await;
        let Some(svid) = self.svid.borrow_and_update().clone() else { return Ok(()) };
        let early = |error: anyhow::Error| (error, false);
        let domain = svid.identity.id.trust_domain().to_owned();
        let channel = identity::channel(&self.xds, Some(&svid), &self.trust, &domain).await.map_err(early)?;
        let (sender, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(64);
        for (index, mut request) in self.state.open().into_iter().enumerate() {
            if index == 0 {
                let id = self.state.workload().to_owned();
                request.node = Some(Node { id, user_agent_name: "weft-sidecar".into(), ..Node::default() });
                request.registration = Some(self.registration.borrow_and_update().clone());
            }
            let _ = sender.send(request).await;
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
        let stream = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await;
        let mut stream = stream.map_err(|status| early(anyhow::anyhow!("{}", status.message())))?.into_inner();
        let mut answered = false;
        loop {
            let requests = tokio::select! {
                response = stream.next() => match response {
                    Some(Ok(response)) => {
                        answered = true;
                        let answer = self.state.apply(response);
                        self.count(&answer);
                        std::iter::once(answer).chain(self.state.follow_references()).collect()
                    }
                    Some(Err(status)) => return Err((anyhow::anyhow!("{}", status.message()), answered)),
                    None => return Err((anyhow::anyhow!("the control plane closed the stream"), answered)),
                },
                Some(name) = self.demand.recv() => {
                    if self.state.subscribed() < ON_DEMAND { self.state.want(&name) } else { Vec::new() }
                }
                Ok(()) = self.registration.changed() => {
                    let registration = Some(self.registration.borrow_and_update().clone());
                    let type_url = ResourceType::WorkloadConfig.type_url().into();
                    vec![DeltaDiscoveryRequest { type_url, registration, ..DeltaDiscoveryRequest::default() }]
                }
            };
            // Applied and published before the answer: an ACK means that requests see it.
            self.publish();
            for request in requests {
                if sender.send(request).await.is_err() {
                    return Err((anyhow::anyhow!("the control plane closed the stream"), answered));
                }
            }
        }
    }

    fn count(&self, answer: &DeltaDiscoveryRequest) {
        let kind = ResourceType::from_type_url(&answer.type_url).map_or("other", ResourceType::name);
        let result = if answer.error_detail.is_some() { "rejected" } else { "accepted" };
        let labels = [("type", kind), ("result", result)];
        self.telemetry.counter("weft_config_updates_total", "Configuration updates", &labels).increment(1);
        if let Some(error) = &answer.error_detail {
            tracing::warn!(kind, error = error.message, "configuration refused; what is held stays");
        }
    }

    fn publish(&mut self) {
        if let Some(bundle) = self.state.take_bundle()
            && let Err(error) = self.trust.set(&bundle.trust_domain, &bundle.roots)
        {
            tracing::warn!(%error, "trust bundle refused");
        }
        let snapshot = self.builder.build(&mut self.state, &self.namespace);
        self.publish.send_replace(Arc::new(snapshot));
        self.missing.send_replace(self.state.missing());
    }
}

/// Keeps what outlives a snapshot.
pub struct Builder {
    telemetry: Telemetry,
    shared: HashMap<Target, Arc<ClusterShared>>,
    endpoints: HashMap<(Target, SocketAddr, Option<SocketAddr>), Arc<EndpointState>>,
}

impl Builder {
    /// With nothing built yet.
    #[must_use]
    pub fn new(telemetry: Telemetry) -> Self {
        Self { telemetry, shared: HashMap::new(), endpoints: HashMap::new() }
    }

    /// The snapshot of what is held and may be used.
    pub fn build(&mut self, state: &mut State, namespace: &str) -> Snapshot {
        let services = state.usable();
        let mut snapshot =
            Snapshot { absent: state.absent(), workload: state.workload_config(), ..Snapshot::default() };
        let mut kept = HashMap::new();
        for service in services {
            for host in &service.hostnames {
                snapshot.hosts.entry(host.clone()).or_insert_with(|| service.id.clone());
            }
            if service.id.namespace() == namespace {
                snapshot.hosts.insert(service.id.name().into(), service.id.clone());
            }
            for port in &service.ports {
                let target = Target { service: service.id.clone(), port: port.port };
                let cluster = self.cluster(&target, state.endpoints(&service.id), &mut kept);
                snapshot.clusters.insert(target, Arc::new(cluster));
            }
            snapshot.services.insert(service.id.clone(), service);
        }
        self.endpoints = kept;
        self.shared.retain(|target, _| snapshot.clusters.contains_key(target));
        snapshot
    }

    fn cluster(
        &mut self,
        target: &Target,
        all: &[Endpoint],
        kept: &mut HashMap<(Target, SocketAddr, Option<SocketAddr>), Arc<EndpointState>>,
    ) -> Cluster {
        let mut endpoints = Vec::new();
        for endpoint in all.iter().filter(|endpoint| endpoint.healthy && !endpoint.draining) {
            let Some(&port) = endpoint.ports.get(&target.port) else { continue };
            let address = SocketAddr::new(endpoint.address, port);
            let key = (target.clone(), address, endpoint.mesh.as_ref().map(|mesh| mesh.address));
            let state = match self.endpoints.get(&key) {
                Some(state) if state.endpoint == *endpoint => Arc::clone(state),
                _ => Arc::new(EndpointState { endpoint: endpoint.clone(), address, load: EndpointLoad::default() }),
            };
            kept.insert(key, Arc::clone(&state));
            endpoints.push(state);
        }
        let telemetry = &self.telemetry;
        let shared = self.shared.entry(target.clone()).or_insert_with(|| {
            let label = format!("{}:{}", target.service, target.port);
            Arc::new(ClusterShared {
                limits: Limits::default(),
                budget: Budget::default(),
                http: [false, true].map(|mtls| telemetry.http(Direction::Outbound, &label, mtls)),
                tcp: [false, true].map(|mtls| telemetry.tcp(Direction::Outbound, &label, mtls)),
            })
        });
        Cluster { target: target.clone(), endpoints: endpoints.into(), shared: Arc::clone(shared) }
    }
}
