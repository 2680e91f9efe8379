//! What is not in the mesh: calls that leave it, and callers from outside.

use super::{
    LOG_ALL, MARKER,
    lan::{HUB, lacks},
    mesh::Mesh,
    script,
    servers::Servers,
};
use crate::{net::eventually, process::Process};

pub const STRICT: &str = "apiVersion: weft.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: \
                      weft-system}\nspec: {mode: Strict}\n";
const REGISTRY_ONLY: &str = "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: \
                             {outboundTraffic: RegistryOnly}\n";

#[test]
fn calls_that_leave_the_mesh_pass_until_the_mesh_refuses_them() {
    let test = "calls_that_leave_the_mesh_pass_until_the_mesh_refuses_them";
    if lacks(test, &[("nginx", "-v"), ("openssl", "version"), ("curl", "--version")]) {
        return;
    }
    let mut mesh = Mesh::start("outside", &[]);
    let servers = Servers::new(&mesh.dir);
    mesh.service("a", "web", &["--port", "web:80/http"], &servers.nginx());
    let mut command = mesh.lan.command(HUB, "python3");
    command.args([&script("speaks_first.py"), "10.77.0.254:7777"]);
    let _greets = Process::start(&mut command, &mesh.dir.join("greets.log"));
    let mut command = mesh.lan.command(HUB, "python3");
    command.args(["-m", "http.server", "--bind", "10.77.0.254", "8000"]).current_dir(mesh.dir.join("html"));
    let _serves = Process::start(&mut command, &mesh.dir.join("serves.log"));
    let client = mesh.app("c", "client", &[], &["sleep", "600"]);
    let page = |line: &[&str]| {
        let (code, text) = mesh.inside(&client, &[&["curl", "-sS", "-m", "20", "-i"], line].concat());
        if code == 0 { Ok(text) } else { Err(text) }
    };

    eventually("a page from outside", || page(&["http://10.77.0.254:8000/"]).filter_marker());
    let line = ["python3", &script("hears_first.py"), "10.77.0.254:7777", "10"];
    assert_eq!(mesh.ok(&client, &line).matches(MARKER).count(), 10, "a server that speaks first does not stall");
    // An address of the mesh with a port that it does not know is outside as well.
    assert!(mesh.ok(&client, &["curl", "-sSk", "https://10.77.0.1:8443/"]).contains(MARKER));
    // A Host that names a service, whatever the address.
    let by_host = page(&["-H", "Host: web", "http://10.77.0.254:8000/"]).expect("an answer");
    assert!(by_host.to_ascii_lowercase().contains("server: nginx"), "{by_host}");

    mesh.apply(REGISTRY_ONLY);
    let refused = page(&["http://10.77.0.254:8000/"]).expect("an answer");
    assert!(refused.starts_with("HTTP/1.1 502") && refused.contains("outbound_denied"), "{refused}");
    assert!(refused.contains("RegistryOnly"), "{refused}");
    assert!(page(&["-k", "https://10.77.0.1:8443/"]).is_err(), "TLS to a port that no service has");
    assert!(page(&["http://web/"]).expect("an answer").contains(MARKER), "the mesh goes on");
}

#[test]
fn callers_from_outside_are_let_in_and_seen_until_the_mesh_is_strict() {
    let test = "callers_from_outside_are_let_in_and_seen_until_the_mesh_is_strict";
    if lacks(test, &[("nginx", "-v"), ("openssl", "version"), ("curl", "--version")]) {
        return;
    }
    let mut mesh = Mesh::start("inside", &[LOG_ALL]);
    let servers = Servers::new(&mesh.dir);
    mesh.service("a", "web", &["--port", "web:80/http"], &servers.nginx());
    let speaks = ["python3", &script("speaks_first.py"), "0.0.0.0:7777"];
    mesh.service("a", "speaks-first", &["--port", "7777"], &speaks);
    let client = mesh.app("c", "client", &[], &["sleep", "600"]);
    let plain = |host: &str, url: &str| mesh.lan.run(host, &["curl", "-sS", "-m", "10", url]);

    // From another host, and from another program of the same one.
    for (host, url) in [("c", "http://10.77.0.1/"), ("a", "http://10.77.0.1/"), ("a", "http://127.0.0.1/")] {
        let (code, text) = plain(host, url);
        assert!(code == 0 && text.contains(MARKER), "{host} {url}: {text}");
    }
    let line = ["timeout", "20", "python3", &script("hears_first.py"), "10.77.0.1:7777", "20"];
    let (code, heard) = mesh.lan.run("c", &line);
    assert!(code == 0 && heard.matches(MARKER).count() == 20, "{heard}");
    let web = std::fs::read_to_string(mesh.dir.join("web.log")).expect("a log");
    assert!(web.contains("\"downstream_remote_address\":\"10.77.0.3"), "{web}");

    mesh.apply(STRICT);
    for (host, url) in [("c", "http://10.77.0.1/"), ("a", "http://10.77.0.1/"), ("a", "http://127.0.0.1/")] {
        let (code, text) = plain(host, url);
        assert!(code != 0 || !text.contains(MARKER), "{host} {url}: {text}");
    }
    assert!(mesh.ok(&client, &["curl", "-sS", "http://web/"]).contains(MARKER));
    assert!(mesh.ok(&client, &["curl", "-sS", "http://10.77.0.1/"]).contains(MARKER));
}

/// A page of ours, or what came in its place.
trait Page {
    fn filter_marker(self) -> Result<(), String>;
}

impl Page for Result<String, String> {
    fn filter_marker(self) -> Result<(), String> {
        self.and_then(|text| if text.contains(MARKER) { Ok(()) } else { Err(text) })
    }
}
