//! `weft status`: what every sidecar holds, against what it should hold.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    args::{Output, StatusArgs},
    client,
};

/// `GET /weft/v1/proxies`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Proxies {
    /// One per connected sidecar.
    pub items: Vec<Proxy>,
}

/// One sidecar.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Proxy {
    /// The instance's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    spiffe_id: String,
    address: String,
    connected_seconds: f64,
    sidecar_version: String,
    healthy: bool,
    draining: bool,
    cert_expiry_seconds: Option<f64>,
    types: Vec<Type>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Type {
    r#type: String,
    state: String,
    error: String,
}

impl Proxy {
    /// The worst state of its resource types: `ERROR`, `STALE`, `SYNCED`, or `NOT_SENT` when nothing was sent yet.
    pub fn state(&self) -> &'static str {
        let any = |state| self.types.iter().any(|t| t.state == state);
        ["ERROR", "STALE", "SYNCED"].into_iter().find(|state| any(*state)).unwrap_or("NOT_SENT")
    }

    fn problem(&self) -> Option<String> {
        let failed = self.types.iter().find(|t| t.state == "ERROR");
        failed.map(|t| format!("{}/{}: rejected {}: {}", self.namespace, self.name, t.r#type, t.error))
    }
}

impl Proxies {
    /// How many hold what they should hold.
    pub fn synced(&self) -> usize {
        self.items.iter().filter(|proxy| proxy.state() == "SYNCED").count()
    }

    /// 0, or 3 when a sidecar is unhealthy, has rejected something, or lags behind.
    fn exit_code(&self) -> u8 {
        let good = |proxy: &Proxy| proxy.state() == "SYNCED" && (proxy.healthy || proxy.draining);
        if self.items.iter().all(good) { 0 } else { 3 }
    }
}

/// Asks the control plane.
pub async fn proxies(server: &str) -> anyhow::Result<(Proxies, Value)> {
    let body = client::get(server, "/weft/v1/proxies").await?;
    let parse = || format!("GET /weft/v1/proxies from {server}: not the expected JSON; do the versions match");
    let value: Value = serde_json::from_slice(&body).with_context(parse)?;
    Ok((Proxies::deserialize(&value).with_context(parse)?, value))
}

/// Prints the listing.
pub async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (proxies, value) = proxies(&args.server).await?;
    print!("{}", render(&proxies, &value, args.output));
    for problem in proxies.items.iter().filter_map(Proxy::problem) {
        eprintln!("weft: {problem}");
    }
    Ok(ExitCode::from(proxies.exit_code()))
}

fn render(proxies: &Proxies, value: &Value, output: Output) -> String {
    match output {
        Output::Json => format!("{value:#}\n"),
        Output::Yaml => {
            let mut text = String::new();
            yaml(value, 0, &mut text);
            text
        }
        Output::Name => proxies.items.iter().map(|p| format!("{}/{}\n", p.namespace, p.name)).collect(),
        Output::Table | Output::Wide if proxies.items.is_empty() => "no sidecar is connected\n".to_owned(),
        Output::Table | Output::Wide => table(&rows(proxies, output == Output::Wide)),
    }
}

fn rows(proxies: &Proxies, wide: bool) -> Vec<Vec<String>> {
    let mut header = vec!["NAMESPACE", "NAME", "STATE", "HEALTH", "CONNECTED", "CERTIFICATE"];
    if wide {
        header.extend(["ADDRESS", "VERSION", "IDENTITY"]);
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for proxy in &proxies.items {
        let health = match (proxy.draining, proxy.healthy) {
            (true, _) => "draining",
            (false, true) => "healthy",
            (false, false) => "unhealthy",
        };
        let certificate = proxy.cert_expiry_seconds.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}s"));
        let connected = format!("{:.0}s", proxy.connected_seconds);
        let mut row = vec![proxy.namespace.clone(), proxy.name.clone(), proxy.state().to_owned(), health.to_owned()];
        row.extend([connected, certificate]);
        if wide {
            row.extend([proxy.address.clone(), proxy.sidecar_version.clone(), proxy.spiffe_id.clone()]);
        }
        rows.push(row);
    }
    rows
}

/// Columns two blanks apart, as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell: &String| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String does not fail.
            write!(line, "{cell:width$}  ").ok();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Block style; scalars as JSON, which YAML contains.
fn yaml(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, field) in fields {
                text.push_str(&format!("{pad}{key}:"));
                nested(field, indent + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut block = String::new();
                yaml(item, indent + 2, &mut block);
                text.push_str(&format!("{pad}- {}", block.trim_start()));
            }
        }
        scalar => text.push_str(&format!("{pad}{scalar}\n")),
    }
}

fn nested(value: &Value, indent: usize, text: &mut String) {
    let block = value.as_object().is_some_and(|o| !o.is_empty()) || value.as_array().is_some_and(|a| !a.is_empty());
    if block {
        text.push('\n');
        yaml(value, indent, text);
    } else {
        text.push_str(&format!(" {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example(state: &str, healthy: bool) -> (Proxies, Value) {
        let value = json!({"revision": 7, "items": [{
            "name": "catalog-x1", "namespace": "default", "spiffeId": "spiffe://weft.local/ns/default/sa/catalog",
            "address": "127.0.0.1:4242", "connectedSeconds": 12, "sidecarVersion": "0.1.0", "healthy": healthy,
            "draining": false, "certExpirySeconds": null,
            "types": [{"type": "Service", "state": state, "sent": 3, "acked": 3, "error": "no"},
                      {"type": "TrustBundle", "state": "SYNCED", "sent": 1, "acked": 1, "error": ""}],
        }]});
        (Proxies::deserialize(&value).unwrap(), value)
    }

    #[test]
    fn exit_code_is_3_when_a_sidecar_lags_or_is_unhealthy() {
        for (state, healthy, code) in
            [("SYNCED", true, 0), ("NOT_SENT", true, 0), ("STALE", true, 3), ("ERROR", true, 3), ("SYNCED", false, 3)]
        {
            assert_eq!(example(state, healthy).0.exit_code(), code, "{state} {healthy}");
        }
    }

    #[test]
    fn a_proxy_without_types_is_not_synced() {
        let proxies = Proxies { items: vec![Proxy::default()] };
        assert_eq!((proxies.synced(), proxies.exit_code()), (0, 3));
    }

    #[test]
    fn each_form_names_the_sidecar() {
        let (proxies, value) = example("SYNCED", true);
        assert_eq!(render(&proxies, &value, Output::Name), "default/catalog-x1\n");
        let table = render(&proxies, &value, Output::Table);
        assert!(table.contains("default    catalog-x1  SYNCED  healthy  12s        -"), "{table}");
        assert!(render(&proxies, &value, Output::Wide).contains("spiffe://weft.local/ns/default/sa/catalog"));
        let yaml = render(&proxies, &value, Output::Yaml);
        assert!(yaml.contains("    name: \"catalog-x1\"\n") || yaml.contains("name: \"catalog-x1\"\n"), "{yaml}");
        assert_eq!(serde_json::from_str::<Value>(&render(&proxies, &value, Output::Json)).unwrap(), value);
    }

    #[test]
    fn a_rejection_is_told() {
        let (proxies, _) = example("ERROR", true);
        assert_eq!(proxies.items[0].problem().unwrap(), "default/catalog-x1: rejected Service: no");
    }
}
