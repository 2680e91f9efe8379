//! `weft run --transparent`: hosts that are network namespaces, unmodified programs on them, and the wire between them.
//! These tests need root.

mod lan;
mod mesh;
mod outside;
mod pods;
mod restarts;
mod servers;
mod traces_left;
mod wire;

use std::collections::BTreeSet;

use lan::lacks;
use mesh::Mesh;
use servers::Servers;
use wire::Capture;

/// What everything that is said in the mesh here has in it.
const MARKER: &str = "said-in-the-mesh";
const LOG_ALL: &str =
    "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {accessLog: {mode: All}}\n";

fn script(name: &str) -> String {
    format!("{}/../tests/it/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn programs_that_know_nothing_of_the_mesh_reach_each_other_by_name_and_address_and_the_wire_has_tls_only() {
    let test = "programs_that_know_nothing_of_the_mesh_reach_each_other_by_name_and_address_and_the_wire_has_tls_only";
    let programs = [
        ("tcpdump", "--version"),
        ("nginx", "-v"),
        ("openssl", "version"),
        ("curl", "--version"),
        ("redis-server", "--version"),
        ("redis-cli", "--version"),
        ("psql", "--version"),
    ];
    if lacks(test, &programs) || servers::lacks_postgres(test) || crate::needs::python(test, "grpc") {
        return;
    }
    let mut mesh = Mesh::start("transparent", &[LOG_ALL]);
    let servers = Servers::new(&mesh.dir);
    let capture = Capture::start(&mesh.lan, &mesh.dir);
    // Two apps on each host, beside each other.
    let ports = ["--port", "web:80/http", "--port", "h2c:81/http2", "--port", "tls:443/tls", "--port", "any:8443"];
    mesh.service("a", "web", &ports, &servers.nginx());
    mesh.service("a", "greeter", &["--port", "50051/grpc"], &["python3", &script("grpc_server.py"), "0.0.0.0:50051"]);
    mesh.service("b", "cache", &["--port", "6379"], &servers.redis());
    mesh.service("b", "database", &["--port", "5432"], &servers.postgres());
    mesh.service("b", "speaks-first", &["--port", "7777"], &["python3", &script("speaks_first.py"), "0.0.0.0:7777"]);
    let client = mesh.app("c", "client", &[], &["sleep", "600"]);

    for host in ["web", "web.default", "web.default.svc.cluster.local", "web.default.mesh", "10.77.0.1"] {
        let page = mesh.ok(&client, &["curl", "-sS", &format!("http://{host}/")]);
        assert!(page.contains(MARKER), "{host}: {page}");
        let page = mesh.ok(&client, &["curl", "-sS", "--http2-prior-knowledge", &format!("http://{host}:81/")]);
        assert!(page.contains(MARKER), "{host}: {page}");
        for port in [443, 8443] {
            let page = mesh.ok(&client, &["curl", "-sSk", &format!("https://{host}:{port}/")]);
            assert!(page.contains(MARKER), "{host}: {page}");
        }
    }
    for (cache, database) in [("cache", "database"), ("10.77.0.2", "10.77.0.2")] {
        assert_eq!(mesh.ok(&client, &["redis-cli", "-h", cache, "set", "key", MARKER]), "OK\n");
        assert_eq!(mesh.ok(&client, &["redis-cli", "-h", cache, "get", "key"]), format!("{MARKER}\n"));
        let login = format!("host={database} user=postgres dbname=postgres sslmode=disable");
        let query = format!("select '{MARKER}'");
        assert_eq!(mesh.ok(&client, &["psql", "-d", &login, "-Atc", &query]), format!("{MARKER}\n"));
    }
    for greeter in ["greeter:50051", "10.77.0.1:50051"] {
        let made = mesh.ok(&client, &["python3", &script("grpc_client.py"), greeter]);
        assert_eq!(made.lines().filter(|line| line.starts_with("ok ")).count(), 9, "{made}");
    }
    // Waiting 5 s for a caller that waits as well, even twice, would be noticed.
    for host in ["speaks-first", "10.77.0.2"] {
        let line = ["timeout", "20", "python3", &script("hears_first.py"), &format!("{host}:7777"), "20"];
        assert_eq!(mesh.ok(&client, &line).matches(MARKER).count(), 20);
    }

    // The caller's address is known to the called sidecar, though its app sees loopback.
    let web = std::fs::read_to_string(mesh.dir.join("web.log")).expect("a log");
    assert!(web.contains("\"downstream_remote_address\":\"10.77.0.3"), "{web}");

    let flows = capture.flows();
    let host = |address: std::net::IpAddr| address != std::net::IpAddr::from([10, 77, 0, 254]);
    let between: Vec<_> = flows.iter().filter(|flow| host(flow.from.ip()) && host(flow.to.ip())).collect();
    let hosts: BTreeSet<_> = between.iter().map(|flow| (flow.from.ip(), flow.to.ip())).collect();
    assert_eq!(hosts.len(), 4, "from c to a and b, and back: {hosts:?}");
    for flow in between {
        assert!(matches!(flow.first[..], [0x16, 3, ..]), "no TLS from {} to {}: {:?}", flow.from, flow.to, flow.first);
    }
    let bytes = capture.bytes();
    assert!(!bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()), "something was said in the clear");
}

#[test]
fn addresses_of_version_six_are_redirected_like_those_of_version_four() {
    let test = "addresses_of_version_six_are_redirected_like_those_of_version_four";
    if lacks(test, &[("tcpdump", "--version"), ("nginx", "-v"), ("openssl", "version"), ("curl", "--version")]) {
        return;
    }
    let mut mesh = Mesh::start("transparent6", &[LOG_ALL]);
    let servers = Servers::new(&mesh.dir);
    let capture = Capture::start(&mesh.lan, &mesh.dir);
    mesh.service("a", "web", &["--mesh-listen", "[fd77::1]:0", "--port", "web:80/http"], &servers.nginx());
    let client = mesh.app("c", "client", &["--mesh-listen", "[fd77::3]:0"], &["sleep", "600"]);
    for host in ["web", "[fd77::1]"] {
        assert!(mesh.ok(&client, &["curl", "-sS", &format!("http://{host}/")]).contains(MARKER), "{host}");
    }
    let flows = capture.flows();
    let six: Vec<_> = flows.iter().filter(|flow| flow.from.is_ipv6()).collect();
    assert!(!six.is_empty(), "{flows:?}");
    assert!(six.iter().all(|flow| matches!(flow.first[..], [0x16, 3, ..])), "{six:?}");

    // From outside, in plaintext, while that is allowed.
    let (code, page) = mesh.lan.run("c", &["curl", "-sS", "-m", "10", "http://[fd77::1]/"]);
    assert!(code == 0 && page.contains(MARKER), "{page}");
    let web = std::fs::read_to_string(mesh.dir.join("web.log")).expect("a log");
    assert!(web.contains("\"downstream_remote_address\":\"[fd77::3]") || web.contains("\"fd77::3"), "{web}");
}
