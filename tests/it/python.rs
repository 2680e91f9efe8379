//! Libraries that people use, in Python: gRPC in all its forms, and WebSocket. The programs are in `programs/`; each
//! checks for itself and prints what it has checked.

use std::{net::SocketAddr, process::Command};

use crate::{
    mesh::{TestMesh, Workload},
    needs,
    net::{eventually, free, metric},
};

/// A program of `programs/`.
pub fn script(name: &str) -> String {
    format!("{}/../tests/it/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn server(service: &str, protocol: &str, file: &str) -> Workload {
    let address = free();
    let command = ["python3".to_owned(), script(file), address.to_string()];
    Workload::run(service, address, protocol, command)
}

/// Runs a client program to its end; the checks that it has made.
fn checks(file: &str, address: SocketAddr) -> Vec<String> {
    let output = Command::new("python3").args([script(file), address.to_string()]).output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{file}: {}: {out}{err}", output.status);
    out.lines().filter_map(|line| line.strip_prefix("ok ")).map(str::to_owned).collect()
}

#[test]
fn grpc_calls_of_every_kind_keep_messages_metadata_status_deadline_and_cancel() {
    let test = "grpc_calls_of_every_kind_keep_messages_metadata_status_deadline_and_cancel";
    if needs::python(test, "grpc") {
        return;
    }
    let workload = server("greeter", "grpc", "grpc_server.py");
    let mesh = TestMesh::builder("grpc").workload(workload).calls("greeter").start();
    let made = checks("grpc_client.py", mesh.local("greeter"));
    let expected = [
        "unary",
        "server_stream",
        "client_stream",
        "bidirectional",
        "errors",
        "error_in_stream",
        "unimplemented",
        "deadline",
        "cancel",
    ];
    assert_eq!(made, expected);
    let labels = ["direction=\"inbound\"", "tls=\"mtls\"", "2xx"];
    assert!(metric(mesh.admin("greeter"), "weft_http_requests_total", &labels) >= 10.0, "all of it crossed the mesh");
}

#[test]
fn websocket_messages_of_a_mebibyte_cross_both_sidecars_and_closes_keep_their_code() {
    let test = "websocket_messages_of_a_mebibyte_cross_both_sidecars_and_closes_keep_their_code";
    if needs::python(test, "websockets.sync.server") {
        return;
    }
    let workload = server("chat", "http", "websocket_server.py");
    let mesh = TestMesh::builder("websocket").workload(workload).calls("chat").start();
    let made = checks("websocket_client.py", mesh.local("chat"));
    let expected = ["handshake", "large", "several_at_once", "fragments", "ping", "close", "closed_by_the_server"];
    assert_eq!(made, expected);
    eventually("the end of the connection at the server", || {
        let log = mesh.log("chat");
        if log.contains("closed 1000") { Ok(()) } else { Err(log) }
    });
    let labels = ["direction=\"inbound\"", "tls=\"mtls\""];
    assert!(metric(mesh.admin("chat"), "weft_http_requests_total", &labels) >= 1.0, "it crossed the mesh");
}
