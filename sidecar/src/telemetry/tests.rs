//! What a scrape sees of requests and connections, and what hostile callers can make of it.

use std::time::{Duration, Instant};

use http::Version;
use weft_metrics::{IDLE, TraceId};
use weft_policy::SpiffeId;

use super::{Direction, Ended, Hop, OTHER, PEERS, Telemetry};
use crate::error::Reason;

fn ended(status: u16, reason: Option<Reason>, millis: u64) -> Ended {
    let duration = Duration::from_millis(millis);
    Ended { reason, duration, ..Ended::new(status, Version::HTTP_11, Instant::now()) }
}

const HOP: Hop<'static> =
    Hop { direction: Direction::Outbound, service: "default/a", port: 80, peer: "default/me", route: "default/r#0" };
const LABELS: &str =
    "direction=\"outbound\",service=\"default/a\",port=\"80\",peer_service=\"default/me\",route=\"default/r#0\"";

#[test]
fn the_discriminant_of_a_reason_is_its_place_in_all() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(usize::from(*reason as u8), index);
    }
}

#[test]
fn a_request_is_counted_by_how_it_ended_and_falls_into_its_bucket() {
    let telemetry = Telemetry::default();
    let http = telemetry.http(&HOP, true);
    http.record(&ended(200, None, 1));
    http.record(&Ended { grpc: Some(14), version: Version::HTTP_2, ..ended(200, None, 1) });
    http.record(&ended(503, Some(Reason::NoEndpoints), 90_000));
    http.request_bytes(3);
    http.response_bytes(5);
    let text = telemetry.render();
    for (more, count) in [
        ("code_class=\"2xx\",version=\"1.1\"", 1),
        ("code_class=\"2xx\",grpc_status=\"UNAVAILABLE\",version=\"2\"", 1),
        ("code_class=\"5xx\",reason=\"no_endpoints\",version=\"1.1\"", 1),
    ] {
        let line = format!("weft_http_requests_total{{{LABELS},tls=\"mtls\",{more}}} {count}\n");
        assert!(text.contains(&line), "{line} in {text}");
    }
    let name = "weft_http_request_duration_seconds";
    for (bound, count) in [("0.0005", 0), ("0.001", 2), ("10.0", 2), ("+Inf", 3)] {
        let line = format!("{name}_bucket{{{LABELS},tls=\"mtls\",le=\"{bound}\"}} {count}\n");
        assert!(text.contains(&line), "{line} in {text}");
    }
    assert!(text.contains(&format!("weft_http_request_bytes_total{{{LABELS}}} 3\n")), "{text}");
    assert!(text.contains(&format!("weft_http_response_bytes_total{{{LABELS}}} 5\n")), "{text}");
}

#[test]
fn a_snapshot_has_labels_as_fields() {
    let telemetry = Telemetry::default();
    telemetry.http(&HOP, true).record(&ended(200, None, 1));
    let snapshot = telemetry.snapshot();
    let [sample] = snapshot.samples("weft_http_requests_total") else { panic!("{snapshot:?}") };
    let found = ["direction", "service", "port", "peer_service", "route", "tls", "code_class", "reason"]
        .map(|label| sample.label(label));
    assert_eq!(found, ["outbound", "default/a", "80", "default/me", "default/r#0", "mtls", "2xx", ""]);
    assert!((sample.number() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn what_an_app_answers_at_random_does_not_make_series_without_bound() {
    let telemetry = Telemetry::default();
    let http = telemetry.http(&HOP, true);
    for status in 0..1000 {
        for grpc in 0..=255 {
            http.record(&Ended { grpc: Some(grpc), ..ended(status, None, 1) });
        }
    }
    let samples = telemetry.snapshot();
    let samples = samples.samples("weft_http_requests_total");
    assert_eq!(samples.len(), super::http::PLACES + 1);
    let all: f64 = samples.iter().map(weft_metrics::Sample::number).sum();
    assert!((all - 256_000.0).abs() < 0.5, "none is lost: {all}");
}

#[test]
fn only_a_request_whose_trace_is_recorded_is_an_exemplar() {
    let telemetry = Telemetry::default();
    let http = telemetry.http(&HOP, true);
    http.record(&ended(200, None, 1));
    let text = || telemetry.registry().render(weft_metrics::Format::OpenMetrics);
    assert!(!text().contains("trace_id"));
    http.record(&Ended { trace: Some(TraceId([1; 16])), ..ended(200, None, 2) });
    assert_eq!(text().matches("trace_id").count(), 1);
    let traced = text().lines().any(|line| line.contains("le=\"0.0025\"") && line.contains(&"01".repeat(16)));
    assert!(traced, "{}", text());
}

#[test]
fn a_refused_connection_was_never_open() {
    let telemetry = Telemetry::default();
    telemetry.tcp(&HOP, true).refused(Reason::ConnectionRefused);
    let text = telemetry.render();
    let hop = "direction=\"outbound\",service=\"default/a\",port=\"80\",peer_service=\"default/me\",tls=\"mtls\"";
    assert!(text.contains(&format!("weft_tcp_open_connections{{{hop}}} 0\n")), "{text}");
    assert!(text.contains(&format!("weft_tcp_connections_total{{{hop},reason=\"connection_refused\"}} 1")), "{text}");
}

#[test]
fn a_connection_is_open_until_it_is_closed() {
    let telemetry = Telemetry::default();
    let tcp = telemetry.tcp(&Hop { direction: Direction::Inbound, peer: "unknown", ..HOP }, false);
    let open = tcp.opened();
    tcp.sent(7);
    let hop = "direction=\"inbound\",service=\"default/a\",port=\"80\",peer_service=\"unknown\",tls=\"none\"";
    assert!(telemetry.render().contains(&format!("weft_tcp_open_connections{{{hop}}} 1")));
    open.closed(Some(Reason::IdleTimeout));
    let text = telemetry.render();
    assert!(text.contains(&format!("weft_tcp_open_connections{{{hop}}} 0")));
    assert!(text.contains(&format!("weft_tcp_connections_total{{{hop},reason=\"idle_timeout\"}} 1")));
    assert!(text.contains(&format!("weft_tcp_sent_bytes_total{{{hop}}} 7")));
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload("weft.local", "shop", account).expect("valid")
}

#[test]
fn callers_beyond_the_bound_share_a_name_until_others_are_forgotten() {
    let (telemetry, start) = (Telemetry::default(), Instant::now());
    let known: Vec<_> = (0..PEERS)
        .map(|number| {
            let peer = telemetry.peer(&id(&format!("a{number}")), Some("weft.local"));
            telemetry.http(&Hop { direction: Direction::Inbound, peer: &peer, ..HOP }, true)
        })
        .collect();
    for number in 0..100_000 {
        assert_eq!(&*telemetry.peer(&id(&format!("b{number}")), Some("weft.local")), OTHER);
    }
    assert_eq!(&*telemetry.peer(&id("a1"), Some("weft.local")), "shop/a1");
    telemetry.expire(start);
    telemetry.expire(start + 2 * IDLE);
    assert_eq!(&*telemetry.peer(&id("late"), Some("weft.local")), OTHER, "their connections are open");
    drop(known);
    telemetry.expire(start + 3 * IDLE);
    telemetry.expire(start + 4 * IDLE);
    assert_eq!(&*telemetry.peer(&id("late"), Some("weft.local")), "shop/late");
}

#[test]
fn callers_of_another_trust_domain_are_told_apart() {
    let telemetry = Telemetry::default();
    assert_eq!(&*telemetry.peer(&id("a"), Some("weft.local")), "shop/a");
    assert_eq!(&*telemetry.peer(&id("a"), Some("other")), "weft.local/shop/a");
}
