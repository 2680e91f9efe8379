//! One sidecar as far as discovery goes: the sidecar's own state machine, TLS and back-off around one stream, and a word
//! to the bench about each generation of the service that all use. It proxies nothing and builds no snapshot.

use std::{net::IpAddr, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use weft_policy::model::ObjectName;
use weft_proto::{
    core::Node,
    discovery::{DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient},
    v1::{Protocol, Registration, WorkloadPort},
};
use weft_sidecar::{
    discovery::{Backoff, state::State},
    identity,
};
use weft_svid::{Svid, TrustStore};

use crate::{
    Args, IDENTITIES,
    plane::{COMMON, NAMESPACE, service},
};

/// Length prefix of a gRPC message.
const GRPC_FRAME: usize = 5;

/// A sidecar holds everything that it uses, and this generation of the common service.
pub struct Received {
    /// Which one.
    pub generation: u16,
    /// When its last message had been read.
    pub at: Instant,
    /// When the answer had been handed to the transport.
    pub acked: Instant,
    /// Bytes of messages since the one before, before TLS and HTTP/2.
    pub bytes: usize,
}

/// One sidecar.
pub struct Client {
    xds: String,
    svid: Arc<Svid>,
    trust: TrustStore,
    state: State,
    backoff: Backoff,
    random: SmallRng,
    registration: Registration,
    common: ObjectName,
    /// Everything declared has arrived once.
    ready: bool,
    generation: Option<u16>,
    bytes: usize,
}

/// The service account of an identity.
pub fn account(number: usize) -> String {
    format!("caller-{number}")
}

impl Client {
    /// Each registers as a workload of its own, ten of them make a service, and uses services that depend on its number.
    pub fn new(number: usize, args: &Args, xds: String, svid: Arc<Svid>, trust: TrustStore) -> Self {
        let mut random = SmallRng::seed_from_u64(u64::try_from(number).unwrap_or(0));
        let mut used = vec![COMMON.to_owned()];
        used.extend((0..args.used).map(|_| service(random.random_range(0..args.services))));
        let parse = |name: &String| ObjectName::parse(&format!("{NAMESPACE}/{name}"));
        let name = format!("caller-{number:04}");
        let port = WorkloadPort { port: 8080, name: "http".into(), protocol: Protocol::Http.into(), undeclared: false };
        let registration = Registration {
            namespace: NAMESPACE.into(),
            labels: [("app".to_owned(), format!("callers-{}", number / 10))].into(),
            address: "127.0.0.1".into(),
            mesh_address: "127.0.0.1:15008".into(),
            ports: vec![port],
            healthy: true,
            epoch_ms: 1,
            service_account: account(number % IDENTITIES),
            name: name.clone(),
            ..Registration::default()
        };
        Self {
            xds,
            svid,
            trust,
            state: State::new(&format!("{NAMESPACE}/{name}"), used.iter().filter_map(parse)),
            backoff: Backoff::default(),
            random,
            registration,
            common: parse(&used[0]).expect("a valid name"),
            ready: false,
            generation: None,
            bytes: 0,
        }
    }

    /// Connects again and again, as a sidecar does, until nobody listens any more.
    pub async fn run(mut self, received: mpsc::Sender<Received>) {
        while !received.is_closed() {
            // Why it ended is the same for all: the control plane is away, or not ready for another one.
            let _ = self.session(&received).await;
            tokio::time::sleep(self.backoff.next(self.random.random())).await;
        }
    }

    async fn session(&mut self, received: &mpsc::Sender<Received>) -> Result<()> {
        let domain = self.svid.identity.id.trust_domain();
        let channel = identity::channel(&self.xds, Some(&self.svid), &self.trust, domain).await?;
        let (sender, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(64);
        for request in self.opening() {
            sender.try_send(request)?;
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let mut responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        while let Some(response) = responses.next().await {
            let (response, at) = (response?, Instant::now());
            self.backoff.reset();
            self.bytes += response.encoded_len() + GRPC_FRAME;
            let answer = self.state.apply(response);
            if let Some(error) = &answer.error_detail {
                eprintln!("refused: {}", error.message);
            }
            for request in self.state.follow_references() {
                sender.send(request).await?;
            }
            sender.send(answer).await?;
            if let Some(generation) = self.news() {
                let bytes = std::mem::take(&mut self.bytes);
                received.send(Received { generation, at, acked: Instant::now(), bytes }).await?;
            }
        }
        Ok(())
    }

    fn opening(&self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = self.state.open();
        if let Some(first) = requests.first_mut() {
            first.node = Some(Node { id: self.state.workload().to_owned(), ..Node::default() });
            first.registration = Some(self.registration.clone());
        }
        requests
    }

    /// The generation, when it is another one than before.
    fn news(&mut self) -> Option<u16> {
        if !self.ready {
            self.state.usable();
            self.ready = self.state.missing().is_empty();
        }
        let generation = generation(self.state.endpoints(&self.common).first()?.address).ok()?;
        if !self.ready || self.generation.replace(generation) == Some(generation) {
            return None;
        }
        Some(generation)
    }
}

/// The first endpoint's address carries it.
fn generation(address: IpAddr) -> Result<u16> {
    let IpAddr::V4(address) = address else { anyhow::bail!("not an address of the bench") };
    let [_, _, high, low] = address.octets();
    Some(u16::from_be_bytes([high, low])).context("generation")
}
