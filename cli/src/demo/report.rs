//! What a person or a program sees: live progress on stderr, the report on stdout.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use serde::Serialize;
use tokio::task::JoinHandle;

use super::{
    checks::{self, Check, Edge, Figures, share},
    load::Load,
};
use crate::status::table;

/// The report; its JSON form is a contract.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    requests: u64,
    failed: u64,
    p50_ms: f64,
    p99_ms: f64,
    mtls_share: f64,
    canary_share: f64,
    retries: u64,
    ejections: u64,
    recoveries: u64,
    rate_limited: u64,
    denied: u64,
    root_rotations: u64,
    strict: u64,
    proxies: usize,
    synced: usize,
    checks: Vec<Check>,
    #[serde(skip)]
    edges: Vec<Edge>,
    #[serde(skip)]
    trace: Option<serde_json::Value>,
    #[serde(skip)]
    last_failure: Option<String>,
}

impl Report {
    /// Judges the figures.
    pub fn new(figures: &Figures, load: &Load) -> Self {
        Self {
            requests: figures.total.requests,
            failed: figures.total.failed,
            p50_ms: load.percentile_ms(50),
            p99_ms: load.percentile_ms(99),
            mtls_share: figures.mtls_share(),
            canary_share: figures.canary.v2_share(),
            retries: figures.healing.retries,
            ejections: figures.healing.ejections,
            recoveries: figures.healing.recoveries,
            rate_limited: figures.burst.1,
            denied: figures.security.ledger.refused,
            root_rotations: figures.security.root_rotations,
            strict: figures.security.strict.refused,
            proxies: figures.proxies,
            synced: figures.synced,
            checks: checks::all(figures),
            edges: figures.edges.clone(),
            trace: figures.trace.trace.clone(),
            last_failure: load.last_failure(),
        }
    }

    /// Whether every check holds.
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut rows = vec![["EDGE", "TRAFFIC", "MTLS"].map(str::to_owned).to_vec()];
        rows.extend(self.edges.iter().map(|edge| {
            let percent = format!("{:.1} %", share(edge.mtls, edge.total) * 100.0);
            vec![format!("{} -> {}", edge.from, edge.to), edge.total.to_string(), percent]
        }));
        let mut text = table(&rows);
        text += &format!(
            "\n{} requests, {} failed, {} retries, p50 {:.1} ms, p99 {:.1} ms\n\n",
            self.requests, self.failed, self.retries, self.p50_ms, self.p99_ms
        );
        let mark = |check: &Check| if check.ok { "ok" } else { "FAILED" }.to_owned();
        let row = |check: &Check| vec![mark(check), check.name.to_owned(), check.detail.clone()];
        text += &table(&self.checks.iter().map(row).collect::<Vec<_>>());
        if let Some(trace) = &self.trace {
            text += &format!("\n{}", crate::trace::waterfall(trace, false));
        }
        if let Some(failure) = &self.last_failure {
            text += &format!("last failure: {failure}\n");
        }
        text
    }
}

/// A line that is drawn anew on a terminal; elsewhere one line for each stage.
pub struct Progress {
    load: Load,
    drawing: Option<JoinHandle<()>>,
}

impl Progress {
    /// Nothing is drawn before the first stage.
    pub fn start(load: Load) -> Self {
        Self { load, drawing: None }
    }

    /// Ends the line of the stage before and begins the next.
    pub fn stage(&mut self, name: &'static str) {
        self.stop();
        if !std::io::stderr().is_terminal() {
            eprintln!("{}", line(name, &self.load));
            return;
        }
        let load = self.load.clone();
        self.drawing = Some(tokio::spawn(async move {
            loop {
                eprint!("\r\x1b[K{}", line(name, &load));
                std::io::stderr().flush().ok();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }));
    }

    /// Ends the drawing.
    pub fn stop(&mut self) {
        if let Some(drawing) = self.drawing.take() {
            drawing.abort();
            eprintln!();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
        self.load.stop();
    }
}

fn line(stage: &str, load: &Load) -> String {
    let window = load.window();
    let success = 100.0 - share(window.failed, window.requests) * 100.0;
    let (p50, p99) = (load.percentile_ms(50), load.percentile_ms(99));
    let requests = window.requests;
    format!("{stage:<36} {requests:>6} requests  {success:>6.2} % ok  p50 {p50:>6.1} ms  p99 {p99:>6.1} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_report_has_exactly_the_agreed_fields() {
        let report = Report::new(&Figures::default(), &Load::default());
        let value = serde_json::to_value(&report).unwrap();
        let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut expected = [
            "requests",
            "failed",
            "p50_ms",
            "p99_ms",
            "mtls_share",
            "canary_share",
            "retries",
            "ejections",
            "recoveries",
            "rate_limited",
            "denied",
            "root_rotations",
            "strict",
            "proxies",
            "synced",
            "checks",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
        assert!(value["checks"].as_array().unwrap().iter().all(|check| check["detail"].is_string()));
    }

    #[test]
    fn a_report_of_nothing_is_not_ok() {
        let report = Report::new(&Figures::default(), &Load::default());
        assert!(!report.ok());
        assert!(report.text().contains("FAILED  traffic"));
    }
}
