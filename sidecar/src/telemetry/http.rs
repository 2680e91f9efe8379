//! Requests: how they ended, how long they took, how many bytes. A series has a fixed number of places, each of which is
//! taken by the first end of its kind, so that a request costs atomic adds and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::Version;
use weft_metrics::{Collector, Histogram, Labels, Series, TraceId};

use super::{COUNTED, Hop, Telemetry, port_label, reason_column, reason_word, tls};
use crate::error::{ProxyError, Reason};

/// Kinds of end that one series can tell apart: by class, reason, gRPC status and version. More of them, which is what an
/// app does that answers at random, share one more.
pub const PLACES: usize = 32;
/// `1xx` to `5xx`, and everything that is none of them.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
const VERSIONS: [&str; 3] = ["1.0", "1.1", "2"];
/// In place of a gRPC status that is none.
const NO_CODE: &str = "other";
/// gRPC statuses: none, `OK` and the 16 failures, and everything else.
const CODES: u8 = 18;

/// Handles for the requests of one hop.
#[derive(Clone)]
pub struct HttpMetrics(Arc<HttpSeries>);

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Sent to the caller; 0 when there was none.
    pub status: u16,
    /// Why we answered ourselves, or why it ended badly.
    pub reason: Option<Reason>,
    /// gRPC status, where there was one.
    pub grpc: Option<u8>,
    /// What the caller speaks.
    pub version: Version,
    /// From its head to the end of its answer.
    pub duration: Duration,
    /// Its trace, where that is recorded.
    pub trace: Option<TraceId>,
}

/// Requests in flight at a port of the app.
#[derive(Clone)]
pub struct ActiveRequests(Arc<Active>);

/// Bytes of bodies, whatever the hop is made of: how a request will go out is not known when its first bytes come in.
#[derive(Default)]
struct Bodies {
    request: AtomicU64,
    response: AtomicU64,
}

struct HttpSeries {
    /// What each place counts, 0 while it is free, and how many.
    places: [(AtomicU32, AtomicU64); PLACES],
    /// All that found no place.
    others: AtomicU64,
    durations: Histogram,
    bodies: Arc<Bodies>,
}

#[derive(Default)]
struct Active(AtomicU64);

impl Telemetry {
    /// Handles for requests of a hop; the same arguments give the same series.
    #[must_use]
    pub fn http(&self, hop: &Hop<'_>, mtls: bool) -> HttpMetrics {
        let port = port_label(hop.port);
        let [direction, service, port, peer, route, tls] = [
            ("direction", hop.direction.as_str()),
            ("service", hop.service),
            ("port", &*port),
            ("peer_service", hop.peer),
            ("route", hop.route),
            ("tls", tls(mtls)),
        ];
        let registry = self.registry();
        let bodies = registry.series("bodies", &[direction, service, port, peer, route], Bodies::default);
        HttpMetrics(registry.series("http", &[direction, service, port, peer, route, tls], || HttpSeries {
            places: Default::default(),
            others: AtomicU64::new(0),
            durations: Histogram::default(),
            bodies,
        }))
    }

    /// The requests in flight at a port of the app.
    #[must_use]
    pub fn active(&self, hop: &Hop<'_>) -> ActiveRequests {
        let port = port_label(hop.port);
        let labels = [("direction", hop.direction.as_str()), ("service", hop.service), ("port", &*port)];
        ActiveRequests(self.registry().series("active", &labels, Active::default))
    }
}

impl HttpMetrics {
    /// Counts a request that ended.
    pub fn record(&self, ended: &Ended) {
        if !COUNTED {
            return;
        }
        self.0.count(key(ended));
        self.0.durations.record(ended.duration, ended.trace);
    }

    /// Bytes of a request's body, from the caller.
    pub fn request_bytes(&self, bytes: u64) {
        if COUNTED {
            self.0.bodies.request.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of a response's body, to the caller.
    pub fn response_bytes(&self, bytes: u64) {
        if COUNTED {
            self.0.bodies.response.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Ended {
    /// Without a reason, a gRPC status or a trace.
    #[must_use]
    pub fn new(status: u16, version: Version, started: Instant) -> Self {
        let duration = if COUNTED { started.elapsed() } else { Duration::ZERO };
        Self { status, reason: None, grpc: None, version, duration, trace: None }
    }

    /// With the answer that we make of an error.
    #[must_use]
    pub fn failed(error: &ProxyError, (version, grpc): (Version, bool), started: Instant) -> Self {
        let grpc = grpc.then(|| error.reason.grpc_status());
        Self { reason: Some(error.reason), grpc, ..Self::new(error.reason.status(), version, started) }
    }
}

impl ActiveRequests {
    /// One more.
    pub fn begin(&self) {
        if COUNTED {
            self.0.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One that began has ended.
    pub fn end(&self) {
        if COUNTED {
            self.0.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Class, reason, gRPC status and version in one number that is not 0.
fn key(ended: &Ended) -> u32 {
    let class = u8::try_from(ended.status / 100).ok().filter(|class| usize::from(*class) < CLASSES.len());
    let grpc = ended.grpc.map_or(0, |code| if code < 17 { code + 1 } else { CODES });
    let version = match ended.version {
        Version::HTTP_2 => 2,
        Version::HTTP_11 => 1,
        _ => 0,
    };
    u32::from_be_bytes([1 + version, class.unwrap_or(0), reason_column(ended.reason), grpc])
}

/// The labels of a key.
fn words(key: u32) -> [(&'static str, &'static str); 4] {
    let [version, class, reason, grpc] = key.to_be_bytes();
    let of = |words: &[&'static str], index: usize| words.get(index).copied().unwrap_or_default();
    let code = match grpc {
        0 => "",
        code => weft_policy::grpc::name(u32::from(code) - 1).unwrap_or(NO_CODE),
    };
    [
        ("code_class", of(&CLASSES, usize::from(class))),
        ("reason", reason_word(reason)),
        ("grpc_status", code),
        ("version", of(&VERSIONS, usize::from(version.saturating_sub(1)))),
    ]
}

impl HttpSeries {
    fn count(&self, key: u32) {
        for (kind, count) in &self.places {
            let mut held = kind.load(Ordering::Relaxed);
            if held == 0 {
                held = match kind.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => key,
                    Err(other) => other,
                };
            }
            if held == key {
                count.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        self.others.fetch_add(1, Ordering::Relaxed);
    }
}

impl Series for HttpSeries {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        let durations = self.durations.value();
        // Nothing has come this way: plaintext where all is mutual TLS, above all.
        if durations.count() == 0 {
            return;
        }
        let help = "Requests that ended, by class of status, reason of failure, gRPC status and HTTP version";
        let mut write = |words: &[_], count: &AtomicU64| {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                out.counter_with(("weft_http_requests_total", help), labels, words, count);
            }
        };
        for (kind, count) in &self.places {
            // A place that is being taken counts in the next look.
            let kind = kind.load(Ordering::Relaxed);
            if kind != 0 {
                write(&words(kind), count);
            }
        }
        write(&[("code_class", CLASSES[0]), ("grpc_status", NO_CODE)], &self.others);
        let help = "Time from the head of a request to the end of its response";
        out.histogram("weft_http_request_duration_seconds", help, labels, durations);
    }
}

impl Series for Bodies {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        let [request, response] = [&self.request, &self.response].map(|bytes| bytes.load(Ordering::Relaxed));
        if request == 0 && response == 0 {
            return;
        }
        out.counter("weft_http_request_bytes_total", "Bytes of request bodies", labels, request);
        out.counter("weft_http_response_bytes_total", "Bytes of response bodies", labels, response);
    }
}

/// Name and help of the requests in flight, which both directions have.
pub const ACTIVE: (&str, &str) = ("weft_http_active_requests", "Requests in flight");

impl Series for Active {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        out.gauge(ACTIVE.0, ACTIVE.1, labels, weft_metrics::float(self.0.load(Ordering::Relaxed)));
    }
}
