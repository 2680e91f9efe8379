//! Sidecars that come back alone: the control plane is away, everything was killed, and what is in the state
//! directories is all there is.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use rustls::pki_types::ServerName;
use weft_proto::{ResourceType, v1};
use weft_sidecar::state::{
    configuration::StoredConfiguration,
    file::{self, Kind},
    identity::StoredIdentity,
};
use weft_svid::TrustStore;
use zeroize::Zeroizing;

use crate::{
    apps::recorder,
    mesh::TestMesh,
    net::{LIMIT, call, connect, eventually, free, get, metric, ok},
    process::Process,
};

const PAIRS: usize = 10;

/// A sidecar that is started again with the same flags, and so at the same addresses.
struct Sidecar {
    name: String,
    dir: PathBuf,
    flags: Vec<String>,
    admin: SocketAddr,
    mesh: SocketAddr,
    process: Option<Process>,
}

impl Sidecar {
    fn new(base: &Path, name: &str, xds: SocketAddr, more: &[String]) -> Self {
        let (admin, mesh, dir) = (free(), free(), base.join(format!("state-{name}")));
        let mut flags: Vec<String> = ["sidecar", "--workers", "1", "--name", name].map(Into::into).into();
        for (flag, value) in [
            ("--label", format!("app={name}")),
            ("--xds", xds.to_string()),
            ("--admin-listen", admin.to_string()),
            ("--mesh-listen", mesh.to_string()),
            ("--outbound-listen", free().to_string()),
        ] {
            flags.extend([flag.into(), value]);
        }
        flags.extend(more.iter().cloned());
        Self { name: name.into(), dir, flags, admin, mesh, process: None }
    }

    fn kept(mut self) -> Self {
        self.flags.extend(["--state-dir".into(), self.dir.display().to_string()]);
        self
    }

    /// Starts it; when that was.
    fn start(&mut self, more: &[&str]) -> Instant {
        let start = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(&self.flags).args(more).env("WEFT_LOG", "info");
        self.process = Some(Process::start(&mut command, &self.dir.with_extension("log")));
        start
    }

    fn log(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }

    /// What was kept by now.
    fn configuration(&self) -> Result<StoredConfiguration, String> {
        let body = read(&self.dir, Kind::Configuration)?;
        StoredConfiguration::decode(&body).map_err(|refused| refused.to_string())
    }
}

fn read(dir: &Path, kind: Kind) -> Result<Zeroizing<Vec<u8>>, String> {
    let bytes = std::fs::read(dir.join(kind.file_name())).map_err(|error| error.to_string())?;
    file::open(kind, Zeroizing::new(bytes), None).map(|opened| opened.body).map_err(|refused| refused.to_string())
}

/// A service with an app, and the only client that its policy lets in, and only with GET.
struct Pair {
    server: Sidecar,
    client: Sidecar,
    local: SocketAddr,
}

impl Pair {
    fn new(mesh: &TestMesh, number: usize) -> Self {
        let (app, _) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        let (server, client, local) = (format!("server-{number}"), format!("client-{number}"), free());
        let port = ["--port".to_owned(), format!("main:{}/http", app.port())];
        let upstream = ["--upstream".to_owned(), format!("{server}={}", local.port())];
        Self {
            server: Sidecar::new(&mesh.dir, &server, mesh.xds(), &port).kept(),
            client: Sidecar::new(&mesh.dir, &client, mesh.xds(), &upstream).kept(),
            local,
        }
    }

    /// Service, and who may call it.
    fn resources(number: usize) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: server-{number}}}\nspec:\n  selector: {{app: \
             server-{number}}}\n  ports: [{{name: main, port: 80, targetPort: main, appProtocol: http}}]\n---\n\
             apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: only-{number}}}\nspec:\n  \
             selector: {{matchLabels: {{app: server-{number}}}}}\n  action: Allow\n  rules:\n  - from: [{{identities: \
             ['{}']}}]\n    to: [{{methods: [GET]}}]\n---\n",
            Self::identity(number)
        )
    }

    fn identity(number: usize) -> String {
        format!("spiffe://weft.local/ns/default/sa/client-{number}")
    }

    /// A GET is answered by the app, and nothing else passes.
    fn serves(&self) -> Result<(), String> {
        ok(get(self.local, "server", "/"))?;
        match call(self.local, "POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")? {
            (403, _) => Ok(()),
            (_, text) => Err(format!("the policy is not enforced: {text}")),
        }
    }

    /// What both need to serve without the control plane is on disk.
    fn is_kept(&self, number: usize) -> Result<(), String> {
        let identity = Self::identity(number).into_bytes();
        let policy = self.server.configuration()?.resources.iter().any(|one| {
            one.kind == ResourceType::WorkloadConfig
                && one.bytes.windows(identity.len()).any(|window| window == identity)
        });
        let endpoint = self.client.configuration()?.resources.iter().any(|one| {
            one.kind == ResourceType::EndpointSlice
                && v1::EndpointSlice::decode(one.bytes.clone()).is_ok_and(|slice| {
                    slice.endpoints.iter().any(|endpoint| endpoint.healthy && !endpoint.mesh_address.is_empty())
                })
        });
        if policy && endpoint { Ok(()) } else { Err(format!("policy kept: {policy}, endpoint kept: {endpoint}")) }
    }
}

/// Tries again at short intervals: what is measured is not the interval.
fn soon<T>(what: &str, log: impl Fn() -> String, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > LIMIT => panic!("{what}: {error}; its log: {}", log()),
            Err(_) => std::thread::park_timeout(Duration::from_millis(3)),
        }
    }
}

/// A TLS session on a mesh listener, with the certificate of another sidecar, until the server has sent its first
/// bytes: it has accepted the certificate then.
fn handshake(mesh: SocketAddr, dir: &Path) -> Result<(), String> {
    let body = read(dir, Kind::Identity)?;
    let stored = StoredIdentity::decode(&body, std::time::SystemTime::now()).map_err(|refused| refused.to_string())?;
    let trust = TrustStore::default();
    trust.set_roots("weft.local", &stored.roots).map_err(|error| error.to_string())?;
    let config = weft_svid::client_config(Some(&stored.svid), &trust, &[b"h2"]).map_err(|error| error.to_string())?;
    let name = ServerName::try_from("p80.server.default.weft").map_err(|error| error.to_string())?;
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    let mut io: TcpStream = connect(mesh)?;
    let mut stream = rustls::Stream::new(&mut session, &mut io);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").map_err(|error| error.to_string())?;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).map_err(|error| error.to_string())?;
    if frame[3] == 4 { Ok(()) } else { Err(format!("no SETTINGS: {frame:?}")) }
}

fn ready(admin: SocketAddr) -> Result<String, String> {
    ok(get(admin, "localhost", "/readyz"))
}

/// The longest of these times, and how many are within a second.
fn report(what: &str, times: &[Duration]) {
    let within = times.iter().filter(|time| **time <= Duration::from_secs(1)).count();
    let (least, most) = (times.iter().min(), times.iter().max());
    println!("{what}: {within} of {} within 1 s; shortest {least:?}, longest {most:?}", times.len());
}

#[test]
fn twenty_killed_sidecars_serve_mutual_tls_with_their_policies_without_the_control_plane() {
    let resources: String = (0..PAIRS).map(Pair::resources).collect();
    let mut mesh = TestMesh::builder("cold-start").svid_lifetime("100s").resource("pairs.yaml", resources).start();
    let mut pairs: Vec<_> = (0..PAIRS).map(|number| Pair::new(&mesh, number)).collect();
    for pair in &mut pairs {
        pair.server.start(&[]);
        pair.client.start(&[]);
    }
    for (number, pair) in pairs.iter().enumerate() {
        eventually("a pair that serves", || pair.serves());
        eventually("its state", || pair.is_kept(number));
    }

    // Everything goes at once, and nothing has a chance to say goodbye.
    mesh.kill_control_plane();
    for pair in &mut pairs {
        (pair.server.process, pair.client.process) = (None, None);
    }
    // No token: whoever needs one does not come back.
    let no_token = ["--token", "/nonexistent"];
    let (mut readies, mut serves) = (Vec::new(), Vec::new());
    for pair in &mut pairs {
        let start = pair.server.start(&no_token);
        soon(&pair.server.name, || pair.server.log(), || ready(pair.server.admin));
        readies.push(start.elapsed());
        soon(&pair.server.name, || pair.server.log(), || handshake(pair.server.mesh, &pair.client.dir));
        serves.push(start.elapsed());
        let start = pair.client.start(&no_token);
        soon(&pair.client.name, || pair.client.log(), || ready(pair.client.admin));
        readies.push(start.elapsed());
        soon(&pair.client.name, || pair.client.log(), || pair.serves());
        serves.push(start.elapsed());
    }
    report("ready after SIGKILL", &readies);
    report("mutual TLS with policies after SIGKILL", &serves);
    assert!(serves.iter().all(|time| *time < Duration::from_secs(15)), "{serves:?}");
    let text = ready(pairs[0].server.admin).expect("ready");
    assert!(text.contains("configuration from disk, last right "), "{text}");
    assert!((metric(pairs[0].server.admin, "weft_config_from_disk", &[]) - 1.0).abs() < 0.5);
    eventually("the control plane's absence is told", || {
        let text = ready(pairs[0].server.admin)?;
        if text.contains("control plane away for") { Ok(()) } else { Err(text) }
    });

    // The control plane is back: certificates are renewed by certificates, and endpoints are not forgotten meanwhile.
    mesh.start_control_plane();
    let mut admins: Vec<_> = pairs.iter().flat_map(|pair| [pair.server.admin, pair.client.admin]).collect();
    let start = Instant::now();
    while !admins.is_empty() {
        for pair in &pairs {
            pair.serves().expect("no request fails while the control plane comes back");
        }
        admins.retain(|admin| metric(*admin, "weft_cert_rotations_total", &[]) < 0.5);
        admins.first().inspect(|_| assert!(start.elapsed() < 2 * LIMIT, "{} were not renewed", admins.len()));
    }
    for pair in &pairs {
        for sidecar in [&pair.server, &pair.client] {
            assert!(metric(sidecar.admin, "weft_config_from_disk", &[]) < 0.5, "{}", sidecar.log());
        }
    }
}

#[test]
fn a_sidecar_without_a_state_directory_says_what_it_waits_for() {
    let mut mesh = TestMesh::builder("cold-start-waits").start();
    let mut sidecar = Sidecar::new(&mesh.dir, "lost", mesh.xds(), &[]);
    mesh.kill_control_plane();
    sidecar.start(&[]);
    let xds = mesh.xds();
    let text = eventually("what it waits for", || match get(sidecar.admin, "localhost", "/readyz")? {
        (503, text) if text.contains("control plane away for") => Ok(text),
        (_, text) => Err(text),
    });
    for part in [
        "waiting for: certificate (control plane at ",
        &xds.to_string(),
        "onnection refused",
        "is it running (`weft control-plane`), and is --xds its address?",
        "trust bundle, workload configuration default/lost",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    eventually("the same in its log", || {
        let log = sidecar.log();
        if log.contains("not ready; waiting for: certificate (control plane at ") { Ok(()) } else { Err(log) }
    });
    mesh.start_control_plane();
    eventually("its first certificate", || ready(sidecar.admin));
}

#[test]
fn a_damaged_state_is_refused_with_its_reason_and_the_sidecar_enrols_anew() {
    let mesh = TestMesh::builder("cold-start-damaged").start();
    let mut sidecar = Sidecar::new(&mesh.dir, "hurt", mesh.xds(), &[]).kept();
    sidecar.start(&[]);
    eventually("ready", || ready(sidecar.admin));
    eventually("its state", || sidecar.configuration().map(|_| ()));
    sidecar.process = None;
    let file = sidecar.dir.join(Kind::Identity.file_name());
    let mut bytes = std::fs::read(&file).expect("kept");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("writable");
    sidecar.start(&[]);
    eventually("ready", || ready(sidecar.admin));
    let refused = metric(sidecar.admin, "weft_state_refused_total", &["file=\"identity\"", "reason=\"tampered\""]);
    assert!((refused - 1.0).abs() < 0.5, "{}", sidecar.log());
    assert!(metric(sidecar.admin, "weft_cert_rotations_total", &[]) > 0.5, "it has enrolled anew");
    eventually("a state that is whole again", || read(&sidecar.dir, Kind::Identity).map(|_| ()));
}
