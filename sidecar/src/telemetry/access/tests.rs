use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, header};
use weft_policy::{
    canonical::Authority,
    trace::{SpanId, TraceId},
};

use super::*;
use crate::error::Reason;

fn span(path: &str, agent: &str) -> Span {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_bytes(agent.as_bytes()).expect("a value"));
    headers.insert("x-request-id", HeaderValue::from_static("r-1"));
    let names = (Authority::parse(b"catalog.shop:80").expect("valid"), path.parse().expect("a path"));
    let mut call = HttpCall::new(Method::GET, names, (Version::HTTP_11, false), &headers);
    (call.status, call.complete) = (Some(503), true);
    Span {
        trace: TraceId::random([1, 2]),
        id: SpanId::random(3),
        parent: None,
        kind: Kind::Client,
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        duration: Duration::from_micros(1500),
        call: Call::Http(call),
        peer: Some(([10, 0, 0, 1], 8080).into()),
        peer_id: SpiffeId::workload("weft.local", "shop", "catalog"),
        service: None,
        route: Some(HeaderValue::from_static("shop/catalog#0")),
        resend: 2,
        reason: Some(Reason::ConnectionRefused),
        headers: Vec::new(),
        events: Vec::new(),
        events_dropped: 0,
    }
}

#[test]
fn a_line_of_json_has_envoys_names_and_ours() {
    let text = line(&span("/items?q=1", "curl/8"), AccessLogFormat::Json);
    assert!(text.ends_with('\n') && text.matches('\n').count() == 1);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (name, expected) in [
        ("start_time", json!("2023-11-14T22:13:20.123Z")),
        ("direction", json!("outbound")),
        ("method", json!("GET")),
        ("path", json!("/items?q=1")),
        ("authority", json!("catalog.shop:80")),
        ("protocol", json!("HTTP/1.1")),
        ("response_code", json!(503)),
        ("response_flags", json!("UF")),
        ("reason", json!("connection_refused")),
        ("duration", json!(1)),
        ("upstream_host", json!("10.0.0.1:8080")),
        ("route_name", json!("shop/catalog#0")),
        ("attempts", json!(3)),
        ("user_agent", json!("curl/8")),
        ("request_id", json!("r-1")),
        ("peer_identity", json!("spiffe://weft.local/ns/shop/sa/catalog")),
        ("trace_id", json!("00000000000000010000000000000002")),
    ] {
        assert_eq!(value[name], expected, "{name}");
    }
}

#[test]
fn the_text_formats_are_those_of_envoy_and_of_the_first_servers() {
    let span = span("/items", "curl/8");
    assert_eq!(
        line(&span, AccessLogFormat::Envoy),
        "[2023-11-14T22:13:20.123Z] \"GET /items HTTP/1.1\" 503 UF - - 1 - \"-\" \"curl/8\" \"r-1\" \
         \"catalog.shop:80\" \"10.0.0.1:8080\"\n"
    );
    assert_eq!(
        line(&span, AccessLogFormat::Common),
        "10.0.0.1 - spiffe://weft.local/ns/shop/sa/catalog [14/Nov/2023:22:13:20 +0000] \"GET /items HTTP/1.1\" 503 -\n"
    );
}

#[test]
fn a_connection_has_a_line_too_with_its_bytes_as_envoy_counts_them() {
    let span = Span { call: Call::Tcp(Moved { sent: 5, received: 7 }), route: None, ..span("/", "") };
    let text = line(&span, AccessLogFormat::Json);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let fields = ["protocol", "bytes_received", "bytes_sent", "response_flags", "upstream_host", "method"];
    let expected = [json!("TCP"), json!(5), json!(7), json!("UF"), json!("10.0.0.1:8080"), json!(null)];
    assert_eq!(fields.map(|field| value[field].clone()), expected);
    assert_eq!(
        line(&span, AccessLogFormat::Envoy),
        "[2023-11-14T22:13:20.123Z] \"- - -\" 0 UF 5 7 1 - \"-\" \"-\" \"-\" \"-\" \"10.0.0.1:8080\"\n"
    );
    assert_eq!(
        line(&span, AccessLogFormat::Common),
        "10.0.0.1 - spiffe://weft.local/ns/shop/sa/catalog [14/Nov/2023:22:13:20 +0000] \"- - -\" 0 7\n"
    );
}

#[test]
fn no_value_ends_a_line_a_quote_or_the_patience_of_a_terminal() {
    let agent = "a\" 200 OK \\ \u{9b}31m\t";
    for format in [AccessLogFormat::Json, AccessLogFormat::Envoy, AccessLogFormat::Common] {
        let text = line(&span("/x", agent), format);
        assert_eq!(text.chars().filter(|c| c.is_control()).count(), 1, "its own end: {text:?}");
    }
    let text = line(&span("/x", agent), AccessLogFormat::Envoy);
    assert!(text.contains("\"a\\x22 200 OK \\x5C \\xC2\\x9B31m\\x09\""), "{text}");
    let long = line(&span(&format!("/{}", "x".repeat(10_000)), "a"), AccessLogFormat::Json);
    assert!(long.len() < 4000, "{}", long.len());
}

#[test]
fn lines_are_written_in_order_and_those_that_do_not_fit_are_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("access.log");
    let telemetry = Telemetry::default();
    let (log, writer) = AccessLog::start(&telemetry, Some(&file)).expect("started");
    for number in 0..100 {
        log.send(span(&format!("/{number}"), "a"), AccessLogFormat::Common);
    }
    drop(log);
    writer.join().expect("ended");
    let text = std::fs::read_to_string(&file).expect("written");
    let paths: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(6)).collect();
    assert_eq!(paths, (0..100).map(|number| format!("/{number}")).collect::<Vec<_>>());

    // Nobody reads.
    let (queue, _lines) = sync_channel(1);
    let dropped = telemetry.counter("weft_access_log_dropped_total", "", &[]);
    let log = AccessLog { queue, dropped };
    (0..3).for_each(|_| log.send(span("/", "a"), AccessLogFormat::Json));
    assert!(telemetry.render().contains("weft_access_log_dropped_total 2\n"), "{}", telemetry.render());
}
