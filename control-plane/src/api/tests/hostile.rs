//! Whatever is sent, the answer is a text, and nothing panics.

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

use super::common::{Api, SERVICES, service};
use crate::api::kinds::{self, KINDS, Kind};

/// Objects that are sent.
const OBJECTS: usize = 10_000;

const WORDS: [&str; 24] = [
    "",
    "a",
    "default",
    "Service",
    "HTTPRoute",
    "10s",
    "1h1h",
    "-1",
    "0",
    "Strict",
    "Deny",
    "spiffe://x",
    "*",
    "/",
    "a b",
    "\u{0}",
    "\u{202e}x",
    "http",
    "99999999999999999999",
    "true",
    "null",
    "a.b/c",
    "weft.dev",
    "GET",
];

/// Names of fields that the kinds have, and some that none has.
fn names() -> Vec<String> {
    let mut names: Vec<String> = ["", "$patch", "a.b", "zzz", "[0]"].map(str::to_owned).to_vec();
    let mut generator = schemars::generate::SchemaSettings::openapi3().into_generator();
    for kind in KINDS {
        let schema = crate::source::schema(&kind.api_version(), kind.kind, &mut generator).expect("known");
        collect(&schema.to_value(), &mut names);
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn collect(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(properties)) = fields.get("properties") {
                names.extend(properties.keys().cloned());
            }
            fields.values().for_each(|value| collect(value, names));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

fn value(random: &mut SmallRng, names: &[String], depth: usize) -> Value {
    match random.random_range(0..if depth == 0 { 6 } else { 9 }) {
        0 => Value::Null,
        1 => random.random_bool(0.5).into(),
        2 => random.random_range(-2_i64..100_000).into(),
        3 => json!(random.random::<f64>() * 1e300),
        4 => random.random::<u64>().into(),
        5 => (*WORDS.choose(random).expect("words")).into(),
        6 => (0..random.random_range(0..4)).map(|_| value(random, names, depth - 1)).collect(),
        _ => object(random, names, depth - 1),
    }
}

fn object(random: &mut SmallRng, names: &[String], depth: usize) -> Value {
    let count = random.random_range(0..6);
    let mut fields = Map::new();
    for _ in 0..count {
        fields.insert(names.choose(random).expect("names").clone(), value(random, names, depth));
    }
    Value::Object(fields)
}

/// Mostly with a valid head, so that the rest is looked at too.
fn candidate(random: &mut SmallRng, kind: &Kind, names: &[String]) -> Value {
    if random.random_bool(0.1) {
        return value(random, names, 4);
    }
    let mut fields = Map::new();
    fields.insert("metadata".into(), json!({ "name": "n" }));
    if random.random_bool(0.2) {
        fields.insert("metadata".into(), value(random, names, 3));
    }
    // An unknown field at the top makes every one of them wrong.
    fields.insert("bogus".into(), value(random, names, 1));
    for name in ["spec", "status", "endpoints", "ports"] {
        if random.random_bool(0.7) {
            fields.insert(name.into(), value(random, names, 6));
        }
    }
    if random.random_bool(0.5) {
        fields.insert("kind".into(), kind.kind.into());
    }
    Value::Object(fields)
}

fn collection(kind: &Kind) -> String {
    let base = if kind.group == kinds::CORE { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version()) };
    let inside = if kind.namespaced { "/namespaces/shop" } else { "" };
    format!("{base}{inside}/{}", kind.plural)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_gives_its_place_back() {
    let api = Api::new();
    let never = tokio_stream::pending::<Result<axum::body::Bytes, std::convert::Infallible>>();
    let body = axum::body::Body::from_stream(never);
    let reply = api.send("POST", "/api/v1/namespaces/shop/services", "application/json", body).await;
    assert_eq!(reply.failed(408, "Timeout"), "the body did not arrive within 30 s");
}

#[tokio::test]
async fn ten_thousand_random_objects_get_a_4xx_with_a_text() {
    let api = Api::new();
    let mut random = SmallRng::seed_from_u64(1);
    let names = names();
    for index in 0..OBJECTS {
        let kind = &KINDS[index % KINDS.len()];
        let object = candidate(&mut random, kind, &names);
        let reply = api.json("POST", &collection(kind), &object).await;
        assert!(reply.code.is_client_error(), "{}: {object}: {reply:?}", kind.kind);
        assert!(!reply.body["message"].as_str().unwrap_or_default().is_empty(), "{object}: {reply:?}");
    }
    assert_eq!(api.store.revision(), 0);
}

#[tokio::test]
async fn random_patches_never_panic_and_never_make_an_invalid_object() {
    let api = Api::new();
    let path = "/api/v1/namespaces/shop/services";
    api.made(path, &super::common::service("cart")).await;
    let mut random = SmallRng::seed_from_u64(2);
    let names = names();
    for index in 0..3_000 {
        let media = ["merge-patch+json", "json-patch+json", "strategic-merge-patch+json"][index % 3];
        let patch = if index % 3 == 1 {
            let operations = ["add", "remove", "replace", "move", "copy", "test", "x"];
            let paths =
                ["", "/spec", "/spec/ports/0", "/spec/ports/-", "/metadata/labels", "/a/b", "~", "/spec/ports/9"];
            let count = random.random_range(0..5);
            (0..count)
                .map(|_| {
                    let pick = |random: &mut SmallRng| *paths.choose(random).expect("paths");
                    let (path, from) = (pick(&mut random), pick(&mut random));
                    let operation = *operations.choose(&mut random).expect("operations");
                    json!({ "op": operation, "path": path, "from": from, "value": value(&mut random, &names, 3) })
                })
                .collect()
        } else {
            json!({ "spec": value(&mut random, &names, 4), "metadata": value(&mut random, &names, 3) })
        };
        let reply =
            api.send("PATCH", &format!("{path}/cart"), &format!("application/{media}"), patch.to_string()).await;
        assert!(reply.code.is_success() || reply.code.is_client_error(), "{patch}: {reply:?}");
        assert!(!reply.text.is_empty());
        let kept = api.get(&format!("{path}/cart")).await.body;
        assert!(crate::source::from_json(&kept).wrong.is_empty(), "{patch}: {kept}");
    }
}

#[tokio::test]
async fn readiness_and_metrics_tell_that_no_writes_are_taken() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    let directory = tempfile::tempdir().expect("a directory");
    let fails = std::sync::Arc::new(AtomicBool::new(false));
    let failing = std::sync::Arc::clone(&fails);
    let ask = move || if failing.load(SeqCst) { Err(std::io::Error::other("gone")) } else { Ok(()) };
    let api = Api::over(crate::store::Store::open_on_sync(directory.path(), ask).expect("a store"));
    assert_eq!(api.get("/readyz").await.code, 200);
    assert!(api.get("/metrics").await.text.contains("\nweft_store_stopped 0\n"));
    fails.store(true, SeqCst);
    api.json("POST", SERVICES, &service("cart")).await.failed(500, "InternalError");
    let ready = api.get("/readyz").await;
    assert_eq!(ready.code, 503);
    assert!(ready.text.contains("takes no writes") && !ready.text.contains("gone"), "{ready:?}");
    assert!(api.get("/metrics").await.text.contains("\nweft_store_stopped 1\n"));
    assert_eq!(api.get(SERVICES).await.code, 200, "reads go on");
}

#[tokio::test]
async fn a_few_questions_are_explained_at_once_and_others_are_told_to_wait() {
    use crate::api::{ApiState, MAX_EXPLAINS, access::Access, router};

    let state = ApiState::of(crate::store::Store::memory(), Access::dev());
    let places = std::sync::Arc::clone(&state.explains);
    let api = Api::of(router(state));
    let held = places.try_acquire_many(u32::try_from(MAX_EXPLAINS).expect("few")).expect("free");
    let path = "/weft/v1/explain?url=http://catalog/";
    api.get(path).await.failed(429, "TooManyRequests");
    drop(held);
    for _ in 0..=MAX_EXPLAINS {
        api.get(path).await.failed(404, "NotFound");
    }
}

#[tokio::test]
async fn a_few_read_the_whole_log_at_once_and_others_are_told_to_wait() {
    use crate::api::{ApiState, MAX_LOG_READS, access::Access, router};

    let state = ApiState::of(crate::store::Store::memory(), Access::dev());
    let places = std::sync::Arc::clone(&state.log_reads);
    let api = Api::of(router(state));
    let held = places.try_acquire_many(u32::try_from(MAX_LOG_READS).expect("few")).expect("free");
    let rollback = json!({ "toRevision": 0 });
    for (method, path) in [("GET", "history"), ("GET", "history/verify"), ("POST", "rollback")] {
        api.json(method, &format!("/weft/v1/{path}"), &rollback).await.failed(429, "TooManyRequests");
    }
    drop(held);
    assert_eq!(api.get("/weft/v1/history").await.code, 200);
}
