//! `weft check`: what is wrong with the mesh; `--pre`: what this machine lacks before there is one.

use std::{net::TcpListener, path::Path, process::ExitCode};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::{
    listing::{self, Output, items, text},
    server::{Server, ServerArgs},
    status::{Proxies, Proxy},
    style::{self, BAD, GOOD, WARNING},
    table::Table,
};

/// Descriptors that a sidecar with some thousand connections needs.
const DESCRIPTORS: u64 = 4096;
/// Certificates that end sooner should have been renewed, whatever their lifetime (10 s is the shortest).
const CERTIFICATE: i64 = 3;

/// Flags of `weft check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Check this machine instead: what Weft needs before it runs
    #[arg(long)]
    pub pre: bool,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Good,
    Warning,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    level: Level,
    name: &'static str,
    message: String,
}

impl Check {
    fn good(name: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Good, name, message: message.into() }
    }

    fn warning(name: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, name, message: message.into() }
    }

    fn bad(name: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Bad, name, message: message.into() }
    }

    /// Good with `fine`, else one warning for each text.
    fn each(name: &'static str, fine: String, problems: Vec<String>) -> Vec<Self> {
        if problems.is_empty() {
            return vec![Self::good(name, fine)];
        }
        problems.into_iter().map(|problem| Self::warning(name, problem)).collect()
    }
}

/// Prints the checks: exit code 1 when one is bad, 3 when one is a warning.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let checks = if args.pre { machine() } else { mesh(&args.server).await? };
    let mut table = Table::new(&["", "CHECK", "RESULT"]);
    for check in &checks {
        let mark = match check.level {
            Level::Good => style::paint(GOOD, "✓"),
            Level::Warning => style::paint(WARNING, "!"),
            Level::Bad => style::paint(BAD, "✗"),
        };
        table.row([mark, check.name.to_owned(), check.message.clone()]);
    }
    let names: Vec<String> = checks.iter().map(|check| check.name.to_owned()).collect();
    let value = serde_json::json!({ "items": checks });
    listing::print(args.output, &value, &names, &table, "");
    Ok(match checks.iter().map(|check| check.level).max() {
        Some(Level::Bad) => ExitCode::from(1),
        Some(Level::Warning) => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

async fn mesh(args: &ServerArgs) -> anyhow::Result<Vec<Check>> {
    let server = Server::new(args).await?;
    let (proxies, _) = match Proxies::ask(&server).await {
        Ok(found) => found,
        Err(error) => return Ok(vec![Check::bad("control plane", format!("{error:#}"))]),
    };
    let mut checks = vec![Check::good("control plane", format!("answers at {}", server.url()))];
    let version = server.get("/version").await.unwrap_or_default();
    checks.extend(versions(&version, &proxies));
    checks.extend(sidecars(&proxies));
    checks.extend(plaintext(&proxies));
    checks.extend(traces(&proxies));
    match server.get("/weft/v1/resources/errors").await {
        Ok(errors) => checks.extend(resources(items(&errors))),
        Err(error) => checks.push(Check::warning("resources", error.to_string())),
    }
    Ok(checks)
}

/// The command, the control plane and the sidecars are of one version.
fn versions(version: &Value, proxies: &Proxies) -> Vec<Check> {
    let ours = env!("CARGO_PKG_VERSION");
    let mut problems = Vec::new();
    let full = text(version, "gitVersion");
    // A Kubernetes API server has a version of its own.
    if let Some((_, theirs)) = full.split_once("+weft-").filter(|(_, theirs)| *theirs != ours) {
        problems.push(format!("the control plane is of version {theirs}, this command of {ours}"));
    }
    let other = |proxy: &&Proxy| !proxy.sidecar_version.is_empty() && proxy.sidecar_version != ours;
    let others = proxies.items.iter().filter(other);
    problems
        .extend(others.map(|proxy| format!("the sidecar of {} is of version {}", proxy.id(), proxy.sidecar_version)));
    Check::each("versions", format!("all {ours}"), problems)
}

fn sidecars(proxies: &Proxies) -> Vec<Check> {
    let count = proxies.items.len();
    if count == 0 {
        return vec![Check::warning("sidecars", "none is connected; weft run starts an app with one")];
    }
    let staying = || proxies.items.iter().filter(|proxy| !proxy.draining);
    let behind = staying().filter(|proxy| proxy.state() != "SYNCED");
    let behind = behind.map(|proxy| format!("{}: {}; weft config says more", proxy.id(), proxy.why())).collect();
    let unhealthy = staying().filter(|proxy| !proxy.healthy);
    let unhealthy = unhealthy.map(|proxy| format!("{}: the app is not healthy", proxy.id())).collect();
    let ending = proxies.items.iter().filter_map(|proxy| {
        let left = proxy.cert_expiry_seconds.filter(|left| *left <= CERTIFICATE)?;
        Some(format!("{}: the certificate ends in {}: it was not renewed", proxy.id(), listing::duration(left)))
    });
    let mut checks =
        Check::each("configuration", format!("as it should be in {}", listing::number(count, "sidecar")), behind);
    checks.extend(Check::each("apps", format!("{count} healthy"), unhealthy));
    checks.extend(Check::each("certificates", "all valid".to_owned(), ending.collect()));
    checks
}

/// Who would break under the mode `STRICT`: each port at which plaintext was seen.
fn plaintext(proxies: &Proxies) -> Vec<Check> {
    let ports = || proxies.items.iter().flat_map(|proxy| proxy.connections.iter().map(move |port| (proxy, port)));
    let broken = ports().filter(|(_, port)| port.plaintext > 0 && !port.strict);
    let broken = broken.map(|(proxy, port)| {
        let count = usize::try_from(port.plaintext).unwrap_or(usize::MAX);
        format!(
            "{} port {}: {} came in plaintext since the sidecar started; under STRICT they would be refused",
            proxy.id(),
            port.port,
            listing::number(count, "connection"),
        )
    });
    let fine = match ports().any(|(_, port)| !port.strict) {
        true => "no plaintext was seen: nobody would break under STRICT",
        false => "no port takes plaintext, or nobody has called yet",
    };
    Check::each("plaintext", fine.to_owned(), broken.collect())
}

/// Apps at which traces end.
fn traces(proxies: &Proxies) -> Vec<Check> {
    let broken = proxies.items.iter().filter_map(|proxy| {
        let seen = proxy.trace_propagation.as_ref()?;
        Some(format!(
            "{}: traces end at it. {} requests came with a trace context, and of {} that it sent {} had none, {} of them \
             while it served one that had. The app has to copy traceparent, tracestate and baggage (or b3 and x-b3-*) \
             from the request that it serves to those that it sends for it, or to use a tracing library that does; if it \
             sends them of its own accord, all is well",
            proxy.id(),
            seen.served,
            seen.passed_on.saturating_add(seen.orphans),
            seen.orphans,
            seen.orphans_meanwhile,
        ))
    });
    Check::each("traces", "no app is known to break them".to_owned(), broken.collect())
}

fn resources(problems: &[Value]) -> Vec<Check> {
    let told = problems.iter().map(|problem| {
        let path = Some(text(problem, "path")).filter(|path| !path.is_empty());
        let path = path.map_or(String::new(), |path| format!("{path}: "));
        let line = problem["line"].as_u64().filter(|line| *line > 0);
        let line = line.map_or(String::new(), |line| format!(":{line}"));
        format!("{}{line}: {path}{}", text(problem, "file"), text(problem, "message"))
    });
    Check::each("resources", "no problems".to_owned(), told.collect())
}

fn machine() -> Vec<Check> {
    let mut checks = vec![loopback(), descriptors()];
    for (name, port) in [("port of the API", 15014), ("port of discovery", 15012)] {
        checks.push(match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => Check::good(name, format!("127.0.0.1:{port} is free")),
            Err(error) => {
                let hint = "is a control plane running already? Others: --api-listen and --xds-listen";
                Check::warning(name, format!("127.0.0.1:{port}: {error}; {hint}"))
            }
        });
    }
    checks.push(data_dir());
    checks.push(redirection());
    checks
}

fn loopback() -> Check {
    match TcpListener::bind("127.0.0.1:0") {
        Ok(_) => Check::good("network", "listens on loopback"),
        Err(error) => Check::bad("network", format!("cannot listen on 127.0.0.1: {error}; is the interface lo up?")),
    }
}

fn descriptors() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < DESCRIPTORS => {
            let hint = format!("a busy sidecar needs {DESCRIPTORS}: raise it with ulimit -n");
            Check::warning("open files", format!("at most {limit}; {hint}"))
        }
        Some(limit) => Check::good("open files", format!("at most {limit}")),
        None => Check::good("open files", "without limit"),
    }
}

/// The default data directory, or the nearest directory above it that is there.
fn data_dir() -> Check {
    let home = std::env::var_os("HOME").unwrap_or_else(|| ".".into());
    let base = std::env::var_os("XDG_DATA_HOME").filter(|base| !base.is_empty());
    let base = base.map_or_else(|| Path::new(&home).join(".local/share"), Into::into);
    let wanted = base.join("weft");
    let there = wanted.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Check::good("data directory", format!("{} can be written", wanted.display())),
        Err(error) => {
            Check::warning("data directory", format!("{}: {error}; give another with --data-dir", there.display()))
        }
    }
}

/// Only `weft run --transparent` needs it.
fn redirection() -> Check {
    let root = rustix::process::geteuid().is_root();
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let nft = std::env::split_paths(&paths).any(|path| path.join("nft").is_file());
    let text = match (root, nft) {
        (true, true) => "possible",
        (true, false) => "not possible: nft is not installed; apps can be run without it",
        (false, _) => "not possible without root; apps can be run without it",
    };
    Check::good("transparent redirection", text)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    fn proxies(change: &Value) -> Proxies {
        let mut item = json!({"name": "a", "namespace": "shop", "healthy": true, "draining": false,
            "sidecarVersion": env!("CARGO_PKG_VERSION"), "certExpirySeconds": 3600,
            "types": [{"type": "Service", "state": "SYNCED"}]});
        for (field, value) in change.as_object().unwrap() {
            item[field] = value.clone();
        }
        Proxies::deserialize(&json!({"items": [item]})).unwrap()
    }

    fn warnings(checks: &[Check]) -> Vec<&str> {
        checks.iter().filter(|check| check.level != Level::Good).map(|check| check.message.as_str()).collect()
    }

    #[test]
    fn a_healthy_mesh_has_no_warnings() {
        let proxies = proxies(&json!({}));
        assert!(warnings(&sidecars(&proxies)).is_empty());
        assert!(warnings(&versions(&json!({"gitVersion": "v1.33.0"}), &proxies)).is_empty());
        assert!(warnings(&resources(&[])).is_empty());
    }

    #[test]
    fn each_thing_that_is_wrong_is_a_warning_of_its_own() {
        let cases = [
            (json!({"types": [{"type": "Service", "state": "STALE"}]}), "shop/a: STALE; weft config says more"),
            (json!({"healthy": false}), "shop/a: the app is not healthy"),
            (json!({"certExpirySeconds": -60}), "shop/a: the certificate ends in -1m: it was not renewed"),
        ];
        for (change, expected) in cases {
            assert_eq!(warnings(&sidecars(&proxies(&change))), [expected]);
        }
        for (strict, expected) in [(true, 0), (false, 1)] {
            let ports = json!([{"port": 8080, "plaintext": 2, "mtls": 5, "strict": strict}, {"port": 9, "mtls": 1}]);
            let checks = plaintext(&proxies(&json!({"connections": ports})));
            assert_eq!(warnings(&checks).len(), expected, "{checks:?}");
            assert!(strict || checks[0].message.starts_with("shop/a port 8080: 2 connections came in plaintext"));
        }
        let old = proxies(&json!({"sidecarVersion": "0.0.1"}));
        assert_eq!(warnings(&versions(&json!({}), &old)), ["the sidecar of shop/a is of version 0.0.1"]);
        assert_eq!(warnings(&versions(&json!({"gitVersion": "v1+weft-9"}), &proxies(&json!({})))).len(), 1);
        let problem = json!({"file": "a.yaml", "line": 3, "path": "spec", "message": "no"});
        assert_eq!(warnings(&resources(&[problem])), ["a.yaml:3: spec: no"]);
        assert_eq!(warnings(&sidecars(&Proxies::default())).len(), 1);
    }

    #[test]
    fn this_machine_can_run_a_mesh() {
        assert!(machine().iter().all(|check| check.level != Level::Bad));
    }
}
