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
mod tests {
    use super::*;

    fn window(requests: u64, failed: u64, v2: u64) -> Window {
        Window { requests, failed, v2 }
    }

    fn good() -> Figures {
        let edge = |(from, to): (&str, &str)| Edge { from: from.into(), to: to.into(), total: 9, mtls: 9 };
        Figures {
            total: window(3000, 0, 400),
            live: Live { load: window(200, 0, 0), stat: window(200, 0, 0), tap: window(199, 0, 0), trouble: None },
            before_canary: window(600, 0, 0),
            canary: window(2000, 0, 400),
            flaky: (window(400, 0, 80), Healing { retries: 20, timeouts: 0, ejections: 1, recoveries: 1 }),
            slow: (window(200, 0, 40), Healing { retries: 5, timeouts: 5, ejections: 1, recoveries: 0 }),
            burst: (5, 15, 0),
            trace: Traced {
                exported: 9000,
                readable: true,
                told: "traces: here".into(),
                trace: Some(serde_json::json!({ "id": "4bf9" })),
            },
            healing: Healing { retries: 25, timeouts: 5, ejections: 2, recoveries: 1 },
            replica: window(1500, 0, 300),
            killed_replica: (300, 0),
            outage: window(200, 0, 40),
            recovered: window(200, 0, 40),
            rotations: (0, 8),
            security: crate::demo::security::tests::good(),
            edges: EDGES.map(edge).to_vec(),
            expected_proxies: 7,
            proxies: 7,
            synced: 7,
        }
    }

    /// Breaks one thing and expects exactly the check `name` to fail.
    fn breaks(name: &str, breakage: impl FnOnce(&mut Figures)) {
        let mut figures = good();
        breakage(&mut figures);
        let failed: Vec<_> = all(&figures).into_iter().filter(|check| !check.ok).map(|check| check.name).collect();
        assert_eq!(failed, [name]);
    }

    #[test]
    fn a_good_run_passes_every_check() {
        assert!(all(&good()).iter().all(|check| check.ok), "{:?}", all(&good()));
    }

    #[test]
    fn traffic_fails_without_enough_requests() {
        breaks("traffic", |f| f.total.requests = 99);
    }

    #[test]
    fn a_failed_request_fails_traffic_and_rotation() {
        let mut figures = good();
        figures.total.failed = 1;
        let failed: Vec<_> = all(&figures).into_iter().filter(|check| !check.ok).map(|check| check.name).collect();
        assert_eq!(failed, ["traffic", "certificate-rotation"]);
    }

    #[test]
    fn mtls_fails_when_one_edge_is_plain_silent_or_missing_or_an_extra_one_is_plain() {
        breaks("mtls", |f| f.edges[3].mtls = 8);
        breaks("mtls", |f| (f.edges[1].total, f.edges[1].mtls) = (0, 0));
        breaks("mtls", |f| drop(f.edges.pop()));
        breaks("mtls", |f| f.edges.push(Edge { from: "a".into(), to: "b".into(), total: 1, mtls: 0 }));
    }

    #[test]
    fn stat_and_tap_fail_when_they_are_a_hundredth_beside_the_load_or_tell_nothing() {
        breaks("stat-and-tap", |f| f.live.stat.requests = 203);
        breaks("stat-and-tap", |f| f.live.stat.requests = 197);
        breaks("stat-and-tap", |f| f.live.tap.requests = 197);
        breaks("stat-and-tap", |f| f.live.tap.failed = 1);
        breaks("stat-and-tap", |f| f.live = Live::default());
        breaks("stat-and-tap", |f| f.live.trouble = Some("no answer".into()));
    }

    #[test]
    fn canary_fails_when_the_share_is_off_or_v2_answered_too_early() {
        breaks("canary", |f| f.canary.v2 = 0);
        breaks("canary", |f| f.canary.v2 = 600);
        breaks("canary", |f| f.canary.v2 = 290);
        breaks("canary", |f| f.canary.v2 = 510);
        breaks("canary", |f| f.canary = Window::default());
        breaks("canary", |f| f.before_canary.v2 = 1);
        breaks("canary", |f| f.before_canary.requests = 0);
    }

    #[test]
    fn trace_fails_without_spans_or_without_one_that_shows_a_retry_where_it_could_be_read() {
        breaks("trace", |f| f.trace.exported = 0);
        breaks("trace", |f| f.trace.trace = None);
        let mut elsewhere = good();
        (elsewhere.trace.trace, elsewhere.trace.readable) = (None, false);
        assert!(all(&elsewhere).iter().all(|check| check.ok), "spans that another backend has taken");
        assert!(trace(&elsewhere).detail.ends_with("traces: here"), "and where to look for them");
    }

    #[test]
    fn flaky_replica_fails_when_noticed_or_when_nothing_was_done_about_it() {
        breaks("flaky-replica", |f| f.flaky.0.failed = 1);
        breaks("flaky-replica", |f| f.flaky.0.requests = 0);
        breaks("flaky-replica", |f| f.flaky.1.retries = 0);
        breaks("flaky-replica", |f| f.flaky.1.ejections = 0);
        breaks("flaky-replica", |f| f.flaky.1.recoveries = 0);
    }

    #[test]
    fn slow_replica_fails_when_noticed_or_when_no_try_timed_out() {
        breaks("slow-replica", |f| f.slow.0.failed = 1);
        breaks("slow-replica", |f| f.slow.0.requests = 0);
        breaks("slow-replica", |f| f.slow.1.timeouts = 0);
    }

    #[test]
    fn rate_limit_fails_when_all_pass_none_pass_or_something_else_comes() {
        breaks("rate-limit", |f| f.burst = (20, 0, 0));
        breaks("rate-limit", |f| f.burst = (0, 20, 0));
        breaks("rate-limit", |f| f.burst = (5, 14, 1));
    }

    #[test]
    fn replica_killed_fails_when_noticed_or_not_really_killed() {
        breaks("replica-killed", |f| f.replica.failed = 1);
        breaks("replica-killed", |f| f.replica.requests = 0);
        breaks("replica-killed", |f| f.killed_replica = (0, 0));
        breaks("replica-killed", |f| f.killed_replica = (300, 1));
    }

    #[test]
    fn rotation_fails_when_no_certificate_rotated() {
        breaks("certificate-rotation", |f| f.rotations = (8, 8));
    }

    #[test]
    fn control_plane_restart_fails_without_traffic_or_with_failures() {
        breaks("control-plane-restart", |f| f.outage.requests = 0);
        breaks("control-plane-restart", |f| f.outage.failed = 1);
        breaks("control-plane-restart", |f| f.recovered.requests = 0);
        breaks("control-plane-restart", |f| f.recovered.failed = 1);
    }

    #[test]
    fn synced_fails_when_a_sidecar_is_missing_or_behind() {
        breaks("synced", |f| f.synced = 6);
        breaks("synced", |f| (f.proxies, f.synced) = (6, 6));
        breaks("synced", |f| (f.expected_proxies, f.proxies, f.synced) = (0, 0, 0));
    }
}
