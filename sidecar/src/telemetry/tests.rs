//! What a scrape sees.

use std::time::Duration;

use super::{Direction, Telemetry};
use crate::error::Reason;

#[test]
fn the_discriminant_of_a_reason_is_its_place_in_all() {
    for (index, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(usize::from(*reason as u8), index);
    }
}

#[test]
fn handles_of_the_same_series_add_up() {
    let telemetry = Telemetry::default();
    telemetry.counter("weft_c_total", "C.", &[("type", "Service")]).increment(2);
    telemetry.counter("weft_c_total", "C.", &[("type", "Service")]).increment(3);
    telemetry.gauge("weft_ready", "Ready.", &[]).set(1.0);
    let text = telemetry.render();
    assert!(text.contains("# HELP weft_c_total C.\n# TYPE weft_c_total counter\nweft_c_total{type=\"Service\"} 5\n"));
    assert!(text.contains("# TYPE weft_ready gauge\nweft_ready 1\n"));
}

#[test]
fn label_values_are_escaped() {
    let telemetry = Telemetry::default();
    telemetry.counter("weft_c_total", "C.", &[("v", "a\"b\\c\nd")]).increment(1);
    assert!(telemetry.render().contains(r#"weft_c_total{v="a\"b\\c\nd"} 1"#));
}

#[test]
fn a_request_is_counted_by_class_and_reason_and_falls_into_its_bucket() {
    let telemetry = Telemetry::default();
    let http = telemetry.http(Direction::Outbound, "default/a:80", true);
    http.record(200, None, Duration::from_millis(1));
    http.record(503, Some(Reason::NoEndpoints), Duration::from_secs(90));
    let text = telemetry.render();
    let hop = "direction=\"outbound\",target=\"default/a:80\",mtls=\"true\"";
    assert!(text.contains(&format!("weft_http_requests_total{{{hop},code_class=\"2xx\",reason=\"\"}} 1")));
    assert!(text.contains(&format!("weft_http_requests_total{{{hop},code_class=\"5xx\",reason=\"no_endpoints\"}} 1")));
    let name = "weft_http_request_duration_seconds";
    assert!(text.contains(&format!("{name}_bucket{{{hop},le=\"0.0005\"}} 0")));
    assert!(text.contains(&format!("{name}_bucket{{{hop},le=\"0.001\"}} 1")));
    assert!(text.contains(&format!("{name}_bucket{{{hop},le=\"+Inf\"}} 2")));
    assert!(text.contains(&format!("{name}_count{{{hop}}} 2")));
}

#[test]
fn a_refused_connection_was_never_open() {
    let telemetry = Telemetry::default();
    telemetry.tcp(Direction::Outbound, "default/a:80", true).refused(Reason::ConnectionRefused);
    let text = telemetry.render();
    let hop = "direction=\"outbound\",target=\"default/a:80\",mtls=\"true\"";
    assert!(text.contains(&format!("weft_tcp_open_connections{{{hop}}} 0\n")), "{text}");
    assert!(text.contains(&format!("weft_tcp_connections_total{{{hop},reason=\"connection_refused\"}} 1")), "{text}");
}

#[test]
fn a_connection_is_open_until_it_is_closed() {
    let telemetry = Telemetry::default();
    let tcp = telemetry.tcp(Direction::Inbound, "default/a:80", false);
    let open = tcp.opened();
    tcp.sent(7);
    let hop = "direction=\"inbound\",target=\"default/a:80\",mtls=\"false\"";
    assert!(telemetry.render().contains(&format!("weft_tcp_open_connections{{{hop}}} 1")));
    open.closed(Some(Reason::IdleTimeout));
    let text = telemetry.render();
    assert!(text.contains(&format!("weft_tcp_open_connections{{{hop}}} 0")));
    assert!(text.contains(&format!("weft_tcp_connections_total{{{hop},reason=\"idle_timeout\"}} 1")));
    assert!(text.contains(&format!("weft_tcp_sent_bytes_total{{{hop}}} 7")));
}
