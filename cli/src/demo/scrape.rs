//! Reads the sidecars' metrics (Prometheus text).

use std::collections::BTreeMap;

use super::checks::{Edge, Healing};

/// One sample: name, labels, value.
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: u64,
}

/// The sum over all series of `name`.
pub fn sum(text: &str, name: &str) -> u64 {
    samples(text).filter(|sample| sample.name == name).map(|sample| sample.value).sum()
}

/// What one sidecar did about failures.
pub fn healing(text: &str) -> Healing {
    let mut healing = Healing { retries: sum(text, "weft_upstream_retries_total"), ..Healing::default() };
    for sample in samples(text) {
        let labels = |name: &str, value: &str| label(sample.labels, name) == Some(value);
        match sample.name {
            "weft_upstream_retries_total" if labels("reason", "try_timeout") => healing.timeouts += sample.value,
            "weft_circuit_transitions_total" if labels("scope", "endpoint") && labels("cause", "probe_failed") => {}
            "weft_circuit_transitions_total" if labels("scope", "endpoint") && labels("to", "open") => {
                healing.ejections += sample.value;
            }
            "weft_circuit_transitions_total" if labels("scope", "endpoint") && labels("to", "closed") => {
                healing.recoveries += sample.value;
            }
            _ => {}
        }
    }
    healing
}

/// What the sidecar of `from` sent out, by service.
pub fn edges(text: &str, from: &str) -> Vec<Edge> {
    let mut edges: BTreeMap<String, Edge> = BTreeMap::new();
    for sample in samples(text) {
        let counted = matches!(
            sample.name,
            "weft_http_requests_total" | "weft_tcp_connections_total" | "weft_tcp_open_connections"
        );
        // What was answered before a hop was chosen was neither mutual TLS nor plaintext, nor is a tunnel that the other
        // side did not open.
        let no_hop = matches!(
            label(sample.labels, "reason"),
            Some("no_endpoints" | "unknown_service" | "not_ready" | "circuit_open" | "upgrade_refused")
        );
        if !counted || no_hop || label(sample.labels, "direction") != Some("outbound") {
            continue;
        }
        let to = service(label(sample.labels, "service").unwrap_or_default());
        let edge = edges.entry(to.to_owned()).or_insert_with(|| Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            ..Edge::default()
        });
        edge.total += sample.value;
        if label(sample.labels, "tls") == Some("mtls") {
            edge.mtls += sample.value;
        }
    }
    edges.into_values().filter(|edge| edge.total > 0).collect()
}

/// `default/catalog-v1` is the service `catalog`: the demo's subsets are backends of one service.
fn service(target: &str) -> &str {
    let name = target.rsplit('/').next().unwrap_or(target);
    let name = name.split([':', '.']).next().unwrap_or(name);
    name.strip_suffix("-v1").or_else(|| name.strip_suffix("-v2")).unwrap_or(name)
}

fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        // A counter may be written as `12` or `12.0`.
        let value = value.split('.').next()?.parse().ok()?;
        Some(Sample { name, labels: labels.trim_end_matches('}'), value })
    })
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# TYPE weft_http_requests_total counter
weft_http_requests_total{direction="outbound",service="default/catalog-v1",tls="mtls",code_class="2xx"} 8
weft_http_requests_total{direction="outbound",service="default/catalog-v2",tls="none",code_class="2xx"} 2
weft_http_requests_total{direction="inbound",service="default/storefront",tls="mtls",code_class="2xx"} 10
weft_tcp_connections_total{direction="outbound",service="default/ledger",port="80",tls="mtls"} 3
weft_tcp_connections_total{direction="outbound",service="default/ledger",port="80",tls="none",reason="upgrade_refused"} 5
weft_cert_rotations_total 4
"#;

    #[test]
    fn outbound_series_become_edges() {
        let edge = |to: &str, total, mtls| Edge { from: "a".into(), to: to.into(), total, mtls };
        assert_eq!(edges(TEXT, "a"), [edge("catalog", 10, 8), edge("ledger", 3, 3)]);
    }

    #[test]
    fn ejections_and_recoveries_are_those_of_endpoints() {
        let text = r#"weft_upstream_retries_total{service="a",reason="status"} 7
weft_upstream_retries_total{service="a",reason="try_timeout"} 2
weft_circuit_transitions_total{service="a",scope="endpoint",to="open",cause="success_share"} 2
weft_circuit_transitions_total{service="a",scope="endpoint",to="open",cause="probe_failed"} 5
weft_circuit_transitions_total{service="a",scope="endpoint",to="half_open",cause="probe"} 6
weft_circuit_transitions_total{service="a",scope="endpoint",to="closed",cause="probe_succeeded"} 1
weft_circuit_transitions_total{service="a",scope="service",to="open",cause="consecutive_failures"} 9
"#;
        assert_eq!(healing(text), Healing { retries: 9, timeouts: 2, ejections: 2, recoveries: 1 });
    }

    #[test]
    fn a_series_is_summed_over_its_labels() {
        assert_eq!(sum(TEXT, "weft_cert_rotations_total"), 4);
        assert_eq!(sum(TEXT, "weft_http_requests_total"), 20);
        assert_eq!(sum(TEXT, "weft_absent"), 0);
    }
}
