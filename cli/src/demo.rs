//! `weft demo`: a control plane, five services with seven instances, their sidecars and load, all as real processes;
//! then stages that try the mesh, and a report that says whether it held.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    args::{DemoArgs, DemoOutput},
    run::Signals,
    status,
};

mod checks;
mod live;
mod load;
mod mesh;
mod ports;
mod report;
mod scrape;
mod security;
mod traces;

use checks::{Figures, Traced};
use load::Load;
use mesh::Mesh;

/// Start-up takes a few seconds; this is the time after which something is wrong.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Requests of the burst.
const BURST: u32 = 20;
/// How much longer than planned a stage may take until it has shown what it is for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a change may take to reach every sidecar.
const SETTLE: Duration = Duration::from_millis(500);

/// Runs the demo; every process is gone when this returns.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut mesh = Mesh::new(args.duration, args.keep, args.otlp_endpoint.clone()).await?;
    let outcome = tokio::select! {
        outcome = Box::pin(measure(&args, &mut mesh)) => Some(outcome),
        _ = signals.next_end() => None,
    };
    let Some(outcome) = outcome else {
        eprintln!("weft demo: interrupted; cleaning up");
        return Ok(ExitCode::from(130));
    };
    let report = match outcome {
        Ok(report) => report,
        Err(error) => return Err(error.context(mesh.keep_files())),
    };
    match args.output {
        DemoOutput::Json => println!("{}", serde_json::to_string(&report).context("write the report")?),
        DemoOutput::Text => anstream::print!("{}", report.text()),
    }
    if !report.ok() {
        eprintln!("weft demo: a check failed; {}", mesh.keep_files());
    }
    if args.keep {
        eprintln!("{}\nCtrl-C ends the mesh", mesh.describe());
        signals.next_end().await;
    }
    Ok(ExitCode::from(u8::from(!report.ok())))
}

async fn measure(args: &DemoArgs, mesh: &mut Mesh) -> anyhow::Result<report::Report> {
    eprintln!("starting a control plane, {} services with a sidecar each, and load", mesh::INSTANCES);
    mesh.start()?;
    timeout(START_LIMIT, ready(mesh))
        .await
        .with_context(|| format!("start the mesh: not ready after {} s", START_LIMIT.as_secs()))?;
    let load = Load::start(mesh.storefront());
    let mut progress = report::Progress::start(load.clone());
    let figures = stages(args.duration, mesh, &load, &mut progress).await;
    progress.stop();
    load.stop();
    Ok(report::Report::new(&figures?, &load))
}

/// Waits until every sidecar is synced and the storefront answers through the mesh.
async fn ready(mesh: &Mesh) {
    loop {
        let synced = status::proxies(&mesh.server()).await.is_ok_and(|(p, _)| p.synced() == mesh::PROXIES);
        if synced && load::probe(mesh.storefront()).await {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn stages(
    duration: Duration,
    mesh: &mut Mesh,
    load: &Load,
    progress: &mut report::Progress,
) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let mut figures = Figures { expected_proxies: mesh::PROXIES - 1, ..Figures::default() };

    progress.stage("traffic flows");
    figures.live = live::watch(&mesh.server(), load).await;
    sleep_until(start + duration * 8 / 100).await;
    progress.stage("the load calls ledger, which it may not");
    figures.security.deny(mesh).await;
    progress.stage("another root for every certificate");
    figures.security.rotate_root(mesh, load).await?;
    figures.rotations.0 = mesh.rotations().await;
    sleep_until(start + duration * 20 / 100).await;
    // What took longer than planned is not taken from the stages that follow, here and below.
    let start = start.max(Instant::now() - duration * 20 / 100);
    figures.before_canary = load.window();
    progress.stage("canary: 20 % of catalog to v2");
    mesh.route(20)?;
    sleep(SETTLE).await;
    let canary = load.window();

    sleep_until(start + duration * 30 / 100).await;
    resilience(mesh, load, progress, duration, &mut figures).await?;
    figures.trace = trace(mesh).await;
    progress.stage("strict: no plaintext any more");
    let strict = load.window();
    figures.security.strict(mesh).await?;

    let start = start.max(Instant::now() - duration * 55 / 100);
    let at = |percent: u32| sleep_until(start + duration * percent / 100);
    at(55).await;
    progress.stage("one replica of catalog is killed");
    figures.killed_replica.0 = load.answers_of(mesh::KILLED);
    let replica = load.window();
    mesh.kill_replica()?;
    sleep(SETTLE).await;
    let settled = load.answers_of(mesh::KILLED);

    at(70).await;
    progress.stage("the control plane is killed");
    let outage = load.window();
    mesh.kill_control_plane();
    at(82).await;
    figures.outage = load.window().since(outage);
    progress.stage("the control plane is started again");
    let recovered = load.window();
    mesh.start_control_plane()?;
    at(100).await;
    figures.recovered = load.window().since(recovered);
    progress.stage("collecting");

    figures.total = load.window();
    figures.canary = figures.total.since(canary);
    figures.replica = figures.total.since(replica);
    figures.security.under_strict = figures.total.since(strict);
    figures.killed_replica.1 = load.answers_of(mesh::KILLED) - settled;
    figures.rotations.1 = mesh.rotations().await;
    (figures.edges, figures.healing) = mesh.edges().await;
    let proxies = timeout(Duration::from_secs(10), settled_proxies(mesh, figures.expected_proxies)).await;
    // A mesh that has not settled is a finding for the check, not the end of the report.
    let proxies = match proxies {
        Ok(proxies) => proxies,
        Err(_) => status::proxies(&mesh.server()).await.map(|(proxies, _)| proxies).unwrap_or_default(),
    };
    (figures.proxies, figures.synced) = (proxies.items.len(), proxies.synced());
    ensure!(figures.total.requests > 0, "load: no request was answered; the sidecars' logs say why");
    Ok(figures)
}

/// A replica that fails, then one that is slow, then a burst at a path with a limit: a quarter of the run, or longer
/// until each has shown what it is for.
async fn resilience(
    mesh: &Mesh,
    load: &Load,
    progress: &mut report::Progress,
    duration: Duration,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let some = |percent: u32| sleep(duration * percent / 100);
    progress.stage("one replica of catalog fails half");
    let before = (load.window(), mesh.healing().await);
    mesh.misbehave(50, 0).await?;
    until(some(8), || async { mesh.healing().await.since(before.1).ejections > 0 }).await;
    mesh.misbehave(0, 0).await?;
    progress.stage("it is well again, and let in again");
    until(some(6), || async { mesh.healing().await.since(before.1).recoveries > 0 }).await;
    figures.flaky = (load.window().since(before.0), mesh.healing().await.since(before.1));

    progress.stage("it takes longer than a try may");
    let before = (load.window(), mesh.healing().await);
    mesh.misbehave(0, 1000).await?;
    until(some(6), || async { mesh.healing().await.since(before.1).timeouts > 0 }).await;
    mesh.misbehave(0, 0).await?;
    figures.slow = (load.window().since(before.0), mesh.healing().await.since(before.1));

    progress.stage("a burst at a path with a rate limit");
    figures.burst = load::burst(mesh.storefront(), mesh::LIMITED, BURST).await;
    Ok(())
}

/// A trace that shows a retry. The control plane keeps its traces in memory, so this is before it is killed.
async fn trace(mesh: &Mesh) -> Traced {
    let (exported, readable) = mesh.spans().await;
    let told = mesh.where_traces_are();
    if !readable {
        return Traced { exported, readable, told, trace: None };
    }
    let server = mesh.server();
    let found = async {
        loop {
            if let Some(trace) = traces::with_retry(&server).await {
                return trace;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let trace = timeout(PATIENCE, found).await.ok();
    Traced { exported: mesh.spans().await.0, readable, told, trace }
}

/// Waits for `seen`, until `end` at least and `PATIENCE` longer at most: a short run on a busy machine has few requests.
async fn until<F: Future<Output = bool>>(end: impl Future, seen: impl Fn() -> F) {
    end.await;
    let waiting = async {
        while !seen().await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, waiting).await.ok();
}

async fn settled_proxies(mesh: &Mesh, expected: usize) -> status::Proxies {
    loop {
        if let Ok((proxies, _)) = status::proxies(&mesh.server()).await
            && (proxies.items.len(), proxies.synced()) == (expected, expected)
        {
            return proxies;
        }
        sleep(Duration::from_millis(100)).await;
    }
}
