//! The whole of it at once, under load: certificates that live for ten seconds, another root, and an identity that is
//! revoked. `WEFT_ROTATION_SECONDS` says for how long.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::{task::block_in_place, time::sleep_until};

use super::load::{Load, Seen, slow};
use crate::{
    certificates::{Credential, OPENING, knock, mesh_authority, refused_with, session, svid},
    mesh::{TestMesh, Workload},
    net::{connect, eventually, get, metric, ok},
};

const SERVICES: [&str; 4] = ["catalog", "payments", "ledger", "slow"];
const MALLORY: &str = "spiffe://weft.local/ns/default/sa/mallory";
/// What is promised is 5 s; a machine may be busy with other things.
const SOON: Duration = Duration::from_secs(20);
/// An `AuthorizeRequest` of order `o`, of 1299 cents, with the head of a gRPC message.
const ORDER: &[u8] = b"\0\0\0\0\x06\x0a\x01o\x10\x93\x0a";

fn wanted() -> Duration {
    let seconds = std::env::var("WEFT_ROTATION_SECONDS").ok();
    Duration::from_secs(seconds.map_or(30, |seconds| seconds.parse().expect("WEFT_ROTATION_SECONDS: a number")))
}

fn callers(mesh: &TestMesh, time: Duration) -> Load {
    let mut load = Load::lasting(time);
    for _ in 0..2 {
        load.http1("HTTP/1.1, kept", mesh.outbound(), "GET /items", "catalog", true);
        load.http1("HTTP/1.1, POST", mesh.outbound(), "POST /behave", "catalog", true);
        load.http1("HTTP/1.1, new connections", mesh.outbound(), "GET /items", "catalog", false);
        load.http1("HTTP/1.1, slow POST", mesh.outbound(), "POST /", "slow", true);
    }
    load.http2("HTTP/2", mesh.local("catalog"), "http://catalog/items", b"", 3);
    load.http2("gRPC", mesh.local("payments"), "http://payments/weft.examples.v1.Payments/Authorize", ORDER, 3);
    load
}

/// A session of whoever has `credential`, and the moment when the other side ends it.
fn watched(address: SocketAddr, credential: &Credential) -> mpsc::Receiver<Instant> {
    let credential = (credential.0.clone(), credential.1.clone_key());
    let mut stream = session(address, Some(credential), "h2").expect("a session");
    stream.write_all(OPENING).expect("open");
    // SETTINGS: we are let in.
    stream.read_exact(&mut [0; 9]).expect("let in");
    ends(stream)
}

/// A connection to the ledger through a sidecar, on which something was written.
fn tunnel(local: SocketAddr) -> TcpStream {
    let mut stream = connect(local).expect("a connection");
    stream.write_all(b"charge 1\n").expect("open");
    stream.read_exact(&mut [0; 5]).expect("an entry");
    stream
}

fn ends(mut stream: impl Read + Send + 'static) -> mpsc::Receiver<Instant> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(1..) = stream.read(&mut [0; 1024]) {}
        sender.send(Instant::now())
    });
    receiver
}

/// Revokes an identity that has sessions with two services and a tunnel to a third.
fn revoke(mesh: &TestMesh, mallory: SocketAddr) {
    let credential = svid(&mesh_authority(mesh), MALLORY, time::Duration::hours(1));
    let catalog = mesh.mesh_address("catalog");
    let sessions = [
        ("a session with catalog", watched(catalog, &credential)),
        ("a session with payments", watched(mesh.mesh_address("payments"), &credential)),
        ("a tunnel to ledger", ends(tunnel(mallory))),
    ];
    let begun = Instant::now();
    mesh.weft(&["certs", "revoke", "--identity", MALLORY, "--reason", "stolen"]).ok();
    for (what, ended) in sessions {
        let ended = ended.recv_timeout(SOON).unwrap_or_else(|_| panic!("{what} goes on"));
        println!("{what} of the revoked identity is closed after {:?}", ended - begun);
    }
    assert!(knock(catalog, Some(credential)).is_err(), "the revoked certificate opens another session");
    refused_with(mesh, "revoked");
    for service in ["catalog", "payments", "ledger"] {
        let labels = ["side=\"server\"", "reason=\"revoked\""];
        let closed = metric(mesh.admin(service), "weft_mesh_closed_total", &labels);
        assert!(closed > 0.0, "{service} has closed nothing because of the revocation");
    }
}

/// Changes the root as an operator does, and says what the one before was and what the one now is.
fn rotate(mesh: &TestMesh) {
    let roots = |state: serde_json::Value| -> Vec<String> {
        assert_eq!(state["phase"], "stable", "{state}");
        let roots = state["roots"].as_array().expect("roots").iter();
        roots.map(|root| root["serial"].as_str().expect("a number").to_owned()).collect()
    };
    let before = roots(mesh.weft(&["certs", "ca", "-o", "json"]).json());
    let begun = Instant::now();
    let after = roots(mesh.weft(&["certs", "rotate", "root", "--all", "--timeout", "2m", "-o", "json"]).json());
    println!("another root after {:?}: {before:?}, then {after:?}", begun.elapsed());
    assert!(before.len() == 1 && after.len() == 1 && before != after, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_certificates_live_for_seconds_an_identity_is_revoked_and_the_root_changes() {
    let mut mesh = TestMesh::builder("rotation-load")
        .svid_lifetime("10s")
        .workload(Workload::demo("catalog", "http"))
        .workload(Workload::demo("payments", "grpc"))
        .workload(Workload::demo("ledger", "tcp"))
        .workload(Workload::beside("slow", slow(Duration::from_millis(300)), "http"))
        .calls("catalog")
        .calls("payments")
        .calls("slow")
        .start();
    let mallory = mesh.caller("mallory", "ledger");
    for service in ["catalog", "slow"] {
        eventually("a call", || ok(get(mesh.outbound(), service, "/items")));
    }
    let time = wanted();
    let load = callers(&mesh, time);
    // When load is in full swing, and again when it has seen some certificates.
    sleep_until(load.at(0.25)).await;
    block_in_place(|| revoke(&mesh, mallory));
    sleep_until(load.at(0.5)).await;
    block_in_place(|| rotate(&mesh));
    let seen = load.end().await;

    for (what, seen) in &seen {
        let Seen { requests, failed, slowest, .. } = seen;
        println!("{what}: {requests} requests, {failed} failed, the slowest took {slowest:?}");
    }
    for (what, seen) in &seen {
        assert_eq!(seen.failed, 0, "{what}: {:?}", seen.failures);
        assert!(seen.requests > time.as_secs(), "{what}: only {} requests", seen.requests);
    }
    let admins = [mesh.client_admin()].into_iter().chain(SERVICES.map(|service| mesh.admin(service)));
    for admin in admins {
        let sum = |name, labels: &[&str]| metric(admin, name, labels);
        let (rotations, retries) = (sum("weft_cert_rotations_total", &[]), sum("weft_upstream_retries_total", &[]));
        println!("{admin}: {rotations} certificates, {:.0} retries", retries.abs());
        // Renewed at half of its life at the earliest, and at its end at the latest.
        assert!(rotations >= (time.as_secs_f64() / 10.0).floor(), "only {rotations} certificates");
        assert!(sum("weft_http_requests_total", &["5xx"]) < 0.5, "a sidecar has answered for its app");
    }
    assert_eq!(seen.len(), 6, "every kind has called: {seen:?}");
}
