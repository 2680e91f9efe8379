//! The demo's processes, ports and files. Each process leads a group of its own; dropping the mesh kills the groups.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Method;
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::{fs::DirBuilderExt as _, process::CommandExt as _};

use super::{
    checks::{Edge, Healing},
    ports::free_addresses,
    scrape,
    traces::Collector,
};
use crate::client;
use weft_examples::client::Client;

/// Instances of services.
pub const INSTANCES: usize = 7;
/// Sidecars: one for each instance and one for the load.
pub const PROXIES: usize = INSTANCES + 1;
/// The replica of catalog that is killed.
pub const KILLED: &str = "c2";
/// The replica of catalog that fails and dawdles for a while.
pub const FLAKY: &str = "c1";
/// A path of the storefront with a rate limit of its own.
pub const LIMITED: &str = "/limited";

/// The port of ledger for entries, over HTTP; that of its journal is like everybody's.
const ENTRIES: u16 = 8080;

/// Names that are tried for the directory.
const MAX_DIRECTORIES: usize = 100;

/// Seconds for which certificates live, in a run of this length: they rotate in it, and what is left of one when it should
/// be renewed (three tenths) is more than the control plane's absence (an eighth of the run).
fn svid_lifetime(run: Duration) -> u64 {
    (run.as_secs() / 2 + 6).max(10)
}

/// (name, version, replica, protocol, upstreams).
const PLAN: [(&str, &str, &str, &str, &[&str]); INSTANCES] = [
    ("storefront", "v1", "1", "http", &["catalog", "orders"]),
    ("catalog", "v1", "c1", "http", &[]),
    ("catalog", "v1", KILLED, "http", &[]),
    ("catalog", "v2", "c3", "http", &[]),
    ("orders", "v1", "1", "http", &["payments", "ledger"]),
    ("payments", "v1", "1", "grpc", &[]),
    ("ledger", "v1", "1", "tcp", &[]),
];

struct Process {
    name: String,
    replica: &'static str,
    /// Where the app itself listens.
    app: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(pid, Signal::KILL).ok();
        }
        self.child.wait().ok();
    }
}

/// The whole mesh.
pub struct Mesh {
    dir: PathBuf,
    keep: bool,
    svid_lifetime: u64,
    api: SocketAddr,
    xds: SocketAddr,
    storefront: SocketAddr,
    /// The storefront's front for callers without a sidecar.
    front: SocketAddr,
    /// Where the load would reach the ledger.
    ledger: SocketAddr,
    collector: Collector,
    control_plane: Option<Process>,
    processes: Vec<Process>,
}

/// A new directory in `parent` for this user alone. One that is there already is never taken: somebody else may own it,
/// or it may be a link.
fn own_directory(parent: &Path) -> anyhow::Result<PathBuf> {
    let first = format!("weft-demo-{}", std::process::id());
    let more = (1..MAX_DIRECTORIES).map(|n| format!("{first}-{n}"));
    for name in std::iter::once(first.clone()).chain(more) {
        let path = parent.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("make {}", path.display())),
        }
    }
    bail!("{} and {MAX_DIRECTORIES} like it are there already", parent.join(first).display())
}

impl Mesh {
    /// Makes the directory; nothing runs yet.
    pub async fn new(run: Duration, keep: bool, otlp_endpoint: Option<String>) -> anyhow::Result<Self> {
        let dir = own_directory(&std::env::temp_dir())?;
        for sub in ["data", "resources", "logs"] {
            let path = dir.join(sub);
            fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let [api, xds, storefront, front, ledger, otlp] = free_addresses()?;
        let collector = Collector::find(otlp_endpoint, otlp).await;
        let (control_plane, processes, svid_lifetime) = (None, Vec::new(), svid_lifetime(run));
        Ok(Self { dir, keep, svid_lifetime, api, xds, storefront, front, ledger, collector, control_plane, processes })
    }

    /// Starts everything.
    pub fn start(&mut self) -> anyhow::Result<()> {
        write(&self.dir.join("resources/services.yaml"), &services())?;
        write(&self.dir.join("resources/policies.yaml"), POLICIES)?;
        write(&self.dir.join("resources/mesh.yaml"), &self.collector.resource())?;
        self.route(0)?;
        self.start_control_plane()?;
        for (name, version, replica, protocol, upstreams) in PLAN {
            let [app, admin, entries] = free_addresses()?;
            let mut args = words(&format!("run --name {name} --admin-listen {admin} --xds {}", self.xds));
            args.extend(words(&format!("--label version={version} --port {protocol}:{}/{protocol}", app.port())));
            if name == "storefront" {
                args.extend(words(&format!("--inbound-listen {}={}", self.front, app.port())));
            }
            for upstream in upstreams {
                let [local] = free_addresses()?;
                args.extend(words(&format!("--upstream {upstream}:80={}", local.port())));
            }
            // After the others: WEFT_UPSTREAM_LEDGER is the first one, the journal.
            match name {
                "ledger" => args.extend(words(&format!("--port http:{}/http", entries.port()))),
                "orders" => args.extend(words(&format!("--upstream ledger:{ENTRIES}={}", entries.port()))),
                _ => {}
            }
            args.extend(["--".to_owned(), program()?]);
            args.extend(words(&format!("demo-service {name} --listen {app} --version {version} --replica {replica}")));
            if matches!(name, "ledger" | "orders") {
                args.extend(words(&format!("--entries {entries}")));
            }
            let mut process = self.spawn(name, replica, Some(admin), &args)?;
            process.app = Some(app);
            self.processes.push(process);
        }
        let [admin] = free_addresses()?;
        let (storefront, ledger) = (self.storefront.port(), self.ledger.port());
        let line = format!(
            "sidecar --name load --xds {} --admin-listen {admin} --upstream storefront:80={storefront} --upstream \
             ledger:80={ledger}",
            self.xds
        );
        let process = self.spawn("load", "1", Some(admin), &words(&line))?;
        self.processes.push(process);
        Ok(())
    }

    /// Starts the control plane, or starts it again.
    pub fn start_control_plane(&mut self) -> anyhow::Result<()> {
        let (data, resources) = (self.dir.join("data"), self.dir.join("resources"));
        let line = format!(
            "control-plane --dev --api-listen {} --xds-listen {} --svid-lifetime {}s",
            self.api, self.xds, self.svid_lifetime
        );
        let mut args = words(&line);
        args.extend(["--data-dir".to_owned(), data.display().to_string()]);
        args.extend(["--resources".to_owned(), resources.display().to_string()]);
        args.extend(self.collector.flags());
        self.control_plane = Some(self.spawn("control-plane", "1", None, &args)?);
        Ok(())
    }

    /// Kills the control plane.
    pub fn kill_control_plane(&mut self) {
        self.control_plane = None;
    }

    /// Kills one replica of catalog, its sidecar and its `weft run`.
    pub fn kill_replica(&mut self) -> anyhow::Result<()> {
        let index = self.processes.iter().position(|process| process.replica == KILLED).context("replica is gone")?;
        drop(self.processes.remove(index));
        Ok(())
    }

    /// Makes one replica of catalog answer 503 to a share of its requests, and take this long for each.
    pub async fn misbehave(&self, fail_percent: u8, delay_ms: u16) -> anyhow::Result<()> {
        let flaky = self.processes.iter().find(|process| process.replica == FLAKY).and_then(|process| process.app);
        let client = Client::new(flaky.context("replica is gone")?, "catalog");
        let path = format!("/behave?fail_percent={fail_percent}&delay_ms={delay_ms}");
        let answer = client.call(Method::POST, &path, Bytes::new()).await?;
        anyhow::ensure!(answer.status().is_success(), "POST {path}: {}", answer.status());
        Ok(())
    }

    /// Sends `percent` of catalog's requests to v2.
    pub fn route(&self, percent: u8) -> anyhow::Result<()> {
        self.write_resource("route.yaml", &route(percent))
    }

    /// Writes a resource file while the mesh runs.
    pub fn write_resource(&self, name: &str, text: &str) -> anyhow::Result<()> {
        // Renamed into place, so that no half-written file is read.
        let (path, draft) = (self.dir.join("resources").join(name), self.dir.join("draft"));
        write(&draft, text)?;
        fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))
    }

    /// The control plane's API.
    pub fn server(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Where the storefront is reached through the mesh.
    pub fn storefront(&self) -> SocketAddr {
        self.storefront
    }

    /// Where the storefront is reached without a sidecar.
    pub fn front(&self) -> SocketAddr {
        self.front
    }

    /// Where the load reaches the ledger through the mesh, if it is let in.
    pub fn ledger(&self) -> SocketAddr {
        self.ledger
    }

    /// The sum of a metric of the sidecars of a service.
    pub async fn count(&self, service: &str, metric: &str) -> u64 {
        let mut count = 0;
        for process in self.processes.iter().filter(|process| process.name == service) {
            count += scrape::sum(&metrics(process).await, metric);
        }
        count
    }

    /// Certificate rotations of the sidecars that outlive the run.
    pub async fn rotations(&self) -> u64 {
        let mut rotations = 0;
        for process in self.processes.iter().filter(|process| process.replica != KILLED) {
            rotations += scrape::sum(&metrics(process).await, "weft_cert_rotations_total");
        }
        rotations
    }

    /// What every sidecar sent out, and what it did about failures.
    pub async fn edges(&self) -> (Vec<Edge>, Healing) {
        let (mut edges, mut healing) = (Vec::new(), Healing::default());
        for process in &self.processes {
            let text = metrics(process).await;
            edges.extend(scrape::edges(&text, &process.name));
            healing += scrape::healing(&text);
        }
        (edges, healing)
    }

    /// Spans that a collector has taken from the sidecars, and whether the traces can be read here.
    pub async fn spans(&self) -> (u64, bool) {
        let mut exported = 0;
        for process in &self.processes {
            exported += scrape::sum(&metrics(process).await, "weft_spans_exported_total");
        }
        (exported, matches!(self.collector, Collector::Own(_)))
    }

    /// What all sidecars have done about failures so far.
    pub async fn healing(&self) -> Healing {
        self.edges().await.1
    }

    /// Where people find the traces.
    pub fn where_traces_are(&self) -> String {
        self.collector.told(&self.server())
    }

    /// Keeps the directory and says where the logs are.
    pub fn keep_files(&mut self) -> String {
        self.keep = true;
        format!("logs are in {}", self.dir.join("logs").display())
    }

    /// Where to look while the mesh runs.
    pub fn describe(&self) -> String {
        format!(
            "storefront: http://{}\nweft status --server {}\n{}\nfiles: {}",
            self.storefront,
            self.server(),
            self.collector.told(&self.server()),
            self.dir.display()
        )
    }

    fn spawn(
        &self,
        name: &str,
        replica: &'static str,
        admin: Option<SocketAddr>,
        args: &[String],
    ) -> anyhow::Result<Process> {
        let log = self.dir.join(format!("logs/{name}-{replica}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let child = Command::new(program()?)
            .args(args)
            .env_remove("WEFT_TOKEN_FILE")
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log file")?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Process { name: name.to_owned(), replica, app: None, admin, child })
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.processes.clear();
        self.control_plane = None;
        if !self.keep {
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}

async fn metrics(process: &Process) -> String {
    let Some(admin) = process.admin else { return String::new() };
    // Silence shows as an edge without traffic in the checks.
    let body = client::get(&admin.to_string(), "/metrics").await.unwrap_or_default();
    String::from_utf8_lossy(&body).into_owned()
}

fn program() -> anyhow::Result<String> {
    Ok(std::env::current_exe().context("path of this program: unknown")?.display().to_string())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// Ledger is the last one: it has a second port.
fn services() -> String {
    let all = [
        ("storefront", "storefront", "", "http"),
        ("catalog", "catalog", "", "http"),
        ("catalog-v1", "catalog", "    version: v1\n", "http"),
        ("catalog-v2", "catalog", "    version: v2\n", "http"),
        ("orders", "orders", "", "http"),
        ("payments", "payments", "", "grpc"),
        ("ledger", "ledger", "", "tcp"),
    ];
    let one = |(name, app, version, protocol): (&str, &str, &str, &str)| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  selector:\n    app: {app}\n{version}  ports:\n  - name: {protocol}\n    port: 80\n    targetPort: {protocol}\n    appProtocol: {protocol}\n"
        )
    };
    let entries = format!("  - name: http\n    port: {ENTRIES}\n    targetPort: http\n    appProtocol: http\n");
    all.map(one).join("---\n") + &entries
}

const POLICIES: &str = include_str!("policies.yaml");

fn route(percent: u8) -> String {
    let stable = 100 - percent.min(100);
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: catalog\n  namespace: default\nspec:\n  parentRefs:\n  - group: \"\"\n    kind: Service\n    name: catalog\n    port: 80\n  rules:\n  - backendRefs:\n    - name: catalog-v1\n      port: 80\n      weight: {stable}\n    - name: catalog-v2\n      port: 80\n      weight: {percent}\n"
    )
}

#[cfg(test)]
mod tests;
