//! Objects of the resource directory beside those of the store.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_stream::StreamExt;

use super::common::{Api, CART, SERVICES, service};
use crate::source::{Files, Source};

/// How long a line of a watch may take.
const LIMIT: Duration = Duration::from_secs(60);

const WRITTEN: &str = "# the shop\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec:\n  \
                       ports: [{port: 81, name: http}]\n";

/// The objects of a directory with one file.
fn read(directory: &Path, text: &str) -> Arc<Files> {
    std::fs::write(directory.join("shop.yaml"), text).expect("writable");
    let source = Source::open(directory, "weft.local").expect("readable");
    assert!(source.problems().is_empty(), "{:?}", source.problems());
    Arc::clone(&source.files().borrow())
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().expect("items").iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn what_a_file_has_is_listed_with_its_place_and_wins() {
    let (api, directory) = (Api::new(), TempDir::new().expect("a directory"));
    for name in ["cart", "a", "z"] {
        api.made(SERVICES, &service(name)).await;
    }
    assert_eq!(api.get(CART).await.body["spec"]["ports"][0]["port"], 80);
    api.files.send_replace(read(directory.path(), WRITTEN));
    let cart = api.get(CART).await.body;
    assert_eq!(cart["spec"]["ports"][0]["port"], 81);
    let place = format!("{}:2", directory.path().join("shop.yaml").display());
    assert_eq!(cart["metadata"]["annotations"]["weft.dev/source"], place.as_str());
    let list = api.get(SERVICES).await.body;
    assert_eq!((names(&list), &list["items"][1]["spec"]["ports"][0]["port"]), (vec!["a", "cart", "z"], &81.into()));
    assert_eq!(names(&api.get("/api/v1/namespaces/bank/services").await.body), Vec::<&str>::new());
    let page = api.get(&format!("{SERVICES}?limit=2")).await.body;
    let rest = page["metadata"]["continue"].as_str().expect("more");
    assert_eq!(names(&api.get(&format!("{SERVICES}?limit=2&continue={rest}")).await.body), ["z"]);
}

#[tokio::test]
async fn what_a_file_has_is_not_written_and_the_answer_names_the_file() {
    let (api, directory) = (Api::new(), TempDir::new().expect("a directory"));
    api.files.send_replace(read(directory.path(), WRITTEN));
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    for reply in [
        api.json("POST", SERVICES, &service("cart")).await,
        api.json("PUT", CART, &service("cart")).await,
        api.merge(CART, &label).await,
        api.merge(&format!("{CART}/status"), &label).await,
        api.delete(CART).await,
    ] {
        let message = reply.failed(403, "Forbidden");
        assert!(message.contains("read-only") && message.contains("shop.yaml:2"), "{message}");
    }
    assert_eq!(api.store.revision(), 0);
    api.made(SERVICES, &service("web")).await;
}

#[tokio::test]
async fn one_of_the_store_that_a_file_hides_may_be_deleted_with_a_warning() {
    let (api, directory) = (Api::new(), TempDir::new().expect("a directory"));
    api.made(SERVICES, &service("cart")).await;
    api.files.send_replace(read(directory.path(), WRITTEN));
    let reply = api.delete(CART).await;
    assert_eq!(reply.code, 200, "{reply:?}");
    assert!(reply.warnings[0].contains("shop.yaml:2 is still there"), "{reply:?}");
    assert_eq!((api.store.revision(), api.get(CART).await.code.as_u16()), (2, 200));
}

#[tokio::test]
async fn a_watch_tells_of_files_that_come_change_and_go() {
    let (api, directory) = (Api::new(), TempDir::new().expect("a directory"));
    api.files.send_replace(read(directory.path(), WRITTEN));
    let request = Request::get(format!("{SERVICES}?watch=true")).header(header::HOST, "localhost");
    let response = api.raw(request.body(Body::empty()).expect("a request")).await;
    let mut lines = response.into_body().into_data_stream();
    let mut next = async || {
        let line = tokio::time::timeout(LIMIT, lines.next()).await.expect("in time");
        let line = line.expect("a line").expect("a body");
        let line: Value = serde_json::from_slice(&line).expect("JSON");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (object, port) = (&line["object"], &line["object"]["spec"]["ports"][0]["port"]);
        format!("{} {} {port}", text(&line["type"]), text(&object["metadata"]["name"]))
    };
    assert_eq!(next().await, "ADDED cart 81");
    api.files.send_replace(read(directory.path(), &WRITTEN.replace("81", "82")));
    assert_eq!(next().await, "MODIFIED cart 82");
    api.made(SERVICES, &service("web")).await;
    assert_eq!(next().await, "ADDED web 80");
    // A file takes what the store had, and lets go of it again.
    api.files.send_replace(read(directory.path(), &WRITTEN.replace("cart", "web")));
    let both = [next().await, next().await];
    assert_eq!(both, ["DELETED cart 82", "MODIFIED web 81"]);
    api.merge(&format!("{SERVICES}/cart"), &json!({})).await.failed(404, "NotFound");
    api.files.send_replace(Arc::default());
    assert_eq!(next().await, "MODIFIED web 80");
}
