//! Opaque connections: open, ended and why, bytes both ways.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use weft_metrics::{Collector, Labels, Series, float};

use super::{Hop, Telemetry, port_label, reason_column, reason_word, tls};
use crate::error::Reason;

/// One column per reason, after the one for "no reason".
const REASONS: usize = Reason::ALL.len() + 1;

/// Handles for the opaque connections of one hop.
#[derive(Clone)]
pub struct TcpMetrics(Arc<TcpSeries>);

/// A connection in the books of a [`TcpMetrics`], until it is dropped.
pub struct OpenConnection {
    metrics: TcpMetrics,
    reason: Option<Reason>,
}

struct TcpSeries {
    closed: [AtomicU64; REASONS],
    open: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Telemetry {
    /// Handles for opaque connections of a hop; the same arguments give the same series.
    #[must_use]
    pub fn tcp(&self, hop: &Hop<'_>, mtls: bool) -> TcpMetrics {
        let port = port_label(hop.port);
        let labels = [
            ("direction", hop.direction.as_str()),
            ("service", hop.service),
            ("port", &*port),
            ("peer_service", hop.peer),
            ("tls", tls(mtls)),
        ];
        TcpMetrics(self.registry().series("tcp", &labels, || TcpSeries {
            closed: std::array::from_fn(|_| AtomicU64::new(0)),
            open: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }))
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
        self.0.closed[usize::from(reason_column(reason))].fetch_add(1, Ordering::Relaxed);
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

impl Series for TcpSeries {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        let open = self.open.load(Ordering::Relaxed);
        let closed = self.closed.iter().map(|count| count.load(Ordering::Relaxed));
        // Nothing has come this way.
        if open == 0 && closed.clone().all(|count| count == 0) {
            return;
        }
        let help = "Opaque connections that ended, by reason of failure";
        for (column, count) in (0..).zip(closed) {
            if count > 0 {
                let reason = [("reason", reason_word(column))];
                out.counter_with(("weft_tcp_connections_total", help), labels, &reason, count);
            }
        }
        out.gauge("weft_tcp_open_connections", "Opaque connections that are open", labels, float(open));
        let [sent, received] = [&self.sent, &self.received].map(|bytes| bytes.load(Ordering::Relaxed));
        out.counter("weft_tcp_sent_bytes_total", "Bytes sent to the service", labels, sent);
        out.counter("weft_tcp_received_bytes_total", "Bytes received from the service", labels, received);
    }
}
