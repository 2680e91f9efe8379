//! Figures, printed: `WEFT_FIGURES=1 cargo test --release -p weft-control-plane --lib figures -- --nocapture`.

use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use crate::store::{Expect, Key, Store, Write, embedded::file, tests::batch, verify};

/// About as large as a small HTTPRoute.
fn route(name: &str, n: u64) -> Write {
    let object = Some(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "default", "generation": n, "labels": { "app": "shop" } },
        "spec": { "parentRefs": [{ "kind": "Service", "group": "", "name": name, "port": 80 }],
                  "rules": [{ "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
                              "backendRefs": [{ "name": name, "port": 80, "weight": 90 }, { "name": "other", "port": 80, "weight": 10 }] }] }
    }));
    Write { key: Key::new("HTTPRoute", "default", name), expect: Expect::Any, object }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures() {
    // It asserts nothing: only whoever asks for the figures waits for them.
    if std::env::var_os("WEFT_FIGURES").is_none() {
        return;
    }
    for writers in [1, 64] {
        let directory = TempDir::new_in(std::env::current_dir().unwrap()).unwrap();
        let store = Store::open(directory.path()).unwrap();
        let each = if writers == 1 { 2_000 } else { 500 };
        let start = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..each {
                        store.append(batch([route(&format!("r{writer}"), n)])).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let rate = store.revision() as f64 / start.elapsed().as_secs_f64();
        println!("{writers} writers: {rate:.0} appends per second");
    }

    let directory = TempDir::new_in(std::env::current_dir().unwrap()).unwrap();
    let store = Store::open(directory.path()).unwrap();
    for n in 0..1_000u64 {
        let writes: Vec<_> = (0..100).map(|m| route(&format!("r{}", (n * 100 + m) % 5_000), n)).collect();
        store.append(batch(writes)).await.unwrap();
    }
    drop(store);
    let size = directory.path().join(file::NAME).metadata().unwrap().len();
    println!("100,000 events of 5,000 objects: {} MiB", size >> 20);
    for _ in 0..3 {
        let start = Instant::now();
        let store = Store::open(directory.path()).unwrap();
        println!("opened with its snapshot in {:?}", start.elapsed());
        drop(store);
        let start = Instant::now();
        verify(directory.path()).unwrap();
        println!("verified wholly in {:?}", start.elapsed());
    }
    // As after a kill: the file was not closed.
    let copy = TempDir::new_in(std::env::current_dir().unwrap()).unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.append(batch([route("last", 0)])).await.unwrap();
    std::fs::copy(directory.path().join(file::NAME), copy.path().join(file::NAME)).unwrap();
    let start = Instant::now();
    let recovered = Store::open(copy.path()).unwrap();
    println!("recovered in {:?}", start.elapsed());
    assert_eq!(recovered.head(), store.head());
    let start = Instant::now();
    store.state_at(50_000).await.unwrap();
    println!("state at 50,000 in {:?}", start.elapsed());
}
