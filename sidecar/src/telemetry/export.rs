//! Spans on their way out: a bounded queue from the workers, batches over OTLP/gRPC from the control thread, back-off
//! while the collector is away. A collector that is slow, stalled or gone costs requests nothing: the queue fills, and
//! what does not fit is dropped and counted.

use std::{sync::Arc, time::Duration};

use metrics::Counter;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::InstrumentationScope,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans},
};
use tokio::{
    sync::{
        mpsc::{self, error::TryRecvError},
        watch,
    },
    time::Instant,
};
use tonic::transport::{Channel, Endpoint};
use weft_policy::model::AccessLogFormat;

use super::{Telemetry, access::AccessLog, otel, span::Span};
use crate::{observe::taps::Taps, snapshot::Snapshot, upstream::chain};

type Exporter = TraceServiceClient<Channel>;

/// As the exporters of OpenTelemetry say who they are.
const AGENT: &str = concat!("OTel-OTLP-Exporter-Weft/", env!("CARGO_PKG_VERSION"));

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
        otel::text("service.name", whose.service),
        otel::text("service.namespace", whose.namespace),
        otel::text("service.instance.id", whose.instance),
    ];
    attributes.extend(whose.version.map(|version| otel::text("service.version", version)));
    if let Ok(host) = rustix::system::uname().nodename().to_str() {
        attributes.push(otel::text("host.name", host));
    }
    let resource = Resource { attributes, ..Resource::default() };
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
                exporter = url.as_deref().and_then(exporter_to);
                to = url;
            }
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let taken = match &exporter {
                Some(exporter) => deliver(exporter, (&self.resource, &batch), &mut backoff).await,
                None => 0,
            };
            self.exported.increment(taken);
            self.failed.increment(count.saturating_sub(taken));
        }
    }

    /// The next spans: a full batch, or what has come within [`LINGER`] of the first. `None`: there will be no more.
    ///
    /// What comes after the first is fetched now and then. A receiver that waits is woken for each span, and the worker
    /// that left it pays for that.
    async fn batch(&mut self) -> Option<Vec<Span>> {
        let mut batch = vec![self.queue.recv().await?];
        let end = Instant::now() + LINGER;
        while batch.len() < BATCH {
            match self.queue.try_recv() {
                Ok(span) => batch.push(span),
                Err(TryRecvError::Empty) if Instant::now() < end => tokio::time::sleep(FETCH).await,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        Some(batch)
    }
}

fn exporter_to(url: &str) -> Option<Exporter> {
    match Endpoint::from_shared(url.to_owned()) {
        // Connected to when there is something to export, and again when the connection has ended.
        Ok(endpoint) => Some(Exporter::new(endpoint.user_agent(AGENT).ok()?.connect_timeout(TIMEOUT).connect_lazy())),
        Err(error) => {
            tracing::warn!(url, error = chain(&error), "no spans can be exported");
            None
        }
    }
}

/// Exports a batch, a few times: how many spans the collector has taken. Between tries nothing is taken from the queue.
async fn deliver(exporter: &Exporter, (resource, batch): (&Resource, &[Span]), backoff: &mut Duration) -> u64 {
    for attempt in 1..=TRIES {
        // Made again for the rare second try, and not copied for each first.
        let request = request(resource, batch);
        match tokio::time::timeout(TIMEOUT, exporter.clone().export(request)).await {
            Ok(Ok(answer)) => {
                *backoff = BACKOFF.0;
                let refused = answer.into_inner().partial_success.map_or(0, |partial| partial.rejected_spans);
                let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
                return count.saturating_sub(u64::try_from(refused).unwrap_or(0));
            }
            Ok(Err(status)) => tracing::debug!(%status, attempt, "spans were not taken"),
            Err(_) => tracing::debug!(attempt, "no answer from the collector in time"),
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + 0.5 * rand::random::<f64>())).await;
        *backoff = (*backoff * 2).min(BACKOFF.1);
    }
    0
}

fn request(resource: &Resource, batch: &[Span]) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "weft".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let spans = batch.iter().map(otel::data).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }];
    let resource = Some(resource.clone());
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans, schema_url: String::new() }],
    }
}
