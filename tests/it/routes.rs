//! Routes and policies as people write them, applied by the command, and what callers and apps then see: a row for each
//! thing that a rule can say.

pub mod apps;
mod endpoints;
mod policies;
mod refused;
mod rows;

use std::time::{Duration, Instant};

use self::{
    apps::{Caller, Log, Observed, app},
    rows::{CHANGING, EDGES, ELSEWHERE, FAILING, GRPC, GRPC_AT_HTTP, MANY, MATCHING, WEIGHTS},
};
use crate::{apps::recorder, mesh::TestMesh, net::LIMIT};

const OTHER: &[u8] = b"HTTP/1.1 200 OK\r\nX-App: other\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// A request, its fields, and what is to be among the lines that are observed ([`Observed::call`]): a line; `TEXT..`, the
/// start of one; `..TEXT`, a part of one; `no TEXT`, the start of none; `took over N`, milliseconds; `later TEXT`, a line that
/// comes when it comes.
type Row = (&'static str, &'static [&'static str], &'static [&'static str]);

const ALL: [Caller; 3] = [Caller::Http1, Caller::Http2, Caller::Grpc];

/// Rules with sessions between two apps, the field that begins one, and the one that brings it back.
const SESSIONS: &[(&str, &str, &str)] =
    &[("/session", "answer set-cookie: sid=", "cookie: sid="), ("/idle-session", "answer x-session: ", "x-session: ")];

/// Requests of one session; by chance all would go to one of two apps once in 2^16 times.
const OF_SESSION: u32 = 16;

/// What is expected of a row when it is a gRPC caller's: what the mesh answers, and passes on, has the words of gRPC.
fn as_grpc(expected: &str) -> String {
    let status = |code: &str| format!("answer grpc-status: {code}");
    match expected {
        "status 404" => status("12"),
        // ABORTED of the app, UNAVAILABLE of the mesh.
        "status 500" => status("1.."),
        "status 503" => status("14"),
        "status 504" => status("4"),
        _ => expected.replace("x-weft-timeout-ms", "grpc-timeout"),
    }
}

fn holds(expected: &str, lines: &[String]) -> bool {
    if let Some(absent) = expected.strip_prefix("no ") {
        return !lines.iter().any(|line| line.starts_with(absent));
    }
    if let Some(least) = expected.strip_prefix("took over ") {
        let took = lines.iter().find_map(|line| line.strip_prefix("took ")?.parse().ok()).unwrap_or(0_u64);
        return took > least.parse().expect("milliseconds");
    }
    match (expected.strip_prefix(".."), expected.strip_suffix("..")) {
        (Some(part), _) => lines.iter().any(|line| line.contains(part)),
        (_, Some(start)) => lines.iter().any(|line| line.starts_with(start)),
        _ => lines.iter().any(|line| line == expected),
    }
}

async fn mesh(name: &str, files: &[(&str, &str)]) -> Observed {
    let log = Log::default();
    let (web, rpc) = (app("web", log.clone()).await, app("rpc", log.clone()).await);
    let outside = app("web", log.clone()).await;
    let (address, other) = recorder(OTHER);
    let mesh = TestMesh::builder(name)
        .replicas("web", "http2", &[web])
        .replicas("rpc", "grpc", &[rpc])
        .replicas("other", "http", &[address])
        .calls("web")
        .calls("rpc")
        .start();
    let mut args = vec![String::from("apply"), String::from("--wait")];
    for (file, text) in files {
        let path = mesh.dir.join(file);
        std::fs::write(&path, text.replace("port: AT", &format!("port: {}", outside.port()))).expect("writable");
        args.extend([String::from("-f"), path.to_string_lossy().into_owned()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let applied = mesh.weft(&args);
    // With warnings: the backends that nobody is.
    assert_eq!(applied.code, Some(3), "{}", applied.text);
    assert!(applied.text.contains("Service default/nobody does not exist"), "{}", applied.text);
    Observed { mesh, log, other }
}

/// What is wrong with a row, and all that was observed.
async fn check(observed: &Observed, caller: Caller, service: &str, row: &Row, wrong: &mut Vec<String>) {
    let (request, fields, expected) = row;
    let mut lines = observed.call(caller, service, request, fields).await;
    for expected in *expected {
        let expected = if caller == Caller::Grpc { as_grpc(expected) } else { (*expected).to_owned() };
        let expected = match expected.strip_prefix("later ") {
            None => &expected,
            Some(line) => {
                let began = Instant::now();
                while !holds(line, &lines) && began.elapsed() < LIMIT {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    lines.extend(observed.seen());
                }
                line
            }
        };
        if !holds(expected, &lines) {
            wrong.push(format!("{caller:?} {service} {request} {fields:?}: {expected:?} in {lines:#?}"));
        }
    }
}

/// Sessions of each rule that has some: each stays with the app that began it, and they begin at both.
async fn sessions(observed: &Observed, caller: Caller, wrong: &mut Vec<String>) {
    let app = |lines: &[String]| lines.iter().find(|line| line.starts_with("answer x-app")).cloned();
    for (path, begun, field) in SESSIONS {
        let mut apps = std::collections::BTreeSet::new();
        for _ in 0..OF_SESSION {
            let first = observed.call(caller, "web", &format!("GET {path}"), &[]).await;
            let Some(line) = first.iter().find_map(|line| line.strip_prefix(begun)) else {
                wrong.push(format!("{caller:?} {path}: no {begun:?} in {first:#?}"));
                return;
            };
            let (token, attributes) = line.split_once("; ").unwrap_or((line, ""));
            if *path == "/session" && attributes != "Path=/session; Max-Age=3600; HttpOnly; SameSite=Strict" {
                wrong.push(format!("{caller:?} {path}: {attributes}"));
            }
            let again = observed.call(caller, "web", &format!("GET {path}/again"), &[&format!("{field}{token}")]).await;
            let refreshed = again.iter().any(|line| line.starts_with(begun));
            // Only where it may become idle.
            if app(&again) != app(&first) || refreshed != path.starts_with("/idle") {
                wrong.push(format!("{caller:?} {path}: {again:#?} after {first:#?}"));
            }
            apps.insert(app(&first));
        }
        if apps.len() != 2 {
            wrong.push(format!("{caller:?} {path}: all sessions with {apps:?}"));
        }
    }
}

/// References that lead nowhere are in the status of their route, each with the word of Gateway API.
fn unresolved(observed: &Observed, wrong: &mut Vec<String>) {
    for (route, reason, said) in [
        ("httproute/failing", "BackendNotFound", "Service \"default/nobody\" does not exist"),
        ("httproute/edges", "RefNotPermitted", "needs a ReferenceGrant"),
        ("grpcroute/calls", "BackendNotFound", "Service \"default/nobody\" does not exist"),
    ] {
        let object = observed.mesh.weft(&["get", route, "-o", "json"]).json();
        let conditions = object["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().any(|condition| {
            let message = condition["message"].as_str().unwrap_or_default();
            let of = |field: &str| condition[field].as_str().unwrap_or_default();
            (of("type"), of("status"), of("reason")) == ("ResolvedRefs", "False", reason) && message.contains(said)
        });
        if !found {
            wrong.push(format!("{route}: {reason} in {}", object["status"]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_routes_and_policies_say_is_what_callers_and_apps_see() {
    let files = [
        ("matching.yaml", include_str!("routes/matching.yaml")),
        ("changing.yaml", include_str!("routes/changing.yaml")),
        ("failing.yaml", include_str!("routes/failing.yaml")),
        ("edges.yaml", include_str!("routes/edges.yaml")),
        ("grpc.yaml", include_str!("routes/grpc.yaml")),
        ("elsewhere.yaml", include_str!("routes/elsewhere.yaml")),
    ];
    let observed = mesh("routes", &files).await;
    let mut wrong = Vec::new();
    for caller in [Caller::Http1, Caller::Http2] {
        let weights = WEIGHTS.iter().flat_map(|row| std::iter::repeat_n(row, 8));
        for row in MATCHING.iter().chain(weights).chain(CHANGING).chain(FAILING).chain(EDGES) {
            check(&observed, caller, "web", row, &mut wrong).await;
        }
    }
    for caller in [Caller::Http1, Caller::Http2] {
        sessions(&observed, caller, &mut wrong).await;
    }
    for row in MATCHING.iter().chain(CHANGING) {
        check(&observed, Caller::Grpc, "web", row, &mut wrong).await;
    }
    for row in GRPC_AT_HTTP {
        check(&observed, Caller::Grpc, "web", row, &mut wrong).await;
    }
    for row in GRPC {
        check(&observed, Caller::Grpc, "rpc", row, &mut wrong).await;
    }
    for (service, row) in ELSEWHERE {
        for caller in ALL {
            check(&observed, caller, service, row, &mut wrong).await;
        }
    }
    let mut mostly = 0;
    for _ in 0..MANY {
        let lines = observed.call(Caller::Http1, "web", "GET /mostly-web", &[]).await;
        mostly += u32::from(holds("answer x-app: web", &lines));
    }
    // Six standard deviations to either side.
    assert!(mostly.abs_diff(MANY * 3 / 4) <= 52, "{mostly} of {MANY}");
    unresolved(&observed, &mut wrong);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
