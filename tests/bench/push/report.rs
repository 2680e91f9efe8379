//! The figures, as a table for people and as JSON.

use std::{fmt::Write as _, time::Duration, time::Instant};

use serde_json::{Value, json};

use crate::client::Received;

/// Everything that was measured.
pub struct Report {
    /// Connected sidecars.
    pub clients: usize,
    /// Services, with 10 endpoints each.
    pub services: usize,
    /// `api` or `file`.
    pub through: &'static str,
    /// Cores that this process may use.
    pub cores: usize,
    /// From no sidecar to all synced.
    pub first_sync: Duration,
    /// The changes.
    pub pushes: Pushes,
    /// The crash.
    pub herd: Option<Herd>,
}

/// Changes of one endpoint.
#[derive(Default)]
pub struct Pushes {
    received: Vec<Duration>,
    last: Vec<Duration>,
    acked: Vec<Duration>,
    bytes: usize,
    /// CPU of the control plane for one change, idle time between changes included.
    pub cpu: Duration,
    /// The same of all sidecars together.
    pub clients_cpu: Duration,
    /// Most memory of the control plane so far.
    pub peak_kib: u64,
}

/// The return of all sidecars after the control plane was killed.
pub struct Herd {
    /// From the new process to its API and the first change.
    pub up: Duration,
    /// From the new process to each sidecar that holds the change, sorted.
    pub waits: Vec<Duration>,
    /// Bytes of all messages.
    pub bytes: usize,
    /// CPU of the new process until then.
    pub cpu: Duration,
    /// Its memory until then.
    pub peak_kib: u64,
}

impl Pushes {
    /// What the sidecars received of the change that was begun at `start`.
    pub fn add(&mut self, start: Instant, all: &[Received]) {
        let last = |times: Vec<Duration>| times.into_iter().max().unwrap_or_default();
        self.received.extend(all.iter().map(|received| received.at - start));
        self.last.push(last(all.iter().map(|received| received.at - start).collect()));
        self.acked.push(last(all.iter().map(|received| received.acked - start).collect()));
        self.bytes += all.iter().map(|received| received.bytes).sum::<usize>();
        for times in [&mut self.received, &mut self.last, &mut self.acked] {
            times.sort_unstable();
        }
    }
}

impl Report {
    /// A table.
    pub fn markdown(&self) -> String {
        let Self { clients, services, through, cores, pushes, .. } = self;
        let mut text = format!(
            "{clients} sidecars, {services} services, {} endpoints, {cores} cores, {} changes through: {through}\n\n\
             | what | p50 | p99 | max |\n|---|---|---|---|\n",
            services * 10,
            pushes.last.len(),
        );
        let mut row = |what: &str, times: &[Duration], digits: usize| {
            let cell = |part| format!("{:.digits$} ms", at(times, part).as_secs_f64() * 1000.0);
            let _ = writeln!(text, "| {what} | {} | {} | {} |", cell(50), cell(99), cell(100));
        };
        row("change to each sidecar", &pushes.received, 1);
        row("change to the last sidecar", &pushes.last, 1);
        row("change to the last ACK", &pushes.acked, 1);
        if let Some(herd) = &self.herd {
            row("restart to each sidecar in sync", &herd.waits, 0);
        }
        let mut line = |what: &str, value: String| _ = writeln!(text, "| {what} | {value} | | |");
        line("all sidecars in sync at first", format!("{:.1} s", self.first_sync.as_secs_f64()));
        line("bytes per change and sidecar", self.bytes_each().to_string());
        line("control plane CPU per change", format!("{:.1} ms", pushes.cpu.as_secs_f64() * 1000.0));
        line("all sidecars' CPU per change", format!("{:.1} ms", pushes.clients_cpu.as_secs_f64() * 1000.0));
        line("control plane, most resident", format!("{} MiB", pushes.peak_kib / 1024));
        if let Some(herd) = &self.herd {
            line("restart: process to API and first change", format!("{:.0} ms", herd.up.as_secs_f64() * 1000.0));
            line("restart: bytes per sidecar", (herd.bytes / clients).to_string());
            line("restart: control plane CPU", format!("{:.1} s", herd.cpu.as_secs_f64()));
            line("restart: most resident", format!("{} MiB", herd.peak_kib / 1024));
        }
        text
    }

    /// The same, times in milliseconds.
    pub fn json(&self) -> Value {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let spread = |times: &[Duration]| json!({ "p50": ms(at(times, 50)), "p99": ms(at(times, 99)), "max": ms(at(times, 100)) });
        let herd = self.herd.as_ref().map(|herd| {
            json!({
                "up_ms": ms(herd.up), "synced_ms": spread(&herd.waits), "bytes_per_sidecar": herd.bytes / self.clients,
                "control_plane_cpu_ms": ms(herd.cpu), "peak_kib": herd.peak_kib,
            })
        });
        let pushes = &self.pushes;
        json!({
            "sidecars": self.clients, "services": self.services, "endpoints": self.services * 10, "cores": self.cores,
            "changes": pushes.last.len(), "through": self.through, "first_sync_ms": ms(self.first_sync),
            "push": {
                "each_ms": spread(&pushes.received), "last_ms": spread(&pushes.last),
                "last_ack_ms": spread(&pushes.acked), "bytes_per_sidecar": self.bytes_each(),
                "control_plane_cpu_ms": ms(pushes.cpu), "sidecars_cpu_ms": ms(pushes.clients_cpu),
                "peak_kib": pushes.peak_kib,
            },
            "restart": herd,
        })
    }

    fn bytes_each(&self) -> usize {
        self.pushes.bytes / (self.pushes.last.len() * self.clients).max(1)
    }
}

/// The time that so many percent of the sorted times do not exceed.
fn at(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}
