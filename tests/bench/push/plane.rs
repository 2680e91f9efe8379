//! The control plane under test: its resources, its process, the changes, and what the kernel says that it costs.

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};

use crate::Through;

/// Where everything is.
pub const NAMESPACE: &str = "bench";
/// The service that all sidecars use, and whose endpoints change.
pub const COMMON: &str = "common";
/// Ticks per second of /proc/PID/stat: the kernel shows 100 on every architecture of ours.
const TICK: Duration = Duration::from_millis(10);
/// The control plane answers within this time, or never.
const START: Duration = Duration::from_secs(60);

/// The running control plane and its directory, which go with this.
pub struct Plane {
    directory: TempDir,
    weft: PathBuf,
    xds: u16,
    api: u16,
    through: Through,
    child: Child,
}

/// The name of a service.
pub fn service(number: usize) -> String {
    format!("service-{number:04}")
}

impl Plane {
    /// Writes `services` services with 10 endpoints each, the common one among them, and starts the control plane.
    pub async fn start(weft: &Path, services: usize, through: Through) -> Result<Self> {
        let directory = TempDir::with_prefix("weft-push-")?;
        fs::create_dir_all(directory.path().join("resources"))?;
        for number in 0..services - 1 {
            let name = service(number);
            let text = service_text(&name) + &slice_text(&name, [10 + number / 256, number % 256]);
            fs::write(directory.path().join(format!("resources/{name}.yaml")), text)?;
        }
        fs::write(directory.path().join("resources/common-service.yaml"), service_text(COMMON))?;
        let xds = free_port(23_100)?;
        let api = free_port(xds + 1)?;
        let weft = weft.canonicalize().with_context(|| format!("--weft {}", weft.display()))?;
        let child = launch(&weft, directory.path(), xds, api)?;
        let plane = Self { directory, weft, xds, api, through, child };
        plane.answers().await?;
        match through {
            Through::File => {
                plane.change_file(0)?;
            }
            Through::Api => {
                let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
                plane.request("POST", &path, &slice_json(0).to_string()).await?;
            }
        }
        Ok(plane)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Address of discovery.
    pub fn xds(&self) -> String {
        format!("127.0.0.1:{}", self.xds)
    }

    /// The development token.
    pub fn token(&self) -> PathBuf {
        self.directory.path().join(format!("run/weft/dev-{}.token", self.xds))
    }

    /// Changes one endpoint of the common service.
    pub async fn change(&self, generation: u16) -> Result<()> {
        match self.through {
            Through::File => self.change_file(generation),
            Through::Api => {
                let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{COMMON}-1");
                self.request("PUT", &path, &slice_json(generation).to_string()).await
            }
        }
    }

    /// Kills the control plane.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill")
    }

    /// Starts it again, with another generation. It is up when it answers.
    pub async fn restart(&mut self, generation: u16) -> Result<()> {
        self.child = launch(&self.weft, self.directory.path(), self.xds, self.api)?;
        self.answers().await?;
        self.change(generation).await
    }

    fn change_file(&self, generation: u16) -> Result<()> {
        let file = self.directory.path().join("resources/common-slice.yaml");
        let new = self.directory.path().join("new");
        let [high, low] = generation.to_be_bytes();
        fs::write(&new, slice_text(COMMON, [usize::from(high), usize::from(low)]))?;
        fs::rename(new, file).context("replace the file")
    }

    async fn answers(&self) -> Result<()> {
        let end = Instant::now() + START;
        while let Err(error) = self.request("GET", "/readyz", "").await {
            ensure!(Instant::now() < end, "the control plane does not answer: {error:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.api)).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.api,
            body.len()
        );
        stream.write_all((head + body).as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if !answer.starts_with("HTTP/1.1 20") {
            bail!("{method} {path}: {answer}");
        }
        Ok(())
    }

    /// CPU time of the process so far, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        cpu(self.pid())
    }

    /// The most memory that it ever had resident, in KiB.
    pub fn peak_kib(&self) -> Result<u64> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).context("memory of the control plane")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

/// CPU time of a process so far, user and system.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("CPU time")?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks: Result<Vec<u32>, _> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect();
    Ok(TICK * ticks?.iter().sum::<u32>())
}

fn launch(weft: &Path, directory: &Path, xds: u16, api: u16) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(directory.join("log"))?;
    Command::new(weft)
        .args(["control-plane", "--dev", "--log", "warn", "--data-dir"])
        .arg(directory.join("data"))
        .arg("--resources")
        .arg(directory.join("resources"))
        .args(["--xds-listen", &format!("127.0.0.1:{xds}"), "--api-listen", &format!("127.0.0.1:{api}")])
        .env("XDG_RUNTIME_DIR", directory.join("run"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", weft.display()))
}

/// Below the ephemeral range: while the control plane is away, a client's own port must not be its port.
fn free_port(from: u16) -> Result<u16> {
    (from..28_000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).context("no free port below 28000")
}

fn service_text(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{ports: [{{name: http, port: 80}}]}}\n---\n"
    )
}

/// Ten endpoints; the first has this address.
fn slice_text(name: &str, first: [usize; 2]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n- addresses: [127.1.{}.{}]\n",
        first[0], first[1]
    );
    for last in 1..10 {
        let _ = writeln!(text, "- addresses: [127.2.{}.{last}]", first[1]);
    }
    text
}

fn slice_json(generation: u16) -> serde_json::Value {
    let [high, low] = generation.to_be_bytes();
    let mut endpoints = vec![serde_json::json!({ "addresses": [format!("127.1.{high}.{low}")] })];
    endpoints.extend((1..10).map(|last| serde_json::json!({ "addresses": [format!("127.2.0.{last}")] })));
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{COMMON}-1"),
            "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": COMMON },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080 }],
        "endpoints": endpoints,
    })
}
