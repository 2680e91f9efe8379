//! TLS as programs see it that are not ours: Python's ssl and openssl as clients of a sidecar's mesh port and of the
//! control plane's discovery port, and openssl as a server that a sidecar calls.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;

use crate::{
    certificates::{Credential, mesh_authority, svid},
    mesh::{TestMesh, Workload},
    needs,
    net::{LIMIT, eventually, free, get, metric},
};

const CLIENT: &str = "spiffe://weft.local/ns/default/sa/client";

/// Certificate, key and the mesh's root as files of PEM.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn files(mesh: &TestMesh, (certificate, key): &Credential) -> Files {
    let write = |name: &str, text: String| {
        let file = mesh.dir.join(name);
        std::fs::write(&file, text).expect("writable");
        file
    };
    Files {
        certificate: write("foreign.crt", pem("CERTIFICATE", certificate)),
        key: write("foreign.key", pem("PRIVATE KEY", key.secret_der())),
        root: mesh.dir.join("data/ca.crt"),
    }
}

fn client_of(mesh: &TestMesh) -> Files {
    files(mesh, &svid(&mesh_authority(mesh), CLIENT, time::Duration::hours(1)))
}

/// What Python's ssl has seen.
fn python(kind: &str, address: SocketAddr, files: &Files) -> Vec<String> {
    let script = format!("{}/../tests/it/programs/foreign_tls.py", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command.args([&script, kind, &address.to_string()]).args([&files.certificate, &files.key, &files.root]);
    let output = command.output().expect("it runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.lines().filter_map(|line| line.strip_prefix("ok ")).map(str::to_owned).collect()
}

/// `openssl s_server`, which ends with its standard input or with the test.
struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    fn start(address: SocketAddr, files: &Files, log: &Path, more: &[&str]) -> Self {
        let file = File::create(log).expect("a log");
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", &address.to_string(), "-Verify", "1", "-cert"]).arg(&files.certificate);
        command.arg("-key").arg(&files.key).arg("-CAfile").arg(&files.root).args(more);
        command.stdin(Stdio::piped()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let served = Self { child: command.spawn().expect("it runs"), log: log.into() };
        eventually("openssl listens", || {
            let text = served.output();
            if text.contains("ACCEPT") { Ok(()) } else { Err(text) }
        });
        served
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `openssl s_client` says about a session that it opens, in which it sends HTTP/2's first bytes.
fn s_client(address: SocketAddr, files: &Files, more: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-connect", &address.to_string(), "-quiet", "-no_ign_eof"]);
    command.args(["-state", "-servername", "p80.catalog.default.weft", "-CAfile"]).arg(&files.root).args(more);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut input = child.stdin.take().expect("a pipe");
    let _ = input.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let mut frame = [0; 9];
    let got = child.stdout.take().expect("a pipe").read_exact(&mut frame).is_ok();
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if got && frame[3] == 4 { format!("{text}\nSETTINGS") } else { text }
}

#[test]
fn python_sees_tls_1_3_alone_no_tickets_no_plaintext_and_one_identity_whatever_the_name() {
    let test = "python_sees_tls_1_3_alone_no_tickets_no_plaintext_and_one_identity_whatever_the_name";
    if needs::python(test, "ssl") {
        return;
    }
    let mesh = TestMesh::builder("foreign").workload(Workload::demo("catalog", "http")).calls("catalog").start();
    let files = client_of(&mesh);
    let everywhere = [
        "tls13",
        "no_ticket",
        "tls12_refused",
        "wrong_alpn_refused",
        "plaintext_closed",
        "names_select_no_identity",
        "odd_names_break_nothing",
    ];
    let of_the_mesh = ["no_alpn_refused", "no_certificate_refused"];
    let (before, after) = everywhere.split_at(4);
    assert_eq!(python("mesh", mesh.mesh_address("catalog"), &files), [before, &of_the_mesh, after].concat());
    assert_eq!(python("discovery", mesh.xds, &files), everywhere);
}

#[test]
fn openssl_sees_tls_1_3_alone_and_is_asked_for_a_certificate() {
    let test = "openssl_sees_tls_1_3_alone_and_is_asked_for_a_certificate";
    if needs::program(test, "openssl", &["version"]) {
        return;
    }
    let mesh = TestMesh::builder("openssl").workload(Workload::demo("catalog", "http")).calls("catalog").start();
    let files = client_of(&mesh);
    let path = |path: &Path| path.display().to_string();
    let (certificate, key) = (path(&files.certificate), path(&files.key));
    let own = ["-cert", &certificate, "-key", &key];
    let with = |more: &[&'static str]| [&own, more].concat();
    let address = mesh.mesh_address("catalog");
    let text = s_client(address, &files, &with(&["-alpn", "h2"]));
    assert!(text.contains("SETTINGS") && text.contains("SSLv3/TLS read server certificate request"), "{text}");
    assert!(!text.contains("read server session ticket"), "{text}");
    for (more, alert) in [
        (with(&["-alpn", "h2", "-tls1_2"]), "protocol version"),
        (with(&["-alpn", "http/1.1"]), "no application protocol"),
        (vec!["-alpn", "h2"], "certificate required"),
    ] {
        let text = s_client(address, &files, &more);
        assert!(!text.contains("SETTINGS") && text.contains(alert), "{more:?}: {text}");
    }
    let text = s_client(address, &files, &with(&[]));
    assert!(!text.contains("SETTINGS"), "without ALPN: {text}");
    let text = s_client(mesh.xds, &files, &with(&["-alpn", "h2", "-tls1_2"]));
    assert!(!text.contains("SETTINGS") && text.contains("protocol version"), "{text}");
}

/// A mesh whose client calls `service`, of which the test plays the sidecar at the given address.
fn played(name: &str, address: SocketAddr) -> TestMesh {
    let text = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: played-1, labels: {{app: played}}}}\n\
         spec: {{address: 127.0.0.1, meshAddress: '{address}', serviceAccount: played, ports: [{{port: 80, \
         protocol: http}}]}}\n"
    );
    TestMesh::builder(name).resource("played.yaml", text).calls("played").start()
}

#[test]
fn a_sidecar_refuses_servers_of_openssl_that_speak_less_and_lets_the_others_see_its_certificate() {
    let test = "a_sidecar_refuses_servers_of_openssl_that_speak_less_and_lets_the_others_see_its_certificate";
    if needs::program(test, "openssl", &["version"]) {
        return;
    }
    let address = free();
    let mesh = played("s-server", address);
    let credential = svid(&mesh_authority(&mesh), "spiffe://weft.local/ns/default/sa/played", time::Duration::hours(1));
    let files = files(&mesh, &credential);
    // The client's sidecar keeps calling: after some failures its circuit is open for a while.
    let (done, local) = (Arc::new(AtomicBool::new(false)), mesh.local("played"));
    let caller = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            while !done.load(Ordering::Relaxed) {
                let answer = get(local, "played", "/");
                assert!(
                    answer.as_ref().is_err() || answer.as_ref().is_ok_and(|(status, _)| *status != 200),
                    "{answer:?}"
                );
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
    });
    let refused =
        || metric(mesh.client_admin(), "weft_upstream_connects_total", &["kind=\"mesh\"", "result=\"tls_handshake\""]);
    for (more, let_in) in
        [(["-alpn", "h2", "-tls1_2"].as_slice(), false), (&["-alpn", "http/1.1"], false), (&["-alpn", "h2"], true)]
    {
        let before = refused();
        let server = Served::start(address, &files, &mesh.dir.join("s_server.log"), more);
        eventually("what comes of it", || {
            let text = server.output();
            // openssl tells the certificate of whoever has called.
            let seen = if let_in { text.contains("BEGIN CERTIFICATE") } else { refused() > before };
            if seen { Ok(()) } else { Err(text) }
        });
        assert!(let_in || !server.output().contains("BEGIN CERTIFICATE"), "{more:?}: {}", server.output());
        drop(server);
    }
    done.store(true, Ordering::Relaxed);
    caller.join().expect("it ends");
}

/// The extensions of a ClientHello by number.
fn extensions(hello: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let word = |at: usize| u16::from_be_bytes([hello[at], hello[at + 1]]);
    // Record, handshake, version, random; then session id, cipher suites and compression, each with its length.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(hello[at]);
    at += 2 + usize::from(word(at));
    at += 1 + usize::from(hello[at]) + 2;
    let mut all = Vec::new();
    while at + 4 <= hello.len() {
        let length = usize::from(word(at + 2));
        all.push((word(at), hello[at + 4..at + 4 + length].to_vec()));
        at += 4 + length;
    }
    all
}

#[test]
fn a_sidecar_offers_tls_1_3_alone_post_quantum_first_and_nothing_to_resume() {
    let listener = TcpListener::bind(free()).expect("a free port");
    let mesh = played("hello", listener.local_addr().expect("bound"));
    let local = mesh.local("played");
    let caller = std::thread::spawn(move || drop(get(local, "played", "/")));
    let (mut socket, _) = listener.accept().expect("called");
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let mut head = [0; 5];
    socket.read_exact(&mut head).expect("a record");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    socket.read_exact(&mut rest).expect("the whole of it");
    drop((socket, listener));
    caller.join().expect("it ends");
    let all = extensions(&[head.as_slice(), &rest].concat());
    let find = |number: u16| all.iter().find(|(found, _)| *found == number).map(|(_, content)| content.clone());
    assert_eq!(find(43), Some(vec![2, 3, 4]), "TLS 1.3 is the only version");
    let groups = find(10).expect("groups");
    assert_eq!(groups[2..4], [0x11, 0xec], "X25519MLKEM768 comes first: {groups:x?}");
    assert_eq!(find(16), Some(b"\0\x03\x02h2".to_vec()), "h2 is the only protocol");
    for (number, what) in [(41, "a pre-shared key"), (42, "early data"), (35, "a session ticket")] {
        assert_eq!(find(number), None, "{what}");
    }
}
