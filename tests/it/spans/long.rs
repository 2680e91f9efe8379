//! What lives long: WebSocket sessions, of which the handshake is told at once, and opaque connections.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener},
};

use super::{
    chain::{Chain, Field},
    holds,
    trace::{
        CALLER, by_attribute, by_attributes, check_attributes, check_bytes, check_links, context, fresh, lines, spans,
    },
    websocket,
};
use crate::{
    mesh::{TestMesh, Workload},
    net::{connect, eventually, free},
    routes::apps::Caller,
};

fn check(lines: &[String], expected: &[&str]) {
    let wrong: Vec<_> = expected.iter().filter(|expected| !holds(expected, lines)).collect();
    assert!(wrong.is_empty(), "{wrong:#?} in {lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_has_a_span_of_its_handshake_at_once_and_one_of_its_session_at_the_end() {
    let chain = Chain::start("spans-websocket", Caller::Http1, 0, None).await;
    let told = |trace: &str| -> [Field; 1] { [("traceparent".into(), context(trace, true))] };
    let trace = fresh();
    let session = websocket::open(chain.mesh.local("front"), "front", "/orders/17", &told(&trace)).expect("101");
    let handshakes = spans(&chain.mesh, &trace, 6);
    check_links(&handshakes, CALLER);
    check_attributes(&handshakes, false);
    let expected = [
        // Between sidecars it is an extended CONNECT, which is answered with 200.
        "client CLIENT 1 name: CONNECT",
        "client CLIENT 1 http.response.status_code: 200",
        "client CLIENT 1 network.protocol.version: 2",
        "front SERVER 1 http.request.method: CONNECT",
        "front SERVER 1 http.response.status_code: 200",
        "back SERVER 1 name: CONNECT default/orders#any",
        "no back SERVER 1 failed",
        "no client CLIENT 1 failed",
    ];
    check(&lines(&handshakes), &expected);
    websocket::talk(session, b"seventeen");
    let all = spans(&chain.mesh, &trace, 12);
    check_links(&all, CALLER);
    let sessions: Vec<_> = all.iter().filter(|span| !handshakes.iter().any(|other| other.id == span.id)).collect();
    assert!(sessions.iter().all(|span| span.name == "WebSocket"), "{sessions:#?}");
    let lines = lines(&all);
    for who in ["client INTERNAL 1", "front INTERNAL 1", "middle INTERNAL 2", "back INTERNAL 1"] {
        for what in ["weft.bytes.sent: 9", "weft.bytes.received: 9", "network.protocol.name: websocket"] {
            assert!(lines.contains(&format!("{who} {what}")), "{who} {what}: {lines:#?}");
        }
        assert!(!lines.contains(&format!("{who} failed")), "{lines:#?}");
    }

    // A handshake that is refused is a request like others.
    let refused = fresh();
    let answer = websocket::open(chain.mesh.local("front"), "front", "/denied/17", &told(&refused));
    assert_eq!(answer.err(), Some(403));
    let refused = spans(&chain.mesh, &refused, 6);
    check_links(&refused, CALLER);
    check_attributes(&refused, false);
}

/// Gives back what comes, to the end of it.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    stream.write_all(&bytes[..length]).expect("open");
                }
            });
        }
    });
    address
}

/// Sends this over an opaque connection: what came back, to the end.
pub fn through(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address).expect("a connection");
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back);
    back
}

/// A mesh with opaque services: one that answers, one that lets nobody in, and one where nobody listens. All connections
/// are traced and logged.
pub fn opaque(name: &str, collector: SocketAddr, own: SocketAddr) -> TestMesh {
    let settings = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n  tracing: \
         {{samplingPercent: 100, endpoint: \"http://{collector}\"}}\n  accessLog: {{mode: All}}\n---\napiVersion: \
         weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: shut}}\nspec:\n  targetRefs: [{{kind: \
         Service, name: shut}}]\n  action: Allow\n"
    );
    TestMesh::builder(name)
        .flag("--otlp-listen", &own.to_string())
        .resource("settings.yaml", settings)
        .replicas("bytes", "tcp", &[echo()])
        .replicas("shut", "tcp", &[echo()])
        .outside("gone", "tcp", &[free()])
        .calls("bytes")
        .calls("shut")
        .calls("gone")
        .start()
}

#[test]
fn an_opaque_connection_is_one_trace_of_both_sidecars_and_a_line_in_each_log() {
    let own = free();
    let mesh = opaque("spans-tcp", own, own);
    assert_eq!(through(mesh.local("bytes"), b"seventeen"), b"seventeen");
    let trace = by_attribute(&mesh, "client", "server.address", "bytes.default");
    let found = spans(&mesh, &trace, 2);
    check_links(&found, "");
    check_bytes(&found);
    let expected = [
        "client CLIENT 1 name: TCP",
        "client CLIENT 1 server.port: 80",
        "client CLIENT 1 network.transport: tcp",
        "client CLIENT 1 network.type: ipv4",
        "client CLIENT 1 weft.bytes.sent: 9",
        "client CLIENT 1 weft.bytes.received: 9",
        "client CLIENT 1 weft.peer.id: spiffe://weft.local/ns/default/sa/bytes-0",
        "client CLIENT 1 weft.service: default/bytes:80",
        "no client CLIENT 1 failed",
        "bytes SERVER 1 name: TCP",
        "bytes SERVER 1 weft.bytes.sent: 9",
        "bytes SERVER 1 client.address: 127.0.0.1",
        "bytes SERVER 1 weft.peer.id: spiffe://weft.local/ns/default/sa/client",
        "no bytes SERVER 1 failed",
    ];
    check(&lines(&found), &expected);

    // Nobody is let in: an error of the call, and none of the service.
    assert_eq!(through(mesh.local("shut"), b"seventeen"), b"");
    let found = spans(&mesh, &by_attribute(&mesh, "client", "server.address", "shut.default"), 2);
    check_links(&found, "");
    check_bytes(&found);
    let expected = [
        "client CLIENT 1 error.type: upgrade_refused",
        "client CLIENT 1 failed",
        "shut SERVER 1 weft.reason: rbac_denied",
        "no shut SERVER 1 failed",
    ];
    check(&lines(&found), &expected);

    assert_eq!(through(mesh.local("gone"), b"seventeen"), b"");
    let found = spans(&mesh, &by_attribute(&mesh, "client", "server.address", "gone.default"), 1);
    check_links(&found, "");
    check_bytes(&found);
    check(&lines(&found), &["client CLIENT 1 error.type: connection_refused", "client CLIENT 1 failed"]);

    // The trace of the lines is that of the spans.
    for (log, direction) in [(mesh.client_log(), "outbound"), (mesh.log("bytes-0"), "inbound")] {
        let line = log.lines().find(|line| line.contains("\"protocol\":\"TCP\"") && line.contains("bytes:80"));
        let line: serde_json::Value = serde_json::from_str(line.unwrap_or_else(|| panic!("{log}"))).expect("JSON");
        assert_eq!(line["trace_id"], trace.as_str(), "{line}");
        assert_eq!((&line["direction"], &line["bytes_received"]), (&direction.into(), &9.into()), "{line}");
        assert_eq!((&line["bytes_sent"], &line["response_flags"]), (&9.into(), &"-".into()), "{line}");
    }
    eventually("the line of the one that is refused", || {
        let log = mesh.log("shut-0");
        let line = log.lines().find(|line| line.contains("\"protocol\":\"TCP\"")).ok_or_else(|| log.clone())?;
        let line: serde_json::Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if line["reason"] == "rbac_denied" && line["response_flags"] == "UAEX" { Ok(()) } else { Err(line.to_string()) }
    });
}

/// Passes what comes on to this address, and what comes back.
fn passes(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = near.read_to_end(&mut bytes);
                let _ = near.write_all(&through(to, &bytes));
            });
        }
    });
    address
}

/// Bytes have no place for a context, and an app that passes bytes on tells nobody which of its connections led to which:
/// a trace goes from sidecar to sidecar, and ends at the app.
#[test]
fn opaque_connections_through_three_services_are_a_trace_for_each_hop() {
    let (own, to_middle, to_back) = (free(), free(), free());
    let settings = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n  tracing: \
         {{samplingPercent: 100, endpoint: \"http://{own}\"}}\n"
    );
    let mesh = TestMesh::builder("spans-tcp-chain")
        .flag("--otlp-listen", &own.to_string())
        .resource("settings.yaml", settings)
        .replicas("back", "tcp", &[echo()])
        .workload(Workload::beside("middle", passes(to_back), "tcp").calling("back", to_back))
        .workload(Workload::beside("front", passes(to_middle), "tcp").calling("middle", to_middle))
        .calls("front")
        .start();
    let answered = || {
        let back = through(mesh.local("front"), b"seventeen");
        if back == b"seventeen" { Ok(()) } else { Err(format!("{back:?}")) }
    };
    eventually("an answer of the last one", answered);
    let mut traces = Vec::new();
    for (caller, called) in [("client", "front"), ("front", "middle"), ("middle", "back")] {
        // Connections from before the whole way was there carried nothing.
        let address = format!("{called}.default");
        let trace = by_attributes(&mesh, caller, &[("server.address", &address), ("weft.bytes.sent", "9")]);
        let found = spans(&mesh, &trace, 2);
        let of = |who: &str| found.iter().find(|span| span.service == who).expect("a span of each end");
        assert_eq!((of(caller).parent.as_str(), &of(called).parent), ("", &of(caller).id), "{found:#?}");
        check_bytes(&found);
        let bytes = |who: &str, kind: &str| format!("{who} {kind} 1 weft.bytes.sent: 9");
        let peer = format!("{called} SERVER 1 weft.peer.id: spiffe://weft.local/ns/default/sa/{caller}");
        let expected = [bytes(caller, "CLIENT"), bytes(called, "SERVER"), peer];
        check(&lines(&found), &expected.each_ref().map(String::as_str));
        traces.push(trace);
    }
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 3, "no hop is taken for a part of another one");
}
