use std::time::SystemTime;

use http::{HeaderMap, Method, uri::PathAndQuery};
use weft_policy::{
    SpiffeId,
    canonical::Authority,
    model::{ObjectName, Target},
    trace::{SpanId, TraceId},
};

use super::*;
use crate::error::Reason;

/// A request to shop/catalog that was answered with 200.
pub fn span(path: &str) -> Span {
    let path: PathAndQuery = path.parse().expect("a path");
    let authority = Authority { host: "catalog".into(), port: Some(80) };
    let mut call = HttpCall::new(Method::GET, (authority, path), (Version::HTTP_2, false), &HeaderMap::new());
    call.status = Some(200);
    Span {
        trace: TraceId::random([1, 2]),
        id: SpanId::random(3),
        parent: None,
        kind: Kind::Client,
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1234),
        duration: Duration::from_micros(1500),
        call: Call::Http(call),
        peer: Some(([10, 0, 0, 2], 15008).into()),
        peer_id: SpiffeId::workload("weft.local", "shop", "catalog"),
        service: Some(Target { service: ObjectName::new("shop", "catalog"), port: 80 }),
        route: None,
        resend: 2,
        reason: None,
        headers: Vec::new(),
        events: Vec::new(),
        events_dropped: 0,
    }
}

fn start(id: u64, per_second: u32, filter: TapFilter) -> StartTap {
    StartTap { id, per_second, lifetime_seconds: 10, filter: Some(filter), query: false }
}

fn seen(queue: &mut mpsc::Receiver<(u64, TappedRequest)>) -> Vec<(u64, TappedRequest)> {
    std::iter::from_fn(|| queue.try_recv().ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_request_is_shown_as_the_caller_saw_it_without_its_query() {
    let (taps, mut queue) = Taps::new();
    taps.start(start(1, 10, TapFilter::default()), Instant::now());
    taps.ended(&span("/items?token=secret"));
    let (_, request) = seen(&mut queue).remove(0);
    let expected = TappedRequest {
        direction: Direction::Outbound.into(),
        service: "shop/catalog:80".into(),
        method: "GET".into(),
        authority: "catalog:80".into(),
        path: "/items".into(),
        status: 200,
        grpc_status: None,
        reason: String::new(),
        duration_us: 1500,
        peer: "spiffe://weft.local/ns/shop/sa/catalog".into(),
        peer_address: "10.0.0.2:15008".into(),
        attempts: 3,
        trace_id: request.trace_id.clone(),
        route: String::new(),
        http_version: 2,
        started_ms: 1234,
    };
    assert_eq!(request, expected);
    taps.start(StartTap { query: true, ..start(2, 10, TapFilter::default()) }, Instant::now());
    taps.ended(&span("/items?token=secret"));
    let paths: Vec<_> = seen(&mut queue).into_iter().map(|(tap, request)| (tap, request.path)).collect();
    assert_eq!(paths, [(1, "/items".to_owned()), (2, "/items?token=secret".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn all_of_a_filter_has_to_hold() {
    let none = TapFilter::default;
    let spiffe = |account: &str| format!("spiffe://weft.local/ns/shop/sa/{account}");
    for (filter, shown) in [
        (none(), true),
        (TapFilter { direction: Direction::Outbound.into(), ..none() }, true),
        (TapFilter { direction: Direction::Inbound.into(), ..none() }, false),
        (TapFilter { service: "shop/catalog".into(), ..none() }, true),
        (TapFilter { service: "shop/cat".into(), ..none() }, false),
        (TapFilter { method: "GET".into(), ..none() }, true),
        (TapFilter { method: "POST".into(), ..none() }, false),
        (TapFilter { path_prefix: "/it".into(), ..none() }, true),
        (TapFilter { path_prefix: "/items?x".into(), ..none() }, false),
        (TapFilter { status_from: 200, status_to: 299, ..none() }, true),
        (TapFilter { status_from: 500, status_to: 599, ..none() }, false),
        (TapFilter { peer: spiffe("catalog"), ..none() }, true),
        (TapFilter { peer: spiffe("cat"), ..none() }, false),
        (TapFilter { method: "GET".into(), service: "bank/vault".into(), ..none() }, false),
    ] {
        let (taps, mut queue) = Taps::new();
        taps.start(start(1, 10, filter.clone()), Instant::now());
        taps.ended(&span("/items?x=1"));
        assert_eq!(seen(&mut queue).len(), usize::from(shown), "{filter:?}");
    }
    let (taps, mut queue) = Taps::new();
    taps.start(start(1, 10, TapFilter { service: "shop/catalog".into(), ..none() }), Instant::now());
    let unknown = Span { service: None, reason: Some(Reason::UnknownService), ..span("/") };
    taps.ended(&unknown);
    assert_eq!(seen(&mut queue).len(), 0, "of no service is not of this one");
}

#[tokio::test(start_paused = true)]
async fn more_than_its_rate_is_dropped_and_counted_and_the_next_second_begins_anew() {
    let (taps, mut queue) = Taps::new();
    taps.start(start(1, 5, TapFilter::default()), Instant::now());
    taps.start(start(2, 1000, TapFilter::default()), Instant::now());
    for _ in 0..8 {
        taps.ended(&span("/"));
    }
    let of = |all: &[(u64, TappedRequest)], id| all.iter().filter(|(tap, _)| *tap == id).count();
    let first = seen(&mut queue);
    assert_eq!((of(&first, 1), of(&first, 2)), (5, 8), "each tap has a rate of its own");
    assert_eq!((taps.dropped(1), taps.dropped(2), taps.dropped(3)), (Some(3), Some(0), None));
    tokio::time::advance(Duration::from_secs(1)).await;
    taps.ended(&span("/"));
    assert_eq!(of(&seen(&mut queue), 1), 1);
    assert_eq!(taps.news(), [], "the drops were asked for");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_and_counts() {
    let (taps, queue) = Taps::new();
    for second in 0..2 {
        taps.start(start(1, MAX_RATE, TapFilter::default()), Instant::now());
        for _ in 0..MAX_RATE {
            taps.ended(&span("/"));
        }
        tokio::time::advance(Duration::from_secs(1 + second)).await;
    }
    let kept = u64::try_from(QUEUE).expect("small");
    assert_eq!(taps.news(), [(1, 2 * u64::from(MAX_RATE) - kept)]);
    drop(queue);
}

#[tokio::test(start_paused = true)]
async fn there_are_so_many_taps_and_one_of_which_nothing_is_heard_ends() {
    let (taps, _queue) = Taps::new();
    let begun = (0..100).filter(|id| taps.start(start(*id, 1, TapFilter::default()), Instant::now()).is_some());
    assert_eq!(begun.count(), TAPS);
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(taps.start(start(3, 1, TapFilter::default()), Instant::now()), Some(0), "told again");
    tokio::time::advance(Duration::from_secs(2)).await;
    taps.expire(Instant::now());
    assert_eq!((taps.dropped(2), taps.dropped(3)), (None, Some(0)));
    assert!(taps.is_active());
    taps.stop(3);
    assert!(!taps.is_active());
}
