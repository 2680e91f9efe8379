//! Each check holds for a good run and fails for one broken thing.

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
