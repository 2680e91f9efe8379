//! Requests to a router, and what comes back.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use crate::{
    api::{self, ApiState, access::Access},
    source::Files,
    store::Store,
};

pub const SERVICES: &str = "/api/v1/namespaces/shop/services";
pub const CART: &str = "/api/v1/namespaces/shop/services/cart";
pub const POLICIES: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/trafficpolicies";

/// An API with its own store.
pub struct Api {
    pub store: Store,
    /// The resource directory.
    pub files: watch::Sender<Arc<Files>>,
    router: Router,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub code: StatusCode,
    pub body: Value,
    pub warnings: Vec<String>,
    pub text: String,
}

impl Api {
    pub fn new() -> Self {
        Self::over(Store::memory())
    }

    pub fn over(store: Store) -> Self {
        let files = watch::Sender::default();
        let state = ApiState { files: files.subscribe(), ..ApiState::of(store.clone(), Access::dev()) };
        Self { router: api::router(state), store, files }
    }

    /// With a router of its own.
    pub fn of(router: Router) -> Self {
        Self { router, store: Store::memory(), files: watch::Sender::default() }
    }

    pub async fn raw(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    pub async fn send(&self, method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> Reply {
        let request = Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:1");
        let request = request.header(header::CONTENT_TYPE, content_type).body(body.into()).expect("a request");
        Reply::read(self.raw(request).await).await
    }

    pub async fn json(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.send(method, path, "application/json", body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "application/json", "").await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, "application/json", "").await
    }

    pub async fn merge(&self, path: &str, body: &Value) -> Reply {
        self.send("PATCH", path, "application/merge-patch+json", body.to_string()).await
    }

    /// Makes an object that must be taken.
    pub async fn made(&self, path: &str, body: &Value) -> Value {
        let reply = self.json("POST", path, body).await;
        assert_eq!(reply.code, 201, "{reply:?}");
        reply.body
    }
}

impl Reply {
    pub async fn read(response: Response) -> Self {
        let code = response.status();
        let warnings = response.headers().get_all("warning").iter();
        let warnings = warnings.map(|value| value.to_str().expect("text").to_owned()).collect();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { code, body: serde_json::from_str(&text).unwrap_or_default(), warnings, text }
    }

    /// Asserts that it is a `Status` with this code and reason, and gives its message.
    pub fn failed(&self, code: u16, reason: &str) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.body["kind"], "Status", "{self:?}");
        assert_eq!(self.body["status"], "Failure");
        assert_eq!(self.body["code"], code);
        assert_eq!(self.body["reason"], reason, "{self:?}");
        self.body["message"].as_str().expect("a message")
    }
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "name": "http" }] },
    })
}

pub fn policy(name: &str, target: &str) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": name },
        "spec": { "targetRefs": [{ "kind": "Service", "name": target }], "retries": { "attempts": 2 } },
    })
}
