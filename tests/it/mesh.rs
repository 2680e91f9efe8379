//! A whole mesh of the real command, made by a builder: the control plane, workloads behind `weft run`, and one
//! sidecar without an app that stands for the client. It lives in a directory of its own, which stays when the test
//! fails.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use crate::{
    net::{eventually, free, get, ok},
    process::{Process, signal},
};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// A running mesh.
pub struct TestMesh {
    /// Its files: `resources/`, `data/` with the authority, and a log for each process.
    pub dir: PathBuf,
    /// The operator API.
    pub api: SocketAddr,
    xds: SocketAddr,
    client: Option<Client>,
    workloads: BTreeMap<String, Running>,
    flags: Vec<String>,
    control_plane: Option<Process>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    /// Both outputs.
    pub text: String,
    stdout: String,
}

impl Ran {
    /// Its output; it must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.text);
        self.text
    }

    /// Its standard output as JSON; it must have succeeded.
    pub fn json(self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.text);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a mesh is made of.
pub struct Builder {
    name: String,
    flags: Vec<String>,
    resources: Vec<(String, String)>,
    workloads: Vec<Workload>,
    upstreams: Vec<String>,
}

/// One instance of a service with a sidecar beside it.
pub struct Workload {
    service: String,
    port: SocketAddr,
    declared: String,
    /// `None`: the app is somebody else's, the sidecar stands alone.
    command: Option<Vec<OsString>>,
    front: Option<SocketAddr>,
}

struct Running {
    admin: SocketAddr,
    process: Process,
}

struct Client {
    locals: BTreeMap<String, SocketAddr>,
    outbound: SocketAddr,
    running: Running,
}

impl Workload {
    /// An app that runs already, at `address`; `protocol` is one of `weft run --port`, or empty for undeclared.
    pub fn beside(service: &str, address: SocketAddr, protocol: &str) -> Self {
        let number = address.port();
        let declared = if protocol.is_empty() { number.to_string() } else { format!("main:{number}/{protocol}") };
        Self { service: service.into(), port: address, declared, command: None, front: None }
    }

    /// A plaintext front of the app at this address; only beside an app that runs already.
    pub fn front(self, address: SocketAddr) -> Self {
        Self { front: Some(address), ..self }
    }

    /// An app that `weft run` starts; it is to listen at `address`.
    pub fn run(
        service: &str,
        address: SocketAddr,
        protocol: &str,
        command: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        let command = Some(command.into_iter().map(Into::into).collect());
        Self { command, ..Self::beside(service, address, protocol) }
    }

    /// A service of the demo, which `weft run` starts.
    pub fn demo(service: &str, protocol: &str) -> Self {
        let address = free();
        Self::run(service, address, protocol, [WEFT, "demo-service", service, "--listen", &address.to_string()])
    }
}

impl Builder {
    /// Another trust domain than `weft.local`.
    pub fn trust_domain(self, name: &str) -> Self {
        self.flag("--trust-domain", name)
    }

    /// How long certificates of sidecars live.
    pub fn svid_lifetime(self, time: &str) -> Self {
        self.flag("--svid-lifetime", time)
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// A resource file, there before the control plane starts.
    pub fn resource(mut self, file: &str, text: impl Into<String>) -> Self {
        self.resources.push((file.into(), text.into()));
        self
    }

    /// An instance of a service. Services have one each.
    pub fn workload(mut self, workload: Workload) -> Self {
        self.workloads.push(workload);
        self
    }

    /// The client declares this service as an upstream.
    pub fn calls(mut self, service: &str) -> Self {
        self.upstreams.push(service.into());
        self
    }

    /// Starts everything: each workload holds its configuration before the client starts, and the client is ready and
    /// knows an endpoint of each service that it calls.
    pub fn start(self) -> TestMesh {
        let dir = std::env::temp_dir().join(format!("weft-it-{}-{}", std::process::id(), self.name));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("resources")).expect("a directory");
        for (file, text) in &self.resources {
            std::fs::write(dir.join("resources").join(file), text).expect("writable");
        }
        let (xds, api) = (free(), free());
        let (flags, workloads) = (self.flags, BTreeMap::new());
        let mut mesh = TestMesh { dir, api, xds, client: None, workloads, flags, control_plane: None };
        mesh.control_plane = Some(mesh.spawn_control_plane());
        eventually("the control plane", || ok(get(api, "localhost", "/healthz")));
        for workload in self.workloads {
            mesh.add(workload);
        }
        if !self.upstreams.is_empty() {
            mesh.start_client(&self.upstreams);
        }
        mesh
    }
}

impl TestMesh {
    /// A mesh; `name` is for its directory and is the test's alone.
    pub fn builder(name: &str) -> Builder {
        let (flags, resources, workloads, upstreams) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Builder { name: name.into(), flags, resources, workloads, upstreams }
    }

    /// The client's local port of a declared upstream.
    pub fn local(&self, service: &str) -> SocketAddr {
        *self.client().locals.get(service).unwrap_or_else(|| panic!("{service} is not declared by calls()"))
    }

    /// Where the client calls by Host.
    pub fn outbound(&self) -> SocketAddr {
        self.client().outbound
    }

    /// The admin listener of the client's sidecar.
    pub fn client_admin(&self) -> SocketAddr {
        self.client().running.admin
    }

    /// The admin listener of a service's sidecar.
    pub fn admin(&self, service: &str) -> SocketAddr {
        self.running(service).admin
    }

    /// What a service's sidecar, and its app, have logged.
    pub fn log(&self, service: &str) -> String {
        self.running(service).process.output()
    }

    /// The process id of the client's sidecar.
    pub fn client_pid(&self) -> u32 {
        self.client().running.process.id()
    }

    /// The process id of a service's sidecar, with or without `weft run`.
    pub fn sidecar_pid(&self, service: &str) -> u32 {
        let process = &self.running(service).process;
        process.below_with(&["sidecar"]).first().copied().unwrap_or_else(|| process.id())
    }

    /// The mesh listener of a service, as the client knows it.
    pub fn mesh_address(&self, service: &str) -> SocketAddr {
        endpoint(self.client_admin(), service)
    }

    /// Runs a command of an operator to its end.
    pub fn weft(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(WEFT);
        command.args(args).env("WEFT_SERVER", format!("http://{}", self.api)).current_dir(&self.dir);
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ran { code: output.status.code(), text: format!("{stdout}{stderr}"), stdout }
    }

    /// Stops the control plane as a service manager does, and waits for its end.
    pub fn stop_control_plane(&mut self) {
        if let Some(mut process) = self.control_plane.take() {
            signal(process.id(), Signal::TERM);
            let status = process.wait();
            assert!(status.success(), "{status}: {}", process.output());
        }
    }

    /// Starts the control plane, which is to refuse; what it says.
    pub fn start_control_plane_that_fails(&self) -> String {
        let mut process = self.spawn_control_plane();
        let status = process.wait();
        assert_eq!(status.code(), Some(1), "{}", process.output());
        process.output()
    }

    fn spawn_control_plane(&self) -> Process {
        let mut command = Command::new(WEFT);
        command.arg("control-plane").arg("--dev").args(["--xds-listen", &self.xds.to_string()]);
        command.args(["--api-listen", &self.api.to_string()]).arg("--data-dir").arg(self.dir.join("data"));
        command.arg("--resources").arg(self.dir.join("resources")).args(&self.flags);
        start(command, &self.dir, "control-plane")
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("a client, by calls()")
    }

    fn running(&self, service: &str) -> &Running {
        self.workloads.get(service).unwrap_or_else(|| panic!("no workload {service}"))
    }

    fn add(&mut self, workload: Workload) {
        let (admin, number) = (free(), workload.port.port());
        let mut command = Command::new(WEFT);
        match &workload.command {
            Some(app) => command.args(["run", "--name", &workload.service, "--port", &workload.declared]).args(
                ["--xds", &self.xds.to_string(), "--admin-listen", &admin.to_string(), "--"]
                    .map(OsString::from)
                    .iter()
                    .chain(app),
            ),
            None => command
                .args(["sidecar", "--name", &workload.service, "--label", &format!("app={}", workload.service)])
                .args(["--port", &workload.declared, "--xds", &self.xds.to_string()])
                .args(["--admin-listen", &admin.to_string()]),
        };
        if let Some(front) = workload.front {
            command.args(["--inbound-listen", &format!("{front}={number}")]);
        }
        let process = start(command, &self.dir, &workload.service);
        eventually(&format!("the configuration of {}", workload.service), || {
            let dump = ok(get(admin, "localhost", "/config_dump"))
                .map_err(|error| format!("{error}; its log: {}", process.output()))?;
            let port = format!("InboundPort {{ port: {number},");
            match dump.split_once(&port) {
                Some((_, rest)) if rest.contains("Target {") => Ok(()),
                _ => Err(format!("port {number} leads nowhere yet: {dump}")),
            }
        });
        self.workloads.insert(workload.service, Running { admin, process });
    }

    fn start_client(&mut self, services: &[String]) {
        let (outbound, admin) = (free(), free());
        let locals: BTreeMap<_, _> = services.iter().map(|service| (service.clone(), free())).collect();
        let mut command = Command::new(WEFT);
        command.args(["sidecar", "--name", "client", "--xds", &self.xds.to_string()]);
        command.args(["--outbound-listen", &outbound.to_string(), "--admin-listen", &admin.to_string()]);
        for (service, local) in &locals {
            command.args(["--upstream", &format!("{service}={}", local.port())]);
        }
        let process = start(command, &self.dir, "client");
        eventually("the client's sidecar", || ok(get(admin, "localhost", "/ready")));
        for service in services {
            endpoint(admin, service);
        }
        self.client = Some(Client { locals, outbound, running: Running { admin, process } });
    }
}

impl Drop for TestMesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the logs are kept in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Waits until a sidecar knows an endpoint of a service that may take requests: its mesh address.
fn endpoint(admin: SocketAddr, service: &str) -> SocketAddr {
    eventually(&format!("an endpoint of {service}"), || {
        let text = ok(get(admin, "localhost", "/config_dump"))?;
        let json = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let dump: serde_json::Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let clusters = dump["clusters"].as_object().ok_or("no clusters")?;
        let of_service = |key: &str| key.starts_with(&format!("default/{service}:"));
        let cluster = clusters.iter().find(|(key, _)| of_service(key)).ok_or_else(|| text.clone())?;
        cluster.1[0]["mesh"].as_str().and_then(|address| address.parse().ok()).ok_or_else(|| text.clone())
    })
}

fn start(mut command: Command, dir: &Path, name: &str) -> Process {
    command.env("WEFT_LOG", "info,weft_sidecar=debug,weft_control_plane=debug").current_dir(dir);
    Process::start(&mut command, &dir.join(format!("{name}.log")))
}
