//! The metrics of this sidecar as the control plane collects them: sums over what nobody asks for there.

use std::collections::BTreeMap;

use weft_metrics::{BOUNDS, Sample, Snapshot, Value};
use weft_policy::grpc;
use weft_proto::v1::{Direction, HttpOutcome, HttpSeries, Retries, Statistics, TcpSeries};

use crate::{
    error::{Blame, Reason},
    telemetry::UNKNOWN,
};

/// Series of one message.
const PART: usize = 512;

/// Direction, service, port, mutual TLS and rule.
type Key = (i32, String, u32, bool, String);

/// Requests by class of status, reason and whether the called side failed.
type Outcomes = BTreeMap<(u32, String, bool), u64>;

/// A report in parts, each with the number of the question; the last one says so.
pub fn reports(snapshot: &Snapshot, number: u64) -> impl Iterator<Item = Statistics> + use<> {
    let (mut http, mut tcp, mut retries) = (http(snapshot), tcp(snapshot), retries(snapshot));
    let mut over = false;
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let mut part = Statistics { number, ..Statistics::default() };
        part.bounds_us = BOUNDS.iter().map(|(bound, _)| *bound).collect();
        part.http = http.split_off(http.len().saturating_sub(PART));
        part.tcp = tcp.split_off(tcp.len().saturating_sub(PART));
        part.retries = retries.split_off(retries.len().saturating_sub(PART));
        over = http.is_empty() && tcp.is_empty() && retries.is_empty();
        part.last = over;
        Some(part)
    })
}

fn http(snapshot: &Snapshot) -> Vec<HttpSeries> {
    let mut all: BTreeMap<Key, (Outcomes, Vec<u64>)> = BTreeMap::new();
    for sample in snapshot.samples("weft_http_requests_total") {
        let outcome = outcome(sample);
        *all.entry(key(sample)).or_default().0.entry(outcome).or_default() += count(sample);
    }
    for sample in snapshot.samples("weft_http_request_duration_seconds") {
        let Value::Histogram(histogram) = &sample.value else { continue };
        let sums = &mut all.entry(key(sample)).or_default().1;
        sums.resize(histogram.buckets.len(), 0);
        sums.iter_mut().zip(histogram.buckets).for_each(|(sum, more)| *sum += more);
    }
    let series = |((direction, service, port, mtls, route), (outcomes, buckets)): (Key, (Outcomes, _))| {
        let outcome = |((code_class, reason, failed), count)| HttpOutcome { code_class, reason, failed, count };
        let outcomes = outcomes.into_iter().map(outcome).collect();
        HttpSeries { direction, service, port, mtls, route, outcomes, buckets }
    };
    all.into_iter().map(series).collect()
}

fn tcp(snapshot: &Snapshot) -> Vec<TcpSeries> {
    let mut all: BTreeMap<Key, TcpSeries> = BTreeMap::new();
    let mut add = |name: &str, change: fn(&mut TcpSeries, &Sample)| {
        for sample in snapshot.samples(name) {
            let key = key(sample);
            let series = all.entry(key.clone()).or_insert_with(|| {
                let (direction, service, port, mtls, _) = key;
                TcpSeries { direction, service, port, mtls, ..TcpSeries::default() }
            });
            change(series, sample);
        }
    };
    add("weft_tcp_connections_total", |series, sample| {
        series.closed += count(sample);
        if failure(sample.label("reason")) {
            series.failed += count(sample);
        }
    });
    add("weft_tcp_open_connections", |series, sample| series.open += count(sample));
    add("weft_tcp_sent_bytes_total", |series, sample| series.sent_bytes += count(sample));
    add("weft_tcp_received_bytes_total", |series, sample| series.received_bytes += count(sample));
    all.into_values().collect()
}

fn retries(snapshot: &Snapshot) -> Vec<Retries> {
    let mut all: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for sample in snapshot.samples("weft_upstream_retries_total") {
        let (_, service, port, ..) = key(sample);
        *all.entry((service, port)).or_default() += count(sample);
    }
    all.into_iter().map(|((service, port), sent)| Retries { service, port, sent }).collect()
}

/// What is said apart.
fn key(sample: &Sample) -> Key {
    let direction = match sample.label("direction") {
        "inbound" => Direction::Inbound,
        "outbound" => Direction::Outbound,
        _ => Direction::Unspecified,
    };
    let service = Some(sample.label("service")).filter(|service| *service != UNKNOWN).unwrap_or_default();
    let port = sample.label("port").parse().unwrap_or(0);
    (direction.into(), service.to_owned(), port, sample.label("tls") == "mtls", sample.label("route").to_owned())
}

/// Class of status, reason, and whether the called side failed.
fn outcome(sample: &Sample) -> (u32, String, bool) {
    let class = sample.label("code_class").chars().next().and_then(|class| class.to_digit(10)).unwrap_or(0);
    let reason = sample.label("reason");
    // As OpenTelemetry's conventions have it for the called side.
    let bad = |name: &str| matches!(grpc::code(name), Some(2 | 4 | 12..=15));
    (class, reason.to_owned(), class == 5 || bad(sample.label("grpc_status")) || failure(reason))
}

/// Whether this reason is held against the called side.
fn failure(word: &str) -> bool {
    Reason::ALL.into_iter().any(|reason| reason.as_str() == word && reason.blame() == Blame::Upstream)
}

/// The registry gives numbers as a scraper has them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters are whole, and the cast saturates"
)]
fn count(sample: &Sample) -> u64 {
    sample.number() as u64
}
