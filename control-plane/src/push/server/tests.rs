//! The server's rules that need a connection: real HTTP/2 over memory, with time that jumps when nothing else happens.

use std::time::SystemTime;

use tokio::io::DuplexStream;
use tonic::{Code, transport::Channel};
use weft_policy::SpiffeId;
use weft_proto::{
    core::Node, discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client,
};

use super::*;
use crate::{
    app::incoming::PeerStream,
    compile::{Compiled, Output},
};

const SERVICE: ResourceType = ResourceType::Service;
/// What takes longer, in the tests' own time, does not happen at all.
const LIMIT: Duration = Duration::from_secs(120);

/// What happens to all connections.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Wire {
    Carries,
    /// They end.
    Breaks,
    /// Nothing crosses any more, and nobody is told.
    Swallows,
}

/// A server in memory.
struct Server {
    view: watch::Sender<Arc<View>>,
    registry: Registry,
    proxies: Proxies,
    stopping: watch::Sender<bool>,
    incoming: mpsc::Sender<std::io::Result<PeerStream<DuplexStream>>>,
    wire: watch::Sender<Wire>,
}

impl Server {
    fn new(rate: u32) -> Self {
        let (view, stopping) = (watch::Sender::new(Arc::new(View::default())), watch::Sender::new(false));
        let (registry, proxies) = (Registry::default(), Proxies::default());
        let revocations = watch::Sender::new(Arc::new(Revocations::default()));
        let rate = NonZeroU32::new(rate).expect("positive");
        let discovery = Discovery::new(
            view.subscribe(),
            registry.clone(),
            proxies.clone(),
            rate,
            revocations.subscribe(),
            stopping.subscribe(),
        );
        let (incoming, receiver) = mpsc::channel(8);
        let server = transport().add_service(discovery.service()).serve_with_incoming(ReceiverStream::new(receiver));
        tokio::spawn(server);
        Self { view, registry, proxies, stopping, incoming, wire: watch::Sender::new(Wire::Carries) }
    }

    fn set(&self, name: &str, content: String) {
        let output: Output = [((SERVICE, name.to_owned()), Compiled::from(content.into_bytes()))].into();
        self.view.send_modify(|view| *view = Arc::new(view.next(&output, 0)));
    }

    async fn connect(&self) -> Client<Channel> {
        let (client, near) = tokio::io::duplex(64 * 1024);
        let (far, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(relay(near, far, self.wire.subscribe()));
        let id = SpiffeId::workload("weft.local", "shop", "catalog").expect("valid");
        let identity = Some(PeerIdentity { id, not_after: SystemTime::now() });
        let (presented, attested) = (None, Attested::default());
        let info = PeerInfo { identity, presented, attested, address: ([127, 0, 0, 1], 1).into() };
        assert!(self.incoming.send(Ok(PeerStream::known(server, info))).await.is_ok());
        let mut client = Some(hyper_util::rt::TokioIo::new(client));
        let connector = tower::service_fn(move |_: http::Uri| {
            let client = client.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { client }
        });
        let channel = tonic::transport::Endpoint::from_static("http://memory").connect_with_connector(connector).await;
        Client::new(channel.expect("connected"))
    }

    /// A registered sidecar: its requests and its responses.
    async fn open(&self, epoch_ms: u64) -> Result<Sidecar, Status> {
        let (requests, receiver) = mpsc::channel(8);
        let registration =
            Registration { name: "catalog-1".into(), namespace: "shop".into(), epoch_ms, ..Default::default() };
        let first =
            DeltaDiscoveryRequest { node: Some(Node::default()), registration: Some(registration), ..subscribe("a/x") };
        requests.send(first).await.expect("room");
        let client = self.connect().await.delta_aggregated_resources(ReceiverStream::new(receiver)).await;
        Ok(Sidecar { requests, responses: client?.into_inner() })
    }

    /// Waits until a registration is there, or none.
    async fn registered(&self, any: bool) {
        let mut watch = self.registry.watch();
        let registered = timeout(LIMIT, watch.wait_for(|all| all.is_empty() != any)).await;
        registered.expect("in time").expect("open");
    }

    fn sent(&self) -> u64 {
        self.proxies.rows()[0].types.iter().find(|of| of.kind == SERVICE).expect("a state").sent
    }
}

struct Sidecar {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Sidecar {
    async fn ack(&self, nonce: &str) {
        let type_url = SERVICE.type_url().into();
        let ack = DeltaDiscoveryRequest { type_url, response_nonce: nonce.into(), ..Default::default() };
        self.requests.send(ack).await.expect("open");
    }
}

fn subscribe(name: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: SERVICE.type_url().into(),
        resource_names_subscribe: vec![name.into()],
        ..DeltaDiscoveryRequest::default()
    }
}

/// Carries bytes both ways.
async fn relay(mut near: DuplexStream, mut far: DuplexStream, mut wire: watch::Receiver<Wire>) {
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
        _ = wire.wait_for(|wire| *wire != Wire::Carries) => {}
    }
    // Until then both ends stay open.
    let _ = wire.wait_for(|wire| *wire == Wire::Breaks).await;
}

#[tokio::test(start_paused = true)]
async fn rule_01_a_registration_for_another_account_ends_the_stream() {
    let server = Server::new(100);
    let mut sidecar = server.open(1).await.expect("let in");
    let registration = Registration {
        name: "catalog-1".into(),
        namespace: "shop".into(),
        service_account: "admin".into(),
        ..Registration::default()
    };
    let request = DeltaDiscoveryRequest { registration: Some(registration), ..subscribe("a/y") };
    sidecar.requests.send(request).await.expect("open");
    let status = loop {
        match sidecar.responses.message().await {
            Ok(Some(_)) => {}
            other => break other.expect_err("refused"),
        }
    };
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_gets_the_view_of_the_namespace_that_it_proved() {
    let server = Server::new(100);
    let views = |namespace: &str| [(namespace.to_owned(), b"own".to_vec().into())].into();
    for (namespace, expected) in [("shop", "own"), ("other", "shared")] {
        let compiled = Compiled { views: views(namespace), ..b"shared".to_vec().into() };
        let output: Output = [((SERVICE, "a/x".to_owned()), compiled)].into();
        server.view.send_modify(|view| *view = Arc::new(view.next(&output, 0)));
        let mut sidecar = server.open(1).await.expect("let in");
        let response = sidecar.responses.message().await.expect("open").expect("x");
        let content = response.resources[0].resource.as_ref().expect("content");
        assert_eq!(content.value, expected.as_bytes(), "{namespace}");
        drop(sidecar);
        server.registered(false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rule_09_a_consumer_that_does_not_answer_gets_one_response_and_then_one_for_all_that_it_missed() {
    let server = Server::new(100);
    server.set("a/x", "0".into());
    let mut sidecar = server.open(1).await.expect("let in");
    let first = sidecar.responses.message().await.expect("open").expect("x");
    for content in 1..=100 {
        server.set("a/x", content.to_string().repeat(10_000));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.sent(), 1);
    sidecar.ack(&first.nonce).await;
    let second = sidecar.responses.message().await.expect("open").expect("the newest");
    assert_eq!(second.resources[0].version, server.view.borrow().named(SERVICE, "a/x", "")[0].version);
    sidecar.ack(&second.nonce).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.sent(), 2);
}

#[tokio::test(start_paused = true)]
async fn rule_09_requests_are_read_while_the_peer_takes_no_responses() {
    let server = Server::new(100);
    let kinds = [SERVICE, ResourceType::EndpointSlice, ResourceType::TrustBundle];
    let big = || Compiled::from("x".repeat(1 << 22).into_bytes());
    let output: Output = kinds.into_iter().map(|kind| ((kind, "a/x".to_owned()), big())).collect();
    server.view.send_modify(|view| *view = Arc::new(view.next(&output, 0)));
    let sidecar = server.open(1).await.expect("let in");
    server.registered(true).await;
    // One response of four megabytes is in the transport, which nobody reads, one waits for it, and one is due.
    for kind in kinds {
        let request = DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..subscribe("a/x") };
        sidecar.requests.send(request).await.expect("open");
    }
    let registration = Registration {
        name: "catalog-1".into(),
        namespace: "shop".into(),
        epoch_ms: 1,
        draining: true,
        ..Registration::default()
    };
    let write = async {
        // More than the transport buffers.
        for count in 0..2000 {
            sidecar.requests.send(subscribe(&format!("a/{count:0>200}"))).await.expect("open");
        }
        let request = DeltaDiscoveryRequest { registration: Some(registration), ..subscribe("a/y") };
        sidecar.requests.send(request).await.expect("open");
        let mut watch = server.registry.watch();
        watch.wait_for(|all| all.iter().any(|of| of.registration.draining)).await.expect("open");
    };
    timeout(LIMIT, write).await.expect("the last request is read");
}

#[tokio::test(start_paused = true)]
async fn rule_10_new_streams_are_let_in_at_the_rate_and_the_line_is_bounded() {
    let server = Arc::new(Server::new(1));
    let start = tokio::time::Instant::now();
    let _burst = (server.open(1).await.expect("let in"), server.open(2).await.expect("let in"));
    assert_eq!(start.elapsed().as_secs(), 0, "a burst of two");
    let _third = server.open(3).await.expect("let in");
    assert_eq!(start.elapsed().as_secs(), 1);
    let mut opening = tokio::task::JoinSet::new();
    for epoch_ms in 4..19 {
        let server = Arc::clone(&server);
        opening.spawn(async move { server.open(epoch_ms).await.map(drop).map_err(|status| status.code()) });
    }
    let results = opening.join_all().await;
    let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused, [Code::Unavailable; 5], "ten wait ten seconds at most");
    assert_eq!(start.elapsed().as_secs(), 11);
}

#[tokio::test(start_paused = true)]
async fn rule_11_a_dead_peer_is_noticed_within_20_seconds() {
    let server = Server::new(100);
    let _sidecar = server.open(1).await.expect("let in");
    server.registered(true).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.registered(true).await;
    let start = tokio::time::Instant::now();
    server.wire.send_replace(Wire::Swallows);
    server.registered(false).await;
    assert!(start.elapsed() <= Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn rule_11_a_stream_ends_cleanly_after_half_an_hour_and_its_registration_stays_for_the_next() {
    let server = Server::new(100);
    let start = tokio::time::Instant::now();
    let mut old = server.open(1).await.expect("let in");
    while let Some(response) = old.responses.message().await.expect("no error: reconnect at once") {
        old.ack(&response.nonce).await;
    }
    let minutes = start.elapsed().as_secs() / 60;
    assert!((27..33).contains(&minutes), "{minutes}");
    tokio::time::sleep(HAND_OVER / 2).await;
    let mut watch = server.registry.watch();
    assert_eq!(watch.borrow_and_update().len(), 1, "still there");
    let _new = server.open(1).await.expect("let in");
    watch.changed().await.expect("the new lease");
    tokio::time::sleep(HAND_OVER * 2).await;
    assert_eq!(watch.borrow_and_update().len(), 1, "the old lease is gone and took nothing with it");
    assert_eq!(server.proxies.rows().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn rule_11_a_sidecar_that_does_not_come_back_after_its_stream_ended_is_gone() {
    let server = Server::new(100);
    let mut sidecar = server.open(1).await.expect("let in");
    while let Some(response) = sidecar.responses.message().await.expect("no error") {
        sidecar.ack(&response.nonce).await;
    }
    let start = tokio::time::Instant::now();
    server.registered(false).await;
    assert_eq!(start.elapsed().as_secs(), HAND_OVER.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_the_peer_closes_takes_its_registration_along_at_once_and_a_broken_one_later() {
    let server = Server::new(100);
    let sidecar = server.open(1).await.expect("let in");
    server.registered(true).await;
    let start = tokio::time::Instant::now();
    drop(sidecar.requests);
    server.registered(false).await;
    assert_eq!(start.elapsed().as_secs(), 0, "it left");
    let _sidecar = server.open(1).await.expect("let in");
    server.registered(true).await;
    let start = tokio::time::Instant::now();
    server.wire.send_replace(Wire::Breaks);
    server.registered(false).await;
    assert_eq!(start.elapsed().as_secs(), BROKEN.as_secs(), "it may come back");
}

#[tokio::test(start_paused = true)]
async fn rule_10_a_stop_ends_streams_with_unavailable_and_forgets_no_registration() {
    let server = Server::new(100);
    let mut sidecar = server.open(1).await.expect("let in");
    server.registered(true).await;
    server.registry.stop();
    server.stopping.send_replace(true);
    let status = loop {
        match sidecar.responses.message().await {
            Ok(Some(_)) => {}
            other => break other.expect_err("a status"),
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    tokio::time::sleep(Duration::from_secs(60)).await;
    server.registered(true).await;
}

#[tokio::test(start_paused = true)]
async fn rule_12_a_sidecar_on_two_streams_has_one_row() {
    let server = Server::new(100);
    let _old = server.open(1).await.expect("let in");
    server.registered(true).await;
    let mut new = server.open(2).await.expect("let in");
    new.responses.message().await.expect("open");
    let rows = server.proxies.rows();
    assert_eq!((rows.len(), rows[0].registration.epoch_ms), (1, 2));
}
