//! The five services, wired to each other directly.

use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use http::Method;

use crate::{catalog, client::Client, ledger, orders, payments, storefront};

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn storefront_answers_with_the_catalog_version_and_an_order() {
    let [catalog_at, orders_at, payments_at, ledger_at, storefront_at] = [free(), free(), free(), free(), free()];
    tokio::spawn(catalog::run(catalog_at, "v2", "c1"));
    tokio::spawn(payments::run(payments_at));
    let entries_at = free();
    tokio::spawn(ledger::run(ledger_at, Some(entries_at)));
    let upstreams = orders::Upstreams { payments: payments_at, journal: ledger_at, entries: entries_at };
    tokio::spawn(orders::run(orders_at, upstreams));
    tokio::spawn(storefront::run(storefront_at, catalog_at, orders_at));
    let client = Client::new(storefront_at, "storefront");
    for number in 1..=2 {
        let response = loop {
            match client.call(Method::GET, "/", Bytes::new()).await {
                Ok(response) if response.status() == 200 => break response,
                _ => tokio::task::yield_now().await,
            }
        };
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["catalog_version"], "v2");
        assert_eq!(body["catalog_replica"], "c1");
        assert!(body["order"]["ledger_entry"].as_u64().unwrap() >= number);
    }
}
