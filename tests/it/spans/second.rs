//! What is exported, read by two decoders that share no code: opentelemetry-proto in Python takes it from the sidecars
//! and passes the bytes on to the control plane's receiver. Both must have read the same.

use std::{collections::BTreeMap, net::SocketAddr, process::Command};

use serde_json::{Value, json};

use super::{
    chain::{ANSWER, Chain, Field, listens},
    long,
    trace::{by_attribute, context, fresh, otlp},
    websocket,
};
use crate::{
    mesh::TestMesh,
    needs,
    net::{LIMIT, eventually, free},
    process::Process,
    python::script,
    routes::apps::Caller,
};

const MODULES: &str = "grpc, opentelemetry.proto.collector.trace.v1.trace_service_pb2";

/// The collector in Python, which passes on what comes.
fn collector(mesh: &TestMesh, address: SocketAddr, onwards: SocketAddr) -> Process {
    let mut command = Command::new("python3");
    command.args([script("otlp_collector.py"), address.to_string(), onwards.to_string()]);
    let process = Process::start(&mut command, &mesh.dir.join("collector.log"));
    listens(address);
    process
}

/// The spans of a trace as the control plane's API has them, in the form of the Python program's lines.
fn ours(mesh: &TestMesh, trace: &str) -> Vec<Value> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs = |list: &Value| -> BTreeMap<String, String> {
        let all = list["attributes"].as_array().expect("attributes").iter();
        let value =
            |pair: &Value| text(pair["value"].as_object().and_then(|map| map.values().next()).expect("a value"));
        all.map(|pair| (text(&pair["key"]), value(pair))).collect()
    };
    let mut found = Vec::new();
    let Ok(all) = otlp(mesh, trace) else { return found };
    for resource in all["result"]["resourceSpans"].as_array().expect("spans") {
        for scope in resource["scopeSpans"].as_array().expect("scopes") {
            for span in scope["spans"].as_array().expect("spans") {
                let events = span["events"].as_array().expect("events").iter();
                let events: Vec<_> = events.map(|event| json!([event["name"], pairs(event)])).collect();
                found.push(json!({
                    "trace": span["traceId"], "id": span["spanId"], "parent": span["parentSpanId"],
                    "name": span["name"], "kind": kind(span),
                    "start": span["startTimeUnixNano"], "end": span["endTimeUnixNano"],
                    "status": code(span),
                    "attributes": pairs(span), "events": events,
                    "scope": scope["scope"]["name"], "resource": pairs(&resource["resource"]),
                }));
            }
        }
    }
    found
}

/// OTLP's numbers of kinds and status codes as words.
fn kind(span: &Value) -> &'static str {
    match span["kind"].as_u64() {
        Some(1) => "INTERNAL",
        Some(2) => "SERVER",
        Some(3) => "CLIENT",
        _ => panic!("{span}"),
    }
}

fn code(span: &Value) -> &'static str {
    match span["status"]["code"].as_u64() {
        None | Some(0) => "UNSET",
        Some(2) => "ERROR",
        _ => panic!("OK is the application's to say: {span}"),
    }
}

/// Waits for this many spans of a trace; both decoders must have read the same.
fn both(mesh: &TestMesh, second: &Process, trace: &str, count: usize) {
    let id = |span: &Value| span["id"].as_str().map(str::to_owned);
    let (mut first, mut second) = eventually(&format!("{count} spans of {trace}, within {LIMIT:?}"), || {
        let output = second.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let second: Vec<Value> = lines.filter(|span| span["trace"] == trace).collect();
        let first = ours(mesh, trace);
        if (first.len(), second.len()) == (count, count) { Ok((first, second)) } else { Err(output) }
    });
    first.sort_by_key(id);
    second.sort_by_key(id);
    assert_eq!(first, second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_decoder_reads_the_same_of_requests_and_sessions() {
    let test = "a_second_decoder_reads_the_same_of_requests_and_sessions";
    if needs::python(test, MODULES) {
        return;
    }
    let address = free();
    let chain = Chain::start("spans-second", Caller::Http1, 0, Some(address)).await;
    let second = collector(&chain.mesh, address, chain.otlp);
    let (retried, talked) = (fresh(), fresh());
    let fields = [("traceparent", &*context(&retried, true)), (ANSWER, "first-503"), ("baggage", "saga.id=s-17")];
    assert_eq!(chain.send("front", "/orders/17?page=2", &fields).await, 200);
    let told: [Field; 1] = [("traceparent".into(), context(&talked, true))];
    let session = websocket::open(chain.mesh.local("front"), "front", "/orders/17", &told).expect("101");
    websocket::talk(session, b"seventeen");
    both(&chain.mesh, &second, &retried, 8);
    both(&chain.mesh, &second, &talked, 12);
}

#[test]
fn a_second_decoder_reads_the_same_of_opaque_connections() {
    let test = "a_second_decoder_reads_the_same_of_opaque_connections";
    if needs::python(test, MODULES) {
        return;
    }
    let (address, own) = (free(), free());
    let mesh = long::opaque("spans-second-tcp", address, own);
    let second = collector(&mesh, address, own);
    assert_eq!(long::through(mesh.local("bytes"), b"seventeen"), b"seventeen");
    both(&mesh, &second, &by_attribute(&mesh, "client", "server.address", "bytes.default"), 2);
}
