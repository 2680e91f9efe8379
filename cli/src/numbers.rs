//! What `/weft/v1/stat` and `/weft/v1/edges` answer, and how people read it.

use serde::Deserialize;

use crate::{
    listing::number,
    style::{self, BAD, GOOD, WARNING},
};

/// One answer, or a line of one that goes on.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Answer {
    /// Of which time the numbers are.
    pub window: Window,
    /// Whose numbers they are.
    pub sidecars: Sidecars,
    /// Services, or edges.
    pub items: Vec<Item>,
    /// Edges, beside services.
    pub edges: Vec<Item>,
}

/// Of which time numbers are.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Window {
    /// None: since the sidecars started.
    pub seconds: Option<f64>,
}

/// Whose numbers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Sidecars {
    /// They answered.
    pub counted: usize,
    /// They did not.
    pub silent: usize,
}

/// A service, or an edge.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Item {
    /// `namespace/name:port`.
    pub service: String,
    /// Beginning of an edge.
    pub from: Caller,
    /// End of an edge.
    pub to: Called,
    /// Requests that ended.
    pub requests: u64,
    /// Of those, failed.
    pub failed: u64,
    /// As callers saw it.
    pub success_rate: Option<f64>,
    /// As it would have been without retries.
    pub actual_success_rate: Option<f64>,
    /// None: since the start.
    pub requests_per_second: Option<f64>,
    /// How long requests took.
    pub latency_ms: Latency,
    /// Part of requests and connections over mutual TLS.
    pub mtls_share: Option<f64>,
    /// Sent again.
    pub retries: u64,
    /// Opaque connections.
    pub tcp: Tcp,
}

/// Who calls.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Caller {
    outside: bool,
    namespace: String,
    /// As its sidecar calls itself.
    name: String,
    /// As its certificate has it.
    service_account: String,
    /// SPIFFE id.
    pub identity: String,
}

/// What is called.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Called {
    service: String,
}

/// Percentiles in milliseconds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Latency {
    /// Median.
    pub p50: Option<f64>,
    /// Of 20 requests, one took longer.
    pub p95: Option<f64>,
    /// Of 100 requests, one took longer.
    pub p99: Option<f64>,
}

/// Opaque connections.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct Tcp {
    /// Open now.
    pub open: u64,
    /// Ended.
    pub closed: u64,
    /// Of those, badly.
    pub failed: u64,
    /// To the service.
    pub sent_bytes: u64,
    /// From it.
    pub received_bytes: u64,
}

impl Answer {
    /// Of which time and of whom: `over the last 1.0 s, 8 sidecars`.
    pub fn about(&self) -> String {
        let window = self
            .window
            .seconds
            .map_or_else(|| "since the sidecars started".to_owned(), |seconds| format!("over the last {seconds:.1} s"));
        format!("{window}, {}", number(self.sidecars.counted, "sidecar"))
    }

    /// What is missing in it.
    pub fn missing(&self) -> Option<String> {
        let silent = self.sidecars.silent;
        (silent > 0).then(|| format!("{} did not answer: their numbers are missing", number(silent, "sidecar")))
    }
}

impl Item {
    /// The beginning of an edge, for people.
    pub fn caller(&self) -> String {
        if self.from.outside {
            return "(outside)".to_owned();
        }
        let Caller { namespace, name, service_account: account, .. } = &self.from;
        // The name is the sidecar's own word: where it is not that of the identity, both are shown.
        let own = name.strip_prefix(account.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if own || account.is_empty() {
            format!("{namespace}/{name}")
        } else {
            format!("{namespace}/{name} (sa {account})")
        }
    }

    /// The end of an edge, or the service.
    pub fn called(&self) -> &str {
        if self.service.is_empty() { &self.to.service } else { &self.service }
    }

    /// `mTLS`, `plaintext`, or how much of it is.
    pub fn secured(&self) -> String {
        match self.mtls_share {
            None => "-".to_owned(),
            Some(share) if share >= 1.0 => "mTLS".to_owned(),
            Some(share) if share <= 0.0 => "plaintext".to_owned(),
            share => format!("{} mTLS", percent(share)),
        }
    }

    /// Opaque connections, open and ended.
    pub fn connections(&self) -> String {
        let Tcp { open, closed, .. } = self.tcp;
        if open == 0 && closed == 0 { "-".to_owned() } else { format!("{open}+{closed}") }
    }
}

/// A part as a percentage. It says 100 only when nothing is missing.
pub fn percent(share: Option<f64>) -> String {
    let Some(share) = share else { return "-".to_owned() };
    let text = format!("{:.2} %", share * 100.0);
    if text == "100.00 %" && share < 1.0 { "99.99 %".to_owned() } else { text }
}

/// Milliseconds in the unit that people read.
pub fn latency(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms >= 1000.0 => format!("{:.2}s", ms / 1000.0),
        Some(ms) if ms >= 100.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{ms:.1}ms"),
    }
}

/// Requests in one second.
pub fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") })
}

/// Bytes with a unit.
pub fn bytes(count: u64) -> String {
    let (mut rest, mut fraction, mut unit) = (count, 0, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if rest < 1024 {
            break;
        }
        (fraction, rest, unit) = (rest % 1024 * 10 / 1024, rest / 1024, next);
    }
    if unit == "B" { format!("{rest}B") } else { format!("{rest}.{fraction}{unit}") }
}

/// A success rate in its colour.
pub fn colored(share: Option<f64>) -> String {
    let text = percent(share);
    match share {
        None => text,
        Some(share) if share >= 1.0 => style::paint(GOOD, &text),
        Some(share) if share >= 0.99 => text,
        Some(share) if share >= 0.9 => style::paint(WARNING, &text),
        Some(_) => style::paint(BAD, &text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_is_said_only_when_nothing_is_missing() {
        for (share, text) in [
            (Some(1.0), "100.00 %"),
            (Some(0.999_999), "99.99 %"),
            (Some(0.5), "50.00 %"),
            (Some(0.0), "0.00 %"),
            (None, "-"),
        ] {
            assert_eq!(percent(share), text);
        }
    }

    #[test]
    fn numbers_have_the_unit_that_people_read() {
        let texts = [Some(0.25), Some(99.94), Some(250.4), Some(1500.0), None].map(latency);
        assert_eq!(texts, ["0.2ms", "99.9ms", "250ms", "1.50s", "-"]);
        assert_eq!([Some(0.04), Some(12.34), Some(250.4), None].map(rate), ["0.0", "12.3", "250", "-"]);
        assert_eq!([0, 1023, 1024, 1536, 5 << 30].map(bytes), ["0B", "1023B", "1.0KiB", "1.5KiB", "5.0GiB"]);
    }

    #[test]
    fn a_caller_that_calls_itself_otherwise_than_its_identity_is_shown_with_both() {
        let caller = |name: &str, account: &str| {
            let from = Caller {
                namespace: "shop".into(),
                name: name.into(),
                service_account: account.into(),
                ..Caller::default()
            };
            Item { from, ..Item::default() }.caller()
        };
        for (name, account, shown) in [
            ("web", "web", "shop/web"),
            ("web-v2", "web", "shop/web-v2"),
            ("bank", "web", "shop/bank (sa web)"),
            ("webbank", "web", "shop/webbank (sa web)"),
            ("web", "default", "shop/web (sa default)"),
        ] {
            assert_eq!(caller(name, account), shown);
        }
    }

    #[test]
    fn an_edge_is_mtls_only_when_all_of_it_is() {
        let secured = |share| Item { mtls_share: share, ..Item::default() }.secured();
        assert_eq!([Some(1.0), Some(0.0), Some(0.25), None].map(secured), ["mTLS", "plaintext", "25.00 % mTLS", "-"]);
    }
}
