//! The demo's verdict: pure functions over collected figures.

use serde::Serialize;

use super::security::Security;

/// The edges that must carry traffic, each with mutual TLS: (caller, service).
pub const EDGES: [(&str, &str); 5] = [
    ("load", "storefront"),
    ("storefront", "catalog"),
    ("storefront", "orders"),
    ("orders", "payments"),
    ("orders", "ledger"),
];

/// Requests or connections of one edge.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Edge {
    /// Who calls.
    pub from: String,
    /// Whom.
    pub to: String,
    /// All.
    pub total: u64,
    /// Those under mutual TLS.
    pub mtls: u64,
}

/// Answers of one stretch of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Window {
    /// Requests that ended.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that catalog v2 answered.
    pub v2: u64,
}

impl Window {
    /// What happened since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            failed: self.failed.saturating_sub(earlier.failed),
            v2: self.v2.saturating_sub(earlier.v2),
        }
    }

    /// The share of v2 among the answers that succeeded.
    pub fn v2_share(self) -> f64 {
        share(self.v2, self.requests.saturating_sub(self.failed))
    }
}

/// What sidecars did about failures, so that callers did not see them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Healing {
    /// Requests that were sent again.
    pub retries: u64,
    /// Those of them whose try took too long.
    pub timeouts: u64,
    /// Endpoints that were left out.
    pub ejections: u64,
    /// Endpoints that were let in again.
    pub recoveries: u64,
}

impl std::ops::AddAssign for Healing {
    fn add_assign(&mut self, other: Self) {
        self.retries += other.retries;
        self.timeouts += other.timeouts;
        self.ejections += other.ejections;
        self.recoveries += other.recoveries;
    }
}

impl Healing {
    /// What was done since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            retries: self.retries.saturating_sub(earlier.retries),
            timeouts: self.timeouts.saturating_sub(earlier.timeouts),
            ejections: self.ejections.saturating_sub(earlier.ejections),
            recoveries: self.recoveries.saturating_sub(earlier.recoveries),
        }
    }
}

/// What the load sent between two pauses, as it counted itself and as commands told.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// By the load.
    pub load: Window,
    /// By `weft stat`.
    pub stat: Window,
    /// By `weft tap`.
    pub tap: Window,
    /// Why a command told nothing.
    pub trouble: Option<String>,
}

/// What became of the spans.
#[derive(Clone, Debug, Default)]
pub struct Traced {
    /// Spans that a collector has taken.
    pub exported: u64,
    /// The traces can be asked for.
    pub readable: bool,
    /// Where people find them.
    pub told: String,
    /// One request through the services, with a retry.
    pub trace: Option<serde_json::Value>,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// The whole run.
    pub total: Window,
    /// While live traffic was watched.
    pub live: Live,
    /// Before the route was shifted.
    pub before_canary: Window,
    /// After the route was shifted.
    pub canary: Window,
    /// While a replica of catalog failed half of its requests and until it was let in again: answers, and what the
    /// sidecars did.
    pub flaky: (Window, Healing),
    /// While that replica took longer than a try may.
    pub slow: (Window, Healing),
    /// Of a burst at the limited path: answered, refused, and anything else.
    pub burst: (u64, u64, u64),
    /// Of the spans.
    pub trace: Traced,
    /// Over the whole run.
    pub healing: Healing,
    /// From the kill of a replica of catalog on.
    pub replica: Window,
    /// Answers of the killed replica: before the kill, and after the kill had settled.
    pub killed_replica: (u64, u64),
    /// While the control plane was gone.
    pub outage: Window,
    /// From the control plane's restart on.
    pub recovered: Window,
    /// Certificate rotations at the start and at the end, summed over the sidecars that are there at both.
    pub rotations: (u64, u64),
    /// Per edge.
    pub edges: Vec<Edge>,
    /// The stages about identity.
    pub security: Security,
    /// Sidecars that must be connected at the end, that are, and that hold what they should.
    pub expected_proxies: usize,
    /// See above.
    pub proxies: usize,
    /// See above.
    pub synced: usize,
}

impl Figures {
    /// Share of traffic under mutual TLS over all edges; 0 without traffic.
    pub fn mtls_share(&self) -> f64 {
        share(self.edges.iter().map(|edge| edge.mtls).sum(), self.edges.iter().map(|edge| edge.total).sum())
    }
}

/// One verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// A stable word.
    pub name: &'static str,
    /// Whether it holds.
    pub ok: bool,
    /// With which figures.
    pub detail: String,
}

/// Every check, in the order of the stages.
pub fn all(figures: &Figures) -> Vec<Check> {
    let [denied, root, strict] = figures.security.checks();
    vec![
        traffic(figures),
        mtls(figures),
        live(figures),
        denied,
        root,
        canary(figures),
        flaky(figures),
        slow(figures),
        rate_limit(figures),
        trace(figures),
        strict,
        replica(figures),
        rotation(figures),
        control_plane(figures),
        synced(figures),
    ]
}

fn traffic(figures: &Figures) -> Check {
    let Window { requests, failed, .. } = figures.total;
    let detail = format!("{requests} requests, {failed} failed");
    Check { name: "traffic", ok: requests >= 100 && failed == 0, detail }
}

fn mtls(figures: &Figures) -> Check {
    let bad: Vec<String> = EDGES
        .iter()
        .filter_map(|(from, to)| match figures.edges.iter().find(|edge| edge.from == *from && edge.to == *to) {
            None | Some(Edge { total: 0, .. }) => Some(format!("{from} -> {to}: no traffic seen")),
            Some(edge) if edge.mtls < edge.total => Some(format!("{from} -> {to}: {} of {}", edge.mtls, edge.total)),
            Some(_) => None,
        })
        .chain((figures.mtls_share() < 1.0).then(|| format!("share over all edges {:.3}", figures.mtls_share())))
        .collect();
    let detail = if bad.is_empty() { format!("{} edges, all mutual TLS", EDGES.len()) } else { bad.join("; ") };
    Check { name: "mtls", ok: bad.is_empty(), detail }
}

fn canary(figures: &Figures) -> Check {
    let (before, after) = (figures.before_canary, figures.canary);
    let ok = before.requests > 0 && before.v2 == 0 && after.requests > 0 && (after.v2_share() - 0.2).abs() <= 0.05;
    let detail =
        format!("v2 share {:.3} before, {:.3} of {} after", before.v2_share(), after.v2_share(), after.requests);
    Check { name: "canary", ok, detail }
}

fn flaky(figures: &Figures) -> Check {
    let (Window { requests, failed, .. }, healing) = figures.flaky;
    let ok = requests > 0 && failed == 0 && healing.retries > 0 && healing.ejections > 0 && healing.recoveries > 0;
    let detail = format!(
        "{failed} of {requests} failed; {} retries, {} ejections, {} recoveries",
        healing.retries, healing.ejections, healing.recoveries
    );
    Check { name: "flaky-replica", ok, detail }
}

fn slow(figures: &Figures) -> Check {
    let (Window { requests, failed, .. }, healing) = figures.slow;
    let ok = requests > 0 && failed == 0 && healing.timeouts > 0;
    let detail =
        format!("{failed} of {requests} failed; {} tries took too long and were made elsewhere", healing.timeouts);
    Check { name: "slow-replica", ok, detail }
}

fn rate_limit(figures: &Figures) -> Check {
    let (answered, limited, other) = figures.burst;
    let ok = answered > 0 && limited > 0 && other == 0;
    Check {
        name: "rate-limit",
        ok,
        detail: format!("{answered} of a burst answered, {limited} refused with 429, {other} other"),
    }
}

/// Within a hundredth; of a few requests, exactly.
fn live(figures: &Figures) -> Check {
    let Live { load, stat, tap, trouble } = &figures.live;
    let agrees = |told: &Window| {
        let close = |told: u64, counted: u64| told.abs_diff(counted) <= counted / 100;
        close(told.requests, load.requests) && close(told.failed, load.failed)
    };
    let ok = trouble.is_none() && load.requests > 0 && agrees(stat) && agrees(tap);
    let numbers = |of: &Window| format!("{} requests, {} failed", of.requests, of.failed);
    let detail = trouble
        .clone()
        .unwrap_or_else(|| format!("the load counted {}; stat {}; tap {}", numbers(load), numbers(stat), numbers(tap)));
    Check { name: "stat-and-tap", ok, detail }
}

fn trace(figures: &Figures) -> Check {
    let Traced { exported, readable, told, trace } = &figures.trace;
    let ok = *exported > 0 && (trace.is_some() || !readable);
    let detail = match (trace, readable) {
        (Some(trace), _) => {
            format!("{exported} spans; one request with a retry: {}", trace["id"].as_str().unwrap_or(""))
        }
        (None, true) => format!("{exported} spans; no trace shows a request with a retry through all services"),
        (None, false) => format!("{exported} spans taken by the collector; {told}"),
    };
    Check { name: "trace", ok, detail }
}

fn replica(figures: &Figures) -> Check {
    let (before, after) = figures.killed_replica;
    let Window { requests, failed, .. } = figures.replica;
    let ok = requests > 0 && failed == 0 && before > 0 && after == 0;
    let detail = format!("killed replica gave {before} answers before, {after} after; {failed} of {requests} failed");
    Check { name: "replica-killed", ok, detail }
}

fn rotation(figures: &Figures) -> Check {
    let (before, after) = figures.rotations;
    let ok = after > before && figures.total.failed == 0;
    Check { name: "certificate-rotation", ok, detail: format!("{} under load", after.saturating_sub(before)) }
}

fn control_plane(figures: &Figures) -> Check {
    let (outage, recovered) = (figures.outage, figures.recovered);
    let ok = outage.requests > 0 && outage.failed == 0 && recovered.requests > 0 && recovered.failed == 0;
    let detail = format!(
        "{} requests without it ({} failed), {} after its restart ({} failed)",
        outage.requests, outage.failed, recovered.requests, recovered.failed
    );
    Check { name: "control-plane-restart", ok, detail }
}

fn synced(figures: &Figures) -> Check {
    let Figures { expected_proxies, proxies, synced, .. } = *figures;
    let ok = expected_proxies > 0 && proxies == expected_proxies && synced == proxies;
    let detail = format!("{synced} of {proxies} synced, {expected_proxies} expected");
    Check { name: "synced", ok, detail }
}

/// `part / whole`, 0 for nothing.
#[allow(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests;
