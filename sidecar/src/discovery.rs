//! The sidecar's side of discovery: one stream to the control plane, its state kept while the control plane is away,
//! and the snapshot that the workers read.

mod backoff;
pub mod state;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Streaming, transport::Channel};
use weft_policy::{
    balance::{Balancer, EndpointLoad},
    breaker::Breaker,
    limits::Limits,
    model::{BackendPolicy, Endpoint, Locality, ObjectName, ServicePort, Target},
    outlier::{Ejections, Health},
    retry::Budget,
};
use weft_proto::{
    ResourceType,
    core::Node,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    v1::Registration,
};
use weft_svid::{Svid, TrustStore};

pub use self::backoff::Backoff;
use self::state::State;
use crate::{
    app::worker::Clock,
    drain::Drain,
    identity::{self, renewal::Wishes},
    readiness::Readiness,
    snapshot::{Cluster, ClusterShared, EndpointState, Snapshot, SnapshotSender},
    state::keep::Saver,
    telemetry::{CircuitMetrics, Direction, Telemetry},
};

/// Names that the app may bring up by dialling them.
const ON_DEMAND: usize = 1024;
/// Requests that wait for the transport.
const OUTBOX: usize = 64;
/// A session that the control plane closes earlier than this is no hand-over to another one.
const SHORT: Duration = Duration::from_secs(10);
/// A control plane that has not sent anything new within this time has nothing new.
const SETTLED: Duration = Duration::from_secs(2);
/// The control plane has this long to hear that the sidecar leaves.
pub const LEAVE: Duration = Duration::from_secs(1);

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
    /// Told what is missing, and whether the control plane is there.
    pub readiness: Readiness,
    /// Which certificates the control plane wants renewed, for `identity`.
    pub wishes: watch::Sender<Wishes>,
    /// When the configuration that the state was restored from was last right; `None`: it is from the control plane, or
    /// there is none.
    pub from_disk: Option<SystemTime>,
    /// Keeps what is held; `None`: there is no state directory.
    pub saver: Option<Saver>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// What is held.
    pub state: State,
    /// Builds snapshots.
    pub builder: Builder,
    /// When to leave.
    pub drain: Drain,
    /// Waits between sessions.
    pub backoff: Backoff,
}

/// Why a session with the control plane ended.
#[derive(Debug)]
enum Ended {
    /// The control plane closed it in good order: it wants the sidecar to connect again, perhaps elsewhere.
    Closed,
    /// It failed, or never began.
    Failed(anyhow::Error),
    /// This sidecar stops.
    Stopped,
}

impl Discovery {
    /// Connects, follows and reconnects until the sidecar stops. What was restored is served at once.
    pub async fn run(mut self) {
        let drain = self.drain.clone();
        self.publish();
        loop {
            let start = Instant::now();
            let ended = match self.connect().await {
                Ok(channel) => self.follow(channel).await,
                Err(error) => Ended::Failed(error),
            };
            if matches!(ended, Ended::Stopped) {
                // What has changed since the last time is written before the process ends.
                self.save();
            }
            let Some(wait) = self.wait_after(&ended, start.elapsed(), rand::random()) else { return };
            self.save();
            if let Ended::Failed(error) = &ended {
                self.readiness.away(&format!("{error:#}"));
                tracing::warn!(error = format!("{error:#}"), ?wait, "discovery stream ended; what is held stays");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = drain.stopped() => return,
            }
        }
    }

    /// How long to wait before the next session; `None`: there is none.
    fn wait_after(&mut self, ended: &Ended, lived: Duration, random: f64) -> Option<Duration> {
        match ended {
            Ended::Stopped => None,
            // A control plane that ends each session at once must not be called in a loop.
            Ended::Closed if lived >= SHORT => Some(Duration::ZERO),
            Ended::Closed | Ended::Failed(_) => Some(self.backoff.next(random)),
        }
    }

    async fn connect(&mut self) -> anyhow::Result<Channel> {
        let svid = self.svid.wait_for(Option::is_some).await.ok().and_then(|svid| svid.clone());
        let svid = svid.context("no certificate")?;
        Ok(identity::channel(&self.xds, Some(&svid), &self.trust, svid.identity.id.trust_domain()).await?)
    }

    /// One session: the whole subscription first, then responses, new wishes and news of the workload as they come.
    async fn follow(&mut self, channel: Channel) -> Ended {
        let drain = self.drain.clone();
        // Most requests are tiny, and an answer to each response is all that the control plane waits for.
        let (sender, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(OUTBOX);
        for request in self.opening() {
            let _ = sender.try_send(request);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
        let opened = tokio::select! {
            opened = client.delta_aggregated_resources(ReceiverStream::new(receiver)) => opened,
            () = drain.stopped() => return Ended::Stopped,
        };
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return Ended::Failed(anyhow::anyhow!("{}", status.message())),
        };
        self.readiness.reached();
        let settled = tokio::time::sleep(SETTLED);
        tokio::pin!(settled);
        // Responses are read also while requests wait: two peers that both only write would wait for ever.
        let mut outbox = VecDeque::new();
        let mut wanted = Vec::new();
        loop {
            tokio::select! {
                slot = sender.reserve(), if !outbox.is_empty() => match (slot, outbox.pop_front()) {
                    (Ok(slot), Some(request)) => slot.send(request),
                    _ => return Ended::Failed(anyhow::anyhow!("the control plane takes no more requests")),
                },
                response = stream.next() => match response {
                    Some(Ok(response)) => {
                        self.backoff.reset();
                        self.confirmed();
                        outbox.extend(self.on_response(response));
                    }
                    Some(Err(status)) => return Ended::Failed(anyhow::anyhow!("{}", status.message())),
                    None => return Ended::Closed,
                },
                1.. = self.demand.recv_many(&mut wanted, OUTBOX), if outbox.len() < OUTBOX => {
                    let room = ON_DEMAND.saturating_sub(self.state.subscribed());
                    outbox.extend(self.state.want(wanted.drain(..).take(room)));
                    self.changed();
                }
                () = &mut settled, if self.from_disk.is_some() => self.confirmed(),
                () = save_due(self.saver.as_ref()), if self.from_disk.is_none() => {
                    self.changed();
                    self.save();
                }
                Ok(()) = self.registration.changed() => outbox.push_back(self.news()),
                () = drain.stopped() => break,
            }
        }
        outbox.push_back(self.news());
        let _ = tokio::time::timeout(LEAVE, leave(sender, outbox, stream)).await;
        Ended::Stopped
    }

    /// The first requests of a session.
    fn opening(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = self.state.open();
        if let Some(first) = requests.first_mut() {
            let id = self.state.workload().to_owned();
            first.node = Some(Node { id, user_agent_name: "weft-sidecar".into(), ..Node::default() });
            first.registration = Some(self.registration.borrow_and_update().clone());
        }
        requests
    }

    /// What the workload is now.
    fn news(&mut self) -> DeltaDiscoveryRequest {
        let registration = Some(self.registration.borrow_and_update().clone());
        let type_url = ResourceType::WorkloadConfig.type_url().into();
        DeltaDiscoveryRequest { type_url, registration, ..DeltaDiscoveryRequest::default() }
    }

    /// Applies and publishes before the answer: an ACK means that requests see it. What new versions refer to is asked
    /// for first, so that the control plane does not remove anything before it has sent that (rule 7).
    fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        let answer = self.state.apply(response);
        self.changed();
        self.count(&answer);
        let mut requests = self.state.follow_references();
        requests.push(answer);
        self.publish();
        requests
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
        for (domain, bundle) in self.state.take_trust_changes() {
            match bundle {
                None => {
                    self.trust.withdraw(&domain);
                    self.wishes.send_if_modified(|wishes| wishes.remove(&domain).is_some());
                }
                Some(bundle) => {
                    let wish = bundle.renew_issued_before;
                    self.wishes.send_if_modified(|wishes| wishes.insert(domain.clone(), wish) != Some(wish));
                    if let Err(error) = self.trust.set(&domain, &bundle.roots, &bundle.revocations) {
                        tracing::warn!(domain, %error, "trust bundle refused");
                    }
                }
            }
        }
        let snapshot = self.builder.build(&mut self.state, &self.namespace);
        self.publish.send_replace(Arc::new(snapshot));
        self.readiness.configuration(self.state.missing());
        self.show_source();
    }

    /// The control plane is there: what it does not send now is as it should be.
    fn confirmed(&mut self) {
        if self.from_disk.take().is_some() {
            tracing::info!("the control plane is back: the configuration is its own again");
            self.show_source();
        }
    }

    fn show_source(&self) {
        self.readiness.from_disk(self.from_disk);
        let help = "1 while the configuration is the one from the state directory";
        let value = if self.from_disk.is_some() { 1.0 } else { 0.0 };
        self.telemetry.gauge("weft_config_from_disk", help, &[]).set(value);
    }

    fn changed(&mut self) {
        if let Some(saver) = &mut self.saver {
            saver.changed();
        }
    }

    /// Has what is held kept, if it has changed since the last time and came from the control plane.
    fn save(&mut self) {
        let svid = self.svid.borrow().clone();
        if let (Some(saver), Some(svid)) = (&mut self.saver, svid)
            && saver.is_dirty()
        {
            saver.offer(self.state.stored(&svid.identity.id), SystemTime::now());
        }
    }
}

/// Returns when the state is to be saved; never without a state directory.
async fn save_due(saver: Option<&Saver>) {
    match saver {
        Some(saver) => saver.due().await,
        None => std::future::pending().await,
    }
}

/// Sends what is still to be said, the draining registration last, closes our side and waits until the control plane has
/// taken it.
async fn leave(
    sender: mpsc::Sender<DeltaDiscoveryRequest>,
    outbox: VecDeque<DeltaDiscoveryRequest>,
    mut stream: Streaming<DeltaDiscoveryResponse>,
) {
    let write = async {
        for request in outbox {
            if sender.send(request).await.is_err() {
                return;
            }
        }
        drop(sender);
    };
    let read = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::join!(write, read);
}

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
}

impl Builder {
    /// With nothing built yet.
    #[must_use]
    pub fn new(telemetry: Telemetry, own: Locality, clock: Clock) -> Self {
        let (clusters, shared, endpoints) = Default::default();
        Self { telemetry, own, clock, clusters, shared, endpoints }
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
            for ip in &service.virtual_ips {
                snapshot.hosts.entry(ip.to_string().into()).or_insert_with(|| service.id.clone());
            }
            for port in &service.ports {
                let target = Target { service: service.id.clone(), port: port.port };
                let cluster = self.cluster(&target, port, state.endpoints(&service.id), &mut kept);
                snapshot.clusters.insert(target, cluster);
            }
            snapshot.services.insert(service.id.clone(), service);
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
        if let Some(cluster) = previous
            && cluster.policy == port.backend
            && cluster.protocol == port.protocol
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
        shared.circuit.endpoints_changed();
        let policy = Arc::clone(&port.backend);
        Arc::new(Cluster {
            target: target.clone(),
            protocol: port.protocol,
            endpoints: endpoints.into(),
            balancer,
            policy,
            shared,
        })
    }

    /// What outlives the snapshot, with the ceilings that the policy has now.
    fn shared(&mut self, target: &Target, policy: &BackendPolicy) -> Arc<ClusterShared> {
        let telemetry = &self.telemetry;
        let shared = self.shared.entry(target.clone()).or_insert_with(|| {
            let label = format!("{}:{}", target.service, target.port);
            let ejections = Arc::new(Ejections::default());
            Arc::new(ClusterShared {
                limits: Limits::default(),
                budget: Budget::default(),
                breaker: Arc::new(Breaker::default()),
                circuit: CircuitMetrics::new(telemetry, &label, &ejections),
                ejections,
                http: [false, true].map(|mtls| telemetry.http(Direction::Outbound, &label, mtls)),
                tcp: [false, true].map(|mtls| telemetry.tcp(Direction::Outbound, &label, mtls)),
            })
        });
        shared.limits.set(&policy.limits);
        shared.budget.set(&policy.retry_budget);
        Arc::clone(shared)
    }
}

#[cfg(test)]
mod tests;
