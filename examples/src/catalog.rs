//! `catalog`: lists items over HTTP/1.1 and says which version and replica answered. `POST /behave` makes it fail or
//! dawdle, so that the demo can show what the mesh does about it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Method, StatusCode};

use crate::serve;

/// How it behaves; at first it does what it should.
#[derive(Default)]
struct Behaviour {
    /// Of a hundred requests, those that are answered 503.
    fail_percent: AtomicU64,
    /// Milliseconds before each answer.
    delay_ms: AtomicU64,
    served: AtomicU64,
}

impl Behaviour {
    /// From `fail_percent=50&delay_ms=0`; what is not named becomes 0.
    fn set(&self, query: &str) {
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        self.fail_percent.store(value("fail_percent").min(100), Relaxed);
        self.delay_ms.store(value("delay_ms").min(10_000), Relaxed);
    }

    /// Whether the next request fails: evenly spread, so that a short run has its share.
    fn fails(&self) -> bool {
        let (number, percent) = (self.served.fetch_add(1, Relaxed), self.fail_percent.load(Relaxed));
        (number + 1) * percent / 100 > number * percent / 100
    }
}

/// Serves until the process ends. `version` and `replica` are in each answer.
pub async fn run(listen: SocketAddr, version: &str, replica: &str) -> anyhow::Result<()> {
    let listener = serve::bind(listen).await?;
    let answer = Arc::new(serde_json::json!({
        "version": version,
        "replica": replica,
        "items": ["linen", "wool", "silk"],
    }));
    let behaviour = Arc::new(Behaviour::default());
    serve::http(listener, move |request| {
        let (answer, behaviour) = (answer.clone(), behaviour.clone());
        async move {
            Ok(match (request.method(), request.uri().path()) {
                (&Method::GET, "/items") => {
                    let delay = behaviour.delay_ms.load(Relaxed);
                    if delay > 0 {
                        tokio::time::sleep(Duration::from_millis(delay)).await;
                    }
                    if behaviour.fails() {
                        serve::json(StatusCode::SERVICE_UNAVAILABLE, &serde_json::json!({ "error": "out of stock" }))
                    } else {
                        serve::json(StatusCode::OK, &answer)
                    }
                }
                (&Method::POST, "/behave") => {
                    behaviour.set(request.uri().query().unwrap_or_default());
                    serve::json(StatusCode::OK, &serde_json::json!({}))
                }
                _ => serve::not_found(),
            })
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_spread_evenly() {
        let behaviour = Behaviour::default();
        assert!((0..10).all(|_| !behaviour.fails()));
        behaviour.set("fail_percent=50");
        assert_eq!((0..10).filter(|_| behaviour.fails()).count(), 5);
        behaviour.set("delay_ms=5");
        assert!((0..10).all(|_| !behaviour.fails()));
    }
}
