//! Lists, tables, pages, discovery and watches.

use axum::{
    body::Body,
    http::{Request, header},
};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::common::{Api, CART, SERVICES, service};

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().expect("items").iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

#[tokio::test]
async fn lists_are_of_a_namespace_or_of_all_and_selected() {
    let api = Api::new();
    for (namespace, name) in [("shop", "web"), ("shop", "cart"), ("other", "cart")] {
        api.made(&SERVICES.replace("shop", namespace), &service(name)).await;
    }
    let list = api.get(SERVICES).await.body;
    assert_eq!((&list["kind"], &list["metadata"]["resourceVersion"]), (&json!("ServiceList"), &json!("3")));
    assert_eq!(names(&list), ["cart", "web"]);
    assert_eq!(names(&api.get("/api/v1/services").await.body), ["cart", "cart", "web"]);
    assert_eq!(names(&api.get("/api/v1/services?labelSelector=app%3Dweb").await.body), ["web"]);
    let fields = "/api/v1/services?fieldSelector=metadata.namespace%3Dother";
    assert_eq!(names(&api.get(fields).await.body), ["cart"]);
    api.get("/api/v1/services?labelSelector=a%20b").await.failed(400, "BadRequest");
    api.get("/api/v1/pods").await.failed(404, "NotFound");
    api.send("PUT", SERVICES, "application/json", "{}").await.failed(405, "MethodNotAllowed");
    api.send("POST", "/api/v1/services", "application/json", "{}").await.failed(405, "MethodNotAllowed");
}

#[tokio::test]
async fn pages_of_a_list_fit_together_and_expire() {
    let api = Api::new();
    for name in ["a", "b", "c"] {
        api.made(SERVICES, &service(name)).await;
    }
    let first = api.get(&format!("{SERVICES}?limit=2")).await.body;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 1);
    let token = first["metadata"]["continue"].as_str().expect("a token").to_owned();
    api.made(SERVICES, &service("bb")).await;
    let second = api.get(&format!("{SERVICES}?limit=2&continue={token}")).await.body;
    assert_eq!(names(&second), ["c"], "what came later is not in this list");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["continue"], Value::Null);
    let expired = api.get(&format!("{SERVICES}?continue=1.Service.shop.a")).await;
    assert!(expired.failed(410, "Expired").contains("continue parameter is too old"));
    api.get(&format!("{SERVICES}?continue=rubbish")).await.failed(400, "BadRequest");
    api.get(&format!("{SERVICES}?resourceVersion=99")).await.failed(504, "Timeout");
    api.get(&format!("{SERVICES}?resourceVersion=1&resourceVersionMatch=Exact")).await.failed(410, "Expired");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector_in_one_batch() {
    let api = Api::new();
    for name in ["a", "b", "c"] {
        api.made(SERVICES, &service(name)).await;
    }
    let reply = api.delete(&format!("{SERVICES}?labelSelector=app%20in%20(a,c)")).await;
    assert_eq!(names(&reply.body), ["a", "c"]);
    assert_eq!(names(&api.get(SERVICES).await.body), ["b"]);
}

#[tokio::test]
async fn discovery_lists_what_is_served_in_both_forms() {
    let api = Api::new();
    let groups = api.get("/apis").await.body;
    assert_eq!(groups["groups"].as_array().map(Vec::len), Some(3));
    assert_eq!(api.get("/apis/weft.dev").await.body["preferredVersion"]["groupVersion"], "weft.dev/v1alpha1");
    let resources = api.get("/apis/weft.dev/v1alpha1").await.body;
    let named = |name: &str| resources["resources"].as_array().expect("a list").iter().any(|r| r["name"] == name);
    assert!(named("trafficpolicies") && named("trafficpolicies/status") && named("meshconfigs"));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let request = Request::get("/apis").header(header::HOST, "localhost").header(header::ACCEPT, accept);
    let response = api.raw(request.body(Body::empty()).expect("a request")).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], accept);
    assert!(api.get("/version").await.body["gitVersion"].as_str().expect("text").contains("weft"));
    api.get("/apis/none").await.failed(404, "NotFound");
    api.get("/apis/weft.dev/v9").await.failed(404, "NotFound");
    assert!(api.get("/openapi/v2").await.body["definitions"].is_object());
}

#[tokio::test]
async fn discovery_is_served_with_a_slash_at_the_end_as_the_python_client_asks() {
    let api = Api::new();
    for path in ["/version", "/api", "/apis", "/apis/weft.dev", "/api/v1", "/apis/weft.dev/v1alpha1"] {
        let (plain, slash) = (api.get(path).await, api.get(&format!("{path}/")).await);
        assert_eq!((slash.code, &slash.body), (axum::http::StatusCode::OK, &plain.body), "{path}");
    }
}

#[tokio::test]
async fn a_web_page_cannot_reach_the_api() {
    let api = Api::new();
    let request = Request::get("/api").header(header::HOST, "evil.example").body(Body::empty()).expect("a request");
    assert_eq!(api.raw(request).await.status(), 403);
    let request = Request::get("/api").header(header::HOST, "127.0.0.1").header(header::ORIGIN, "http://evil.example");
    assert_eq!(api.raw(request.body(Body::empty()).expect("a request")).await.status(), 403);
}

#[test]
fn only_loopback_hosts_are_served() {
    for host in ["127.0.0.1:15014", "localhost:15014", "localhost", "[::1]:15014"] {
        assert!(crate::api::access::is_local(host), "{host}");
    }
    for host in ["", "evil.example", "evil.example:15014", "127.0.0.1.evil.example", "10.0.0.1:15014"] {
        assert!(!crate::api::access::is_local(host), "{host}");
    }
}

/// The lines of a watch.
struct Lines(axum::body::BodyDataStream, Vec<u8>);

impl Lines {
    async fn of(api: &Api, path: &str, accept: &str) -> Self {
        let request = Request::get(path).header(header::HOST, "localhost").header(header::ACCEPT, accept);
        let response = api.raw(request.body(Body::empty()).expect("a request")).await;
        assert_eq!(response.status(), 200);
        Self(response.into_body().into_data_stream(), Vec::new())
    }

    /// The next one; none at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.1.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            self.1.extend_from_slice(&self.0.next().await?.expect("no failure"));
        }
    }

    async fn told(&mut self) -> (String, String, String) {
        let line = self.next().await.expect("a line");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &line["object"]["metadata"];
        (text(&line["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"]))
    }
}

fn event(kind: &str, name: &str, revision: &str) -> (String, String, String) {
    (kind.into(), name.into(), revision.into())
}

#[tokio::test]
async fn a_watch_goes_on_from_a_revision_without_gaps() {
    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    let mut lines = Lines::of(&api, &format!("{SERVICES}?watch=true&resourceVersion=1"), "application/json").await;
    api.made(SERVICES, &service("web")).await;
    api.made(&SERVICES.replace("shop", "other"), &service("web")).await;
    api.merge(CART, &json!({ "spec": { "type": "NodePort" } })).await;
    api.delete(CART).await;
    assert_eq!(lines.told().await, event("ADDED", "web", "2"));
    assert_eq!(lines.told().await, event("MODIFIED", "cart", "4"));
    assert_eq!(lines.told().await, event("DELETED", "cart", "5"));
}

#[tokio::test]
async fn a_watch_without_a_revision_begins_with_what_there_is() {
    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    for query in ["watch=true", "watch=1&resourceVersion=0"] {
        let mut lines = Lines::of(&api, &format!("{SERVICES}?{query}"), "application/json").await;
        assert_eq!(lines.told().await, event("ADDED", "cart", "1"));
    }
    let query = "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut lines = Lines::of(&api, &format!("{SERVICES}?{query}"), "application/json").await;
    assert_eq!(lines.told().await, event("ADDED", "cart", "1"));
    let end = lines.next().await.expect("a bookmark");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn an_object_that_begins_or_ceases_to_be_selected_is_added_or_deleted() {
    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    let path = format!("{SERVICES}?watch=true&resourceVersion=1&labelSelector=tier");
    let mut lines = Lines::of(&api, &path, "application/json").await;
    api.merge(CART, &json!({ "metadata": { "labels": { "tier": "back" } } })).await;
    api.merge(CART, &json!({ "spec": { "type": "NodePort" } })).await;
    api.merge(CART, &json!({ "metadata": { "labels": { "tier": null } } })).await;
    api.merge(CART, &json!({ "spec": { "type": "ClusterIP" } })).await;
    api.merge(CART, &json!({ "metadata": { "labels": { "tier": "front" } } })).await;
    for (kind, revision) in [("ADDED", "2"), ("MODIFIED", "3"), ("DELETED", "4"), ("ADDED", "6")] {
        assert_eq!(lines.told().await, event(kind, "cart", revision));
    }
}

#[tokio::test]
async fn a_watch_from_an_unknown_revision_ends_with_an_error() {
    let api = Api::new();
    let mut lines = Lines::of(&api, &format!("{SERVICES}?watch=true&resourceVersion=99"), "application/json").await;
    let line = lines.next().await.expect("a line");
    assert_eq!((&line["type"], &line["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(line["object"]["reason"], "Expired");
    assert_eq!(lines.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_in_time_with_a_bookmark() {
    let api = Api::new();
    let path = format!("{SERVICES}?watch=true&timeoutSeconds=5&allowWatchBookmarks=true");
    let mut lines = Lines::of(&api, &path, "application/json").await;
    api.made("/api/v1/namespaces/other/services", &service("cart")).await;
    assert_eq!(lines.told().await, event("BOOKMARK", "", "1"));
    assert_eq!(lines.next().await, None);
}

#[tokio::test]
async fn a_table_can_be_listed_and_watched() {
    let api = Api::new();
    api.made(SERVICES, &service("cart")).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let mut lines = Lines::of(&api, &format!("{SERVICES}?watch=true"), accept).await;
    let line = lines.next().await.expect("a line");
    assert_eq!((&line["type"], &line["object"]["kind"]), (&json!("ADDED"), &json!("Table")));
    assert_eq!(line["object"]["rows"][0]["cells"][0], "cart");
    assert_eq!(line["object"]["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}

#[tokio::test(start_paused = true)]
async fn lists_that_clients_do_not_take_are_bounded_and_left_after_a_while() {
    use crate::api::{ApiState, MAX_LISTS, access::Access, router};

    let store = crate::store::Store::memory();
    let api = Api::of(router(ApiState::of(store.clone(), Access::dev())));
    let mut large = service("cart");
    large["metadata"]["annotations"] = json!({ "text": "x".repeat(200_000) });
    api.made(SERVICES, &large).await;
    let list =
        |path: &str| Request::get(path).header(header::HOST, "127.0.0.1:1").body(Body::empty()).expect("a request");
    let mut waiting = Vec::new();
    for _ in 0..MAX_LISTS {
        waiting.push(api.raw(list(SERVICES)).await);
    }
    assert!(waiting.iter().all(|response| response.status() == 200));
    let refused = api.raw(list(SERVICES)).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().expect("a value")));
    let taken = waiting.pop().expect("one").into_body();
    let text = axum::body::to_bytes(taken, usize::MAX).await.expect("all of it");
    assert_eq!(names(&serde_json::from_slice(&text).expect("JSON")), ["cart"]);
    tokio::task::yield_now().await;
    waiting.push(api.raw(list(SERVICES)).await);
    assert_eq!(waiting[MAX_LISTS - 1].status(), 200, "there is room for one");
    assert_eq!(api.raw(list(SERVICES)).await.status(), 429);
    tokio::time::sleep(std::time::Duration::from_secs(31)).await;
    assert_eq!(api.get(SERVICES).await.code, 200, "those who take nothing are left");
}
