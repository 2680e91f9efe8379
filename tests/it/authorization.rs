//! Who may call whom, as operators write it and as callers, apps and sidecars see it: denials in every protocol, dry runs,
//! and what is open when a policy changes.

mod changes;
pub mod ends;

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use crate::{
    apps::recorder,
    authorization::ends::{applied, echo, policy},
    http2,
    mesh::{Builder, TestMesh, Workload},
    net::{call, connect, eventually, get, metric, ok},
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// A database of which opaque bytes are all that is known, and what `examples/resources` says of it.
fn database(name: &str, address: SocketAddr) -> Builder {
    TestMesh::builder(name).workload(Workload::beside("orders-db", address, "tcp")).calls("orders-db")
}

/// A byte there and back on a connection of its own.
fn reaches(address: SocketAddr) -> Result<(), String> {
    let mut stream = connect(address)?;
    stream.write_all(b"a").map_err(|error| error.to_string())?;
    match stream.read(&mut [0; 1]) {
        Ok(1) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn only_orders_gets_into_its_database() {
    let (app, connections) = echo();
    let mut mesh = database("orders-db", app).start();
    let (client, orders) = (mesh.local("orders-db"), mesh.caller("orders", "orders-db"));
    for address in [client, orders] {
        eventually("everybody gets in without a policy", || reaches(address));
    }
    applied(&mesh, &policy("orders-only", "orders-db", "Allow", "[{from: [{serviceAccounts: [orders]}]}]"));
    let before = connections.load();
    eventually("the client is kept out", || match reaches(client) {
        Ok(()) => Err("it gets in".to_owned()),
        Err(_) => Ok(()),
    });
    assert_eq!(connections.load(), before, "the database is not dialled for whom it does not let in");
    reaches(orders).expect("orders gets in");
    let admin = mesh.admin("orders-db");
    assert!(metric(admin, "weft_authorization_denied_total", &["policy=\"none-allows\""]) > 0.0);
    assert!(metric(admin, "weft_tcp_connections_total", &["reason=\"rbac_denied\"", "tls=\"mtls\""]) > 0.0);
    assert!(mesh.log("orders-db").contains("spiffe://weft.local/ns/default/sa/client"), "the log names the caller");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_said_in_the_callers_protocol_and_never_names_the_policy() {
    let (app, heads) = recorder(OK);
    let mesh = TestMesh::builder("denials").workload(Workload::beside("web", app, "http")).calls("web").start();
    let local = mesh.local("web");
    eventually("a call", || ok(get(local, "web", "/open")));
    applied(&mesh, &policy("no-secrets", "web", "Deny", "[{to: [{paths: ['/secret/*']}, {methods: [DELETE]}]}]"));

    // HTTP/1.1.
    for request in ["GET /secret/a", "GET /secret", "DELETE /open"] {
        let head = format!("{request} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
        let (status, text) = call(local, &head).expect("an answer");
        assert_eq!(status, 403, "{request}: {text}");
        assert!(text.to_lowercase().contains("error=http_request_denied") && text.contains("rbac_denied"), "{text}");
        assert!(!text.contains("no-secrets"), "{text}");
    }
    ok(get(local, "web", "/open")).expect("let in");

    // HTTP/2 and gRPC, on one connection that goes on.
    let (mut sender, _connection) = http2::connect(local).await;
    for (path, grpc, expected) in [
        ("/open", false, "200"),
        ("/secret/a", false, "403"),
        ("/open", true, "200"),
        ("/secret/a", true, "grpc 7"),
        ("/open", false, "200"),
    ] {
        let mut request = http::Request::builder().uri(format!("http://web{path}"));
        if grpc {
            request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
        }
        let (answer, _) = sender.send_request(request.body(()).expect("valid"), true).expect("open");
        let answer = http2::within("an answer", answer).await.expect("an answer");
        let status = answer.headers().get("grpc-status").map_or_else(
            || answer.status().as_str().to_owned(),
            |status| format!("grpc {}", status.to_str().expect("ASCII")),
        );
        assert_eq!(status, expected, "{path} grpc {grpc}: {answer:?}");
        assert!(!format!("{answer:?}").contains("no-secrets"), "{answer:?}");
    }
    let seen: Vec<String> = heads.try_iter().collect();
    assert!(seen.iter().all(|head| !head.contains("/secret") && !head.starts_with("delete")), "{seen:#?}");
    let denied = metric(mesh.admin("web"), "weft_authorization_denied_total", &["policy=\"default/no-secrets\""]);
    assert!((denied - 5.0).abs() < 0.5, "{denied} denials are counted");
    assert!(mesh.log("web").contains("default/no-secrets"), "the log names the policy");
}

#[test]
fn a_dry_run_counts_what_it_would_refuse_and_refuses_nothing() {
    let (app, _heads) = recorder(OK);
    let mesh = TestMesh::builder("dry-run").workload(Workload::beside("web", app, "http")).calls("web").start();
    eventually("a call", || ok(get(mesh.local("web"), "web", "/")));
    let text = policy("trial", "web", "Deny", "[{}]").replace("spec:\n", "spec:\n  dryRun: true\n");
    applied(&mesh, &text);
    for _ in 0..3 {
        ok(get(mesh.local("web"), "web", "/")).expect("let in");
    }
    let labels = ["policy=\"default/trial\""];
    let count = |name| metric(mesh.admin("web"), name, &labels);
    assert!((count("weft_authorization_shadow_denied_total") - 3.0).abs() < 0.5);
    assert!(count("weft_authorization_denied_total").abs() < 0.5);
}
