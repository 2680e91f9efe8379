//! The stage that looks at live traffic with the commands that people use: what `weft stat` and `weft tap` tell of the
//! load is what the load itself has counted.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{
    checks::{Live, Window},
    load::Load,
};

/// The load is watched until it has sent so many requests.
const REQUESTS: u64 = 200;
/// How long the commands may take to begin, and to tell of what has ended.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
const SERVICE: &str = "default/storefront";

/// Watches the load from one pause to another; what cannot be looked at is a finding of the check.
pub async fn watch(server: &str, load: &Load) -> Live {
    let found = watched(server, load).await;
    load.resume();
    found.unwrap_or_else(|error| Live { trouble: Some(format!("{error:#}")), ..Live::default() })
}

async fn watched(server: &str, load: &Load) -> anyhow::Result<Live> {
    load.pause().await;
    let tap = Tap::start(server).await?;
    let (before, counted) = (load.window(), stat(server).await?);
    load.resume();
    let enough = async {
        while load.window().since(before).requests < REQUESTS {
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, enough).await.ok();
    load.pause().await;
    let load = load.window().since(before);
    // A sidecar counts when an answer has ended, which its caller may know first.
    let mut live = Live { load, ..Live::default() };
    let agreed = async {
        loop {
            live.stat = stat(server).await?.since(counted);
            live.tap = tap.shown();
            if live.stat.requests >= load.requests && live.tap.requests >= load.requests {
                return anyhow::Ok(());
            }
            sleep(PAUSE).await;
        }
    };
    if let Ok(outcome) = timeout(PATIENCE, agreed).await {
        outcome?;
    }
    Ok(live)
}

/// What `weft stat` has counted of the storefront.
async fn stat(server: &str) -> anyhow::Result<Window> {
    let output = command(server, &["stat", SERVICE, "--since-start", "-o", "json"])?.output();
    let output = timeout(PATIENCE, output).await.context("weft stat: no answer in time")?.context("run weft stat")?;
    if !output.status.success() {
        bail!("weft stat: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let value: Value = serde_json::from_slice(&output.stdout).context("weft stat: not JSON")?;
    let number = |item: &Value, field: &str| item[field].as_u64().unwrap_or(0);
    let items = value["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |field| items.iter().map(|item| number(item, field)).sum();
    Ok(Window { requests: sum("requests"), failed: sum("failed"), v2: 0 })
}

/// A `weft tap` of what the load sends.
struct Tap {
    _process: Child,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    failed: AtomicU64,
}

impl Tap {
    async fn start(server: &str) -> anyhow::Result<Self> {
        let flags = ["tap", SERVICE, "--direction", "outbound", "--max-rate", "1000", "--duration", "1m", "-o", "json"];
        let mut process = command(server, &flags)?.spawn().context("run weft tap")?;
        let output = process.stdout.take().context("weft tap: no output")?;
        let mut told = lines(process.stderr.take().context("weft tap: no output")?);
        let begun = async {
            let mut all = String::new();
            while let Some(line) = told.next_line().await? {
                if line.starts_with("tapping ") {
                    return anyhow::Ok(());
                }
                all += &line;
            }
            bail!("weft tap: {all}")
        };
        timeout(PATIENCE, begun).await.context("weft tap: it has not begun in time")??;
        let seen = Arc::new(Seen::default());
        tokio::spawn(count(lines(output), Arc::clone(&seen)));
        // It writes a line at its end, which somebody has to take.
        tokio::spawn(async move { while let Ok(Some(_)) = told.next_line().await {} });
        Ok(Self { _process: process, seen })
    }

    fn shown(&self) -> Window {
        Window { requests: self.seen.requests.load(Relaxed), failed: self.seen.failed.load(Relaxed), v2: 0 }
    }
}

fn lines<R: AsyncRead + Unpin>(from: R) -> Lines<BufReader<R>> {
    BufReader::new(from).lines()
}

async fn count<R: AsyncRead + Unpin>(mut lines: Lines<BufReader<R>>, seen: Arc<Seen>) {
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(request) = serde_json::from_str::<Value>(&line) else { continue };
        let failed = request["status"].as_u64().is_none_or(|status| status >= 500);
        seen.failed.fetch_add(u64::from(failed), Relaxed);
        // Last: who sees it has all of it.
        seen.requests.fetch_add(1, Relaxed);
    }
}

fn command(server: &str, args: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("path of this program: unknown")?);
    command.args(args).args(["--server", server]).env_remove("WEFT_API_TOKEN_FILE").env_remove("WEFT_KUBECONFIG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}
