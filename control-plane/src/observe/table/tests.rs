use std::sync::Arc;

use tokio::time::Instant;
use weft_proto::v1::{HttpOutcome, Retries};

use super::*;

fn workload(name: &str, epoch_ms: u64) -> Workload {
    Workload {
        namespace: "shop".into(),
        name: format!("{name}-x1"),
        app: name.into(),
        identity: format!("spiffe://weft.local/ns/shop/sa/{name}"),
        epoch_ms,
    }
}

fn from(name: &str) -> Origin {
    Origin::App {
        namespace: "shop".into(),
        name: name.into(),
        identity: format!("spiffe://weft.local/ns/shop/sa/{name}"),
    }
}

fn http(direction: Direction, target: &str, mtls: bool, counts: &[(u32, bool, u64)]) -> HttpSeries {
    let outcome = |(code_class, failed, count): &(u32, bool, u64)| HttpOutcome {
        code_class: *code_class,
        failed: *failed,
        count: *count,
        reason: String::new(),
    };
    let total = counts.iter().map(|(_, _, count)| count).sum();
    let (service, port) = parts(target);
    HttpSeries {
        direction: direction.into(),
        service,
        port,
        mtls,
        route: String::new(),
        outcomes: counts.iter().map(outcome).collect(),
        buckets: vec![total, 0, 0],
    }
}

/// Service and port of `service:port` or `port`.
fn parts(target: &str) -> (String, u32) {
    let (service, port) = target.rsplit_once(':').unwrap_or(("", target));
    (service.to_owned(), port.parse().unwrap_or(0))
}

fn report(http: Vec<HttpSeries>, tcp: Vec<TcpSeries>, retries: &[(&str, u64)]) -> Report {
    let retries = retries.iter().map(|(target, sent)| {
        let (service, port) = parts(target);
        Retries { service, port, sent: *sent }
    });
    Report { number: 1, bounds: [1000, 2000].into(), http, tcp, retries: retries.collect() }
}

fn collected(reports: Vec<(Workload, Report)>) -> Collected {
    let reports = reports.into_iter().map(|(workload, report)| (workload, Arc::new(report))).collect();
    Collected { at: Instant::now(), reports, silent: 0 }
}

const OUT: Direction = Direction::Outbound;
const IN: Direction = Direction::Inbound;

#[test]
fn a_call_is_counted_once_where_it_leaves_and_from_outside_where_it_comes_in() {
    let web = report(
        vec![http(OUT, "shop/catalog:80", true, &[(2, false, 90), (5, true, 10)])],
        vec![],
        &[("shop/catalog:80", 5)],
    );
    let catalog =
        report(vec![http(IN, "8080", true, &[(2, false, 95)]), http(IN, "8080", false, &[(2, false, 3)])], vec![], &[]);
    let now = collected(vec![(workload("web", 1), web), (workload("catalog", 1), catalog)]);
    let mut served = Served::default();
    served.insert("shop/catalog-x1", 8080, "shop/catalog:80".into());
    let edges = edges(None, &now, &served);
    let web = &edges[&(from("web"), "shop/catalog:80".into())];
    assert_eq!((web.requests, web.failed, web.retries, web.tries(), web.secured), (100, 10, 5, 105, [100, 0]));
    let outside = &edges[&(Origin::Outside, "shop/catalog:80".into())];
    assert_eq!((outside.requests, outside.secured), (3, [0, 3]));
    assert_eq!(edges.len(), 2);
    let services = services(&edges);
    let catalog = &services["shop/catalog:80"];
    assert_eq!((catalog.requests, catalog.failed, catalog.secured), (103, 10, [100, 3]));
    assert_eq!(catalog.durations.quantile_ms(1.0), Some(1.0));
}

#[test]
fn a_window_has_what_was_counted_between_its_ends() {
    let series = |count| vec![http(OUT, "shop/catalog:80", true, &[(2, false, count)])];
    let before = collected(vec![(workload("web", 1), report(series(100), vec![], &[("shop/catalog:80", 2)]))]);
    let now = collected(vec![(workload("web", 1), report(series(130), vec![], &[("shop/catalog:80", 3)]))]);
    let found = edges(Some(&before), &now, &Served::default());
    let numbers = &found[&(from("web"), "shop/catalog:80".into())];
    assert_eq!((numbers.requests, numbers.retries, numbers.failed), (30, 1, 0));
    assert_eq!(edges(Some(&now), &now, &Served::default()), Edges::new(), "what has not changed is no edge");
}

#[test]
fn a_sidecar_that_started_anew_counts_from_nothing_and_one_that_was_not_there_not_at_all() {
    let series = |count| report(vec![http(OUT, "shop/catalog:80", true, &[(2, false, count)])], vec![], &[]);
    let before = collected(vec![(workload("web", 1), series(100))]);
    let now = collected(vec![(workload("web", 2), series(7)), (workload("new", 1), series(5000))]);
    let found = edges(Some(&before), &now, &Served::default());
    assert_eq!(found[&(from("web"), "shop/catalog:80".into())].requests, 7);
    assert_eq!(found.len(), 1);
}

#[test]
fn instances_of_an_app_are_one_edge_and_opaque_connections_count_too() {
    let tcp = |open, closed| TcpSeries {
        direction: OUT.into(),
        service: "shop/ledger".into(),
        port: 9000,
        mtls: true,
        open,
        closed,
        failed: 1,
        sent_bytes: 10,
        received_bytes: 20,
    };
    let second = Workload { name: "web-x2".into(), ..workload("web", 1) };
    let now = collected(vec![
        (workload("web", 1), report(vec![], vec![tcp(1, 2)], &[])),
        (second, report(vec![], vec![tcp(0, 3)], &[])),
    ]);
    let found = edges(None, &now, &Served::default());
    let numbers = &found[&(from("web"), "shop/ledger:9000".into())];
    assert_eq!((numbers.open, numbers.closed, numbers.broken), (1, 5, 2));
    assert_eq!((numbers.secured, numbers.bytes), ([6, 0], [20, 40]));
    assert_eq!(found.len(), 1);
}

#[test]
fn what_comes_in_is_counted_for_services_that_the_workload_serves_and_for_no_other() {
    let mut served = Served::default();
    served.insert("shop/web-x1", 8080, "shop/web:80".into());
    served.insert("shop/web-x1", 8080, "shop/web-all:80".into());
    served.insert("shop/vault-x1", 8080, "shop/vault:80".into());
    for (said, counted) in [
        ("8080", "shop/web-all:80"),
        ("shop/web:80", "shop/web:80"),
        // Nobody serves this port of it; others serve these.
        ("9090", "unknown"),
        ("shop/vault:80", "unknown"),
        ("bank/ledger:80", "unknown"),
        ("shop/web:81", "unknown"),
    ] {
        let series = vec![http(IN, said, false, &[(2, false, 1)])];
        let now = collected(vec![(workload("web", 1), report(series, vec![], &[]))]);
        let found: Vec<_> = edges(None, &now, &served).into_keys().collect();
        assert_eq!(found, [(Origin::Outside, counted.into())], "{said}");
    }
}

#[test]
fn counters_that_go_back_have_begun_anew() {
    let series =
        |count| report(vec![http(OUT, "shop/catalog:80", true, &[(2, false, count)])], vec![], &[("x", count)]);
    let (before, now) =
        (collected(vec![(workload("web", 1), series(9))]), collected(vec![(workload("web", 1), series(3))]));
    let found = edges(Some(&before), &now, &Served::default());
    assert_eq!(found[&(from("web"), "shop/catalog:80".into())].requests, 3);
    let huge = report(
        vec![http(OUT, "a/b:1", true, &[(2, false, u64::MAX)]); 2]
            .into_iter()
            .map(|mut of| {
                of.buckets.clear();
                of
            })
            .collect(),
        vec![],
        &[],
    );
    let found = edges(None, &collected(vec![(workload("web", 1), huge)]), &Served::default());
    assert_eq!(found[&(from("web"), "a/b:1".into())].requests, u64::MAX);
}
