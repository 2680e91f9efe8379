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

mod ran;
mod workload;

pub use ran::Ran;
pub use workload::Workload;

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
    /// The discovery port.
    pub xds: SocketAddr,
    client: Option<Client>,
    /// Processes that call under names of their own.
    callers: Vec<Process>,
    workloads: BTreeMap<String, Running>,
    flags: Vec<String>,
    /// Where the cluster is that has the resources, in place of the directory.
    kubeconfig: Option<PathBuf>,
    control_plane: Option<Process>,
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
    /// Where the client is, if anybody knows.
    locality: Option<String>,
    /// Endpoints that a service has outside the mesh.
    outside: BTreeMap<String, usize>,
    /// How to reach the cluster that has the resources.
    kubeconfig: Option<String>,
}

struct Running {
    admin: SocketAddr,
    process: Process,
    /// What it was made of; `None` for the client.
    workload: Option<Workload>,
}

struct Client {
    locals: BTreeMap<String, SocketAddr>,
    outbound: SocketAddr,
    running: Running,
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

    /// Another flag of the control plane.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// The resources are those of a cluster.
    pub fn cluster(self, kubeconfig: &str) -> Self {
        Self { kubeconfig: Some(kubeconfig.into()), ..self }
    }

    /// A resource file, there before the control plane starts.
    pub fn resource(mut self, file: &str, text: impl Into<String>) -> Self {
        self.resources.push((file.into(), text.into()));
        self
    }

    /// A service of several instances, one beside each of these apps, named `service-0` and so on. They are called at
    /// port 80.
    pub fn replicas(self, service: &str, protocol: &str, apps: &[SocketAddr]) -> Self {
        let selector = format!("  selector: {{app: {service}}}\n");
        let text = service_at_port_80(service, protocol, &selector);
        let this = self.resource(&format!("{service}.yaml"), text);
        let instances = apps.iter().enumerate();
        instances.fold(this, |this, (number, app)| {
            this.workload(Workload::beside(service, *app, protocol).named(&format!("{service}-{number}")))
        })
    }

    /// A service outside the mesh: plaintext endpoints at these addresses, called at port 80.
    pub fn outside(mut self, service: &str, protocol: &str, addresses: &[SocketAddr]) -> Self {
        self.outside.insert(service.into(), addresses.len());
        let mut text = service_at_port_80(service, protocol, "");
        for (number, address) in addresses.iter().enumerate() {
            text += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata:\n  name: \
                 {service}-{number}\n  labels: {{kubernetes.io/service-name: {service}}}\nports:\n- {{name: main, port: \
                 {}}}\nendpoints:\n- addresses: [{}]\n",
                address.port(),
                address.ip(),
            );
        }
        self.resource(&format!("{service}.yaml"), text)
    }

    /// An instance of a service. Services have one each, unless the instances have names.
    pub fn workload(mut self, workload: Workload) -> Self {
        self.workloads.push(workload);
        self
    }

    /// The client runs in this REGION/ZONE.
    pub fn client_at(mut self, locality: &str) -> Self {
        self.locality = Some(locality.into());
        self
    }

    /// The client declares this service as an upstream.
    pub fn calls(mut self, service: &str) -> Self {
        self.upstreams.push(service.into());
        self
    }

    /// Starts everything: each workload holds its configuration before the client starts, and the client is ready and
    /// knows all endpoints of each service that it calls.
    pub fn start(self) -> TestMesh {
        let dir = std::env::temp_dir().join(format!("weft-it-{}-{}", std::process::id(), self.name));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("resources")).expect("a directory");
        for (file, text) in &self.resources {
            std::fs::write(dir.join("resources").join(file), text).expect("writable");
        }
        let kubeconfig = self.kubeconfig.map(|text| {
            let file = dir.join("kubeconfig");
            std::fs::write(&file, text).expect("writable");
            file
        });
        let (xds, api) = (free(), free());
        let (flags, workloads) = (self.flags, BTreeMap::new());
        let mut mesh = TestMesh {
            dir,
            api,
            xds,
            client: None,
            callers: Vec::new(),
            workloads,
            flags,
            kubeconfig,
            control_plane: None,
        };
        mesh.control_plane = Some(mesh.spawn_control_plane());
        eventually("the control plane", || ok(get(api, "localhost", "/healthz")));
        let mut endpoints = self.outside;
        for workload in self.workloads {
            *endpoints.entry(workload.service.clone()).or_default() += 1;
            mesh.add(workload);
        }
        if !self.upstreams.is_empty() {
            mesh.start_client(&self.upstreams, self.locality.as_deref());
        }
        for service in &self.upstreams {
            mesh.wait_for_endpoints(service, endpoints.get(service).copied().unwrap_or(1));
        }
        mesh
    }
}

impl TestMesh {
    /// A mesh; `name` is for its directory and is the test's alone.
    pub fn builder(name: &str) -> Builder {
        let (flags, resources, workloads, upstreams) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Builder {
            name: name.into(),
            flags,
            resources,
            workloads,
            upstreams,
            locality: None,
            outside: BTreeMap::new(),
            kubeconfig: None,
        }
    }

    /// The client's local port of a declared upstream.
    pub fn local(&self, service: &str) -> SocketAddr {
        *self.client().locals.get(service).unwrap_or_else(|| panic!("{service} is not declared by calls()"))
    }

    /// The same, if it is declared.
    pub fn declared(&self, service: &str) -> Option<SocketAddr> {
        self.client().locals.get(service).copied()
    }

    /// Another client, whose service account has this name: its local port of a service.
    pub fn caller(&mut self, name: &str, service: &str) -> SocketAddr {
        let (local, admin) = (free(), free());
        let mut command = Command::new(WEFT);
        command.args(["sidecar", "--name", name, "--xds", &self.xds.to_string()]);
        command.args(["--admin-listen", &admin.to_string(), "--upstream", &format!("{service}={}", local.port())]);
        self.callers.push(start(command, &self.dir, name));
        eventually(&format!("the sidecar of {name}"), || ok(get(admin, "localhost", "/ready")));
        local
    }

    /// Where the client calls by Host.
    pub fn outbound(&self) -> SocketAddr {
        self.client().outbound
    }

    /// The admin listener of the client's sidecar.
    pub fn client_admin(&self) -> SocketAddr {
        self.client().running.admin
    }

    /// The admin listener of a service's sidecar, by the instance's name.
    pub fn admin(&self, service: &str) -> SocketAddr {
        self.running(service).admin
    }

    /// What a service's sidecar, and its app, have logged.
    pub fn log(&self, service: &str) -> String {
        self.running(service).process.output()
    }

    /// What the client's sidecar has logged.
    pub fn client_log(&self) -> String {
        self.client().running.process.output()
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
        self.wait_for_endpoints(service, 1)[0].expect("a mesh address")
    }

    /// Waits until the client knows this many endpoints of a service that may take requests: their mesh addresses, if
    /// they have one.
    pub fn wait_for_endpoints(&self, service: &str, count: usize) -> Vec<Option<SocketAddr>> {
        eventually(&format!("{count} endpoints of {service}"), || {
            let text = ok(get(self.client_admin(), "localhost", "/config_dump"))?;
            let json = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let dump: serde_json::Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
            let clusters = dump["clusters"].as_object().ok_or("no clusters")?;
            let of_service = |key: &str| key.starts_with(&format!("default/{service}:"));
            let (_, cluster) = clusters.iter().find(|(key, _)| of_service(key)).ok_or_else(|| text.clone())?;
            let endpoints = cluster.as_array().filter(|known| known.len() == count).ok_or_else(|| text.clone())?;
            Ok(endpoints.iter().map(|endpoint| endpoint["mesh"].as_str()?.parse().ok()).collect())
        })
    }

    /// Kills an instance's sidecar and starts it anew, beside the same app. It has other addresses afterwards.
    pub fn kill_and_restart(&mut self, name: &str) {
        let killed = self.workloads.remove(name).unwrap_or_else(|| panic!("no workload {name}"));
        let workload = killed.workload.clone().expect("a workload");
        // SIGKILL, and its end is waited for.
        drop(killed);
        self.add(workload);
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

    /// Where sidecars reach the control plane.
    pub fn xds(&self) -> SocketAddr {
        self.xds
    }

    /// Kills the control plane as a crash does, and waits for its end.
    pub fn kill_control_plane(&mut self) {
        self.control_plane = None;
    }

    /// Starts the control plane again, with the same data.
    pub fn start_control_plane(&mut self) {
        self.control_plane = Some(self.spawn_control_plane());
        eventually("the control plane", || ok(get(self.api, "localhost", "/healthz")));
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
        match &self.kubeconfig {
            Some(file) => command.args(["--source", "kubernetes", "--kubeconfig"]).arg(file),
            None => command.arg("--resources").arg(self.dir.join("resources")),
        };
        command.args(&self.flags);
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
                .args(["sidecar", "--name", &workload.name, "--label", &format!("app={}", workload.service)])
                .args(["--port", &workload.declared, "--xds", &self.xds.to_string()])
                .args(["--admin-listen", &admin.to_string()]),
        };
        for (service, local) in &workload.calls {
            command.args(["--upstream", &format!("{service}={}", local.port())]);
        }
        if let Some(front) = workload.front {
            command.args(["--inbound-listen", &format!("{front}={number}")]);
        }
        let process = start(command, &self.dir, &workload.name);
        eventually(&format!("the configuration of {}", workload.name), || {
            let dump = ok(get(admin, "localhost", "/config_dump"))
                .map_err(|error| format!("{error}; its log: {}", process.output()))?;
            let port = format!("InboundPort {{ port: {number},");
            match dump.split_once(&port) {
                Some((_, rest)) if rest.contains("Target {") => Ok(()),
                _ => Err(format!("port {number} leads nowhere yet: {dump}")),
            }
        });
        self.workloads.insert(workload.name.clone(), Running { admin, process, workload: Some(workload) });
    }

    fn start_client(&mut self, services: &[String], locality: Option<&str>) {
        let (outbound, admin) = (free(), free());
        let locals: BTreeMap<_, _> = services.iter().map(|service| (service.clone(), free())).collect();
        let mut command = Command::new(WEFT);
        command.args(["sidecar", "--name", "client", "--xds", &self.xds.to_string()]);
        command.args(["--outbound-listen", &outbound.to_string(), "--admin-listen", &admin.to_string()]);
        for (service, local) in &locals {
            command.args(["--upstream", &format!("{service}={}", local.port())]);
        }
        command.args(locality.map(|locality| format!("--locality={locality}")));
        let process = start(command, &self.dir, "client");
        eventually("the client's sidecar", || ok(get(admin, "localhost", "/ready")));
        self.client = Some(Client { locals, outbound, running: Running { admin, process, workload: None } });
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

/// A Service, whose endpoints are called at what `selector` (a line, or nothing) and the port `main` give.
fn service_at_port_80(service: &str, protocol: &str, selector: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {service}\nspec:\n{selector}  ports:\n  - name: main\n    \
         port: 80\n    targetPort: main\n    appProtocol: {protocol}\n"
    )
}

fn start(mut command: Command, dir: &Path, name: &str) -> Process {
    command.env("WEFT_LOG", "info,weft_sidecar=debug,weft_control_plane=debug").current_dir(dir);
    Process::start(&mut command, &dir.join(format!("{name}.log")))
}
