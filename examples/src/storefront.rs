//! `storefront`: `GET /` asks the catalog for its items, places an order, and answers with both; so does
//! `GET /limited`, for which the mesh has a rate limit.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::Value;

use crate::{client::Client, context, serve};

/// Serves until the process ends; `catalog` and `orders` are where those services are reached.
pub async fn run(listen: SocketAddr, catalog: SocketAddr, orders: SocketAddr) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    let catalog = Client::new(catalog, "catalog");
    let orders = Client::new(orders, "orders");
    serve::http(listener, move |request| {
        let (catalog, orders) = (catalog.clone(), orders.clone());
        async move {
            if request.method() != Method::GET || !matches!(request.uri().path(), "/" | "/limited") {
                return Ok(serve::not_found());
            }
            let of = context::of(request.headers());
            let items = value(catalog.call_for(&of, Method::GET, "/items", Bytes::new()).await?, "catalog")?;
            let body = Bytes::from_static(b"{}");
            let order = value(orders.call_for(&of, Method::POST, "/orders", body).await?, "orders")?;
            Ok(serve::json(
                StatusCode::OK,
                &serde_json::json!({
                    "catalog_version": items["version"],
                    "catalog_replica": items["replica"],
                    "order": order,
                }),
            ))
        }
    })
    .await
}

fn value(response: Response<Bytes>, service: &str) -> anyhow::Result<Value> {
    let (status, body) = (response.status(), response.body());
    ensure!(status.is_success(), "call {service}: status {}: {}", status.as_u16(), String::from_utf8_lossy(body));
    serde_json::from_slice(body).with_context(|| format!("call {service}: answer is not JSON"))
}
