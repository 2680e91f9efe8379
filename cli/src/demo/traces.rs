//! Where the demo's spans go, and the trace that its report shows.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    client,
    listing::{items, text},
    server::with_query,
};

/// OTLP over gRPC and the UI of a Jaeger on this machine.
const JAEGER: (u16, u16) = (4317, 16686);
/// What of a request's way the trace must show.
const SERVICES: [&str; 5] = ["storefront", "catalog", "orders", "payments", "ledger"];

/// Who takes the spans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Collector {
    /// The demo's own control plane, at this address.
    Own(SocketAddr),
    /// A Jaeger that was there already.
    Jaeger,
    /// The one that was asked for.
    Given(String),
}

impl Collector {
    /// The one that was asked for, or a Jaeger on this machine, or our own.
    pub async fn find(given: Option<String>, own: SocketAddr) -> Self {
        if let Some(url) = given {
            return Self::Given(url);
        }
        if listens(JAEGER.0).await && listens(JAEGER.1).await { Self::Jaeger } else { Self::Own(own) }
    }

    fn endpoint(&self) -> String {
        match self {
            Self::Own(address) => format!("http://{address}"),
            Self::Jaeger => format!("http://127.0.0.1:{}", JAEGER.0),
            Self::Given(url) => url.clone(),
        }
    }

    /// The mesh's settings: every trace is kept.
    pub fn resource(&self) -> String {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata:\n  name: default\nspec:\n  tracing:\n    \
             samplingPercent: 100\n    endpoint: {}\n",
            self.endpoint()
        )
    }

    /// Flags of the control plane.
    pub fn flags(&self) -> Vec<String> {
        match self {
            Self::Own(address) => vec!["--otlp-listen".to_owned(), address.to_string()],
            Self::Jaeger | Self::Given(_) => Vec::new(),
        }
    }

    /// Where people find the traces.
    pub fn told(&self, server: &str) -> String {
        match self {
            Self::Own(_) => format!("weft trace --server {server}"),
            Self::Jaeger => format!("traces: http://127.0.0.1:{}/search?service=storefront", JAEGER.1),
            Self::Given(url) => format!("traces: in the backend behind {url}"),
        }
    }
}

async fn listens(port: u16) -> bool {
    let connect = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    matches!(timeout(Duration::from_secs(1), connect).await, Ok(Ok(_)))
}

/// A trace of one request through the services above, with a retry in it, from the demo's control plane.
pub async fn with_retry(server: &str) -> Option<Value> {
    let again = [("service", Some("storefront")), ("tags", Some("{\"http.request.resend_count\":\"1\"}"))];
    let list = json(server, &with_query("/api/traces", &again)).await?;
    for found in list["data"].as_array()? {
        let id = text(found, "traceID");
        let trace = json(server, &format!("/weft/v1/traces/{id}")).await?;
        if is_whole(&trace) {
            return Some(trace);
        }
    }
    None
}

/// Whether all services are in it, and the caller got what it wanted.
fn is_whole(trace: &Value) -> bool {
    let all = SERVICES.iter().all(|service| items(trace).iter().any(|span| span["service"] == *service));
    let root = items(trace).iter().find(|span| span["parent"].is_null());
    all && root.is_some_and(|root| root["error"] != true)
}

async fn json(server: &str, path: &str) -> Option<Value> {
    serde_json::from_slice(&client::get(server, path).await.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trace_is_whole_when_every_service_is_in_it_and_its_first_span_is_well() {
        let span = |service: &str, parent: Option<&str>| json!({ "service": service, "parent": parent });
        let spans = || {
            vec![
                span("storefront", None),
                span("catalog", Some("1")),
                span("orders", Some("1")),
                span("payments", Some("2")),
                span("ledger", Some("2")),
            ]
        };
        assert!(is_whole(&json!({ "items": spans() })));
        assert!(!is_whole(&json!({ "items": spans()[..4] })));
        let mut failed = spans();
        failed[0]["error"] = true.into();
        assert!(!is_whole(&json!({ "items": failed })));
    }

    #[test]
    fn spans_go_where_they_were_asked_to() {
        let own = Collector::Own(SocketAddr::from(([127, 0, 0, 1], 5000)));
        assert!(own.resource().contains("endpoint: http://127.0.0.1:5000\n"));
        assert_eq!(own.flags(), ["--otlp-listen", "127.0.0.1:5000"]);
        let given = Collector::Given("http://10.0.0.9:4317".into());
        assert!(given.resource().contains("endpoint: http://10.0.0.9:4317\n") && given.flags().is_empty());
    }
}
