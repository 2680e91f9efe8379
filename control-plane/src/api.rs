//! The operator's HTTP API: Kubernetes conventions over the event log, and Weft's own reads beside them.
//!
//! `objects` takes requests for resources apart and serves reads; `write`, `watch` and `history` do the rest. `kinds`
//! is the table of what is served. Nothing here knows how the control plane is composed.

pub mod admit;
pub mod body;
mod columns;
pub mod conditions;
mod defaults;
mod discovery;
mod explain;
mod history;
pub mod kinds;
mod mesh;
mod objects;
mod openapi;
pub mod patch;
mod respond;
pub mod selectors;
mod status;
pub mod table;
mod target;
mod warnings;
mod watch;
mod write;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use tokio::sync::{Semaphore, watch as channel};

use self::{objects::Pages, status::ApiError};
use crate::{
    push::{View, proxies::Proxies},
    source::Problem,
    store::Store,
};

/// Writes and watches at once: more would only wait in memory.
const MAX_WRITES: usize = 256;
const MAX_WATCHES: usize = 2048;

/// What the API serves.
#[derive(Clone)]
pub struct ApiState {
    /// The objects and their history.
    pub store: Store,
    /// Connected sidecars.
    pub proxies: Proxies,
    /// What is pushed.
    pub view: channel::Receiver<Arc<View>>,
    /// Problems of the resources, as of the last compile.
    pub problems: Arc<Mutex<Vec<Problem>>>,
    writes: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    pages: Pages,
}

impl ApiState {
    /// The API of this store and this mesh.
    #[must_use]
    pub fn new(
        store: Store,
        proxies: Proxies,
        view: channel::Receiver<Arc<View>>,
        problems: Arc<Mutex<Vec<Problem>>>,
    ) -> Self {
        let (writes, watches) = (Arc::new(Semaphore::new(MAX_WRITES)), Arc::new(Semaphore::new(MAX_WATCHES)));
        Self { store, proxies, view, problems, writes, watches, pages: Pages::default() }
    }

    /// The API of a store without a mesh; for tests.
    #[must_use]
    pub fn of(store: Store) -> Self {
        Self::new(store, Proxies::default(), channel::Sender::new(Arc::default()).subscribe(), Arc::default())
    }
}

/// Who makes a request: an extension of it, set by what authenticates. Without one it is the local user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Name in the history.
    pub name: String,
}

impl Caller {
    /// The user that runs this process: only loopback is served without authentication.
    #[must_use]
    pub fn local() -> Self {
        let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
        Self { name: user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw())) }
    }
}

/// The routes, with the check that keeps web pages out.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(mesh::metrics))
        .route("/version", get(discovery::version))
        .route("/api", get(discovery::core))
        .route("/apis", get(discovery::groups))
        .route("/apis/{group}", get(discovery::group))
        .route("/api/v1", get(discovery::core_resources))
        .route("/apis/{group}/{version}", get(discovery::group_resources))
        .route("/openapi/v2", get(openapi::all))
        .route("/openapi/v3", get(openapi::index))
        .route("/openapi/v3/api/v1", get(openapi::core))
        .route("/openapi/v3/apis/{group}/{version}", get(openapi::group))
        .route("/api/{version}/{*rest}", any(objects::serve))
        .route("/apis/{group}/{version}/{*rest}", any(objects::serve))
        .route("/weft/v1/proxies", get(mesh::proxies))
        .route("/weft/v1/endpoints", get(mesh::endpoints))
        .route("/weft/v1/resources/errors", get(mesh::errors))
        .route("/weft/v1/explain", get(explain::get))
        .route("/weft/v1/history", get(history::history))
        .route("/weft/v1/history/verify", get(history::verify))
        .route("/weft/v1/rollback", post(history::rollback))
        .fallback(|request: Request| async move { ApiError::no_path(request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::method(request.method(), "told by the documentation of this path")
        })
        .layer(middleware::from_fn(local_only))
        .with_state(state)
}

/// A page in a browser on this machine can reach loopback: its Host or Origin gives it away.
async fn local_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if is_local(host) && !request.headers().contains_key(header::ORIGIN) {
        return next.run(request).await;
    }
    let text = format!("host {host:?} is not served here: use 127.0.0.1 or localhost, and no browser\n");
    (StatusCode::FORBIDDEN, text).into_response()
}

fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || host.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || name == "127.0.0.1"
}

#[cfg(test)]
mod tests;
