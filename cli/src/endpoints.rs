//! `weft endpoints`: where the requests for a service may go.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use weft_control_plane::source::did_you_mean;

use crate::{
    listing::{self, Output, items, text},
    server::{CallError, Server, ServerArgs, with_query},
    style::{self, BAD, GOOD, WARNING},
    table::Table,
};

/// Flags of `weft endpoints`.
#[derive(Args, Clone, Debug)]
pub struct EndpointsArgs {
    /// SERVICE or NAMESPACE/SERVICE [default: all services]
    #[arg(value_name = "SVC")]
    pub service: Option<String>,
    /// Namespace of the service [default: default]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Services of all namespaces
    #[arg(long, short = 'A', conflicts_with_all = ["namespace", "service"])]
    pub all_namespaces: bool,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `GET /weft/v1/endpoints`; `service` is `namespace/name`.
pub async fn ask(server: &Server, service: Option<&str>) -> Result<Value, CallError> {
    server.get(&with_query("/weft/v1/endpoints", &[("service", service)])).await
}

/// Prints the listing: exit code 3 when a service that was named has no healthy endpoint.
pub async fn run(args: EndpointsArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let service = args.service.as_ref().map(|service| match service.contains('/') {
        true => service.clone(),
        false => format!("{}/{service}", args.namespace.as_deref().unwrap_or("default")),
    });
    let mut value = ask(&server, service.as_deref()).await?;
    if service.is_none() {
        narrow(&mut value, args.namespace.as_deref());
    }
    let found = items(&value);
    let names: Vec<String> = found.iter().map(|item| text(item, "address")).collect();
    let empty = match &service {
        Some(service) => nothing(service, items(&ask(&server, None).await?)),
        None => "no endpoints".to_owned(),
    };
    listing::print(args.output, &value, &names, &table(found, args.output == Output::Wide), &empty);
    let usable = found.iter().any(|item| item["healthy"] == true && item["draining"] != true);
    Ok(if service.is_some() && !usable { ExitCode::from(3) } else { server.exit_code() })
}

/// Leaves those of one namespace.
fn narrow(value: &mut Value, namespace: Option<&str>) {
    let Some(namespace) = namespace else { return };
    let prefix = format!("{namespace}/");
    if let Some(items) = value["items"].as_array_mut() {
        items.retain(|item| text(item, "service").starts_with(&prefix));
    }
}

fn nothing(service: &str, others: &[Value]) -> String {
    let names: Vec<String> = others.iter().map(|item| text(item, "service")).collect();
    let hint = did_you_mean(service, names.iter().map(String::as_str));
    let hint = if hint.is_empty() { "weft get services -A lists the services".to_owned() } else { hint };
    format!("{service}: no endpoints; {hint}")
}

/// Endpoints as rows.
pub fn table(items: &[Value], wide: bool) -> Table {
    let mut heading = vec!["SERVICE", "ADDRESS", "PORTS", "MESH", "HEALTH", "WORKLOAD"];
    if wide {
        heading.push("IDENTITY");
    }
    let mut table = Table::new(&heading);
    for item in items {
        let health = match (item["draining"] == true, item["healthy"] == true) {
            (true, _) => style::paint(WARNING, "draining"),
            (false, true) => style::paint(GOOD, "healthy"),
            (false, false) => style::paint(BAD, "unhealthy"),
        };
        let mesh = Some(text(item, "mesh")).filter(|mesh| !mesh.is_empty()).unwrap_or_else(|| "-".to_owned());
        let mut row = vec![text(item, "service"), text(item, "address"), ports(&item["ports"]), mesh, health];
        row.push(text(item, "workload"));
        if wide {
            row.push(text(item, "spiffeId"));
        }
        table.row(row);
    }
    table
}

/// Service port to the app's port, as `80=8080`.
fn ports(value: &Value) -> String {
    let pairs = value.as_object().into_iter().flatten();
    let texts: Vec<String> =
        pairs.map(|(from, to)| if to == from { from.clone() } else { format!("{from}={to}") }).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_is_one_line() {
        let item = json!({"service": "shop/catalog", "address": "127.0.0.1", "ports": {"80": 8080}, "mesh": "",
            "spiffeId": "spiffe://a", "healthy": true, "draining": false, "workload": "shop/catalog-1"});
        let text = table(std::slice::from_ref(&item), true).render(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(
            text.ends_with("shop/catalog  127.0.0.1  80=8080  -     healthy  shop/catalog-1  spiffe://a\n"),
            "{text}"
        );
        let hint = nothing("shop/catalgo", &[item]);
        assert_eq!(hint, "shop/catalgo: no endpoints; did you mean \"shop/catalog\"?");
    }
}
