//! What the API tells of the log.

use serde_json::json;

use super::common::Api;
use crate::store::{Batch, Expect, Key, Write};

async fn put(api: &Api, author: &str, reason: &str, object: serde_json::Value) {
    let write = Write { key: Key::new("Service", "shop", "cart"), expect: Expect::Any, object: Some(object) };
    let batch = Batch { author: author.into(), reason: reason.into(), writes: vec![write] };
    api.store.append(batch).await.expect("taken");
}

#[tokio::test]
async fn what_is_written_into_statuses_is_left_out_when_asked() {
    let api = Api::new();
    for (author, reason) in [("ada", "first"), ("weft", "status"), ("weft", "defaults"), ("ada", "status")] {
        put(&api, author, reason, json!({})).await;
    }
    let told = async |query: &str| {
        let body = api.get(&format!("/weft/v1/history{query}")).await.body;
        body["items"].as_array().expect("items").iter().filter_map(|item| item["revision"].as_u64()).collect::<Vec<_>>()
    };
    assert_eq!(told("").await, [4, 3, 2, 1]);
    assert_eq!(told("?statuses=true").await, [4, 3, 2, 1]);
    assert_eq!(told("?statuses=false").await, [4, 3, 1]);
    api.get("/weft/v1/history?statuses=perhaps").await.failed(400, "BadRequest");
}

#[tokio::test]
async fn a_page_of_objects_is_bounded_in_bytes_and_the_next_one_goes_on() {
    let api = Api::new();
    for count in 0..20 {
        put(&api, "ada", "large", json!({ "count": count, "data": "x".repeat(900_000) })).await;
    }
    let (mut before, mut seen, mut pages) = (u64::MAX, Vec::new(), 0);
    loop {
        let path = format!("/weft/v1/history?objects=true&limit=1000&before={before}");
        let body = api.get(&path).await.body;
        let items = body["items"].as_array().expect("items");
        assert!((1..=6).contains(&items.len()), "{} events of 900 kB with the one before", items.len());
        assert!(items.iter().all(|item| item["object"]["data"].is_string()));
        seen.extend(items.iter().filter_map(|item| item["revision"].as_u64()));
        pages += 1;
        match body["nextBefore"].as_u64() {
            Some(next) => before = next,
            None => break,
        }
    }
    assert_eq!((seen, pages), ((1..=20).rev().collect(), 4));
    let bare = api.get("/weft/v1/history?limit=1000").await.body;
    assert_eq!((bare["items"].as_array().map(Vec::len), bare["nextBefore"].as_u64()), (Some(20), None));
    assert_eq!(bare["items"][0]["before"], 19, "which event was before is told without objects too");
}
