//! Bounds of what a sidecar reports, and a report from its parts. A sidecar that goes beyond them loses its stream.

use std::sync::Arc;

use prost::Message as _;
use weft_policy::model::ObjectName;
use weft_proto::v1::{HttpSeries, Retries, Statistics, Tapped, TappedRequest, TcpSeries};

/// Bytes of one message.
pub const MESSAGE: usize = 512 * 1024;
/// Series of one report, of each kind.
const SERIES: usize = 8192;
/// Bounds of a histogram.
const BOUNDS: usize = 64;
/// Status class and reason of one series.
const OUTCOMES: usize = 512;
/// Status classes and reasons of one report.
const ALL_OUTCOMES: usize = 65_536;
/// Bytes of one report, all of its messages.
const REPORT: usize = 8 * 1024 * 1024;
/// Bytes of a name.
const NAME: usize = 512;
/// Requests in one message.
const TAPPED: usize = 256;
/// Bytes of a path, an authority or an identity.
const TEXT: usize = 4 * 2048;

/// Everything that a sidecar had counted at one time.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// Of the round that asked for it.
    pub number: u64,
    /// Upper bounds of buckets in microseconds, ascending.
    pub bounds: Arc<[u64]>,
    /// Requests.
    pub http: Vec<HttpSeries>,
    /// Opaque connections.
    pub tcp: Vec<TcpSeries>,
    /// Retries.
    pub retries: Vec<Retries>,
}

/// A report on its way.
#[derive(Default)]
pub struct Parts {
    wanted: u64,
    bytes: usize,
    outcomes: usize,
    report: Report,
}

impl Parts {
    /// This report is the one that is wanted; an older one is of no use any more.
    pub fn begin(&mut self, number: u64) {
        *self = Self { wanted: number, report: Report { number, ..Report::default() }, ..Self::default() };
    }

    /// Adds a part; gives the report when it was the last one.
    ///
    /// # Errors
    /// What is beyond the bounds.
    pub fn add(&mut self, part: Statistics) -> Result<Option<Report>, String> {
        // Rounds begin with 1.
        if part.number == 0 || part.number != self.wanted {
            return Ok(None);
        }
        self.bytes = self.bytes.saturating_add(part.encoded_len());
        let outcomes: usize = part.http.iter().map(|series| series.outcomes.len()).sum();
        self.outcomes = self.outcomes.saturating_add(outcomes);
        if self.bytes > REPORT || self.outcomes > ALL_OUTCOMES {
            return Err(format!("a report of more than {REPORT} bytes or {ALL_OUTCOMES} outcomes"));
        }
        let Statistics { last, bounds_us, mut http, mut tcp, mut retries, .. } = part;
        let report = &mut self.report;
        if !bounds_us.is_empty() {
            if bounds_us.len() > BOUNDS || !bounds_us.is_sorted_by(|a, b| a < b) {
                return Err(format!("bounds_us: not at most {BOUNDS} ascending numbers"));
            }
            if report.http.is_empty() {
                report.bounds = bounds_us.into();
            } else if *report.bounds != *bounds_us {
                return Err("bounds_us: others than in the part before".to_owned());
            }
        }
        for series in &http {
            name("http.service", &series.service)?;
            name("http.route", &series.route)?;
            if series.outcomes.len() > OUTCOMES {
                return Err(format!("http.outcomes: more than {OUTCOMES}"));
            }
            series.outcomes.iter().try_for_each(|outcome| name("http.outcomes.reason", &outcome.reason))?;
            if !series.buckets.is_empty() && series.buckets.len() != report.bounds.len() + 1 {
                return Err("http.buckets: not one more than bounds_us".to_owned());
            }
        }
        tcp.iter().try_for_each(|series| name("tcp.service", &series.service))?;
        retries.iter().try_for_each(|retries| name("retries.service", &retries.service))?;
        http.iter_mut().for_each(|series| known_form(&mut series.service));
        tcp.iter_mut().for_each(|series| known_form(&mut series.service));
        retries.iter_mut().for_each(|retries| known_form(&mut retries.service));
        report.http.extend(http);
        report.tcp.extend(tcp);
        report.retries.extend(retries);
        if [report.http.len(), report.tcp.len(), report.retries.len()].into_iter().any(|count| count > SERIES) {
            return Err(format!("more than {SERIES} series"));
        }
        // The next one of this number is nobody's.
        let whole = last.then(|| std::mem::take(self).report);
        Ok(whole)
    }
}

fn name(field: &str, text: &str) -> Result<(), String> {
    if text.len() > NAME {
        return Err(format!("{field}: longer than {NAME} bytes"));
    }
    // It would steer the terminal of whoever looks.
    if text.chars().any(char::is_control) { Err(format!("{field}: has control characters")) } else { Ok(()) }
}

/// What is not `namespace/name` names no service: it is not known.
fn known_form(service: &mut String) {
    if ObjectName::parse(service).is_none() {
        service.clear();
    }
}

/// Whether a tap's report keeps within the bounds.
///
/// # Errors
/// What does not.
pub fn check_tapped(tapped: &Tapped) -> Result<(), String> {
    if tapped.requests.len() > TAPPED {
        return Err(format!("tapped.requests: more than {TAPPED}"));
    }
    let long = |request: &TappedRequest| {
        let names = [&request.service, &request.method, &request.reason, &request.trace_id, &request.route];
        let texts = [&request.authority, &request.path, &request.peer, &request.peer_address];
        names.into_iter().any(|text| text.len() > NAME) || texts.into_iter().any(|text| text.len() > TEXT)
    };
    if tapped.requests.iter().any(long) {
        return Err("tapped.requests: a text is too long".to_owned());
    }
    // Path and authority are the caller's words, for which the sidecar is not to blame: `Tap::take` replaces them there.
    let steers = |request: &TappedRequest| {
        let TappedRequest { service, method, reason, trace_id, route, peer, peer_address, .. } = request;
        let texts = [service, method, reason, trace_id, route, peer, peer_address];
        texts.into_iter().any(|text| text.chars().any(char::is_control))
    };
    let bad_service = |request: &TappedRequest| {
        let name = request.service.rsplit_once(':').map_or(request.service.as_str(), |(name, _)| name);
        !name.is_empty() && ObjectName::parse(name).is_none()
    };
    if tapped.requests.iter().any(|request| steers(request) || bad_service(request)) {
        return Err("tapped.requests: control characters, or a service that is not namespace/name:port".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::HttpOutcome;

    use super::*;

    fn part(number: u64, last: bool, target: &str) -> Statistics {
        let series = HttpSeries { service: target.into(), buckets: vec![1, 0, 0], ..HttpSeries::default() };
        Statistics { number, last, bounds_us: vec![10, 20], http: vec![series], ..Statistics::default() }
    }

    fn parts() -> Parts {
        let mut parts = Parts::default();
        parts.begin(7);
        parts
    }

    #[test]
    fn a_report_is_whole_when_its_last_part_has_come() {
        let mut parts = parts();
        assert_eq!(parts.add(part(7, false, "shop/a")), Ok(None));
        assert_eq!(parts.add(part(6, true, "of another round")), Ok(None));
        let report = parts.add(part(7, true, "shop/b")).expect("within bounds").expect("whole");
        assert_eq!(report.http.iter().map(|series| series.service.as_str()).collect::<Vec<_>>(), ["shop/a", "shop/b"]);
        assert_eq!(parts.add(part(7, true, "again")), Ok(None), "nobody has asked for a second one");
    }

    #[test]
    fn a_report_in_many_parts_is_bounded_in_bytes_too() {
        let mut parts = parts();
        let big = || {
            let mut big = part(7, false, "shop/a");
            big.http[0].route = "x".repeat(NAME);
            big.http[0].outcomes = vec![HttpOutcome { reason: "x".repeat(NAME), ..HttpOutcome::default() }; 2];
            big.http = vec![big.http[0].clone(); 300];
            big
        };
        let refused = (0..=REPORT / big().encoded_len()).find_map(|_| parts.add(big()).err());
        assert!(refused.is_some_and(|text| text.contains("bytes")));
    }

    #[test]
    fn a_service_that_is_no_name_is_not_known() {
        let report = parts().add(part(7, true, "evil \u{202e}")).expect("within bounds").expect("whole");
        assert_eq!(report.http[0].service, "");
    }

    #[test]
    fn what_is_beyond_the_bounds_is_refused() {
        let mut cases: Vec<Statistics> = Vec::new();
        let mut case = |change: fn(&mut Statistics)| {
            let mut bad = part(7, true, "a");
            change(&mut bad);
            cases.push(bad);
        };
        case(|bad| bad.bounds_us = vec![20, 10]);
        case(|bad| bad.bounds_us = (0..100).collect());
        case(|bad| bad.http[0].service = "x".repeat(NAME + 1));
        case(|bad| bad.http[0].service = "shop/\u{9b}2J".into());
        case(|bad| bad.http[0].route = "\x1b[2J".into());
        case(|bad| {
            bad.http[0].outcomes = vec![HttpOutcome::default(); OUTCOMES];
            bad.http = vec![bad.http[0].clone(); ALL_OUTCOMES / OUTCOMES + 1];
        });
        case(|bad| bad.http[0].buckets = vec![1; 2]);
        case(|bad| bad.http[0].outcomes = vec![HttpOutcome::default(); OUTCOMES + 1]);
        case(|bad| bad.http = vec![bad.http[0].clone(); SERIES + 1]);
        case(|bad| bad.tcp = vec![TcpSeries::default(); SERIES + 1]);
        case(|bad| bad.retries = vec![Retries { service: "x".repeat(NAME + 1), ..Retries::default() }]);
        for bad in cases {
            assert!(parts().add(bad.clone()).is_err(), "{:?}", bad.bounds_us);
        }
        let request = TappedRequest { path: "/".repeat(TEXT + 1), ..TappedRequest::default() };
        assert!(check_tapped(&Tapped { requests: vec![request], ..Tapped::default() }).is_err());
        for text in ["a\nb", "\u{9b}", "\x7f"] {
            let request = TappedRequest { trace_id: text.into(), ..TappedRequest::default() };
            assert!(check_tapped(&Tapped { requests: vec![request], ..Tapped::default() }).is_err(), "{text:?}");
        }
        let many = vec![TappedRequest::default(); TAPPED + 1];
        assert!(check_tapped(&Tapped { requests: many, ..Tapped::default() }).is_err());
    }
}
