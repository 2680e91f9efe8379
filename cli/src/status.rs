//! `weft status`: what every sidecar holds, against what it should hold.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    client,
    listing::{self, Output},
    server::{Server, ServerArgs},
    style::{self, BAD, GOOD, WARNING},
    table::Table,
};

/// The demo's report is made of such rows too.
pub use crate::table::aligned as table;

/// Flags of `weft status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `GET /weft/v1/proxies`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Proxies {
    /// Counts what was pushed; starts anew with the control plane.
    pub revision: u64,
    /// The event that what is pushed reflects.
    pub store_revision: Option<u64>,
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
    /// Identity that it proved.
    pub spiffe_id: String,
    address: String,
    connected_seconds: i64,
    /// Version of the sidecar.
    pub sidecar_version: String,
    /// Whether its app is.
    pub healthy: bool,
    /// Whether it is about to leave.
    pub draining: bool,
    /// Seconds until its certificate ends; negative when it has.
    pub cert_expiry_seconds: Option<i64>,
    /// The event that what it holds reflects.
    pub store_revision: u64,
    /// What came to each port of its app.
    pub connections: Vec<PortConnections>,
    /// Traces end at its app: what was seen of it.
    pub trace_propagation: Option<TracePropagation>,
    /// State of each type of resource.
    pub types: Vec<Type>,
}

/// Requests of an app that seems not to pass on the trace contexts that it receives, since its sidecar started.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TracePropagation {
    /// To it, with a context.
    pub served: u64,
    /// From it, with one.
    pub passed_on: u64,
    /// From it, without one.
    pub orphans: u64,
    /// Of these, while it served some that had one.
    pub orphans_meanwhile: u64,
}

/// Connections that a sidecar took at one port of its app since it started.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortConnections {
    /// Number of the port.
    pub port: u16,
    /// In plaintext.
    pub plaintext: u64,
    /// Over mutual TLS, when a plaintext one last came.
    pub mtls: u64,
    /// It takes mutual TLS only.
    pub strict: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Type {
    /// Such as `Service`.
    pub r#type: String,
    /// SYNCED, NOT_SENT, STALE or ERROR.
    pub state: String,
    /// Resources sent and not removed.
    pub sent: u64,
    /// Of those, acknowledged.
    pub acked: u64,
    /// Why something was rejected.
    pub error: String,
}

impl Proxy {
    /// It was sent trust roots that it has not taken.
    pub fn has_other_roots(&self) -> bool {
        self.types.iter().any(|kind| kind.r#type == "TrustBundle" && ["ERROR", "STALE"].contains(&kind.state.as_str()))
    }

    /// The worst state of its resource types: `ERROR`, `STALE`, `SYNCED`, or `NOT_SENT` when nothing was sent yet.
    pub fn state(&self) -> &'static str {
        let any = |state| self.types.iter().any(|t| t.state == state);
        ["ERROR", "STALE", "SYNCED"].into_iter().find(|state| any(*state)).unwrap_or("NOT_SENT")
    }

    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its state, and what it rejected.
    pub fn why(&self) -> String {
        let failed = self.types.iter().find(|of| of.state == "ERROR");
        failed.map_or_else(|| self.state().to_owned(), |of| format!("rejected {}: {}", of.r#type, of.error))
    }

    /// What it rejected, if it did.
    pub fn problem(&self) -> Option<String> {
        (self.state() == "ERROR").then(|| format!("{}: {}", self.id(), self.why()))
    }
}

impl Proxies {
    /// `GET /weft/v1/proxies`, and the JSON that it answered.
    pub async fn ask(server: &Server) -> anyhow::Result<(Self, Value)> {
        let value = server.get("/weft/v1/proxies").await?;
        Ok((Self::deserialize(&value).with_context(|| unexpected(server.url()))?, value))
    }

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

/// Asks the control plane at a plain address; for the demo.
pub async fn proxies(server: &str) -> anyhow::Result<(Proxies, Value)> {
    let body = client::get(server, "/weft/v1/proxies").await?;
    let value = serde_json::from_slice(&body).with_context(|| unexpected(server))?;
    Ok((Proxies::deserialize(&value).with_context(|| unexpected(server))?, value))
}

fn unexpected(server: &str) -> String {
    format!("GET /weft/v1/proxies from {server}: not the expected JSON; do the versions match?")
}

/// Prints the listing.
pub async fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (proxies, value) = Proxies::ask(&Server::new(&args.server).await?).await?;
    let names: Vec<String> = proxies.items.iter().map(Proxy::id).collect();
    let table = sidecars(&proxies, args.output == Output::Wide);
    listing::print(args.output, &value, &names, &table, "no sidecar is connected");
    proxies.items.iter().filter_map(Proxy::problem).for_each(|problem| style::fail(&problem));
    Ok(ExitCode::from(proxies.exit_code()))
}

/// A state in its colour.
pub fn colored(state: &str) -> String {
    let style = match state {
        "SYNCED" => GOOD,
        "ERROR" => BAD,
        _ => WARNING,
    };
    style::paint(style, state)
}

fn sidecars(proxies: &Proxies, wide: bool) -> Table {
    let mut heading = vec!["NAMESPACE", "NAME", "STATE", "HEALTH", "CONNECTED", "CERTIFICATE"];
    if wide {
        heading.extend(["ADDRESS", "VERSION", "IDENTITY"]);
    }
    let mut table = Table::new(&heading);
    for proxy in &proxies.items {
        let health = match (proxy.draining, proxy.healthy) {
            (true, _) => style::paint(WARNING, "draining"),
            (false, true) => style::paint(GOOD, "healthy"),
            (false, false) => style::paint(BAD, "unhealthy"),
        };
        let certificate = proxy.cert_expiry_seconds.map_or_else(|| "-".to_owned(), listing::duration);
        let mut row = vec![proxy.namespace.clone(), proxy.name.clone(), colored(proxy.state()), health];
        row.extend([listing::duration(proxy.connected_seconds), certificate]);
        if wide {
            row.extend([proxy.address.clone(), proxy.sidecar_version.clone(), proxy.spiffe_id.clone()]);
        }
        table.row(row);
    }
    table
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
        let proxies = Proxies { items: vec![Proxy::default()], ..Proxies::default() };
        assert_eq!((proxies.synced(), proxies.exit_code()), (0, 3));
    }

    #[test]
    fn a_sidecar_is_one_line() {
        let (proxies, _) = example("SYNCED", true);
        let text = |wide| anstream::adapter::strip_str(&sidecars(&proxies, wide).render(None)).to_string();
        assert!(text(false).contains("default    catalog-x1  SYNCED  healthy  12s        -\n"), "{}", text(false));
        assert!(text(true).contains("spiffe://weft.local/ns/default/sa/catalog"));
    }

    #[test]
    fn a_rejection_is_told() {
        let (proxies, _) = example("ERROR", true);
        assert_eq!(proxies.items[0].problem().unwrap(), "default/catalog-x1: rejected Service: no");
    }
}
