//! A stream over real HTTP/2 in memory to a control plane that the test plays.

use std::sync::Mutex;

use hyper_util::rt::TokioIo;
use tonic::{Request, Response, Status};
use weft_proto::v1::{
    CollectStatistics, StartTap, StopTap,
    observation_server::{Observation, ObservationServer},
};

use super::{taps::tests::span, *};
use crate::telemetry::{Direction, Hop, http::Ended};

/// What takes longer, in the tests' own time, does not happen at all.
const LIMIT: Duration = Duration::from_secs(60);

/// One stream of the control plane: reports go to the test, demands come from it.
struct Played {
    reports: mpsc::Sender<Report>,
    demands: Mutex<Option<mpsc::Receiver<Result<ObserveDemand, Status>>>>,
}

#[tonic::async_trait]
impl Observation for Played {
    type ObserveStream = ReceiverStream<Result<ObserveDemand, Status>>;

    async fn observe(
        &self,
        request: Request<Streaming<ObserveReport>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (sender, mut reports) = (self.reports.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(report)) = reports.next().await {
                let _ = sender.send(report.report.expect("something")).await;
            }
        });
        let demands = self.demands.lock().expect("whole").take();
        Ok(Response::new(ReceiverStream::new(demands.ok_or_else(|| Status::unavailable("one stream only"))?)))
    }
}

struct Session {
    telemetry: Telemetry,
    taps: Taps,
    channels: watch::Sender<Option<Channel>>,
    reports: mpsc::Receiver<Report>,
    demands: Option<mpsc::Sender<Result<ObserveDemand, Status>>>,
}

impl Session {
    async fn open(reports: usize) -> Self {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (sender, reports) = mpsc::channel(reports);
        let (demands, receiver) = mpsc::channel(8);
        let service = ObservationServer::new(Played { reports: sender, demands: Mutex::new(Some(receiver)) });
        let incoming = tokio_stream::iter([Ok::<_, std::io::Error>(far)]).chain(tokio_stream::pending());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let mut client = Some(TokioIo::new(near));
        let connector = tower::service_fn(move |_: http::Uri| {
            let client = client.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { client }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://memory");
        let channel = endpoint.connect_with_connector(connector).await.expect("connected");
        let channels = watch::Sender::new(None);
        let (taps, tapped) = Taps::new();
        let telemetry = Telemetry::new("shop/web");
        let observe = Observe {
            channels: channels.subscribe(),
            telemetry: telemetry.clone(),
            taps: taps.clone(),
            tapped,
            backoff: Backoff::default(),
        };
        tokio::spawn(observe.run());
        channels.send_replace(Some(channel));
        Self { telemetry, taps, channels, reports, demands: Some(demands) }
    }

    async fn demand(&self, demand: Demand) {
        let demand = ObserveDemand { demand: Some(demand) };
        self.demands.as_ref().expect("open").send(Ok(demand)).await.expect("open");
    }

    async fn report(&mut self) -> Report {
        tokio::time::timeout(LIMIT, self.reports.recv()).await.expect("a report in time").expect("open")
    }

    async fn tapped(&mut self) -> Tapped {
        match self.report().await {
            Report::Tapped(tapped) => tapped,
            Report::Statistics(_) => panic!("nobody asked"),
        }
    }

    async fn start(&mut self, per_second: u32) {
        let start = StartTap { id: 7, per_second, lifetime_seconds: 30, ..StartTap::default() };
        self.demand(Demand::StartTap(start)).await;
        assert_eq!(self.tapped().await, Tapped { tap: 7, ..Tapped::default() });
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_is_reported_when_it_is_asked_for() {
    let mut session = Session::open(8).await;
    let hop = Hop { direction: Direction::Outbound, service: "shop/catalog", port: 80, peer: "shop/web", route: "r" };
    let http = session.telemetry.http(&hop, true);
    for status in [200, 200, 404, 503] {
        http.record(&Ended::new(status, http::Version::HTTP_11, std::time::Instant::now()));
    }
    session.demand(Demand::Collect(CollectStatistics { number: 3 })).await;
    let Report::Statistics(found) = session.report().await else { panic!("not asked for") };
    assert_eq!((found.number, found.last), (3, true));
    let series = found.http.iter().find(|of| of.service == "shop/catalog").expect("a series");
    assert_eq!((series.port, series.mtls, series.route.as_str()), (80, true, "r"));
    let outcomes: Vec<_> = series.outcomes.iter().map(|of| (of.code_class, of.failed, of.count)).collect();
    assert_eq!(outcomes, [(2, false, 2), (4, false, 1), (5, true, 1)]);
    assert_eq!((series.buckets.iter().sum::<u64>(), series.buckets.len()), (4, found.bounds_us.len() + 1));
}

#[tokio::test(start_paused = true)]
async fn requests_are_shown_while_a_tap_wants_them_and_not_before_or_after() {
    let mut session = Session::open(8).await;
    assert!(!session.taps.is_active());
    session.start(100).await;
    assert!(session.taps.is_active());
    session.taps.ended(&span("/a?b=c"));
    let tapped = session.tapped().await;
    assert_eq!((tapped.tap, tapped.requests[0].path.as_str(), tapped.dropped), (7, "/a", 0));
    session.demand(Demand::StopTap(StopTap { id: 7 })).await;
    // The answer to this comes after the tap has ended.
    session.demand(Demand::Collect(CollectStatistics { number: 1 })).await;
    assert!(matches!(session.report().await, Report::Statistics(_)));
    assert!(!session.taps.is_active());
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_told_even_when_nothing_else_is_shown() {
    let mut session = Session::open(8).await;
    session.start(1).await;
    for _ in 0..10 {
        session.taps.ended(&span("/a"));
    }
    let mut dropped = session.tapped().await.dropped;
    while dropped < 9 {
        dropped = session.tapped().await.dropped;
    }
    assert_eq!(dropped, 9);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_goes_ends_the_taps() {
    let mut session = Session::open(8).await;
    session.start(100).await;
    session.demands = None;
    while session.taps.is_active() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut session = Session::open(8).await;
    session.start(100).await;
    session.channels.send_replace(None);
    while session.taps.is_active() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_reads_nothing_costs_requests_nothing() {
    let mut session = Session::open(1).await;
    session.start(1000).await;
    // Never waits, whatever the control plane does; the queue and the transport hold so much and no more.
    for _ in 0..20 {
        for _ in 0..1000 {
            session.taps.ended(&span(&format!("/{}", "x".repeat(2000))));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let dropped = session.taps.dropped(7);
    assert!(dropped.is_some_and(|dropped| dropped > 15_000), "{dropped:?}");
}
