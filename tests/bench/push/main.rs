//! How long one endpoint change takes to reach every connected sidecar, what it costs the control plane, and how the
//! sidecars come back after it was killed. Starts the real control plane; the sidecars are tasks of this process with
//! the sidecar's own state machine, TLS and back-off. `tests/bench/README.md` says what the figures mean.

mod client;
mod plane;
mod report;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tokio::sync::mpsc;
use weft_sidecar::identity::{
    Enrolment,
    renewal::{Proof, Signer as _},
};
use weft_svid::{Svid, TrustStore};

use self::{
    client::{Client, Received},
    plane::{NAMESPACE, Plane},
    report::{Herd, Pushes, Report},
};

/// Identities that the clients share: signing is not what is measured.
const IDENTITIES: usize = 10;
/// Between two changes: longer than the control plane takes for a storm.
const PAUSE: Duration = Duration::from_millis(300);
/// A change that has not arrived everywhere by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Push at scale: one endpoint change to many sidecars, and their return after a crash of the control plane.
#[derive(Parser)]
pub struct Args {
    /// The command under test
    #[arg(long, value_name = "FILE", default_value = "target/release/weft")]
    weft: PathBuf,
    /// Connected sidecars
    #[arg(long, value_name = "N", default_value = "1000")]
    clients: usize,
    /// Services, each with 10 endpoints
    #[arg(long, value_name = "N", default_value = "1000")]
    services: usize,
    /// Services that each sidecar uses, besides the one that all use
    #[arg(long, value_name = "N", default_value = "20")]
    used: usize,
    /// Changes to measure
    #[arg(long, value_name = "N", default_value = "50")]
    changes: u16,
    /// Where the change is made: a PUT to the API, or a resource file
    #[arg(long, value_enum, default_value = "api")]
    through: Through,
    /// Leaves the crash of the control plane out
    #[arg(long)]
    no_herd: bool,
    /// Leaves this much time before the first change, to attach a profiler; the process id is printed
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    settle: u64,
    /// Also writes the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How a change is made.
#[derive(Clone, Copy, Eq, PartialEq, clap::ValueEnum)]
pub enum Through {
    /// `PUT` of the EndpointSlice.
    Api,
    /// The file is replaced by another.
    File,
}

// All sidecars on one thread, so that they take the least from the control plane, which has the same cores.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.clients > 0 && args.services > args.used && args.changes > 0, "nothing to measure");
    raise_descriptors(args.clients)?;
    let mut plane = Plane::start(&args.weft, args.services, args.through).await?;
    eprintln!("control plane {} is up", plane.pid());
    let mut mesh = Mesh::connect(&args, &plane).await?;
    eprintln!("{} sidecars synced after {:.1} s", args.clients, mesh.connected.as_secs_f64());
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    let pushes = mesh.changes(&args, &plane).await?;
    let herd = if args.no_herd { None } else { Some(mesh.herd(args.changes + 1, &mut plane).await?) };
    let report = Report {
        clients: args.clients,
        services: args.services,
        through: if args.through == Through::Api { "api" } else { "file" },
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        first_sync: mesh.connected,
        pushes,
        herd,
    };
    println!("{}", report.markdown());
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// The connected sidecars.
struct Mesh {
    clients: usize,
    received: mpsc::Receiver<Received>,
    connected: Duration,
}

impl Mesh {
    async fn connect(args: &Args, plane: &Plane) -> Result<Self> {
        let trust = TrustStore::default();
        let mut svids = Vec::new();
        for number in 0..IDENTITIES {
            svids.push(enrol(plane, &trust, number).await?);
        }
        let start = Instant::now();
        let (sender, received) = mpsc::channel(1024);
        for number in 0..args.clients {
            let svid = Arc::clone(&svids[number % IDENTITIES]);
            let client = Client::new(number, args, plane.xds(), svid, trust.clone());
            tokio::spawn(client.run(sender.clone()));
        }
        let mut mesh = Self { clients: args.clients, received, connected: Duration::ZERO };
        mesh.all_at(0).await.context("first sync")?;
        mesh.connected = start.elapsed();
        Ok(mesh)
    }

    /// What each sidecar received of a generation, once all have.
    async fn all_at(&mut self, generation: u16) -> Result<Vec<Received>> {
        let mut all = Vec::new();
        let end = tokio::time::Instant::now() + PATIENCE;
        while all.len() < self.clients {
            let next = tokio::time::timeout_at(end, self.received.recv()).await;
            let next = next.with_context(|| format!("{} of {} sidecars have it", all.len(), self.clients))?;
            let next = next.context("all sidecars are gone")?;
            if next.generation == generation {
                all.push(next);
            }
        }
        Ok(all)
    }

    async fn changes(&mut self, args: &Args, plane: &Plane) -> Result<Pushes> {
        let mut pushes = Pushes::default();
        let (before, own) = (plane.cpu()?, plane::cpu(std::process::id())?);
        for generation in 1..=args.changes {
            tokio::time::sleep(PAUSE).await;
            let start = Instant::now();
            plane.change(generation).await?;
            pushes.add(start, &self.all_at(generation).await?);
        }
        pushes.cpu = plane.cpu()?.saturating_sub(before) / u32::from(args.changes);
        pushes.clients_cpu = plane::cpu(std::process::id())?.saturating_sub(own) / u32::from(args.changes);
        pushes.peak_kib = plane.peak_kib()?;
        Ok(pushes)
    }

    /// Kills the control plane, starts it again, makes a change as soon as it is up, and waits until every sidecar has
    /// that: being connected again says nothing of what a sidecar holds.
    async fn herd(&mut self, generation: u16, plane: &mut Plane) -> Result<Herd> {
        tokio::time::sleep(PAUSE).await;
        plane.kill().await?;
        let start = Instant::now();
        plane.restart(generation).await?;
        let up = start.elapsed();
        let all = self.all_at(generation).await?;
        let mut waits: Vec<Duration> = all.iter().map(|received| received.at - start).collect();
        waits.sort_unstable();
        let bytes = all.iter().map(|received| received.bytes).sum();
        Ok(Herd { up, waits, bytes, cpu: plane.cpu()?, peak_kib: plane.peak_kib()? })
    }
}

async fn enrol(plane: &Plane, trust: &TrustStore, number: usize) -> Result<Arc<Svid>> {
    let enrolment = Enrolment {
        xds: plane.xds(),
        namespace: NAMESPACE.into(),
        account: client::account(number),
        token: Some(plane.token()),
        roots: None,
        pending: weft_sidecar::token::PendingKey::default(),
        trust: trust.clone(),
    };
    // It outlives the bench.
    let signed = tokio::time::timeout(PATIENCE, enrolment.sign(Proof::Token)).await.context("enrolment")??;
    Ok(Arc::new(signed.svid))
}

fn raise_descriptors(clients: usize) -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(clients)? + 512;
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    ensure!(maximum >= wanted, "{clients} sidecars need {wanted} descriptors; the hard limit is {maximum}");
    setrlimit(
        Resource::Nofile,
        rustix::process::Rlimit { current: Some(wanted.max(limit.current.unwrap_or(0))), ..limit },
    )?;
    Ok(())
}
