//! Metrics of this sidecar: its own registry, handles that are resolved when configuration is applied, and
//! Prometheus text. Recording is an atomic add; locks are taken only to make a handle and to render.

pub mod access;
mod circuit;
pub mod export;
mod histogram;
mod otel;
pub mod propagation;
pub mod span;
#[cfg(test)]
mod tests;
pub mod trace;

use std::{
    array,
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use circuit::CircuitMetrics;
use histogram::Histogram;

use crate::error::Reason;

/// `1xx` to `5xx`, and everything that is none of them.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// One column per reason, after the one for "no reason".
const REASONS: usize = Reason::ALL.len() + 1;

/// Which way a request or connection goes, seen from the app.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    /// To the app.
    Inbound,
    /// From the app.
    Outbound,
}

/// All metrics of a sidecar. Clones share them.
#[derive(Clone, Default)]
pub struct Telemetry(Arc<Registry>);

/// Handles for the requests of one target.
#[derive(Clone)]
pub struct HttpMetrics(Arc<HttpSeries>);

/// Handles for the opaque connections of one target.
#[derive(Clone)]
pub struct TcpMetrics(Arc<TcpSeries>);

/// A connection in the books of a [`TcpMetrics`], until it is dropped.
pub struct OpenConnection {
    metrics: TcpMetrics,
    reason: Option<Reason>,
}

#[derive(Default)]
struct Registry {
    families: Mutex<BTreeMap<&'static str, Family>>,
    http: Mutex<BTreeMap<String, Arc<HttpSeries>>>,
    tcp: Mutex<BTreeMap<String, Arc<TcpSeries>>>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Counter,
    Gauge,
}

/// Series of one name, by their escaped labels.
struct Family {
    kind: Kind,
    help: &'static str,
    series: BTreeMap<String, Arc<AtomicU64>>,
}

struct HttpSeries {
    requests: [[AtomicU64; REASONS]; CLASSES.len()],
    durations: Histogram,
}

/// Name, type, help and value of a metric with one value per target.
type Column = (&'static str, &'static str, &'static str, fn(&TcpSeries) -> &AtomicU64);

struct TcpSeries {
    closed: [AtomicU64; REASONS],
    open: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Direction {
    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Telemetry {
    /// Handles for requests to or for `target`; the same arguments give the same series.
    #[must_use]
    pub fn http(&self, direction: Direction, target: &str, mtls: bool) -> HttpMetrics {
        let mut all = lock(&self.0.http);
        let series = all.entry(hop_labels(direction, target, mtls)).or_insert_with(|| {
            Arc::new(HttpSeries {
                requests: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))),
                durations: Histogram::default(),
            })
        });
        HttpMetrics(Arc::clone(series))
    }

    /// Handles for opaque connections to or for `target`; the same arguments give the same series.
    #[must_use]
    pub fn tcp(&self, direction: Direction, target: &str, mtls: bool) -> TcpMetrics {
        let mut all = lock(&self.0.tcp);
        let series = all.entry(hop_labels(direction, target, mtls)).or_insert_with(|| {
            Arc::new(TcpSeries {
                closed: array::from_fn(|_| AtomicU64::new(0)),
                open: AtomicU64::new(0),
                sent: AtomicU64::new(0),
                received: AtomicU64::new(0),
            })
        });
        TcpMetrics(Arc::clone(series))
    }

    /// A counter, made on the first call with these labels.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Counter {
        metrics::Counter::from_arc(self.series(Kind::Counter, name, help, labels))
    }

    /// A gauge, made on the first call with these labels.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> metrics::Gauge {
        metrics::Gauge::from_arc(self.series(Kind::Gauge, name, help, labels))
    }

    fn series(
        &self,
        kind: Kind,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<AtomicU64> {
        let mut families = lock(&self.0.families);
        let family = families.entry(name).or_insert_with(|| Family { kind, help, series: BTreeMap::new() });
        debug_assert!(family.kind == kind, "{name} is registered as another kind");
        Arc::clone(family.series.entry(join_labels(labels)).or_default())
    }

    /// Everything in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, family) in &*lock(&self.0.families) {
            let kind = if family.kind == Kind::Counter { "counter" } else { "gauge" };
            head(&mut out, name, kind, family.help);
            for (labels, value) in &family.series {
                let bits = value.load(Ordering::Relaxed);
                let text = if family.kind == Kind::Counter { bits.to_string() } else { number(f64::from_bits(bits)) };
                let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                let _ = writeln!(out, "{name}{braces} {text}");
            }
        }
        self.render_http(&mut out);
        self.render_tcp(&mut out);
        out
    }

    fn render_http(&self, out: &mut String) {
        let all = lock(&self.0.http);
        if all.is_empty() {
            return;
        }
        let name = "weft_http_requests_total";
        head(out, name, "counter", "Requests that ended, by status class and reason of failure.");
        for (labels, series) in &*all {
            for (class, reasons) in CLASSES.iter().zip(&series.requests) {
                for (index, value) in reasons.iter().enumerate() {
                    let value = value.load(Ordering::Relaxed);
                    if value > 0 {
                        let reason = reason_word(index);
                        let _ = writeln!(out, "{name}{{{labels},code_class=\"{class}\",reason=\"{reason}\"}} {value}");
                    }
                }
            }
        }
        let name = "weft_http_request_duration_seconds";
        head(out, name, "histogram", "Time from the request's head to the end of its response.");
        for (labels, series) in &*all {
            series.durations.render(out, name, labels);
        }
    }

    fn render_tcp(&self, out: &mut String) {
        let all = lock(&self.0.tcp);
        if all.is_empty() {
            return;
        }
        let name = "weft_tcp_connections_total";
        head(out, name, "counter", "Opaque connections that ended, by reason of failure.");
        for (labels, series) in &*all {
            for (index, value) in series.closed.iter().enumerate() {
                let value = value.load(Ordering::Relaxed);
                if value > 0 {
                    let _ = writeln!(out, "{name}{{{labels},reason=\"{}\"}} {value}", reason_word(index));
                }
            }
        }
        let columns: [Column; 3] = [
            ("weft_tcp_open_connections", "gauge", "Opaque connections that are open.", |series| &series.open),
            ("weft_tcp_sent_bytes_total", "counter", "Bytes sent to the target.", |series| &series.sent),
            ("weft_tcp_received_bytes_total", "counter", "Bytes received from the target.", |series| &series.received),
        ];
        for (name, kind, help, column) in columns {
            head(out, name, kind, help);
            for (labels, series) in &*all {
                let _ = writeln!(out, "{name}{{{labels}}} {}", column(series).load(Ordering::Relaxed));
            }
        }
    }
}

impl HttpMetrics {
    /// Counts a request that ended.
    pub fn record(&self, status: u16, reason: Option<Reason>, duration: Duration) {
        let class = usize::from(status / 100);
        let class = if class < CLASSES.len() { class } else { 0 };
        self.0.requests[class][reason_column(reason)].fetch_add(1, Ordering::Relaxed);
        self.0.durations.record(duration);
    }
}

impl TcpMetrics {
    /// A connection begins; it is open while the guard lives.
    #[must_use]
    pub fn opened(&self) -> OpenConnection {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection { metrics: self.clone(), reason: None }
    }

    /// A connection was not taken.
    pub fn refused(&self, reason: Reason) {
        self.count(Some(reason));
    }

    fn count(&self, reason: Option<Reason>) {
        self.0.closed[reason_column(reason)].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes sent to the target.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes received from the target.
    pub fn received(&self, bytes: u64) {
        self.0.received.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl OpenConnection {
    /// The connection ended badly, or with `None` well, which is also what a plain drop means.
    pub fn closed(mut self, reason: Option<Reason>) {
        self.reason = reason;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.0.open.fetch_sub(1, Ordering::Relaxed);
        self.metrics.count(self.reason);
    }
}

fn reason_column(reason: Option<Reason>) -> usize {
    reason.map_or(0, |reason| usize::from(reason as u8) + 1)
}

fn reason_word(column: usize) -> &'static str {
    column.checked_sub(1).map_or("", |index| Reason::ALL[index].as_str())
}

fn hop_labels(direction: Direction, target: &str, mtls: bool) -> String {
    let mtls = if mtls { "true" } else { "false" };
    join_labels(&[("direction", direction.as_str()), ("target", target), ("mtls", mtls)])
}

fn join_labels(labels: &[(&'static str, &str)]) -> String {
    let mut out = String::new();
    for (index, (name, value)) in labels.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() }
    } else {
        value.to_string()
    }
}

/// A panic elsewhere cannot leave a map of counters half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
