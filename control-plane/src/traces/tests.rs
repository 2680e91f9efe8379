//! The receiver over real sockets, and what Jaeger's API and ours make of what came.

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status as OtlpStatus, span::Event as OtlpEvent},
};
use serde_json::{Value as Object, json};
use tokio::net::TcpListener;

use super::{MAX_SPANS, MAX_TRACE, Traces, otlp, query, receiver};
use crate::{
    api::{self, ApiState, access::Access, tests::common::Api},
    store::Store,
};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;

fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}

fn number(key: &str, value: i64) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::IntValue(value)) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}

/// Span `id` of trace `trace`, which began so many milliseconds after [`START`] and took ten.
fn span(trace: u8, id: u8, parent: u8, name: &str, millis: u64) -> OtlpSpan {
    OtlpSpan {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: name.into(),
        kind: if id % 2 == 1 { 2 } else { 3 },
        start_time_unix_nano: START + millis * 1_000_000,
        end_time_unix_nano: START + (millis + 10) * 1_000_000,
        ..OtlpSpan::default()
    }
}

fn export(service: &str, spans: Vec<OtlpSpan>) -> ExportTraceServiceRequest {
    let resource = Resource { attributes: vec![text("service.name", service)], ..Resource::default() };
    let scope = ScopeSpans { spans, ..ScopeSpans::default() };
    let from = ResourceSpans { resource: Some(resource), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![from] }
}

/// A trace of two services, and one of one service that failed, a minute later.
fn filled() -> Traces {
    let traces = Traces::default();
    let mut failed = span(2, 1, 0, "POST /pay", 60_000);
    failed.status = Some(OtlpStatus { code: 2, message: "no money".into() });
    failed.attributes = vec![number("http.response.status_code", 500)];
    failed.events =
        vec![OtlpEvent { time_unix_nano: START, name: "retry".into(), attributes: vec![], ..OtlpEvent::default() }];
    for request in [
        export("web", vec![span(1, 1, 0, "GET /", 0), span(1, 2, 1, "GET", 1)]),
        export("catalog", vec![span(1, 3, 2, "GET /items", 2)]),
        export("pay", vec![failed]),
    ] {
        traces.add(otlp::spans(request).0);
    }
    traces
}

fn asking(traces: &Traces) -> Api {
    let mut state = ApiState::of(Store::memory(), Access::dev());
    state.traces = Some(traces.clone());
    Api::of(api::router(state))
}

async fn ask(path: &str) -> Object {
    let reply = asking(&filled()).get(path).await;
    assert_eq!(reply.code, 200, "{path}: {reply:?}");
    reply.body
}

fn id(trace: u8) -> String {
    format!("{trace:02x}").repeat(16)
}

#[tokio::test]
async fn spans_come_in_over_grpc_and_over_http() {
    let traces = Traces::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(receiver::serve(listener, traces.clone()));
    let mut grpc = TraceServiceClient::connect(format!("http://{address}")).await.expect("connected");
    let mut nameless = span(1, 9, 0, "x", 0);
    nameless.trace_id = vec![0; 16];
    let answer = grpc.export(export("web", vec![span(1, 1, 0, "GET /", 0), nameless])).await.expect("taken");
    assert_eq!(answer.into_inner().partial_success.expect("one refused").rejected_spans, 1);

    let body = prost::Message::encode_to_vec(&export("catalog", vec![span(1, 3, 1, "GET /items", 2)]));
    let answer = post(address, "application/x-protobuf", &body).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(traces.trace(super::TraceId::parse(&id(1)).expect("valid")).expect("a trace").len(), 2);

    assert!(post(address, "application/json", b"{}").await.starts_with("HTTP/1.1 415"));
    assert!(post(address, "application/x-protobuf", b"\xff").await.starts_with("HTTP/1.1 400"));
}

/// The head of the answer.
async fn post(address: std::net::SocketAddr, kind: &str, body: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("sent");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(20), read).await.expect("in time").expect("read");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn jaegers_ui_finds_services_operations_and_dependencies() {
    assert_eq!(ask("/api/services").await["data"], json!(["catalog", "pay", "web"]));
    assert_eq!(ask("/api/services/web/operations").await["data"], json!(["GET", "GET /"]));
    assert_eq!(ask("/api/services/nobody/operations").await["data"], json!([]));
    let named = json!([{ "name": "GET", "spanKind": "client" }]);
    assert_eq!(ask("/api/operations?service=web&spanKind=client").await["data"], named);
    let calls = json!([{ "parent": "web", "child": "catalog", "callCount": 1 }]);
    assert_eq!(ask("/api/dependencies").await["data"], calls);
    let end = START / 1_000_000;
    assert_eq!(ask(&format!("/api/dependencies?endTs={}&lookback=2000", end + 1000)).await["data"], calls);
    assert_eq!(ask(&format!("/api/dependencies?endTs={end}&lookback=2000")).await["data"], json!([]));
}

#[tokio::test]
async fn jaegers_ui_reads_a_trace() {
    let body = ask(&format!("/api/traces/{}", id(1))).await;
    let trace = &body["data"][0];
    assert_eq!(trace["traceID"], id(1));
    let spans = trace["spans"].as_array().expect("spans");
    assert_eq!(spans.len(), 3);
    assert_eq!(spans[0]["references"], json!([]));
    assert_eq!(spans[2]["references"][0]["spanID"], "02".repeat(8));
    assert_eq!(spans[2]["references"][0]["refType"], "CHILD_OF");
    assert_eq!((&spans[0]["startTime"], &spans[0]["duration"]), (&json!(START / 1000), &json!(10_000)));
    assert_eq!(trace["processes"][spans[2]["processID"].as_str().expect("a process")]["serviceName"], "catalog");
    assert!(spans[0]["tags"].as_array().expect("tags").contains(&json!({
        "key": "span.kind", "type": "string", "value": "server"
    })));

    let failed = ask(&format!("/api/traces/{}", id(2))).await;
    let span = &failed["data"][0]["spans"][0];
    for tag in [
        json!({ "key": "error", "type": "bool", "value": true }),
        json!({ "key": "otel.status_description", "type": "string", "value": "no money" }),
        json!({ "key": "http.response.status_code", "type": "int64", "value": 500 }),
    ] {
        assert!(span["tags"].as_array().expect("tags").contains(&tag), "{tag} in {span}");
    }
    assert_eq!(span["logs"][0]["fields"][0]["value"], "retry");
}

#[tokio::test]
async fn a_search_meets_every_condition() {
    let late = START / 1000 + 30_000_000;
    for (query, found) in [
        ("service=web".to_owned(), vec![1]),
        ("service=web&operation=GET".to_owned(), vec![1]),
        ("service=web&operation=POST%20%2Fpay".to_owned(), vec![]),
        (String::new(), vec![2, 1]),
        ("limit=1".to_owned(), vec![2]),
        (format!("start={late}"), vec![2]),
        (format!("end={late}"), vec![1]),
        ("minDuration=11ms".to_owned(), vec![]),
        ("minDuration=&maxDuration=10ms".to_owned(), vec![2, 1]),
        ("tags=%7B%22error%22%3A%22true%22%7D".to_owned(), vec![2]),
        ("tag=http.response.status_code:500".to_owned(), vec![2]),
        ("tag=http.response.status_code:501".to_owned(), vec![]),
        (format!("traceID={}&traceID={}", id(1), id(3)), vec![1]),
    ] {
        let body = ask(&format!("/api/traces?{query}")).await;
        let ids: Vec<&str> =
            body["data"].as_array().expect("a list").iter().filter_map(|trace| trace["traceID"].as_str()).collect();
        assert_eq!(ids, found.iter().map(|&trace| id(trace)).collect::<Vec<_>>(), "{query}");
    }
}

#[tokio::test]
async fn version_3_gives_otlp() {
    assert_eq!(ask("/api/v3/services").await, json!({ "services": ["catalog", "pay", "web"] }));
    let operations = json!({ "operations": [{ "name": "GET", "spanKind": "client" }] });
    assert_eq!(ask("/api/v3/operations?service=web&span_kind=client").await, operations);
    let trace = ask(&format!("/api/v3/traces/{}", id(1))).await;
    let resources = trace["result"]["resourceSpans"].as_array().expect("resources");
    assert_eq!(resources.len(), 2);
    let service = json!({ "key": "service.name", "value": { "stringValue": "web" } });
    assert_eq!(resources[0]["resource"]["attributes"][0], service);
    let span = &resources[0]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["startTimeUnixNano"], START.to_string());
    assert_eq!((&span["traceId"], &span["kind"]), (&json!(id(1)), &json!(2)));
    let query = "query.service_name=pay&query.start_time_min=2023-11-14T22:13:20Z&query.num_traces=5";
    let found = ask(&format!("/api/v3/traces?{query}")).await;
    assert_eq!(found["result"]["resourceSpans"].as_array().expect("a list").len(), 1);
    let early = ask("/api/v3/traces?query.start_time_max=2023-11-14T22:13:19Z").await;
    assert_eq!(early["result"]["resourceSpans"], json!([]));
}

#[tokio::test]
async fn our_own_listing_has_a_line_for_each_trace() {
    let list = ask("/weft/v1/traces").await;
    let first = &list["items"][0];
    assert_eq!((&first["service"], &first["errors"], &first["spans"]), (&json!("pay"), &json!(1), &json!(1)));
    assert_eq!(list["spans"], json!({ "received": 4, "dropped": 0, "held": 4 }));
    assert_eq!(list["items"][1]["services"], json!(["catalog", "web"]));
    assert_eq!(list["items"][1]["durationNanos"], 12_000_000);
    assert_eq!(ask("/weft/v1/traces?errors=true").await["items"].as_array().expect("a list").len(), 1);
    let one = ask(&format!("/weft/v1/traces/{}", id(1))).await;
    assert_eq!(one["items"][2]["parent"], "02".repeat(8));
    assert_eq!(one["items"][2]["service"], "catalog");
}

#[tokio::test]
async fn what_is_not_there_or_makes_no_sense_is_told() {
    let api = asking(&filled());
    for (path, code) in [
        ("/api/traces/zz", 400),
        (&format!("/api/traces/{}", id(7)), 404),
        ("/api/traces?minDuration=5", 400),
        ("/api/traces?tags=x", 400),
        ("/api/traces?start=yesterday", 400),
        ("/api/operations", 400),
        ("/api/v3/traces?query.start_time_min=noon", 400),
        ("/weft/v1/traces/zz", 400),
        (&format!("/weft/v1/traces/{}", id(7)), 404),
        ("/weft/v1/traces?what=1", 400),
    ] {
        assert_eq!(api.get(path).await.code, code, "{path}");
    }
    let none = Api::new();
    assert!(none.get("/api/services").await.text.contains("keeps no traces"));
    assert!(none.get("/weft/v1/traces").await.failed(404, "NotFound").contains("--dev"));
}

#[test]
fn the_oldest_traces_make_room_and_no_trace_takes_all_of_it() {
    let traces = Traces::default();
    let one = |trace: usize, id: usize| {
        let mut span = span(1, 1, 0, "x", 0);
        span.trace_id = u128::try_from(trace + 1).expect("small").to_be_bytes().to_vec();
        span.span_id = u64::try_from(id + 1).expect("small").to_be_bytes().to_vec();
        otlp::spans(export("web", vec![span])).0
    };
    (0..MAX_TRACE + 5).for_each(|id| traces.add(one(0, id)));
    assert_eq!(traces.counts().held, MAX_TRACE);
    assert_eq!(traces.counts().dropped, 5);
    traces.add(one(0, 0));
    assert_eq!(traces.counts().dropped, 6, "sent twice");
    (1..=MAX_SPANS).for_each(|trace| traces.add(one(trace, 0)));
    let counts = traces.counts();
    assert_eq!(counts.held, MAX_SPANS);
    let trace = |number: u128| traces.trace(super::TraceId::from_bytes(number.to_be_bytes()).expect("valid"));
    assert!(trace(1).is_none(), "the first made room");
    assert!(trace(u128::try_from(MAX_SPANS + 1).expect("small")).is_some());
}

#[test]
fn values_are_cut_to_what_is_kept() {
    let mut long = span(1, 1, 0, &"ä".repeat(10_000), 0);
    long.attributes = (0..1000).map(|index| number(&format!("k{index}"), index)).collect();
    let (spans, refused) = otlp::spans(export("web", vec![long]));
    assert_eq!(refused, 0);
    assert_eq!(spans[0].name.len(), 4096);
    assert_eq!(spans[0].attributes.len(), 128);
}

#[test]
fn durations_are_read_as_go_writes_them() {
    let millis = |text: &str| query::duration(text).map(|duration| duration.as_millis());
    for (text, expected) in [("1.5s", 1500), ("100ms", 100), ("1h1m1s", 3_661_000), ("250us", 0), ("2000µs", 2)] {
        assert_eq!(millis(text), Ok(expected), "{text}");
    }
    for text in ["", "5", "s", "5x", "-1s", "1e400s", "1..2s"] {
        assert!(query::duration(text).is_err(), "{text}");
    }
}
