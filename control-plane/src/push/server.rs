//! The gRPC side of discovery: one task per stream around [`StreamState`].

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::{
    ResourceType,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    v1::Registration,
};
use weft_svid::PeerIdentity;

use super::{
    View,
    stream::{StreamState, TypeStatus},
};
use crate::{
    ca::service::PeerInfo,
    registry::{Lease, Registry},
};

/// A burst of changes is pushed as one when they come closer than this.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A stream ends after this time, so that sidecars spread over replicas.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// Names that one stream may subscribe to.
const MAX_SUBSCRIPTIONS: usize = 20_000;
/// How long the lease of a stream that we ended is kept.
const HAND_OVER: Duration = Duration::from_secs(5);

/// What is known of a connected sidecar.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Identity and how long it lasts.
    pub peer: PeerIdentity,
    /// Where it connects from.
    pub address: String,
    /// Since when.
    pub connected: Instant,
    /// What it says of its workload.
    pub registration: Registration,
    /// Sync state by type.
    pub types: Vec<TypeStatus>,
}

/// All connected sidecars, by stream.
pub type Proxies = Arc<Mutex<BTreeMap<u64, Proxy>>>;

/// The service.
pub struct Discovery {
    /// What is to be pushed.
    pub view: watch::Receiver<Arc<View>>,
    /// Registrations.
    pub registry: Registry,
    /// Sync state, for the API.
    pub proxies: Proxies,
    /// Numbers the streams.
    pub streams: AtomicU64,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let (peer, address) = match info {
            Some(PeerInfo { identity: Some(identity), address }) => (identity, address.to_string()),
            _ => return Err(Status::unauthenticated("discovery needs a client certificate: enrol first")),
        };
        let (sender, receiver) = mpsc::channel(4);
        let stream = Connected {
            id: self.streams.fetch_add(1, Relaxed),
            state: StreamState::default(),
            view: self.view.clone(),
            registry: self.registry.clone(),
            proxies: Arc::clone(&self.proxies),
            peer,
            address,
            lease: None,
            registration: Registration::default(),
            connected: Instant::now(),
            sender,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Connected {
    id: u64,
    state: StreamState,
    view: watch::Receiver<Arc<View>>,
    registry: Registry,
    proxies: Proxies,
    peer: PeerIdentity,
    address: String,
    lease: Option<Lease>,
    registration: Registration,
    connected: Instant,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Connected {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let id = self.id;
        let proxies = Arc::clone(&self.proxies);
        if let Err(status) = self.serve(&mut requests).await {
            let _ = self.sender.send(Err(status)).await;
        }
        proxies.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        tracing::info!(peer = %self.peer.id, "sidecar disconnected");
    }

    async fn serve(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        // Not the certificate's end: a stream that ends takes the registration with it, and a short-lived certificate
        // would make the endpoint flap. What the peer proved at the start holds for the stream's bounded life.
        let end = tokio::time::Instant::now() + MAX_AGE;
        let mut first = true;
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.on_request(request, &mut first)?,
                    Some(Err(_)) | None => return Ok(()),
                },
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep(DEBOUNCE).await;
                }
                () = tokio::time::sleep_until(end) => return self.hand_over().await,
            }
            let view = Arc::clone(&self.view.borrow_and_update());
            while let Some(response) = self.state.next(&view) {
                if self.sender.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            self.report();
        }
    }

    /// Ends an old stream without its endpoint flapping: the lease is kept until the sidecar is back on a new one.
    async fn hand_over(&mut self) -> Result<(), Status> {
        let (closed, _) = mpsc::channel(1);
        self.sender = closed;
        tokio::time::sleep(HAND_OVER).await;
        Ok(())
    }

    fn on_request(&mut self, request: DeltaDiscoveryRequest, first: &mut bool) -> Result<(), Status> {
        if std::mem::take(first) && request.node.is_none() {
            return Err(Status::invalid_argument("node is required on the first request of a stream"));
        }
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return Err(Status::invalid_argument(format!("type_url {:?} is not known here", request.type_url)));
        };
        if let Some(registration) = request.registration.clone() {
            self.register(registration)?;
        }
        if self.state.subscriptions() + request.resource_names_subscribe.len() > MAX_SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!("more than {MAX_SUBSCRIPTIONS} subscribed names")));
        }
        self.state.on_request(kind, request);
        Ok(())
    }

    fn register(&mut self, registration: Registration) -> Result<(), Status> {
        self.registration = registration.clone();
        let result = match &self.lease {
            Some(lease) => lease.update(registration),
            None => self.registry.register(registration, &self.peer.id).map(|lease| {
                tracing::info!(peer = %self.peer.id, workload = lease.id(), "sidecar connected");
                self.state.set_workload(lease.id());
                self.lease = Some(lease);
            }),
        };
        result.map_err(Status::permission_denied)
    }

    fn report(&self) {
        let proxy = Proxy {
            peer: self.peer.clone(),
            address: self.address.clone(),
            connected: self.connected,
            registration: self.registration.clone(),
            types: self.state.status(),
        };
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id, proxy);
    }
}

/// Seconds until a certificate ends; negative when it has.
#[must_use]
pub fn seconds_left(not_after: SystemTime) -> i64 {
    let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    i64::try_from(unix(not_after)).unwrap_or(i64::MAX) - i64::try_from(unix(SystemTime::now())).unwrap_or(0)
}
