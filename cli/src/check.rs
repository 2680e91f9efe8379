//! `weft check`: what is wrong with the mesh; `--pre`: what this machine lacks before there is one. Every check has a
//! stable code, and one that fails says what to do.

mod authority;
mod machine;
mod redirection;

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::{
    certs,
    listing::{self, Output, items, text},
    server::{Server, ServerArgs},
    status::{Proxies, Proxy},
    style::{self, BAD, GOOD, WARNING},
    table::Table,
};

/// Certificates that end sooner should have been renewed, whatever their lifetime (10 s is the shortest).
const CERTIFICATE: i64 = 3;
/// Clocks that differ by so many seconds are as good as equal: the time of an answer is told in whole ones.
const SKEW: i64 = 5;

/// Flags of `weft check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Check this machine instead: what Weft needs before it runs
    #[arg(long)]
    pub pre: bool,
    /// With --pre, also what `weft run --transparent` needs
    #[arg(long, requires = "pre")]
    pub transparent: bool,
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
    /// Stable, for programs.
    code: &'static str,
    name: &'static str,
    message: String,
    /// What to do about it; empty when nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    fix: &'static str,
}

/// What is looked at: a stable code, a name for people, and what to do when it fails.
struct Subject(&'static str, &'static str, &'static str);

impl Subject {
    fn good(&self, message: impl Into<String>) -> Check {
        Check { level: Level::Good, code: self.0, name: self.1, message: message.into(), fix: "" }
    }

    fn warning(&self, message: impl Into<String>) -> Check {
        Check { level: Level::Warning, fix: self.2, ..self.good(message) }
    }

    fn bad(&self, message: impl Into<String>) -> Check {
        Check { level: Level::Bad, fix: self.2, ..self.good(message) }
    }

    /// Good with `fine`, else one warning for each text.
    fn each(&self, fine: impl Into<String>, problems: Vec<String>) -> Vec<Check> {
        if problems.is_empty() {
            return vec![self.good(fine)];
        }
        problems.into_iter().map(|problem| self.warning(problem)).collect()
    }
}

const SERVER: Subject =
    Subject("control-plane", "control plane", "start it with weft control-plane, or name it with --server");
const VERSIONS: Subject =
    Subject("versions", "versions", "start what is older again from the newer program; the control plane first");
const CLOCK: Subject =
    Subject("clock", "clock", "set every clock by NTP: certificates are not valid before and after their time");
const SIDECARS: Subject =
    Subject("sidecars", "sidecars", "start an app with one by weft run, or put one into pods with weft inject");
const SYNC: Subject = Subject("configuration", "configuration", "weft config WORKLOAD says what is missing or refused");
const TRUST: Subject =
    Subject("trust-roots", "trust roots", "is the sidecar connected and its clock right? If this lasts, restart it");
const APPS: Subject = Subject("apps", "apps", "look at the app's log, and at the --probe and --port of its weft run");
const CERTIFICATES: Subject =
    Subject("certificates", "certificates", "the log of the sidecar says why; weft certs lists them");
const PLAINTEXT: Subject = Subject("plaintext", "plaintext", "give the callers sidecars before the mode is STRICT");
const TRACES: Subject = Subject(
    "traces",
    "traces",
    "the app has to copy traceparent, tracestate and baggage (or b3 and x-b3-*) from the request that it serves to those \
     that it sends for it, or to use a tracing library that does; if it sends them of its own accord, all is well",
);
const RESOURCES: Subject =
    Subject("resources", "resources", "mend the object and apply it again; weft analyze checks files");

/// Prints the checks: exit code 1 when one is bad, 3 when one is a warning.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let checks = if args.pre { machine::checks(args.transparent) } else { mesh(&args.server).await? };
    let mut table = Table::new(&["", "CHECK", "RESULT"]);
    for check in &checks {
        let mark = match check.level {
            Level::Good => style::paint(GOOD, "✓"),
            Level::Warning => style::paint(WARNING, "!"),
            Level::Bad => style::paint(BAD, "✗"),
        };
        let fix = if check.fix.is_empty() { String::new() } else { format!(". {}", check.fix) };
        table.row([mark, check.name.to_owned(), format!("{}{fix}", check.message)]);
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
        Err(error) => return Ok(vec![SERVER.bad(format!("{error:#}"))]),
    };
    let mut checks = vec![SERVER.good(format!("answers at {}", server.url()))];
    let version = server.get("/version").await.unwrap_or_default();
    checks.extend(versions(&version, &proxies));
    checks.push(clock(server.clock_ahead()));
    match server.get(certs::ca::CA).await {
        Ok(state) => checks.extend(authority::checks(&state)),
        Err(error) => checks.push(authority::unknown(&error.to_string())),
    }
    checks.extend(sidecars(&proxies));
    checks.extend(redirection::rules());
    checks.extend(plaintext(&proxies));
    checks.extend(traces(&proxies));
    match server.get("/weft/v1/resources/errors").await {
        Ok(errors) => checks.extend(resources(items(&errors))),
        Err(error) => checks.push(RESOURCES.warning(error.to_string())),
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
    VERSIONS.each(format!("all {ours}"), problems)
}

/// By how much the clock of the control plane is ahead of ours; `None`: it does not say what time it is.
fn clock(ahead: Option<i64>) -> Check {
    match ahead {
        Some(ahead) if ahead.abs() > SKEW => {
            let (by, how) = (listing::duration(ahead.abs()), if ahead > 0 { "ahead of" } else { "behind" });
            CLOCK.warning(format!("that of the control plane is {by} {how} this machine's"))
        }
        Some(_) => CLOCK.good(format!("the control plane's is within {SKEW} s of this machine's")),
        None => CLOCK.good("the control plane does not tell its time"),
    }
}

fn sidecars(proxies: &Proxies) -> Vec<Check> {
    let count = proxies.items.len();
    if count == 0 {
        return vec![SIDECARS.warning("none is connected")];
    }
    let staying = || proxies.items.iter().filter(|proxy| !proxy.draining);
    let behind = staying().filter(|proxy| proxy.state() != "SYNCED");
    let behind = behind.map(|proxy| format!("{}: {}", proxy.id(), proxy.why())).collect();
    let old_roots = staying().filter(|proxy| proxy.has_other_roots());
    let old_roots =
        old_roots.map(|proxy| format!("{}: does not hold the trust roots of the control plane", proxy.id()));
    let unhealthy = staying().filter(|proxy| !proxy.healthy);
    let unhealthy = unhealthy.map(|proxy| format!("{}: the app is not healthy", proxy.id())).collect();
    let ending = proxies.items.iter().filter_map(|proxy| {
        let left = proxy.cert_expiry_seconds.filter(|left| *left <= CERTIFICATE)?;
        Some(format!("{}: the certificate ends in {}: it was not renewed", proxy.id(), listing::duration(left)))
    });
    let mut checks = SYNC.each(format!("as it should be in {}", listing::number(count, "sidecar")), behind);
    checks.extend(TRUST.each("the same everywhere", old_roots.collect()));
    checks.extend(APPS.each(format!("{count} healthy"), unhealthy));
    checks.extend(CERTIFICATES.each("all valid", ending.collect()));
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
    PLAINTEXT.each(fine, broken.collect())
}

/// Apps at which traces end.
fn traces(proxies: &Proxies) -> Vec<Check> {
    let broken = proxies.items.iter().filter_map(|proxy| {
        let seen = proxy.trace_propagation.as_ref()?;
        Some(format!(
            "{}: traces end at it. {} requests came with a trace context, and of {} that it sent {} had none, {} of them \
             while it served one that had",
            proxy.id(),
            seen.served,
            seen.passed_on.saturating_add(seen.orphans),
            seen.orphans,
            seen.orphans_meanwhile,
        ))
    });
    TRACES.each("no app is known to break them", broken.collect())
}

fn resources(problems: &[Value]) -> Vec<Check> {
    let told = problems.iter().map(|problem| {
        let path = Some(text(problem, "path")).filter(|path| !path.is_empty());
        let path = path.map_or(String::new(), |path| format!("{path}: "));
        let line = problem["line"].as_u64().filter(|line| *line > 0);
        let line = line.map_or(String::new(), |line| format!(":{line}"));
        format!("{}{line}: {path}{}", text(problem, "file"), text(problem, "message"))
    });
    RESOURCES.each("no problems", told.collect())
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
            (json!({"types": [{"type": "Service", "state": "STALE"}]}), "shop/a: STALE"),
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
    fn a_sidecar_that_has_not_taken_the_trust_roots_is_told() {
        for (state, expected) in [("SYNCED", 0), ("STALE", 1), ("ERROR", 1)] {
            let proxies = proxies(&json!({"types": [{"type": "TrustBundle", "state": state}]}));
            let found = sidecars(&proxies).into_iter().filter(|check| check.code == "trust-roots");
            assert_eq!(found.filter(|check| check.level == Level::Warning).count(), expected, "{state}");
        }
    }

    #[test]
    fn a_clock_that_differs_is_a_warning() {
        assert_eq!([clock(None), clock(Some(5)), clock(Some(-5))].map(|check| check.level), [Level::Good; 3]);
        assert_eq!(clock(Some(-90)).message, "that of the control plane is 1m behind this machine's");
        assert_eq!((clock(Some(6)).level, clock(Some(6)).fix), (Level::Warning, CLOCK.2));
    }

    #[test]
    fn what_fails_says_what_to_do_and_what_is_good_does_not() {
        let value = serde_json::to_value([SYNC.good("x"), SYNC.warning("y")]).unwrap();
        let expected = json!([{"level": "good", "code": "configuration", "name": "configuration", "message": "x"},
            {"level": "warning", "code": "configuration", "name": "configuration", "message": "y", "fix": SYNC.2}]);
        assert_eq!(value, expected);
    }
}
