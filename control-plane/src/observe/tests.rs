//! Streams over real HTTP/2 in memory, with time that jumps when nothing else happens.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicU16,
    time::{Instant as StdInstant, SystemTime},
};

use tokio::{io::DuplexStream, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Streaming, transport::Channel};
use weft_proto::v1::{
    HttpOutcome, HttpSeries, ObserveReport, Registration, Statistics, TappedRequest,
    observation_client::ObservationClient, observe_report,
};
use weft_svid::PeerIdentity;

use super::{
    server::Observing,
    taps::{TAPS, Wish},
    *,
};
use crate::{
    app::incoming::PeerStream,
    ca::{Revocations, enrolment::attested::Attested, service::PeerInfo},
    push::Reflected,
};

/// What takes longer, in the tests' own time, does not happen at all.
const LIMIT: Duration = Duration::from_secs(60);

/// A control plane in memory.
pub(crate) struct Fleet {
    pub observers: Observers,
    proxies: Proxies,
    incoming: mpsc::Sender<std::io::Result<PeerStream<DuplexStream>>>,
    next: AtomicU16,
}

/// A sidecar's side of its connection.
pub(crate) struct Sidecar {
    address: String,
    client: ObservationClient<Channel>,
    demands: Option<Streaming<ObserveDemand>>,
    reports: Option<mpsc::Sender<ObserveReport>>,
}

fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::workload("weft.local", namespace, account).expect("valid")
}

impl Fleet {
    pub fn new() -> Self {
        let proxies = Proxies::default();
        let observers = Observers::new(proxies.clone());
        let revocations = watch::Sender::new(Arc::new(Revocations::default())).subscribe();
        let observing = Observing::new(observers.clone(), revocations, watch::Sender::new(false).subscribe());
        let (incoming, receiver) = mpsc::channel(8);
        let server = crate::push::server::transport().add_service(observing.service());
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(receiver)));
        Self { observers, proxies, incoming, next: AtomicU16::new(1) }
    }

    async fn connect(&self, identity: Option<SpiffeId>) -> Sidecar {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], self.next.fetch_add(1, Relaxed)));
        let identity = identity.map(|id| PeerIdentity { id, not_after: SystemTime::now() });
        let info = PeerInfo { identity, presented: None, attested: Attested::default(), address };
        assert!(self.incoming.send(Ok(PeerStream::known(server, info))).await.is_ok());
        let mut client = Some(hyper_util::rt::TokioIo::new(client));
        let connector = tower::service_fn(move |_: http::Uri| {
            let client = client.take().ok_or_else(|| std::io::Error::other("one connection only"));
            async move { client }
        });
        let channel = tonic::transport::Endpoint::from_static("http://memory").connect_with_connector(connector).await;
        let client = ObservationClient::new(channel.expect("connected"));
        Sidecar { address: address.to_string(), client, demands: None, reports: None }
    }

    /// What discovery knows of the connection.
    fn registered(&self, sidecar: &Sidecar, identity: SpiffeId, namespace: &str, name: &str) {
        let registration = Registration {
            name: format!("{name}-x1"),
            namespace: namespace.into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            ..Registration::default()
        };
        let proxy = Proxy {
            peer: PeerIdentity { id: identity, not_after: SystemTime::now() },
            presented: None,
            address: sidecar.address.clone(),
            connected: StdInstant::now(),
            registration,
            services: Arc::default(),
            types: Vec::new(),
            reflected: Reflected::default(),
        };
        self.proxies.set(u64::from(self.next.fetch_add(1, Relaxed)), proxy);
    }

    /// A sidecar with both of its streams.
    pub async fn sidecar(&self, namespace: &str, name: &str) -> Sidecar {
        let mut sidecar = self.connect(Some(id(namespace, name))).await;
        self.registered(&sidecar, id(namespace, name), namespace, name);
        sidecar.open().await.expect("open");
        sidecar
    }
}

impl Sidecar {
    async fn open(&mut self) -> Result<(), Status> {
        let (reports, receiver) = mpsc::channel(64);
        let demands = self.client.observe(ReceiverStream::new(receiver)).await?;
        (self.demands, self.reports) = (Some(demands.into_inner()), Some(reports));
        Ok(())
    }

    /// The next demand; none when the stream has ended.
    pub async fn demand(&mut self) -> Option<Demand> {
        let demands = self.demands.as_mut().expect("open");
        timeout(LIMIT, demands.next()).await.expect("a demand in time")?.ok()?.demand
    }

    pub async fn report(&self, report: observe_report::Report) {
        let report = ObserveReport { report: Some(report) };
        // When it is closed, the test sees that elsewhere.
        _ = self.reports.as_ref().expect("open").send(report).await;
    }

    /// Answers each question for statistics with this count of requests, until the stream ends.
    fn counting(mut self, target: &'static str, count: u64) -> tokio::task::JoinHandle<u64> {
        tokio::spawn(async move {
            let mut asked = 0;
            while let Some(demand) = self.demand().await {
                if let Demand::Collect(CollectStatistics { number }) = demand {
                    asked += 1;
                    self.report(observe_report::Report::Statistics(statistics(number, target, count))).await;
                }
            }
            asked
        })
    }

    pub async fn tapped(&self, tap: u64, paths: &[&str], dropped: u64) {
        let request = |path: &&str| TappedRequest { path: (*path).into(), ..TappedRequest::default() };
        let tapped = Tapped { tap, requests: paths.iter().map(request).collect(), dropped };
        self.report(observe_report::Report::Tapped(tapped)).await;
    }

    /// The tap that it is asked to begin.
    pub async fn begun(&mut self) -> u64 {
        match self.demand().await {
            Some(Demand::StartTap(start)) => start.id,
            other => panic!("{other:?}"),
        }
    }
}

fn statistics(number: u64, target: &str, count: u64) -> Statistics {
    let outcomes = vec![HttpOutcome { code_class: 2, count, ..HttpOutcome::default() }];
    let direction = weft_proto::v1::Direction::Outbound.into();
    let http = HttpSeries { direction, service: target.into(), mtls: true, outcomes, ..HttpSeries::default() };
    Statistics { number, last: true, http: vec![http], ..Statistics::default() }
}

fn seen(collected: &Collected) -> BTreeMap<String, u64> {
    let count = |report: &Report| report.http.iter().flat_map(|of| &of.outcomes).map(|of| of.count).sum();
    collected.reports.iter().map(|(workload, report)| (workload.id(), count(report))).collect()
}

fn counts<const N: usize>(pairs: [(&str, u64); N]) -> BTreeMap<String, u64> {
    pairs.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

#[tokio::test(start_paused = true)]
async fn every_sidecar_is_asked_and_one_that_is_silent_is_told_of() {
    let fleet = Fleet::new();
    fleet.sidecar("shop", "web").await.counting("shop/catalog", 7);
    let mute = fleet.sidecar("shop", "mute").await;
    let older = fleet.connect(Some(id("shop", "older"))).await;
    fleet.registered(&older, id("shop", "older"), "shop", "older");
    let began = Instant::now();
    let collected = timeout(LIMIT, fleet.observers.collect()).await.expect("in time");
    assert_eq!((seen(&collected), collected.silent), (counts([("shop/web-x1", 7)]), 2));
    assert!(began.elapsed() <= PATIENCE + GAP, "{:?}", began.elapsed());
    drop(mute);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_lies_about_who_it_is_is_not_believed() {
    let fleet = Fleet::new();
    fleet.sidecar("shop", "web").await.counting("shop/catalog", 7);
    // With a certificate, but without discovery: nobody knows what it is beside.
    let mut alone = fleet.connect(Some(id("shop", "web"))).await;
    alone.open().await.expect("open");
    alone.counting("shop/catalog", 1000);
    // Its connection's discovery stream is another identity's, as after a mistake of ours.
    let mut other = fleet.connect(Some(id("bank", "thief"))).await;
    fleet.registered(&other, id("shop", "web"), "shop", "victim");
    other.open().await.expect("open");
    other.counting("shop/catalog", 1000);
    let collected = fleet.observers.collect().await;
    assert_eq!(seen(&collected), counts([("shop/web-x1", 7)]));
    // Without a certificate there is no stream at all.
    let refused = fleet.connect(None).await.open().await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_are_one_question_to_the_sidecars() {
    let fleet = Fleet::new();
    let counting = fleet.sidecar("shop", "web").await.counting("shop/catalog", 7);
    let asking = (0..50).map(|_| {
        let observers = fleet.observers.clone();
        tokio::spawn(async move { observers.collect().await })
    });
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(seen(&asked.await.expect("no panic")), counts([("shop/web-x1", 7)]));
    }
    let kept = fleet.observers.streams().open.values().filter(|open| open.report.is_some()).count();
    assert_eq!(kept, 0, "nothing is kept when nobody asks");
    fleet.observers.streams().open.clear();
    assert!(counting.await.expect("no panic") <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_report_beyond_the_bounds_ends_the_stream() {
    let fleet = Fleet::new();
    let mut sidecar = fleet.sidecar("shop", "web").await;
    let observers = fleet.observers.clone();
    let asking = tokio::spawn(async move { observers.collect().await });
    let Some(Demand::Collect(CollectStatistics { number })) = sidecar.demand().await else { panic!("not asked") };
    let bad = statistics(number, &"x".repeat(10_000), 1);
    sidecar.report(observe_report::Report::Statistics(bad)).await;
    assert_eq!(sidecar.demand().await, None);
    let collected = asking.await.expect("no panic");
    assert_eq!((collected.reports.len(), collected.silent), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_stream_that_is_registered_nowhere() {
    let fleet = Fleet::new();
    fleet.sidecar("shop", "web").await.counting("shop/catalog", 7);
    let mut mute = fleet.connect(Some(id("shop", "mute"))).await;
    mute.open().await.expect("open");
    let began = Instant::now();
    let collected = fleet.observers.collect().await;
    assert_eq!(seen(&collected), counts([("shop/web-x1", 7)]));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_one_stream_the_newest() {
    let fleet = Fleet::new();
    let mut sidecar = fleet.sidecar("shop", "web").await;
    let mut old = (sidecar.demands.take(), sidecar.reports.take());
    sidecar.open().await.expect("open");
    let ended = timeout(LIMIT, old.0.as_mut().expect("open").next()).await.expect("in time");
    assert!(ended.is_none(), "{ended:?}");
    assert_eq!(fleet.observers.streams().open.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tap_of_a_namespace_asks_and_believes_its_sidecars_alone() {
    let fleet = Fleet::new();
    let (mut shop, mut bank) = (fleet.sidecar("shop", "web").await, fleet.sidecar("bank", "vault").await);
    let wish = Wish { namespace: Some("shop".into()), ..Wish::default() };
    let mut reader = fleet.observers.tap(wish).expect("room");
    let tap = shop.begun().await;
    assert_eq!(reader.sidecars(), (0, 1));
    bank.tapped(tap, &["/forged"], 5).await;
    shop.tapped(tap + 1, &["/of-another-tap"], 0).await;
    shop.tapped(tap, &["/real?secret=1"], 2).await;
    let seen = timeout(LIMIT, reader.next()).await.expect("in time").expect("a request");
    assert_eq!((seen.request.path.as_str(), seen.workload.id().as_str()), ("/real", "shop/web-x1"), "no query string");
    assert_eq!((reader.sidecars(), reader.dropped()), ((1, 0), 2));
    // A collection shows that nothing else has come to the bank's sidecar.
    let observers = fleet.observers.clone();
    let asking = tokio::spawn(async move { observers.collect().await });
    assert!(matches!(bank.demand().await, Some(Demand::Collect(_))));
    asking.abort();
    drop(reader);
    let stopped = loop {
        match shop.demand().await {
            Some(Demand::StopTap(stop)) => break stop.id,
            Some(_) => {}
            None => panic!("ended"),
        }
    };
    assert_eq!(stopped, tap);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_misses_requests_which_are_counted() {
    let fleet = Fleet::new();
    let mut sidecar = fleet.sidecar("shop", "web").await;
    let mut reader = fleet.observers.tap(Wish::default()).expect("room");
    let tap = sidecar.begun().await;
    let paths = ["/"; 100];
    for _ in 0..10 {
        sidecar.tapped(tap, &paths, 3).await;
    }
    // The last report has come when the count of the sidecar's own drops has.
    sidecar.tapped(tap, &[], 4).await;
    while reader.dropped() < 1000 - 256 + 4 {
        timeout(LIMIT, reader.news.changed()).await.expect("in time").expect("open");
    }
    assert_eq!(reader.dropped(), 1000 - 256 + 4);
    let mut shown = 0;
    while let Ok(Some(_)) = timeout(Duration::from_millis(1), reader.next()).await {
        shown += 1;
    }
    assert_eq!(shown, 256);
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_comes_later_is_tapped_too_and_told_again_while_somebody_reads() {
    let fleet = Fleet::new();
    let mut reader = fleet.observers.tap(Wish::default()).expect("room");
    let mut sidecar = fleet.sidecar("shop", "web").await;
    let tap = sidecar.begun().await;
    let again = tokio::select! {
        again = sidecar.begun() => again,
        _ = reader.next() => panic!("nothing was seen"),
    };
    assert_eq!(tap, again);
}

#[test]
fn there_are_so_many_taps_and_no_more() {
    let observers = Observers::default();
    let readers: Vec<_> = (0..100).map(|_| observers.tap(Wish::default())).collect();
    assert_eq!(readers.iter().flatten().count(), TAPS);
    drop(readers);
    assert!(observers.tap(Wish::default()).is_some(), "one that has ended makes room");
}
