//! The gRPC side of discovery: one task per stream around [`StreamState`].

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::{
    ResourceType,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    v1::Registration,
};
use weft_svid::PeerIdentity;

use super::{
    Reflected, View,
    admission::Admission,
    limits,
    proxies::{Proxies, Proxy},
    stream::StreamState,
};
use crate::{
    ca::{Presented, Revocations, enrolment::attested::Attested, service::PeerInfo},
    metrics::Metrics,
    registry::{Lease, Registry},
};

/// A stream ends after this time, 10 % more or less, so that sidecars spread over replicas.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// How long the registration of a stream that we ended is kept: its sidecar comes back at once, and may have to wait
/// to be let in.
const HAND_OVER: Duration = Duration::from_secs(15);
/// The same for a stream that broke: its sidecar may be gone, but a short break of the network must not empty services.
const BROKEN: Duration = Duration::from_secs(3);
/// A peer has this long to take the status with which its stream ends.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Streams on one connection; a sidecar uses one.
const STREAMS: u32 = 8;
/// What a peer is told whose certificate is revoked.
const REVOKED: &str = "the certificate is revoked: a new one needs a token";
/// PING after this much silence, and how long its answer may take: together a dead peer is noticed within 20 s (rule 11).
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The HTTP/2 side of the discovery port.
#[must_use]
pub fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .max_concurrent_streams(STREAMS)
}

/// The service.
pub struct Discovery {
    view: watch::Receiver<Arc<View>>,
    registry: Registry,
    proxies: Proxies,
    admission: Admission,
    /// Streams that make a response at the same moment. Bounded so that a change for everybody does not keep requests,
    /// handshakes and the API waiting behind all the streams; nobody holds a turn while its peer is slow.
    turns: Arc<Semaphore>,
    revocations: watch::Receiver<Arc<Revocations>>,
    stopping: watch::Receiver<bool>,
    streams: AtomicU64,
    metrics: Metrics,
}

impl Discovery {
    /// Pushes `view`, lets `rate` new streams per second in, and ends all of them when `stopping` becomes true, those of
    /// a certificate when `revocations` cover it.
    #[must_use]
    pub fn new(
        view: watch::Receiver<Arc<View>>,
        registry: Registry,
        proxies: Proxies,
        rate: NonZeroU32,
        revocations: watch::Receiver<Arc<Revocations>>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let turns = 2 * std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            view,
            registry,
            proxies,
            admission: Admission::new(rate),
            turns: Arc::new(Semaphore::new(turns)),
            revocations,
            stopping,
            streams: AtomicU64::new(1),
            metrics: Metrics::default(),
        }
    }

    /// Tells these metrics what it does.
    #[must_use]
    pub fn measured(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// As a gRPC service, with its limit on the size of requests.
    #[must_use]
    pub fn service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(limits::REQUEST)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let (peer, presented, attested, address) = match info {
            Some(PeerInfo { identity: Some(identity), presented, attested, address }) => {
                (identity, presented, attested, address.to_string())
            }
            _ => return Err(Status::unauthenticated("discovery needs a client certificate: enrol first")),
        };
        self.admission.admit().await.map_err(|busy| {
            self.metrics.stream_refused();
            Status::unavailable(busy.to_string())
        })?;
        // One response waits for the transport at most; its bytes are shared with all other streams.
        let (sender, receiver) = mpsc::channel(1);
        let namespace = peer.id.namespace_and_account().map_or("", |(namespace, _)| namespace);
        let stream = Connected {
            id: self.streams.fetch_add(1, Relaxed),
            state: StreamState::of_namespace(namespace),
            view: self.view.clone(),
            registry: self.registry.clone(),
            proxies: self.proxies.clone(),
            turns: Arc::clone(&self.turns),
            revocations: self.revocations.clone(),
            stopping: self.stopping.clone(),
            peer,
            presented,
            attested,
            address,
            lease: None,
            registration: Registration::default(),
            connected: Instant::now(),
            reflected: Reflected::default(),
            opened: false,
            listed: false,
            sent: BTreeMap::new(),
            metrics: self.metrics.clone(),
        };
        tokio::spawn(stream.run(request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Connected {
    id: u64,
    state: StreamState,
    view: watch::Receiver<Arc<View>>,
    registry: Registry,
    proxies: Proxies,
    turns: Arc<Semaphore>,
    revocations: watch::Receiver<Arc<Revocations>>,
    stopping: watch::Receiver<bool>,
    peer: PeerIdentity,
    presented: Option<Arc<Presented>>,
    attested: Attested,
    address: String,
    lease: Option<Lease>,
    registration: Registration,
    connected: Instant,
    /// The newest view that it has answered all of.
    reflected: Reflected,
    /// The first request has come.
    opened: bool,
    /// The list of sidecars has it as it last described itself.
    listed: bool,
    /// When the response of each type was sent that is not answered yet.
    sent: BTreeMap<ResourceType, Instant>,
    metrics: Metrics,
}

type Sender = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;
type Slot = mpsc::OwnedPermit<Result<DeltaDiscoveryResponse, Status>>;

/// Returns when the process is to end.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // Without a sender it never is.
    if stopping.wait_for(|stopping| *stopping).await.is_err() {
        std::future::pending().await
    }
}

/// Returns when something may be revoked that was not.
async fn changed(revocations: &mut watch::Receiver<Arc<Revocations>>) {
    if revocations.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Why a stream ends.
enum End {
    /// Its time is over.
    Aged,
    /// The connection broke, or the peer reset the stream.
    Broken,
    /// The peer closed its side.
    Left,
    /// We end it with this.
    Status(Status),
}

impl Connected {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>, sender: Sender) {
        match self.serve(&mut requests, &sender).await {
            // A clean end tells the sidecar to come back at once. Meanwhile it is still there.
            End::Aged => {
                drop((requests, sender));
                tokio::time::sleep(HAND_OVER).await;
            }
            End::Broken => {
                self.proxies.remove(self.id);
                if !self.registration.draining {
                    tokio::time::sleep(BROKEN).await;
                }
            }
            End::Left => {}
            End::Status(status) => _ = timeout(LAST_WORD, sender.send(Err(status))).await,
        }
        self.proxies.remove(self.id);
        tracing::info!(peer = %self.peer.id, "sidecar disconnected");
    }

    async fn serve(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>, sender: &Sender) -> End {
        // Not the certificate's end: what the peer proved at the start holds for the stream's bounded life, and a
        // short-lived certificate must not make its stream short-lived.
        let age = tokio::time::sleep(MAX_AGE.mul_f64(0.9 + 0.2 * rand::random::<f64>()));
        tokio::pin!(age);
        // At most one push is pending, whatever has changed (rule 9); requests are read while it waits for its slot.
        let mut pending = false;
        loop {
            if self.is_revoked() {
                return End::Status(Status::permission_denied(REVOKED));
            }
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = self.on_request(request) {
                            return End::Status(status);
                        }
                        pending = true;
                        // The push is next, unless the peer is slow.
                        if sender.capacity() > 0 {
                            continue;
                        }
                    }
                    Some(Err(_)) => return End::Broken,
                    None => return End::Left,
                },
                changed = self.view.changed(), if !pending => {
                    if changed.is_err() {
                        return End::Aged;
                    }
                    pending = true;
                    continue;
                }
                slot = sender.clone().reserve_owned(), if pending => {
                    let Ok(slot) = slot else { return End::Broken };
                    pending = self.push(slot).await;
                }
                () = changed(&mut self.revocations) => {}
                () = stopped(&mut self.stopping) => {
                    return End::Status(Status::unavailable("the control plane is stopping: connect again"));
                }
                () = &mut age => return End::Aged,
            }
            self.report();
        }
    }

    /// Whether the certificate is revoked with which it came, or the one that it says it has now.
    fn is_revoked(&self) -> bool {
        let end = i64::try_from(self.registration.certificate_end_ms / 1000).ok();
        let covered = |presented: &Arc<Presented>| self.revocations.borrow().cover(&self.peer.id, presented, end);
        self.presented.as_ref().is_some_and(covered)
    }

    /// Sends what is due by the newest view; false when nothing is.
    async fn push(&mut self, slot: Slot) -> bool {
        let waiting = self.metrics.waits();
        let _turn = self.turns.acquire().await;
        drop(waiting);
        let view = Arc::clone(&self.view.borrow_and_update());
        let Some(response) = self.state.next(&view) else {
            if self.state.is_settled(&view) {
                self.reflected = Reflected { view: view.revision, store: view.store_revision };
            }
            return false;
        };
        if let Some(kind) = ResourceType::from_type_url(&response.type_url) {
            self.metrics.pushed(kind);
            self.sent.insert(kind, Instant::now());
        }
        slot.send(Ok(response));
        true
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if !std::mem::replace(&mut self.opened, true) && request.node.is_none() {
            return Err(Status::invalid_argument("node is required on the first request of a stream"));
        }
        limits::check(&request).map_err(Status::resource_exhausted)?;
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            let type_url = limits::text(request.type_url);
            return Err(Status::invalid_argument(format!("type_url {type_url:?} is not known here")));
        };
        if let Some(registration) = request.registration.clone() {
            self.register(registration)?;
        }
        if self.state.subscriptions() + request.resource_names_subscribe.len() > limits::SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!("more than {} subscribed names", limits::SUBSCRIPTIONS)));
        }
        let subscribes = !request.resource_names_subscribe.is_empty() || !request.resource_names_unsubscribe.is_empty();
        if !request.response_nonce.is_empty() {
            let took = self.sent.remove(&kind).map(|sent| sent.elapsed());
            self.metrics.answered(kind, took, request.error_detail.is_some());
        }
        self.listed &= kind != ResourceType::Service || !subscribes;
        self.state.on_request(kind, request);
        Ok(())
    }

    fn register(&mut self, registration: Registration) -> Result<(), Status> {
        let result = match &self.lease {
            Some(lease) => lease.update(registration.clone()),
            None => self.registry.register(registration.clone(), &self.peer.id, &self.attested).map(|lease| {
                tracing::info!(peer = %self.peer.id, workload = lease.id(), "sidecar connected");
                self.state.set_workload(lease.id());
                self.lease = Some(lease);
            }),
        };
        result.map_err(Status::permission_denied)?;
        self.registration = registration;
        self.listed = false;
        Ok(())
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.listed, true) {
            return self.proxies.synced(self.id, self.state.status(), self.reflected);
        }
        let proxy = Proxy {
            peer: self.peer.clone(),
            presented: self.presented.clone(),
            address: self.address.clone(),
            connected: self.connected,
            registration: self.registration.clone(),
            services: self.state.services(),
            types: self.state.status(),
            reflected: self.reflected,
        };
        self.proxies.set(self.id, proxy);
    }
}

#[cfg(test)]
mod tests;
