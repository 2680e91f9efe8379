//! The mesh as such: calls and tunnels cross it, refusals have reasons, bad resources are reported.

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use crate::{
    apps::recorder,
    mesh::{TestMesh, Workload},
    net::{LIMIT, call, connect, eventually, free, get, metric, ok},
};

#[test]
fn a_request_crosses_two_sidecars_over_mutual_tls() {
    let mesh = TestMesh::builder("http").workload(Workload::demo("catalog", "http")).calls("catalog").start();
    let (local, outbound) = (mesh.local("catalog"), mesh.outbound());
    eventually("a call by local port", || ok(get(local, "anything", "/items")));
    eventually("a call by Host", || ok(get(outbound, "catalog.default", "/items")));
    let requests = "weft_http_requests_total";
    assert!(metric(mesh.client_admin(), requests, &["default/catalog", "tls=\"mtls\"", "2xx"]) > 0.0);
    assert!(metric(mesh.admin("catalog"), requests, &["direction=\"inbound\"", "tls=\"mtls\"", "2xx"]) > 0.0);

    // What the sidecar answers itself says why.
    let (status, text) = get(outbound, "nowhere.default", "/").expect("an answer");
    assert_eq!(status, 404);
    assert!(text.to_lowercase().contains("proxy-status: weft; error=destination_not_found"), "{text}");
    let smuggled = "POST /items HTTP/1.1\r\nHost: catalog\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    let (status, _) = call(local, smuggled).expect("an answer");
    assert_eq!(status, 501, "only one framing is accepted");
    let (status, _) = get(local, "catalog", "/a/%2e%2e/items").expect("an answer");
    assert_eq!(status, 400, "an ambiguous path is refused");
}

/// One line to the ledger and its answer.
fn line(address: SocketAddr) -> Result<String, String> {
    let mut stream = connect(address)?;
    stream.write_all(b"charge 1\n").map_err(|error| error.to_string())?;
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes).map_err(|error| error.to_string())?;
    if length == 0 { Err("closed".into()) } else { Ok(String::from_utf8_lossy(&bytes[..length]).into_owned()) }
}

#[test]
fn the_app_gets_no_identity_that_the_caller_did_not_prove() {
    let (app, heads) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let mesh = TestMesh::builder("head").workload(Workload::beside("recorder", app, "http")).calls("recorder").start();
    let request = "GET / HTTP/1.1\r\nHost: recorder\r\nX-Forwarded-Client-Cert: By=admin\r\nX-Weft-Caller-Version: 2\r\n\
                   Connection: close\r\n\r\n";
    eventually("a call", || ok(call(mesh.local("recorder"), request)));
    let head = heads.recv_timeout(LIMIT).expect("the app was called");
    assert!(head.starts_with("get / http/1.1\r\n") && head.contains("host: recorder\r\n"), "{head}");
    let told = "x-forwarded-client-cert: by=spiffe://weft.local/ns/default/sa/recorder;uri=spiffe://weft.local/ns/default/sa/client\r\n";
    assert!(head.matches("x-forwarded-client-cert").count() == 1 && head.contains(told), "{head}");
    assert!(!head.contains("x-weft-") && !head.contains("by=admin"), "{head}");
}

#[test]
fn a_plaintext_front_of_a_declared_http_port_passes_nothing_on_unread() {
    let (app, heads) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let front = free();
    let workload = Workload::beside("recorder", app, "http").front(front);
    let mesh = TestMesh::builder("front").workload(workload).calls("recorder").start();
    // A method in lower case is one that detection does not know.
    let request =
        "get /one HTTP/1.1\r\nHost: recorder\r\nX-Forwarded-Client-Cert: By=admin\r\nConnection: close\r\n\r\n";
    let _ = call(front, request);
    eventually("a call", || {
        ok(call(mesh.local("recorder"), "GET /two HTTP/1.1\r\nHost: recorder\r\nConnection: close\r\n\r\n"))
    });
    loop {
        let head = heads.recv_timeout(LIMIT).expect("the app was called");
        assert!(!head.contains("by=admin"), "{head}");
        if head.contains("/two") {
            return;
        }
    }
}

#[test]
fn a_websocket_handshake_that_the_app_answers_with_a_page_switches_nothing() {
    let (app, _) =
        recorder(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    let mesh = TestMesh::builder("page").workload(Workload::beside("recorder", app, "http")).calls("recorder").start();
    let local = mesh.local("recorder");
    eventually("a call", || ok(get(local, "recorder", "/")));
    let request = "GET / HTTP/1.1\r\nHost: recorder\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let mut stream = connect(local).expect("the sidecar listens");
    stream.write_all(request.as_bytes()).expect("open");
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).expect("an answer");
    assert_eq!(&bytes, b"HTTP/1.1 502");
}

#[test]
fn an_app_that_accepts_and_closes_gives_an_error_with_its_reason() {
    let (app, _) = recorder(b"");
    // HTTP/2, where a connection that the app has closed is found before anything is sent.
    let workload = Workload::beside("recorder", app, "http2");
    let mesh = TestMesh::builder("closes").workload(workload).calls("recorder").start();
    eventually("an error", || match get(mesh.local("recorder"), "recorder", "/")? {
        (502, text) if text.contains("connection_terminated") => Ok(()),
        (_, text) => Err(text),
    });
}

#[test]
fn opaque_bytes_cross_on_a_port_that_nobody_declared() {
    let mesh = TestMesh::builder("undeclared").workload(Workload::demo("ledger", "")).calls("ledger").start();
    let answer = eventually("a line through the tunnel", || line(mesh.local("ledger")));
    assert!(answer.starts_with("OK"), "{answer}");
}

#[test]
fn opaque_bytes_cross_as_a_tunnel() {
    let mesh = TestMesh::builder("tcp").workload(Workload::demo("ledger", "tcp")).calls("ledger").start();
    let answer = eventually("a line through the tunnel", || line(mesh.local("ledger")));
    assert!(answer.starts_with("OK"), "{answer}");
    assert!(metric(mesh.client_admin(), "weft_tcp_sent_bytes_total", &["tls=\"mtls\""]) > 0.0);
}

#[test]
fn a_bad_resource_file_is_reported_with_its_place_and_the_mesh_goes_on() {
    let mesh = TestMesh::builder("resources").workload(Workload::demo("catalog", "http")).calls("catalog").start();
    let local = mesh.local("catalog");
    eventually("a call", || ok(get(local, "catalog", "/items")));
    let bad = "apiVersion: v1\nkind: Service\nmetadata:\n  name: catalog\nspec:\n  selectr:\n    app: catalog\n";
    std::fs::write(mesh.dir.join("resources/bad.yaml"), bad).expect("writable");
    let problems = eventually("the problem", || {
        let text = ok(get(mesh.api, "localhost", "/weft/v1/resources/errors"))?;
        if text.contains("selectr") { Ok(text) } else { Err(text) }
    });
    for part in ["bad.yaml", "\"line\":6", "spec.selectr", "selector"] {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    eventually("a call afterwards", || ok(get(local, "catalog", "/items")));
}
