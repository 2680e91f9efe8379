//! `weft stat`, `edges` and `tap` against a load that the test counts itself.

use std::{net::SocketAddr, process::Command};

use serde_json::Value;

use crate::{
    apps::recorder,
    mesh::{TestMesh, Workload},
    net::{call, eventually, free, get, ok},
    process::Process,
};

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const BAD: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
/// Requests of the load to each of the two services.
const LOAD: (u64, u64) = (200, 40);

/// What has been counted of a service since the sidecars started.
fn counted(mesh: &TestMesh, service: &str) -> Value {
    let all = mesh.weft(&["stat", "--since-start", "-o", "json"]).json();
    let items = all["items"].as_array().expect("a list");
    items.iter().find(|item| item["service"] == service).cloned().unwrap_or_default()
}

fn number(item: &Value, field: &str) -> u64 {
    item[field].as_u64().unwrap_or(0)
}

/// Sends a request so often: how often it was answered with this status.
fn load(address: SocketAddr, request: &str, count: u64, status: u16) -> u64 {
    let answers = (0..count).map(|_| call(address, request).expect("an answer").0);
    answers.filter(|answer| *answer == status).map(|_| 1).sum()
}

fn request(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// A tap with these flags, once it has begun at this many sidecars.
fn tap(mesh: &TestMesh, name: &str, sidecars: usize, flags: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(["tap", "-o", "json", "--max-rate", "1000", "--duration", "2m"]).args(flags);
    command.env("WEFT_SERVER", format!("http://{}", mesh.api));
    let process = Process::start(&mut command, &mesh.dir.join(name));
    eventually("the tap", || {
        let text = process.output();
        if text.contains(&format!("tapping {sidecars} sidecar")) { Ok(()) } else { Err(text) }
    });
    process
}

/// What it has shown when it has ended by its limit, with nothing dropped.
fn shown(mut tap: Process) -> Vec<Value> {
    let status = tap.wait();
    let text = tap.output();
    assert_eq!(status.code(), Some(0), "{text}");
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn count(requests: &[Value], expected: &[(&str, Value)]) -> u64 {
    let all = |request: &&Value| expected.iter().all(|(pointer, value)| request.pointer(pointer) == Some(value));
    requests.iter().filter(all).map(|_| 1).sum()
}

#[test]
fn stat_edges_and_tap_agree_with_what_the_load_counted() {
    let ((good, _good), (bad, _bad)) = (recorder(GOOD), recorder(BAD));
    let mesh = TestMesh::builder("observe")
        .workload(Workload::beside("good", good, "http"))
        .workload(Workload::beside("bad", bad, "http"))
        .calls("good")
        .calls("bad")
        .start();
    eventually("a call", || ok(get(mesh.local("good"), "good", "/")));
    // Services that are made for their workloads have the ports of the apps.
    let names = [format!("default/good:{}", good.port()), format!("default/bad:{}", bad.port())];
    let names = names.each_ref().map(String::as_str);
    let before = eventually("what was counted before", || {
        let counted = names.map(|name| counted(&mesh, name));
        if number(&counted[0], "requests") > 0 { Ok(counted) } else { Err(format!("{counted:?}")) }
    });
    let total = (LOAD.0 + LOAD.1).to_string();
    let outbound = tap(&mesh, "tap-outbound", 3, &["--direction", "outbound", "--limit", &total]);
    let failures = ["bad", "--direction", "inbound", "--status", "5xx", "--path", "/pay", "--method", "POST"];
    let failures = tap(&mesh, "tap-failures", 3, &[&failures[..], &["--limit", &LOAD.1.to_string()]].concat());

    // POST: what fails is not sent again.
    let answered = [
        load(mesh.local("good"), &request("GET", "/items?token=secret"), LOAD.0, 200),
        load(mesh.local("bad"), &request("POST", "/pay"), LOAD.1, 503),
    ];
    assert_eq!(answered, [LOAD.0, LOAD.1]);

    let (requests, failures) = (shown(outbound), shown(failures));
    let of = |name: &str, status: u16| {
        let service = ("/service", Value::from(name));
        let from = ("/workload/identity", Value::from("spiffe://weft.local/ns/default/sa/client"));
        let expected = [service, ("/status", status.into()), ("/mtls", true.into()), from];
        [("/items", "GET"), ("/pay", "POST")].map(|(path, method)| {
            let more = [("/path", Value::from(path)), ("/method", Value::from(method))];
            count(&requests, &[&expected[..], &more[..]].concat())
        })
    };
    assert_eq!((of(names[0], 200), of(names[1], 503)), ([LOAD.0, 0], [0, LOAD.1]), "{requests:#?}");
    assert!(!requests.iter().any(|request| request.to_string().contains("secret")), "no query strings");
    let peer = ("/peer/identity", Value::from("spiffe://weft.local/ns/default/sa/client"));
    assert_eq!(count(&failures, &[("/direction", "inbound".into()), peer]), LOAD.1, "{failures:#?}");

    // Asking twice is exact: the difference is what was sent in between.
    for ((name, before), (sent, failed)) in names.iter().zip(&before).zip([(LOAD.0, 0), (LOAD.1, LOAD.1)]) {
        let now = eventually("everything is counted", || {
            let now = counted(&mesh, name);
            if number(&now, "requests") >= number(before, "requests") + sent { Ok(now) } else { Err(now.to_string()) }
        });
        for (field, expected) in [("requests", sent), ("failed", failed), ("secured", sent), ("plaintext", 0)] {
            assert_eq!(number(&now, field) - number(before, field), expected, "{field} of {now:#}");
        }
        let p99 = now["latencyMs"]["p99"].as_f64().expect("a number");
        assert!(p99 > 0.0 && p99 <= 10_000.0, "{now:#}");
    }
    let edges = mesh.weft(&["edges", "--since-start", "-o", "json"]).json();
    let edges = edges["items"].as_array().expect("a list");
    for name in names {
        let to_it = [("/from/name", Value::from("client")), ("/to/service", name.into())];
        assert_eq!(count(edges, &[&to_it[..], &[("/mtlsShare", 1.0.into())]].concat()), 1, "{edges:#?}");
    }
    // For people, over the next second.
    let text = mesh.weft(&["stat"]).ok();
    assert!(text.contains("over the last 1.") && text.contains("3 sidecars"), "{text}");
}

#[test]
fn retries_are_told_apart_and_callers_from_outside_are_plaintext() {
    let ((good, _good), (bad, _bad), front) = (recorder(GOOD), recorder(BAD), free());
    let (app, _app) = recorder(GOOD);
    let mesh = TestMesh::builder("observe-retries")
        .replicas("mixed", "http", &[good, bad])
        .workload(Workload::beside("fronted", app, "http").front(front))
        .calls("mixed")
        .start();
    let local = mesh.local("mixed");
    let found = eventually("a retry", || {
        ok(get(local, "mixed", "/"))?;
        let found = counted(&mesh, "default/mixed:80");
        if number(&found, "retries") > 0 { Ok(found) } else { Err(found.to_string()) }
    });
    let (requests, retries) = (number(&found, "requests"), number(&found, "retries"));
    assert_eq!(number(&found, "tries"), requests + retries);
    assert_eq!(found["successRate"], 1.0, "as the callers saw it: {found:#}");
    assert!(found["actualSuccessRate"].as_f64().is_some_and(|actual| actual < 1.0), "as it was: {found:#}");

    eventually("a call from outside", || ok(get(front, "fronted", "/")));
    let edge = eventually("its edge", || {
        let edges = mesh.weft(&["edges", "--since-start", "-o", "json"]).json();
        let outside = |edge: &&Value| edge["from"]["outside"] == true;
        edges["items"].as_array().and_then(|all| all.iter().find(outside).cloned()).ok_or_else(|| edges.to_string())
    });
    let to = Value::from(format!("default/fronted:{}", app.port()));
    assert_eq!((&edge["to"]["service"], &edge["mtlsShare"]), (&to, &0.0.into()), "{edge:#}");
}
