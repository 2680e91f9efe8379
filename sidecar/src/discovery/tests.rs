//! The client's rules that need a connection: real HTTP/2 over memory to a control plane that the test plays, with time
//! that jumps when nothing else happens.

use std::{pin::Pin, sync::Mutex};

use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::DuplexStream;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use weft_policy::model::{Locality, ObjectName};
use weft_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};

use super::*;
use crate::{app::worker::Clock, drain::Phase, identity::endpoint, snapshot::Snapshot};

type Responses = mpsc::Receiver<Result<DeltaDiscoveryResponse, Status>>;

/// One stream of the control plane: requests go to the test, responses come from it.
struct Played {
    requests: mpsc::Sender<Option<DeltaDiscoveryRequest>>,
    responses: Mutex<Option<Responses>>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Played {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, mut incoming) = (self.requests.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(request)) = incoming.next().await {
                let _ = sender.send(Some(request)).await;
            }
            // The sidecar closed its side.
            let _ = sender.send(None).await;
        });
        let responses = self.responses.lock().expect("whole").take();
        let responses = responses.ok_or_else(|| Status::unavailable("one stream only"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

/// The control plane's end of a session, and the parts of the sidecar that a test moves.
struct Session {
    requests: mpsc::Receiver<Option<DeltaDiscoveryRequest>>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    registration: watch::Sender<Registration>,
    drain: Drain,
    demand: Demand,
    /// True: nothing crosses any more, and nobody is told.
    swallow: watch::Sender<bool>,
    ended: tokio::task::JoinHandle<(Discovery, Ended)>,
}

fn discovery() -> (Discovery, watch::Sender<Registration>, Demand) {
    let registration = watch::Sender::new(Registration { name: "me".into(), ..Registration::default() });
    let (demand, demands) = demand();
    let telemetry = Telemetry::default();
    // It has failed before.
    let mut backoff = Backoff::default();
    backoff.next(1.0);
    backoff.next(1.0);
    let discovery = Discovery {
        xds: "memory:1".into(),
        namespace: "a".into(),
        svid: watch::Sender::new(None).subscribe(),
        trust: TrustStore::default(),
        registration: registration.subscribe(),
        demand: demands,
        publish: watch::Sender::new(Arc::new(Snapshot::default())),
        readiness: Readiness::default(),
        wishes: watch::Sender::default(),
        from_disk: None,
        saver: None,
        telemetry: telemetry.clone(),
        state: State::new("a/me", ObjectName::parse("a/x")),
        builder: Builder::new(telemetry, Locality::default(), Clock::start()),
        drain: Drain::default(),
        backoff,
        channels: watch::Sender::default(),
    };
    (discovery, registration, demand)
}

impl Session {
    async fn open() -> Self {
        let (mut discovery, registration, demand) = discovery();
        let (near, far) = (tokio::io::duplex(64 * 1024), tokio::io::duplex(64 * 1024));
        let swallow = watch::Sender::new(false);
        tokio::spawn(relay(near.1, far.0, swallow.subscribe()));
        let (sender, requests) = mpsc::channel(1024);
        let (responses, receiver) = mpsc::channel(8);
        let played = Played { requests: sender, responses: Mutex::new(Some(receiver)) };
        let incoming = tokio_stream::iter([Ok::<_, std::io::Error>(far.1)]).chain(tokio_stream::pending());
        let service = AggregatedDiscoveryServiceServer::new(played);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let mut client = Some(TokioIo::new(near.0));
        let connector = tower::service_fn(move |_: http::Uri| {
            let client = client.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { client }
        });
        let channel = endpoint("memory:1").expect("valid").connect_with_connector(connector).await.expect("connected");
        let drain = discovery.drain.clone();
        let ended = tokio::spawn(async move {
            let ended = discovery.follow(channel).await;
            (discovery, ended)
        });
        Self { requests, responses, registration, drain, demand, swallow, ended }
    }

    /// The next request; `None`: the sidecar has closed its side.
    async fn next(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.requests.recv().await.expect("the stream is open")
    }

    /// The first requests of the session.
    async fn opening(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for _ in 0..4 {
            requests.extend(self.next().await);
        }
        requests
    }

    async fn respond(&self, kind: ResourceType, nonce: &str) {
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: nonce.into(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.expect("open");
    }
}

async fn relay(mut near: DuplexStream, mut far: DuplexStream, mut swallow: watch::Receiver<bool>) {
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
        _ = swallow.wait_for(|swallow| *swallow) => {}
    }
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn rule_01_the_first_request_names_the_node_and_registers() {
    let mut session = Session::open().await;
    let opening = session.opening().await;
    assert_eq!(opening[0].node.as_ref().map(|node| node.id.as_str()), Some("a/me"));
    assert_eq!(opening[0].registration.as_ref().map(|registration| registration.name.as_str()), Some("me"));
    assert!(opening[1..].iter().all(|request| request.node.is_none() && request.registration.is_none()));
}

#[tokio::test(start_paused = true)]
async fn rule_02_a_new_wish_does_not_wait_for_an_answer() {
    let mut session = Session::open().await;
    session.opening().await;
    session.demand.want(&ObjectName::parse("b/y").expect("valid"));
    for kind in [ResourceType::EndpointSlice, ResourceType::Service] {
        let request = session.next().await.expect("open");
        assert_eq!((request.type_url.as_str(), request.response_nonce.as_str()), (kind.type_url(), ""));
        assert_eq!(request.resource_names_subscribe, ["b/y"]);
    }
}

#[tokio::test(start_paused = true)]
async fn rule_09_wishes_that_come_together_are_one_request_of_each_type() {
    let mut session = Session::open().await;
    session.opening().await;
    for number in 0..50 {
        session.demand.want(&ObjectName::parse(&format!("b/s{number}")).expect("valid"));
    }
    for _ in 0..2 {
        assert_eq!(session.next().await.expect("open").resource_names_subscribe.len(), 50);
    }
}

#[tokio::test(start_paused = true)]
async fn rule_10_an_answer_resets_the_back_off_and_a_failure_waits_by_it() {
    let session = Session::open().await;
    session.respond(ResourceType::Service, "1").await;
    session.responses.send(Err(Status::unavailable("stopping"))).await.expect("open");
    let (mut discovery, ended) = session.ended.await.expect("ended");
    assert!(matches!(&ended, Ended::Failed(error) if error.to_string() == "stopping"), "{ended:?}");
    let millis = |wait: Option<Duration>| wait.expect("another session").as_millis();
    assert_eq!(millis(discovery.wait_after(&ended, Duration::from_secs(60), 1.0)), 300, "the first after an answer");
    assert_eq!(millis(discovery.wait_after(&ended, Duration::from_secs(60), 1.0)), 900);
    assert_eq!(discovery.wait_after(&Ended::Stopped, Duration::ZERO, 1.0), None);
}

#[tokio::test(start_paused = true)]
async fn rule_11_a_session_that_the_control_plane_closes_is_followed_by_another_at_once() {
    let session = Session::open().await;
    drop(session.responses);
    let (mut discovery, ended) = session.ended.await.expect("ended");
    assert!(matches!(ended, Ended::Closed), "{ended:?}");
    assert_eq!(discovery.wait_after(&ended, Duration::from_secs(1600), 1.0), Some(Duration::ZERO));
    let short = discovery.wait_after(&ended, Duration::from_secs(1), 1.0).expect("another session");
    assert!(short > Duration::ZERO, "but not in a loop");
}

#[tokio::test(start_paused = true)]
async fn rule_11_a_dead_control_plane_is_noticed_within_20_seconds() {
    let mut session = Session::open().await;
    session.opening().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!session.ended.is_finished());
    let start = Instant::now();
    session.swallow.send_replace(true);
    let (_, ended) = (&mut session.ended).await.expect("ended");
    assert!(matches!(ended, Ended::Failed(_)), "{ended:?}");
    assert!(start.elapsed() <= Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn rule_12_each_response_is_acked_and_news_of_the_workload_are_sent() {
    let mut session = Session::open().await;
    session.opening().await;
    session.respond(ResourceType::Service, "7").await;
    let ack = session.next().await.expect("open");
    assert_eq!((ack.response_nonce.as_str(), ack.type_url.as_str()), ("7", ResourceType::Service.type_url()));
    session.registration.send_modify(|registration| registration.certificate_end_ms = 5);
    let news = session.next().await.expect("open").registration.expect("the registration");
    assert_eq!(news.certificate_end_ms, 5);
}

#[tokio::test(start_paused = true)]
async fn a_draining_sidecar_says_so_before_it_closes_its_side() {
    let mut session = Session::open().await;
    session.opening().await;
    // Both at the same moment, as a second signal does it.
    session.registration.send_modify(|registration| registration.draining = true);
    session.drain.advance(Phase::Stopped);
    let mut said = false;
    while let Some(request) = session.next().await {
        said = request.registration.is_some_and(|registration| registration.draining);
    }
    assert!(said, "the last word before the end");
    assert!(!session.ended.is_finished(), "it waits for the control plane");
    drop(session.responses);
    let (_, ended) = session.ended.await.expect("ended");
    assert!(matches!(ended, Ended::Stopped), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_stops_waits_for_no_dead_control_plane() {
    let mut session = Session::open().await;
    session.opening().await;
    session.swallow.send_replace(true);
    let start = Instant::now();
    session.drain.advance(Phase::Stopped);
    let (_, ended) = session.ended.await.expect("ended");
    assert!(matches!(ended, Ended::Stopped), "{ended:?}");
    assert!(start.elapsed() <= LEAVE);
}

#[test]
fn a_service_is_found_by_each_of_its_names_and_virtual_addresses() {
    use weft_proto::{Any, discovery::Resource, v1};
    let service = v1::Service {
        id: "b/x".into(),
        hostnames: vec!["x.b".into()],
        virtual_ips: vec!["10.96.0.7".into(), "fd00::7".into()],
        ports: vec![v1::ServicePort { port: 80, ..Default::default() }],
    };
    let slice = v1::EndpointSlice { service: "b/x".into(), slice_count: 1, ..Default::default() };
    let (mut discovery, _registration, _demand) = discovery();
    let messages = [
        (ResourceType::Service, "b/x", service.encode_to_vec()),
        (ResourceType::EndpointSlice, "b/x/0", slice.encode_to_vec()),
    ];
    for (kind, name, bytes) in messages {
        let content = Any { type_url: kind.type_url().into(), value: bytes.into() };
        let resource = Resource { name: name.into(), resource: Some(content), ..Default::default() };
        let answer = discovery.state.apply(DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            resources: vec![resource],
            ..Default::default()
        });
        assert_eq!(answer.error_detail, None);
    }
    let snapshot = discovery.builder.build(&mut discovery.state, "a");
    let found = |host: &str| snapshot.by_host(host).map(ObjectName::as_str);
    for host in ["x.b", "10.96.0.7", "fd00::7", "fd00:0:0::7"] {
        assert_eq!(found(host), Some("b/x"), "{host}");
    }
    assert_eq!((found("10.96.0.8"), found("x")), (None, None));
}
