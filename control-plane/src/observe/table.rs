//! From what sidecars have counted to who calls whom, how often and how well: the difference of two collections, or all
//! since the sidecars started. A call is counted where it leaves the caller's sidecar; one from outside the mesh where it
//! comes in.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_proto::v1::{Direction, HttpSeries, TcpSeries};

use super::{Collected, Report, Workload, histogram::Histogram};

/// The beginning of an edge.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// Callers without a sidecar.
    Outside,
    /// Instances of an app in the mesh.
    App {
        /// Namespace, as the certificate has it.
        namespace: String,
        /// Label `app`, or the name: the sidecar's own word, unless only attested labels are taken.
        name: String,
        /// SPIFFE id, as the certificate has it.
        identity: String,
    },
}

/// What happened on an edge, or at a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    /// Requests that ended.
    pub requests: u64,
    /// Of those, failures of the called side.
    pub failed: u64,
    /// Requests and connections over mutual TLS, and others.
    pub secured: [u64; 2],
    /// Requests that were sent again.
    pub retries: u64,
    /// How long requests took.
    pub durations: Histogram,
    /// Opaque connections that are open now.
    pub open: u64,
    /// Opaque connections that ended.
    pub closed: u64,
    /// Of those, badly.
    pub broken: u64,
    /// Bytes of opaque connections to the service and from it.
    pub bytes: [u64; 2],
}

/// By caller and called service port (`namespace/name:port`).
pub type Edges = BTreeMap<(Origin, String), Numbers>;

/// Which service ports (`namespace/name:port`) a workload (`namespace/name`) serves at a port of its app. What it says of
/// others is not taken from it.
#[derive(Debug, Default)]
pub struct Served(HashMap<String, BTreeMap<u32, BTreeSet<String>>>);

impl Served {
    /// One more.
    pub fn insert(&mut self, workload: &str, at: u32, target: String) {
        self.0.entry(workload.to_owned()).or_default().entry(at).or_default().insert(target);
    }

    /// Of several service ports the first in order.
    fn at(&self, workload: &str, port: u32) -> Option<&String> {
        self.0.get(workload)?.get(&port)?.first()
    }

    fn has(&self, workload: &str, target: &str) -> bool {
        self.0.get(workload).is_some_and(|ports| ports.values().any(|targets| targets.contains(target)))
    }
}

impl Numbers {
    /// Adds another one's.
    pub fn merge(&mut self, other: &Self) {
        let both = |a: [u64; 2], b: [u64; 2]| [a[0].saturating_add(b[0]), a[1].saturating_add(b[1])];
        self.requests = self.requests.saturating_add(other.requests);
        self.failed = self.failed.saturating_add(other.failed);
        self.secured = both(self.secured, other.secured);
        self.retries = self.retries.saturating_add(other.retries);
        self.open = self.open.saturating_add(other.open);
        self.closed = self.closed.saturating_add(other.closed);
        self.broken = self.broken.saturating_add(other.broken);
        self.bytes = both(self.bytes, other.bytes);
        self.durations.merge(&other.durations);
    }

    /// Nothing was counted, and nothing is open.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.requests == 0 && self.retries == 0 && self.open == 0 && self.closed == 0
    }

    /// Requests as they were sent, retries included.
    #[must_use]
    pub const fn tries(&self) -> u64 {
        self.requests.saturating_add(self.retries)
    }
}

/// What happened between two collections; without the first one, since the sidecars started. A sidecar that the first
/// one does not have is left out: when it counted what is not known.
#[must_use]
pub fn edges(before: Option<&Collected>, now: &Collected, served: &Served) -> Edges {
    let earlier: Option<HashMap<(String, u64), &Report>> = before.map(|before| {
        before.reports.iter().map(|(workload, report)| ((workload.id(), workload.epoch_ms), &**report)).collect()
    });
    let known: Vec<String> =
        before.map(|before| before.reports.iter().map(|(workload, _)| workload.id()).collect()).unwrap_or_default();
    let mut edges = Edges::new();
    for (workload, report) in &now.reports {
        let none = Report::default();
        let base = match &earlier {
            None => &none,
            Some(earlier) => match earlier.get(&(workload.id(), workload.epoch_ms)) {
                Some(base) => base,
                // It has started anew since then: all of its counts are of this time.
                None if known.contains(&workload.id()) => &none,
                None => continue,
            },
        };
        add(&mut edges, workload, (base, report), served);
    }
    edges.retain(|_, numbers| !numbers.is_empty());
    edges
}

fn add(edges: &mut Edges, workload: &Workload, (base, report): (&Report, &Report), served: &Served) {
    let app = || Origin::App {
        namespace: workload.namespace.clone(),
        name: workload.app.clone(),
        identity: workload.identity.clone(),
    };
    let end = |direction: Direction, service: &str, port: u32, mtls: bool| match direction {
        Direction::Outbound => Some((app(), target(service, port))),
        // From a sidecar: counted there.
        Direction::Inbound if mtls => None,
        // Of what it serves by the configuration, whatever it says.
        Direction::Inbound if !service.is_empty() || port > 0 => {
            let (id, named) = (workload.id(), target(service, port));
            let at = served.at(&id, port).filter(|_| service.is_empty()).cloned();
            let called = at.or_else(|| served.has(&id, &named).then_some(named));
            Some((Origin::Outside, called.unwrap_or_else(|| target("", 0))))
        }
        Direction::Inbound | Direction::Unspecified => None,
    };
    let key = |of: &HttpSeries| (of.direction, of.service.clone(), of.port, of.mtls, of.route.clone());
    let bases: HashMap<_, &HttpSeries> = base.http.iter().map(|of| (key(of), of)).collect();
    for series in &report.http {
        let Some(end) = end(series.direction(), &series.service, series.port, series.mtls) else { continue };
        let base = bases.get(&key(series)).copied();
        edges.entry(end).or_default().requests_of(series, base, &report.bounds);
    }
    let key = |of: &TcpSeries| (of.direction, of.service.clone(), of.port, of.mtls);
    let bases: HashMap<_, &TcpSeries> = base.tcp.iter().map(|of| (key(of), of)).collect();
    for series in &report.tcp {
        let Some(end) = end(series.direction(), &series.service, series.port, series.mtls) else { continue };
        edges.entry(end).or_default().connections_of(series, bases.get(&key(series)).copied());
    }
    let bases: HashMap<(&str, u32), u64> =
        base.retries.iter().map(|of| ((of.service.as_str(), of.port), of.sent)).collect();
    for retries in &report.retries {
        let before = bases.get(&(retries.service.as_str(), retries.port)).copied().unwrap_or(0);
        let to = target(&retries.service, retries.port);
        let sum = &mut edges.entry((app(), to)).or_default().retries;
        *sum = sum.saturating_add(since(retries.sent, before));
    }
}

/// What a counter has grown by. One that is smaller than before has expired and come back: all of it is new.
const fn since(now: u64, before: u64) -> u64 {
    if now < before { now } else { now - before }
}

/// `namespace/name:port`; what is not known is left out.
fn target(service: &str, port: u32) -> String {
    match (service, port) {
        ("", _) => "unknown".to_owned(),
        (service, 0) => service.to_owned(),
        (service, port) => format!("{service}:{port}"),
    }
}

impl Numbers {
    fn requests_of(&mut self, series: &HttpSeries, base: Option<&HttpSeries>, bounds: &[u64]) {
        let before: HashMap<(u32, &str, bool), u64> = base
            .into_iter()
            .flat_map(|base| &base.outcomes)
            .map(|of| ((of.code_class, of.reason.as_str(), of.failed), of.count))
            .collect();
        for of in &series.outcomes {
            let before = before.get(&(of.code_class, of.reason.as_str(), of.failed)).copied().unwrap_or(0);
            let count = since(of.count, before);
            self.requests = self.requests.saturating_add(count);
            if of.failed {
                self.failed = self.failed.saturating_add(count);
            }
            let secured = &mut self.secured[usize::from(!series.mtls)];
            *secured = secured.saturating_add(count);
        }
        let before = base.map(|base| base.buckets.as_slice()).unwrap_or_default();
        let counts = series.buckets.iter().enumerate();
        let counts = counts.map(|(index, count)| since(*count, before.get(index).copied().unwrap_or(0)));
        self.durations.add(bounds, counts);
    }

    fn connections_of(&mut self, series: &TcpSeries, base: Option<&TcpSeries>) {
        let before = base.cloned().unwrap_or_default();
        let closed = since(series.closed, before.closed);
        self.open = self.open.saturating_add(series.open);
        self.closed = self.closed.saturating_add(closed);
        self.broken = self.broken.saturating_add(since(series.failed, before.failed));
        let secured = &mut self.secured[usize::from(!series.mtls)];
        *secured = secured.saturating_add(closed).saturating_add(series.open);
        let sent = since(series.sent_bytes, before.sent_bytes);
        let received = since(series.received_bytes, before.received_bytes);
        self.bytes = [self.bytes[0].saturating_add(sent), self.bytes[1].saturating_add(received)];
    }
}

/// By called service port, whoever called.
#[must_use]
pub fn services(edges: &Edges) -> BTreeMap<String, Numbers> {
    let mut services: BTreeMap<String, Numbers> = BTreeMap::new();
    for ((_, to), numbers) in edges {
        services.entry(to.clone()).or_default().merge(numbers);
    }
    services
}

#[cfg(test)]
mod tests;
