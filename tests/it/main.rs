//! Whole-mesh tests with the real command: a control plane, workloads behind `weft run`, and the sidecars' own
//! metrics as witnesses. Nothing here needs root, the network or a program from outside.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// A mesh of processes in a directory of its own; everything ends with it.
struct Mesh {
    dir: PathBuf,
    xds: SocketAddr,
    api: SocketAddr,
    children: Vec<Child>,
}

/// A free port below the kernel's ephemeral range: one from inside it could be given to a sidecar's own listener
/// before we use it.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 8_000).expect("below 8000");
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Tries until it works; the last failure is the message.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > LIMIT => panic!("{what}: {error}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(50)),
        }
    }
}

/// One HTTP/1.1 exchange on a connection of its own: status and everything that came.
fn call(address: SocketAddr, request: &str) -> Result<(u16, String), String> {
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|error| error.to_string())?;
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| format!("{text:?}"))?;
    Ok((status, text))
}

fn get(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String), String> {
    call(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

impl Mesh {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("weft-it-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("resources")).expect("a directory");
        let mut mesh = Self { xds: free(), api: free(), dir, children: Vec::new() };
        let (xds, api) = (mesh.xds.to_string(), mesh.api.to_string());
        let (data, resources) = (mesh.dir.join("data"), mesh.dir.join("resources"));
        let (data, resources) = (data.display().to_string(), resources.display().to_string());
        mesh.spawn(&[
            "control-plane",
            "--dev",
            "--xds-listen",
            &xds,
            "--api-listen",
            &api,
            "--data-dir",
            &data,
            "--resources",
            &resources,
        ]);
        let api = mesh.api;
        eventually("the control plane", || get(api, "localhost", "/healthz"));
        mesh
    }

    fn spawn(&mut self, args: &[&str]) {
        let log = std::fs::File::create(self.dir.join(format!("{}.log", self.children.len()))).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(args)
            .env("WEFT_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the command starts");
        self.children.push(child);
    }

    /// A demo service behind `weft run`; the address of its sidecar's admin listener.
    fn run(&mut self, service: &str, port: &str, upstreams: &[String]) -> (SocketAddr, SocketAddr) {
        let (app, admin, xds) = (free(), free(), self.xds.to_string());
        let (listen, admin_listen) = (app.to_string(), admin.to_string());
        // An empty protocol leaves the port undeclared.
        let declared = if port.is_empty() { app.port().to_string() } else { format!("{port}:{}/{port}", app.port()) };
        let mut args =
            vec!["run", "--name", service, "--xds", &xds, "--admin-listen", &admin_listen, "--port", &declared];
        for upstream in upstreams {
            args.extend(["--upstream", upstream]);
        }
        args.extend(["--", env!("CARGO_BIN_EXE_weft"), "demo-service", service, "--listen", &listen]);
        self.spawn(&args);
        (app, admin)
    }

    /// A sidecar without an app, as the client of `service`; local port and admin listener.
    fn client(&mut self, service: &str) -> (SocketAddr, SocketAddr, SocketAddr) {
        let (local, outbound, admin, xds) = (free(), free(), free(), self.xds.to_string());
        let upstream = format!("{service}={}", local.port());
        let (outbound_listen, admin_listen) = (outbound.to_string(), admin.to_string());
        self.spawn(&[
            "sidecar",
            "--name",
            "client",
            "--xds",
            &xds,
            "--admin-listen",
            &admin_listen,
            "--outbound-listen",
            &outbound_listen,
            "--upstream",
            &upstream,
        ]);
        eventually("the client's sidecar", || match get(admin, "localhost", "/ready")? {
            (200, _) => Ok(()),
            (_, text) => Err(text),
        });
        (local, outbound, admin)
    }

    /// Ends the processes; `weft run` takes its app and sidecar along.
    fn stop(&mut self) {
        for child in &mut self.children {
            let pid = child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
        }
        for mut child in self.children.drain(..) {
            let _ = child.wait();
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn ok(result: Result<(u16, String), String>) -> Result<String, String> {
    match result? {
        (200, text) => Ok(text),
        (_, text) => Err(text),
    }
}

#[test]
fn a_request_crosses_two_sidecars_over_mutual_tls() {
    let mut mesh = Mesh::start("http");
    let (_, server) = mesh.run("catalog", "http", &[]);
    let (local, outbound, admin) = mesh.client("catalog");
    eventually("a call by local port", || ok(get(local, "anything", "/items")));
    eventually("a call by Host", || ok(get(outbound, "catalog.default", "/items")));

    let metrics = eventually("the client's metrics", || ok(get(admin, "localhost", "/metrics")));
    let mtls = |line: &&str| line.starts_with("weft_http_requests_total") && line.contains("mtls=\"true\"");
    assert!(metrics.lines().filter(mtls).any(|line| line.contains("default/catalog")), "{metrics}");
    let metrics = eventually("the server's metrics", || ok(get(server, "localhost", "/metrics")));
    assert!(metrics.lines().filter(mtls).any(|line| line.contains("direction=\"inbound\"")), "{metrics}");

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
    let mut stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
    stream.write_all(b"charge 1\n").map_err(|error| error.to_string())?;
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes).map_err(|error| error.to_string())?;
    if length == 0 { Err("closed".into()) } else { Ok(String::from_utf8_lossy(&bytes[..length]).into_owned()) }
}

/// An app inside the test: what it was sent goes to `heads`, `answer` is what it says. Lives as long as the test.
fn app(answer: &'static [u8]) -> (SocketAddr, mpsc::Receiver<String>) {
    let (sender, heads) = mpsc::channel();
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = [0; 4096];
            // A probe connects and says nothing.
            let length = if answer.is_empty() { 0 } else { stream.read(&mut bytes).unwrap_or(0) };
            if length > 0 {
                let _ = sender.send(String::from_utf8_lossy(&bytes[..length]).to_lowercase());
                let _ = stream.write_all(answer);
            }
        }
    });
    (address, heads)
}

/// The client's local port of a service whose app is [`app`].
fn client_of(mesh: &mut Mesh, app: SocketAddr, protocol: &str) -> SocketAddr {
    let (xds, declared) = (mesh.xds.to_string(), format!("http:{}/{protocol}", app.port()));
    mesh.spawn(&["sidecar", "--name", "recorder", "--label", "app=recorder", "--xds", &xds, "--port", &declared]);
    mesh.client("recorder").0
}

#[test]
fn the_app_gets_no_identity_that_the_caller_did_not_prove() {
    let mut mesh = Mesh::start("head");
    let (app, heads) = app(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let local = client_of(&mut mesh, app, "http");
    let request = "GET / HTTP/1.1\r\nHost: recorder\r\nX-Forwarded-Client-Cert: By=admin\r\nX-Weft-Caller-Version: 2\r\n\
                   Connection: close\r\n\r\n";
    eventually("a call", || ok(call(local, request)));
    let head = heads.recv_timeout(LIMIT).expect("the app was called");
    assert!(head.starts_with("get / http/1.1\r\n") && head.contains("host: recorder\r\n"), "{head}");
    for field in ["x-forwarded-client-cert", "x-weft-"] {
        assert!(!head.contains(field), "{field} in {head}");
    }
}

#[test]
fn an_app_that_accepts_and_closes_gives_an_error_with_its_reason() {
    let mut mesh = Mesh::start("closes");
    let (app, _) = app(b"");
    // HTTP/2, where a connection that the app has closed is found before anything is sent.
    let local = client_of(&mut mesh, app, "http2");
    eventually("an error", || match get(local, "recorder", "/")? {
        (502, text) if text.contains("connection_terminated") => Ok(()),
        (_, text) => Err(text),
    });
}

#[test]
fn opaque_bytes_cross_on_a_port_that_nobody_declared() {
    let mut mesh = Mesh::start("undeclared");
    mesh.run("ledger", "", &[]);
    let (local, _, _) = mesh.client("ledger");
    let answer = eventually("a line through the tunnel", || line(local));
    assert!(answer.starts_with("OK"), "{answer}");
}

#[test]
fn opaque_bytes_cross_as_a_as_a_tunnel_and_plaintext_on_the_mesh_port_is_refused() {
    let mut mesh = Mesh::start("tcp");
    let (_, server) = mesh.run("ledger", "tcp", &[]);
    let (local, _, admin) = mesh.client("ledger");
    let answer = eventually("a line through the tunnel", || line(local));
    assert!(answer.starts_with("OK"), "{answer}");
    let metrics = eventually("the client's metrics", || ok(get(admin, "localhost", "/metrics")));
    let sent = |line: &str| line.starts_with("weft_tcp_sent_bytes_total") && line.contains("mtls=\"true\"");
    assert!(metrics.lines().any(sent), "{metrics}");

    let dump = eventually("the client's configuration", || ok(get(admin, "localhost", "/config_dump")));
    let address = dump.split("\"mesh\": \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a mesh address");
    // A plaintext request gets no answer of HTTP, only the end of the connection or a TLS alert.
    let answer = get(address.parse().expect("an address"), "ledger", "/");
    assert!(answer.as_ref().map_or(true, |(status, _)| *status == 0) || answer.is_err(), "{answer:?}");
    eventually("the refusal in the server's metrics", || {
        let metrics = ok(get(server, "localhost", "/metrics"))?;
        let refused =
            metrics.lines().any(|line| line.starts_with("weft_mesh_refused_total") && line.contains("tls_plaintext"));
        if refused { Ok(()) } else { Err(metrics) }
    });
}

#[test]
fn a_bad_resource_file_is_reported_with_its_place_and_the_mesh_goes_on() {
    let mut mesh = Mesh::start("resources");
    mesh.run("catalog", "http", &[]);
    let (local, _, _) = mesh.client("catalog");
    eventually("a call", || ok(get(local, "catalog", "/items")));
    let bad = "apiVersion: v1\nkind: Service\nmetadata:\n  name: catalog\nspec:\n  selectr:\n    app: catalog\n";
    std::fs::write(mesh.dir.join("resources/bad.yaml"), bad).expect("writable");
    let api = mesh.api;
    let problems = eventually("the problem", || {
        let text = ok(get(api, "localhost", "/weft/v1/resources/errors"))?;
        if text.contains("selectr") { Ok(text) } else { Err(text) }
    });
    for part in ["bad.yaml", "\"line\":6", "spec.selectr", "selector"] {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    eventually("a call afterwards", || ok(get(local, "catalog", "/items")));
}
