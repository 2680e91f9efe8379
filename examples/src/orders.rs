//! `orders`: `POST /orders` authorizes a payment over gRPC, makes an entry in the ledger over HTTP, and writes a line into
//! its journal over TCP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use tonic::{
    Request,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use crate::{
    client::Client,
    context, ledger,
    proto::{AuthorizeRequest, payments_client::PaymentsClient},
    serve,
};

/// Where the services are reached.
#[derive(Clone, Copy, Debug)]
pub struct Upstreams {
    /// `payments`.
    pub payments: SocketAddr,
    /// The journal of `ledger`.
    pub journal: SocketAddr,
    /// The entries of `ledger`.
    pub entries: SocketAddr,
}

/// What an order takes.
#[derive(Clone)]
struct Clients {
    payments: Channel,
    journal: ledger::Client,
    entries: Client,
}

/// Serves until the process ends.
pub async fn run(listen: SocketAddr, upstreams: Upstreams) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    let Upstreams { payments, journal, entries } = upstreams;
    let clients = Clients {
        payments: Endpoint::from_shared(format!("http://{payments}"))?.tcp_nodelay(true).connect_lazy(),
        journal: ledger::Client::new(journal),
        entries: Client::new(entries, "ledger"),
    };
    let count = Arc::new(AtomicU64::new(0));
    serve::http(listener, move |request| {
        let (clients, count) = (clients.clone(), count.clone());
        async move {
            if request.method() != Method::POST || request.uri().path() != "/orders" {
                return Ok(serve::not_found());
            }
            let of = context::of(request.headers());
            request.into_body().collect().await.context("read the order: the body broke off")?;
            let order = place(clients, of, count.fetch_add(1, Ordering::Relaxed) + 1).await?;
            Ok(serve::json(StatusCode::CREATED, &order))
        }
    })
    .await
}

async fn place(clients: Clients, of: HeaderMap, number: u64) -> anyhow::Result<serde_json::Value> {
    let order_id = format!("order-{number}");
    let mut request = Request::new(AuthorizeRequest { order_id: order_id.clone(), amount_cents: 1299 });
    *request.metadata_mut() = MetadataMap::from_headers(of.clone());
    let mut payments = PaymentsClient::new(clients.payments);
    let answer = payments.authorize(request).await.context("authorize the payment")?.into_inner();
    let made = clients.entries.call_for(&of, Method::POST, "/entries", Bytes::from(order_id.clone())).await?;
    ensure!(made.status().is_success(), "call ledger: status {}", made.status());
    let made: serde_json::Value = serde_json::from_slice(made.body()).context("call ledger: answer is not JSON")?;
    let entry = made["entry"].as_u64().context("call ledger: no number of an entry")?;
    clients.journal.write(&format!("{order_id} is entry {entry}")).await?;
    Ok(serde_json::json!({ "id": order_id, "authorization": answer.authorization, "ledger_entry": entry }))
}
