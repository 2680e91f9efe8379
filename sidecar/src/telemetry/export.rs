//! Spans on their way out: a bounded queue from the workers, batches over OTLP/gRPC from the control thread, back-off
//! while the collector is away. A collector that is slow, stalled or gone costs requests nothing: the queue fills, and
//! what does not fit is dropped and counted.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use metrics::Counter;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::{
    sync::{
        mpsc::{self, error::TryRecvError},
        watch,
    },
    time::Instant,
};
use weft_policy::model::AccessLogFormat;

use super::{Telemetry, access::AccessLog, otel, span::Span};
use crate::{observe::taps::Taps, snapshot::Snapshot};

/// Spans that wait for the exporter.
const QUEUE: usize = 2048;
/// Spans of one export.
const BATCH: usize = 512;
/// A batch that is not full goes out after this time.
const LINGER: Duration = Duration::from_secs(1);
/// Between two looks at the queue: a fraction of the time in which the busiest workers fill it.
const FETCH: Duration = Duration::from_millis(10);
/// One export.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A batch is tried so often.
const TRIES: u32 = 3;
/// Between tries and batches while the collector is away: doubling, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Where workers leave their spans. Clones share the queue.
#[derive(Clone)]
pub struct SpanSink {
    queue: mpsc::Sender<Span>,
    dropped: Counter,
    log: Option<AccessLog>,
    taps: Option<Taps>,
}

/// The other end of the queue.
pub struct Exporting {
    queue: mpsc::Receiver<Span>,
    exported: Counter,
    failed: Counter,
    resource: Resource,
}

/// Who the spans are of.
pub struct Whose<'a> {
    /// `service.name`.
    pub service: &'a str,
    /// `service.namespace`.
    pub namespace: &'a str,
    /// `service.instance.id`.
    pub instance: &'a str,
    /// `service.version`, where it is known.
    pub version: Option<&'a str>,
}

/// The two ends of the queue.
#[must_use]
pub fn queue(
    telemetry: &Telemetry,
    whose: &Whose<'_>,
    log: Option<AccessLog>,
    taps: Option<Taps>,
) -> (SpanSink, Exporting) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let dropped = |reason| {
        telemetry.counter("weft_spans_dropped_total", "Spans that were not exported, by reason", &[("reason", reason)])
    };
    let sink = SpanSink { queue: sender, dropped: dropped("queue_full"), log, taps };
    let mut attributes = vec![
        KeyValue::new("service.namespace", whose.namespace.to_owned()),
        KeyValue::new("service.instance.id", whose.instance.to_owned()),
    ];
    attributes.extend(whose.version.map(|version| KeyValue::new("service.version", version.to_owned())));
    if let Ok(host) = rustix::system::uname().nodename().to_str() {
        attributes.push(KeyValue::new("host.name", host.to_owned()));
    }
    let resource =
        Resource::builder_empty().with_service_name(whose.service.to_owned()).with_attributes(attributes).build();
    let exported = telemetry.counter("weft_spans_exported_total", "Spans that a collector has taken", &[]);
    (sink, Exporting { queue: receiver, exported, failed: dropped("export_failed"), resource })
}

impl SpanSink {
    /// A sink that takes nothing; for tests.
    #[cfg(test)]
    pub fn none(telemetry: &Telemetry) -> Self {
        queue(telemetry, &Whose { service: "", namespace: "", instance: "", version: None }, None, None).0
    }

    /// Whether anybody wants to see requests as they end.
    #[must_use]
    pub fn is_tapped(&self) -> bool {
        self.taps.as_ref().is_some_and(Taps::is_active)
    }

    /// Shows a request that has ended to those who want to see it; never waits.
    pub fn tap(&self, span: &Span) {
        if let Some(taps) = &self.taps {
            taps.ended(span);
        }
    }

    /// Leaves a line of the access log; never waits.
    pub fn log(&self, span: Span, format: AccessLogFormat) {
        if let Some(log) = &self.log {
            log.send(span, format);
        }
    }

    /// Leaves a span; never waits.
    pub fn send(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }
}

impl Exporting {
    /// Exports until all sinks are gone, to the endpoint that the configuration names at the time; while it names none,
    /// spans that come are dropped.
    pub async fn run(mut self, snapshot: watch::Receiver<Arc<Snapshot>>) {
        let (mut exporter, mut to) = (None, None);
        let mut backoff = BACKOFF.0;
        while let Some(batch) = self.batch().await {
            let url = snapshot.borrow().workload.as_ref().and_then(|workload| workload.telemetry.endpoint.clone());
            if exporter.is_none() || url != to {
                exporter = url.as_deref().and_then(|url| self.exporter(url));
                to = url;
            }
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let Some(to) = &exporter else {
                self.failed.increment(count);
                continue;
            };
            if deliver(to, batch, &mut backoff).await {
                self.exported.increment(count);
            } else {
                self.failed.increment(count);
            }
        }
    }

    fn exporter(&self, url: &str) -> Option<SpanExporter> {
        match exporter(url, &self.resource) {
            Ok(exporter) => Some(exporter),
            Err(error) => {
                tracing::warn!(url, error = format!("{error:#}"), "no spans can be exported");
                None
            }
        }
    }

    /// The next spans: a full batch, or what has come within [`LINGER`] of the first. `None`: there will be no more.
    ///
    /// What comes after the first is fetched now and then. A receiver that waits is woken for each span, and the worker
    /// that left it pays for that.
    async fn batch(&mut self) -> Option<Vec<SpanData>> {
        let mut batch = vec![otel::data(self.queue.recv().await?)];
        let end = Instant::now() + LINGER;
        while batch.len() < BATCH {
            match self.queue.try_recv() {
                Ok(span) => batch.push(otel::data(span)),
                Err(TryRecvError::Empty) if Instant::now() < end => tokio::time::sleep(FETCH).await,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        Some(batch)
    }
}

fn exporter(url: &str, resource: &Resource) -> Result<SpanExporter> {
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(url)
        .with_timeout(TIMEOUT)
        .build()
        .with_context(|| format!("OTLP endpoint {url:?}"))?;
    exporter.set_resource(resource);
    Ok(exporter)
}

/// Exports a batch, a few times. Between tries nothing is taken from the queue.
async fn deliver(exporter: &SpanExporter, batch: Vec<SpanData>, backoff: &mut Duration) -> bool {
    for attempt in 1..=TRIES {
        // The exporter's own time limit does not cover a connection that is never made.
        match tokio::time::timeout(TIMEOUT * 2, exporter.export(batch.clone())).await {
            Ok(Ok(())) => {
                *backoff = BACKOFF.0;
                return true;
            }
            Ok(Err(error)) => tracing::debug!(%error, attempt, "spans were not taken"),
            Err(_) => tracing::debug!(attempt, "no answer from the collector in time"),
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + 0.5 * rand::random::<f64>())).await;
        *backoff = (*backoff * 2).min(BACKOFF.1);
    }
    false
}
