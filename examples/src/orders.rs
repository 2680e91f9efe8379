//! `orders`: `POST /orders` authorizes a payment over gRPC and writes a line to the ledger over TCP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use tonic::{
    Request,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use crate::{
    context, ledger,
    proto::{AuthorizeRequest, payments_client::PaymentsClient},
    serve,
};

/// Serves until the process ends; `payments` and `ledger` are where those services are reached.
pub async fn run(listen: SocketAddr, payments: SocketAddr, ledger: SocketAddr) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    let channel = Endpoint::from_shared(format!("http://{payments}"))?.tcp_nodelay(true).connect_lazy();
    let ledger = ledger::Client::new(ledger);
    let count = Arc::new(AtomicU64::new(0));
    serve::http(listener, move |request| {
        let (channel, ledger, count) = (channel.clone(), ledger.clone(), count.clone());
        async move {
            if request.method() != Method::POST || request.uri().path() != "/orders" {
                return Ok(serve::not_found());
            }
            let of = context::of(request.headers());
            request.into_body().collect().await.context("read the order: the body broke off")?;
            let order = place(channel, &ledger, of, count.fetch_add(1, Ordering::Relaxed) + 1).await?;
            Ok(serve::json(StatusCode::CREATED, &order))
        }
    })
    .await
}

async fn place(
    channel: Channel,
    ledger: &ledger::Client,
    of: HeaderMap,
    number: u64,
) -> anyhow::Result<serde_json::Value> {
    let order_id = format!("order-{number}");
    let mut request = Request::new(AuthorizeRequest { order_id: order_id.clone(), amount_cents: 1299 });
    *request.metadata_mut() = MetadataMap::from_headers(of);
    let answer = PaymentsClient::new(channel).authorize(request).await.context("authorize the payment")?.into_inner();
    let entry = ledger.write(&order_id).await?;
    Ok(serde_json::json!({ "id": order_id, "authorization": answer.authorization, "ledger_entry": entry }))
}
