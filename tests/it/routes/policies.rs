//! TrafficPolicy and RateLimitPolicy, field by field and target by target, as people write them: each at a Service of its
//! own, over the same apps.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use rustix::process::Signal;

use super::{
    ALL, Row,
    apps::{Caller, Counts, Log, Observed, counting, message},
    check, holds,
};
use crate::{http2::connect, mesh::TestMesh, net::call, process::signal};

const YAML: &str = include_str!("policies.yaml");

/// How requests are made, by the name of a Service.
const REQUESTS: &[(&str, Row)] = &[
    ("per-try", ("GET /slow-once/per-try", &[], &["status 200", "seen 2"])),
    ("attempts", ("GET /fails-always", &[], &["status 500", "seen 2"])),
    ("methods", ("POST /fails-twice/methods", &[], &["status 200", "seen 3"])),
    ("methods", ("PUT /fails-always", &[], &["status 500", "seen 1"])),
    ("backoff", ("GET /fails-twice/backoff", &[], &["status 200", "seen 3", "took over 400"])),
    ("no-budget", ("GET /fails-always", &[], &["status 500", "seen 1"])),
    ("hedge", ("GET /slow-once/hedge", &[], &["status 200", "seen 2"])),
    ("connect", ("GET /", &[], &["..connect_timeout", "..300ms", "seen 0"])),
];

/// The most specific policy that sets a field counts. The app sees what is left of the time.
const LEVELS: &[(&str, Row)] = &[
    ("levels", ("GET /own", &[], &["at web x-weft-timeout-ms: 29.."])),
    ("levels", ("GET /rule", &[], &["at web x-weft-timeout-ms: 39.."])),
    ("levels", ("GET /route", &[], &["at web x-weft-timeout-ms: 49.."])),
    ("levels:81", ("GET /", &[], &["at web x-weft-timeout-ms: 59.."])),
    ("levels:82", ("GET /", &[], &["at web x-weft-timeout-ms: 69.."])),
    ("plain", ("GET /", &[], &["at web x-weft-timeout-ms: 79.."])),
    ("lent.away", ("GET /", &[], &["at web x-weft-timeout-ms: 89.."])),
    // Field by field: the time is the route's, the tries are the rule's.
    ("levels", ("GET /fails-always/merged", &[], &["at web x-weft-timeout-ms: 49..", "status 500", "seen 3"])),
];

/// Requests one after the other: a limit is one for all of its callers, or for those that have something in common.
const LIMITED: &[(&str, Caller, Row)] = &[
    ("limit-all", Caller::Http1, ("GET /", &["x-user: a"], &["status 200", "answer ratelimit: ..", "seen 1"])),
    ("limit-all", Caller::Http2, ("GET /", &["x-user: b"], &["status 429", "..rate_limited", "seen 0"])),
    ("limit-all", Caller::Grpc, ("GET /", &["x-user: c"], &["answer grpc-status: 8", "seen 0"])),
    ("limit-burst", Caller::Http1, ("GET /", &[], &["status 200", "seen 1"])),
    (
        "limit-burst",
        Caller::Http2,
        ("GET /", &[], &["status 200", "answer ratelimit: \"default/limit-burst#0\";r=0;.."]),
    ),
    ("limit-burst", Caller::Grpc, ("GET /", &[], &["answer grpc-status: 8", "seen 0"])),
    ("limit-user", Caller::Http1, ("GET /", &["x-user: a"], &["status 200"])),
    ("limit-user", Caller::Http2, ("GET /", &["x-user: a"], &["status 429"])),
    ("limit-user", Caller::Grpc, ("GET /", &["x-user: b"], &["answer grpc-status: 0"])),
    ("limit-user", Caller::Grpc, ("GET /", &["x-user: b"], &["answer grpc-status: 8"])),
    // Both limits of one policy have to let it in; the one that refused is named.
    (
        "limit-both",
        Caller::Http1,
        ("GET /", &["x-user: a"], &["status 200", "answer ratelimit: \"default/limit-both#1\".."]),
    ),
    ("limit-both", Caller::Http2, ("GET /", &["x-user: a"], &["status 429", "..default/limit-both#1"])),
    ("limit-both", Caller::Grpc, ("GET /", &["x-user: b"], &["answer grpc-status: 0"])),
    ("limit-both", Caller::Http1, ("GET /", &["x-user: c"], &["status 200"])),
    ("limit-both", Caller::Http1, ("GET /", &["x-user: d"], &["status 429", "..default/limit-both#0"])),
    ("limit-identity", Caller::Http1, ("GET /", &[], &["status 200"])),
    ("limit-identity", Caller::Http2, ("GET /", &[], &["status 429"])),
    ("limit-address", Caller::Http1, ("GET /", &[], &["status 200"])),
    ("limit-address", Caller::Http2, ("GET /", &[], &["status 429"])),
];

/// Who has a place while another asks: the service, what holds the place, what the other one gets.
const FULL: &[(&str, &str, Row)] = &[
    ("one-request", "GET /hang", ("GET /", &[], &["status 503", "..request_limit", "seen 0"])),
    ("one-connection", "GET /hang", ("GET /", &[], &["status 503", "..connection_limit", "seen 0"])),
    ("one-retry", "GET /fails-then-hangs", ("GET /fails-always", &[], &["status 500", "seen 1"])),
    ("default-limits", "GET /hang", ("GET /", &[], &["status 200", "seen 1"])),
];

async fn mesh() -> Observed {
    let (log, counts) = (Log::default(), Counts::default());
    let app = |name: &'static str| counting(name, log.clone(), counts.clone());
    let (web, pair, frozen) = (app("web").await, [app("pair-0").await, app("pair-1").await], app("frozen").await);
    let (outside, (_, other)) = (app("web").await, crate::apps::recorder(b""));
    let mesh = TestMesh::builder("policies")
        .replicas("web", "http2", &[web])
        .replicas("pair", "http2", &pair)
        .replicas("frozen", "http2", &[frozen])
        .calls("web")
        .start();
    let file = mesh.dir.join("policies.yaml");
    std::fs::write(&file, YAML.replace("port: AT", &format!("port: {}", outside.port()))).expect("writable");
    let applied = mesh.weft(&["apply", "--wait", "-f", &file.to_string_lossy()]);
    assert_eq!(applied.code, Some(0), "{}", applied.text);
    Observed { mesh, log, other }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policies_say_field_by_field_is_what_happens() {
    let observed = mesh().await;
    // It accepts connections and says nothing more.
    signal(observed.mesh.sidecar_pid("frozen-0"), Signal::STOP);
    let mut wrong = Vec::new();
    for caller in ALL {
        for (service, row) in REQUESTS.iter().chain(LEVELS) {
            check(&observed, caller, service, row, &mut wrong).await;
        }
    }
    for caller in [Caller::Http1, Caller::Http2] {
        let row: Row = ("GET /stalls", &[], &["status 200", "body hello", "cut"]);
        for service in ["stream-idle", "to-the-end"] {
            check(&observed, caller, service, &row, &mut wrong).await;
        }
    }
    for (service, caller, row) in LIMITED {
        check(&observed, *caller, service, row, &mut wrong).await;
    }
    for (service, holder, row) in FULL {
        for caller in ALL {
            full(&observed, caller, service, holder, row, &mut wrong).await;
        }
    }
    for caller in ALL {
        balanced(&observed, caller, &mut wrong).await;
    }
    for caller in ALL {
        left_out(&observed, caller, &mut wrong).await;
    }
    others_are_counted_apart(observed, &mut wrong);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// While a request of another caller has the place.
async fn full(observed: &Observed, caller: Caller, service: &str, holder: &str, row: &Row, wrong: &mut Vec<String>) {
    let (_, path) = holder.split_once(' ').expect("METHOD /path");
    let hangs = if path == "/hang" { 1 } else { 2 };
    let (task, held) = loop {
        let (mut sender, task) = connect(observed.address(service)).await;
        let (mut held, _) = sender.send_request(message(Caller::Http2, service, holder, &[]), true).expect("open");
        let mut came = 0;
        let refused = loop {
            came += observed.seen().iter().filter(|line| line.ends_with(path)).count();
            tokio::select! {
                _ = &mut held => break true,
                () = tokio::time::sleep(Duration::from_millis(10)), if came < hangs => {}
                () = std::future::ready(()), if came >= hangs => break false,
            }
        };
        // Another worker has the only connection, until it is closed: the next caller may meet that one.
        if !refused {
            break (task, held);
        }
        task.abort();
    };
    check(observed, caller, service, row, wrong).await;
    drop(held);
    task.abort();
    // Its place is free again.
    let free = |lines: &[String]| holds("status 200", lines) && holds("answer x-app: ..", lines);
    for _ in 0..200 {
        if free(&observed.call(Caller::Http2, service, "GET /", &[]).await) {
            return;
        }
    }
    wrong.push(format!("{service}: the place is not free again"));
}

async fn app_of(observed: &Observed, caller: Caller, service: &str, request: &str, fields: &[&str]) -> String {
    let lines = observed.call(caller, service, request, fields).await;
    let app = lines.iter().find_map(|line| line.strip_prefix("answer x-app: "));
    app.map_or_else(|| format!("nobody: {lines:#?}"), str::to_owned)
}

/// Turns, keys and chance, each over two apps.
async fn balanced(observed: &Observed, caller: Caller, wrong: &mut Vec<String>) {
    let mut turns = Vec::new();
    for _ in 0..20 {
        turns.push(app_of(observed, caller, "turns", "GET /", &[]).await);
    }
    if turns.windows(2).any(|two| two[0] == two[1]) {
        wrong.push(format!("{caller:?}: not in turns: {turns:?}"));
    }
    let mut chance = Vec::new();
    for _ in 0..40 {
        chance.push(app_of(observed, caller, "chance", "GET /", &[]).await);
    }
    if chance.iter().collect::<BTreeSet<_>>().len() < 2 || chance.windows(2).all(|two| two[0] != two[1]) {
        wrong.push(format!("{caller:?}: not by chance: {chance:?}"));
    }
    for service in ["by-header", "by-cookie", "by-query", "by-address"] {
        let mut apps = BTreeSet::new();
        for key in 0..16 {
            let header = [format!("x-key: {key}"), format!("cookie: a=b; key={key}")];
            let mut own = BTreeSet::new();
            for other in 0..3 {
                // What is not hashed is another one each time.
                let request = match service {
                    "by-query" => format!("GET /{other}?a=b&key={key}"),
                    _ => format!("GET /{other}?key={other}{key}"),
                };
                let fields = match service {
                    "by-header" => vec![header[0].as_str()],
                    "by-cookie" => vec![header[1].as_str()],
                    _ => Vec::new(),
                };
                own.insert(app_of(observed, caller, service, &request, &fields).await);
            }
            if own.len() > 1 {
                wrong.push(format!("{caller:?} {service}: {key} at {own:?}"));
            }
            apps.extend(own);
        }
        // By chance all keys would meet at one of two once in 2^15 times; all callers here have one address.
        if apps.len() != if service == "by-address" { 1 } else { 2 } {
            wrong.push(format!("{caller:?} {service}: {apps:?}"));
        }
    }
}

/// How many requests of so many have reached the app that is ill.
async fn at_the_ill(
    observed: &Observed,
    caller: Caller,
    service: &str,
    count: usize,
    wrong: &mut Vec<String>,
) -> usize {
    let mut reached = 0;
    for _ in 0..count {
        let lines = observed.call(caller, service, "GET /sick", &[]).await;
        if !holds("answer x-app: pair-1", &lines) {
            wrong.push(format!("{caller:?} {service}: {lines:#?}"));
        }
        reached += lines.iter().filter(|line| *line == "at pair-0 GET /sick").count();
    }
    reached
}

/// Ejection of an endpoint, and the circuit of a service.
async fn left_out(observed: &Observed, caller: Caller, wrong: &mut Vec<String>) {
    // The three callers go to Services of their own: what is out stays out.
    let name = |what: &str| format!("{what}-{}", format!("{caller:?}").to_lowercase());
    for (what, count, least, most) in [("one-strike", 20, 1, 1), ("no-strikes", 60, 25, 60), ("by-share", 30, 8, 13)] {
        let reached = at_the_ill(observed, caller, &name(what), count, wrong).await;
        if !(least..=most).contains(&reached) {
            wrong.push(format!("{caller:?} {what}: {reached} of {count} reached the ill one"));
        }
    }
    let app: Row = ("GET /ill", &[], &["status 503", "answer x-app: web", "seen 1"]);
    let open: Row = ("GET /ill", &[], &["status 503", "..circuit_open", "seen 0"]);
    for row in [app, app, open] {
        check(observed, caller, &name("breaks"), &row, wrong).await;
    }
    // Of the default only what cannot be reached opens it.
    for row in [app, app, app, app, app, app] {
        check(observed, caller, &name("holds"), &row, wrong).await;
    }
}

/// Another workload has a count of its own where identities are counted, and none where addresses are.
fn others_are_counted_apart(observed: Observed, wrong: &mut Vec<String>) {
    let mut mesh = observed.mesh;
    for (service, expected) in [("limit-identity", 200), ("limit-address", 429), ("limit-all", 429)] {
        let local: SocketAddr = mesh.caller(&format!("second-{service}"), service);
        let request = format!("GET / HTTP/1.1\r\nHost: {service}\r\nConnection: close\r\n\r\n");
        let (status, text) = call(local, &request).unwrap_or_else(|error| panic!("{service}: {error}"));
        if status != expected {
            wrong.push(format!("{service}: {status} for another workload: {text}"));
        }
    }
}
