//! `weft certs` and `weft config`: the certificates of the sidecars and the authority behind them, and what one sidecar
//! holds.

pub mod ca;
mod revoke;
mod rotate;

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::Value;
use weft_control_plane::source::did_you_mean;

use crate::{
    args,
    listing::{self, Output, items, text},
    server::{Server, ServerArgs},
    status::{Proxies, colored},
    style::{self, BAD, GOOD, STRONG, WARNING},
    table::Table,
};

/// Flags of `weft certs`.
#[derive(Args, Clone, Debug)]
pub struct CertsArgs {
    /// What to do [default: list the certificates of the connected sidecars]
    #[command(subcommand)]
    pub command: Option<CertsCommand>,
    /// Workloads of this namespace only
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Warn of certificates that end within this time; sidecars renew at half of the lifetime
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = args::any_duration)]
    pub within: Duration,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What can be done with certificates beside listing them.
#[derive(Clone, Debug, Subcommand)]
pub enum CertsCommand {
    /// Show the certificate authority: roots, issuer, rotation, revocations; exit code 3 when it needs something
    Ca(ca::CaArgs),
    /// Show what the authority did: certificates issued and refused, rotations, revocations
    Audit(ca::AuditArgs),
    /// Change the issuing certificate or the root while everything goes on
    Rotate(rotate::RotateArgs),
    /// Let a certificate, or all of an identity so far, be trusted no more
    Revoke(revoke::RevokeArgs),
    /// Withdraw a revocation
    Unrevoke(revoke::UnrevokeArgs),
}

/// Flags of `weft config`.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// NAME or NAMESPACE/NAME of a sidecar, as weft status lists them
    #[arg(value_name = "WORKLOAD")]
    pub workload: String,
    /// Namespace of the workload
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Does what the command says; without one, lists.
pub async fn run(args: CertsArgs) -> anyhow::Result<ExitCode> {
    match args.command.clone() {
        None => list(args).await,
        Some(CertsCommand::Ca(args)) => ca::run(args).await,
        Some(CertsCommand::Audit(args)) => ca::audit(args).await,
        Some(CertsCommand::Rotate(args)) => rotate::run(args).await,
        Some(CertsCommand::Revoke(args)) => revoke::run(args).await,
        Some(CertsCommand::Unrevoke(args)) => revoke::withdraw(args).await,
    }
}

/// Prints the certificates: exit code 3 when one has ended or is about to.
async fn list(args: CertsArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let (mut proxies, mut value) = Proxies::ask(&server).await?;
    if let Some(namespace) = &args.namespace {
        proxies.items.retain(|proxy| proxy.namespace == *namespace);
        if let Some(items) = value["items"].as_array_mut() {
            items.retain(|item| item["namespace"] == namespace.as_str());
        }
    }
    let within = i64::try_from(args.within.as_secs()).unwrap_or(i64::MAX);
    let names: Vec<String> = proxies.items.iter().map(|proxy| proxy.spiffe_id.clone()).collect();
    listing::print(args.output, &value, &names, &table(&proxies, within), "no sidecar is connected");
    let ending = proxies.items.iter().any(|proxy| proxy.cert_expiry_seconds.is_some_and(|left| left <= within));
    Ok(if ending { ExitCode::from(3) } else { server.exit_code() })
}

fn table(proxies: &Proxies, within: i64) -> Table {
    let mut table = Table::new(&["WORKLOAD", "STATE", "ENDS IN", "IDENTITY"]);
    for proxy in &proxies.items {
        let (state, left) = match proxy.cert_expiry_seconds {
            None => (style::paint(WARNING, "unknown"), "-".to_owned()),
            Some(left) if left <= 0 => (style::paint(BAD, "expired"), listing::duration(left)),
            Some(left) if left <= within => (style::paint(WARNING, "ending"), listing::duration(left)),
            Some(left) => (style::paint(GOOD, "valid"), listing::duration(left)),
        };
        table.row([proxy.id(), state, left, proxy.spiffe_id.clone()]);
    }
    table
}

/// The workload that may be meant: of an app that `weft run` started, whose name has an ending, by the app's name too.
fn near(id: &str, ids: &[String]) -> String {
    let instance = |known: &&String| known.strip_prefix(id).is_some_and(|rest| rest.starts_with('-'));
    match ids.iter().find(instance) {
        Some(known) => format!("did you mean {known:?}?"),
        None => did_you_mean(id, ids.iter().map(String::as_str)),
    }
}

/// Prints what one sidecar holds: exit code 3 when it is not what it should hold.
pub async fn config(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let (proxies, value) = Proxies::ask(&server).await?;
    let id = if args.workload.contains('/') { args.workload } else { format!("{}/{}", args.namespace, args.workload) };
    let found = proxies.items.iter().zip(items(&value)).find(|(proxy, _)| proxy.id() == id);
    let Some((proxy, item)) = found else {
        let ids: Vec<String> = proxies.items.iter().map(super::status::Proxy::id).collect();
        let hint = near(&id, &ids);
        let hint = if hint.is_empty() { "weft status lists those that are connected".to_owned() } else { hint };
        bail!("workload {id:?}: no such sidecar is connected; {hint}");
    };
    let table = types(item);
    if matches!(args.output, Output::Table | Output::Wide) {
        for (name, value) in [("Workload", proxy.id()), ("Identity", proxy.spiffe_id.clone())] {
            anstream::println!("{STRONG}{:<10}{STRONG:#}{value}", format!("{name}:"));
        }
        anstream::println!("{STRONG}{:<10}{STRONG:#}{}\n", "Version:", proxy.sidecar_version);
    }
    listing::print(args.output, item, &[proxy.id()], &table, "nothing was sent to it yet");
    if matches!(args.output, Output::Table | Output::Wide) {
        refused(item).iter().for_each(|line| style::fail(line));
    }
    Ok(if proxy.state() == "SYNCED" { server.exit_code() } else { ExitCode::from(3) })
}

/// The state of each type of resource.
fn types(item: &Value) -> Table {
    let mut table = Table::new(&["TYPE", "STATE", "SENT", "ACKED", "REVISION SENT", "REVISION ACKED"]);
    for of in item["types"].as_array().into_iter().flatten() {
        let state = colored(&text(of, "state"));
        let rest = ["sent", "acked", "sentRevision", "ackedRevision"].map(|field| text(of, field));
        table.row([text(of, "type"), state].into_iter().chain(rest));
    }
    table
}

/// What it rejected, each with its field and reason.
fn refused(item: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for of in item["types"].as_array().into_iter().flatten() {
        let rejections = of["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
        for one in rejections {
            let place = format!("{} {} ({})", text(of, "type"), text(one, "name"), text(one, "version"));
            lines.push(format!("rejected {place}: {}: {}", text(one, "field"), text(one, "reason")));
        }
        if rejections.is_empty() && of["state"] == "ERROR" {
            lines.push(format!("rejected {}: {}", text(of, "type"), text(of, "error")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_certificate_is_valid_ending_or_expired() {
        let item =
            |left: i64| json!({"name": "a", "namespace": "shop", "certExpirySeconds": left, "spiffeId": "spiffe://a"});
        let items = json!({"items": [item(3600), item(300), item(-60)]});
        let text = table(&Proxies::deserialize(&items).unwrap(), 300).render(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(text.contains("shop/a    valid    1h       spiffe://a\n"), "{text}");
        assert!(text.contains("ending   5m") && text.contains("expired  -1m"), "{text}");
    }

    #[test]
    fn a_workload_is_suggested_by_the_name_of_its_app() {
        let ids = ["shop/cart-s898t".to_owned(), "shop/cartoon-x".to_owned()];
        assert_eq!(near("shop/cart", &ids), "did you mean \"shop/cart-s898t\"?");
        assert_eq!(near("shop/cart-s889t", &ids), "did you mean \"shop/cart-s898t\"?");
        assert_eq!(near("shop/payments", &ids), "");
    }

    #[test]
    fn a_rejection_is_told_with_its_field() {
        let item = json!({"types": [
            {"type": "Service", "state": "ERROR", "sent": 3, "acked": 2, "sentRevision": 7, "error": "x", "refused":
                [{"name": "shop/a", "version": "ab", "field": "routes[0]", "reason": "no"}]},
            {"type": "TrustBundle", "state": "ERROR", "error": "bad root"}]});
        assert_eq!(refused(&item), ["rejected Service shop/a (ab): routes[0]: no", "rejected TrustBundle: bad root"]);
        let text = anstream::adapter::strip_str(&types(&item).render(None)).to_string();
        assert!(text.contains("Service      ERROR  3     2      7"), "{text}");
    }
}
