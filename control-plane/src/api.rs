//! The operator's HTTP API: Kubernetes conventions over the event log, and Weft's own reads beside them.
//!
//! `objects` takes requests for resources apart and serves reads; `write`, `watch` and `history` do the rest. `kinds`
//! is the table of what is served. Nothing here knows how the control plane is composed.

pub mod access;
pub mod admit;
pub mod body;
mod ca;
mod columns;
pub mod crds;
mod defaults;
mod discovery;
mod explain;
mod graph;
mod held;
mod history;
pub mod kinds;
mod mesh;
pub mod meshconfig;
mod objects;
mod observe;
mod openapi;
pub mod patch;
mod respond;
pub mod selectors;
pub mod serve;
mod status;
pub mod table;
mod target;
mod warnings;
mod watch;
mod write;

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::Request,
    middleware,
    routing::{any, delete, get, post},
};
use tokio::sync::{Semaphore, watch as channel};

use self::{access::Access, objects::Pages, observe::places::Places};
pub use self::{access::Caller, status::ApiError};
use crate::{
    ca::{Ca, enrolment::Enrolment},
    metrics::{Metrics, api::measure},
    observe::Observers,
    push::{Reflected, View, proxies::Proxies},
    registry,
    source::{Files, Problem, stored::Current},
    store::Store,
    traces::{self, Traces},
};

/// Writes and watches at once: more would only wait in memory.
const MAX_WRITES: usize = 256;
/// Lists at once that are made or wait for slow clients.
const MAX_LISTS: usize = 64;
const MAX_WATCHES: usize = 2048;
/// Reads of the whole log at once.
const MAX_LOG_READS: usize = 4;
/// Questions that are explained at the same time.
const MAX_EXPLAINS: usize = 4;

/// What the API serves.
#[derive(Clone)]
pub struct ApiState {
    /// The objects and their history.
    pub store: Store,
    /// The objects of the resource directory, which win over those of the store.
    pub files: channel::Receiver<Arc<Files>>,
    /// Connected sidecars.
    pub proxies: Proxies,
    /// What the sidecars are sent.
    pub pushed: Pushed,
    /// Who is let in.
    pub access: Access,
    /// The certificate authority; `None` in tests of the store.
    pub ca: Option<Arc<Ca>>,
    /// Spans of the last while, where they are kept.
    pub traces: Option<Traces>,
    /// How workloads get certificates; none in tests.
    pub enrolment: Option<Enrolment>,
    /// What the parts tell.
    pub metrics: Metrics,
    /// What sidecars count and see.
    pub observers: Observers,
    /// The objects live in the API server of a cluster, and are only shown here.
    pub elsewhere: bool,
    writes: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    log_reads: Arc<Semaphore>,
    looking: Places,
    tapping: Places,
    explains: Arc<Semaphore>,
    pages: Pages,
}

/// What compiling makes of the objects.
#[derive(Clone)]
pub struct Pushed {
    /// What is pushed.
    pub view: channel::Receiver<Arc<View>>,
    /// What it is made of.
    pub resources: channel::Receiver<Current>,
    /// The sidecars that have registered.
    pub registered: channel::Receiver<registry::All>,
    /// Which event of the store that reflects.
    pub reflected: channel::Receiver<Reflected>,
    /// Problems of the resources, as of the last compile.
    pub problems: Arc<Mutex<Vec<Problem>>>,
}

impl ApiState {
    /// The API of this store and this mesh.
    #[must_use]
    pub fn new(
        store: Store,
        files: channel::Receiver<Arc<Files>>,
        proxies: Proxies,
        pushed: Pushed,
        access: Access,
    ) -> Self {
        let at_once = |most| Arc::new(Semaphore::new(most));
        Self {
            store,
            files,
            observers: Observers::new(proxies.clone()),
            proxies,
            pushed,
            access,
            ca: None,
            traces: None,
            enrolment: None,
            metrics: Metrics::default(),
            elsewhere: false,
            writes: at_once(MAX_WRITES),
            lists: at_once(MAX_LISTS),
            watches: at_once(MAX_WATCHES),
            log_reads: at_once(MAX_LOG_READS),
            looking: Places::new(observe::LOOKING),
            tapping: Places::new(observe::tap::TAPPING),
            explains: at_once(MAX_EXPLAINS),
            pages: Pages::default(),
        }
    }

    /// The API of a store without a mesh; for tests.
    #[must_use]
    pub fn of(store: Store, access: Access) -> Self {
        let view = channel::Sender::new(Arc::default()).subscribe();
        let reflected = channel::Sender::new(Reflected::default()).subscribe();
        let resources = channel::Sender::default().subscribe();
        let registered = channel::Sender::default().subscribe();
        let pushed = Pushed { view, resources, registered, reflected, problems: Arc::default() };
        Self::new(store, channel::Sender::default().subscribe(), Proxies::default(), pushed, access)
    }
}

/// The routes, behind the check of who asks.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(mesh::ready))
        .route("/metrics", get(mesh::metrics))
        .merge(discovered(""))
        .merge(discovered("/"))
        .route("/openapi/v2", get(openapi::all))
        .route("/openapi/v3", get(openapi::index))
        .route("/openapi/v3/api/v1", get(openapi::core))
        .route("/openapi/v3/apis/{group}/{version}", get(openapi::group))
        .route("/api/{version}/{*rest}", any(objects::serve))
        .route("/apis/{group}/{version}/{*rest}", any(objects::serve))
        .route("/weft/v1/proxies", get(mesh::proxies))
        .route("/weft/v1/prometheus/targets", get(mesh::targets))
        .route("/weft/v1/endpoints", get(mesh::endpoints))
        .route("/weft/v1/resources/errors", get(mesh::errors))
        .route("/weft/v1/graph", get(graph::get))
        .route("/weft/v1/explain", get(explain::get))
        .route("/weft/v1/stat", get(observe::stat))
        .route("/weft/v1/edges", get(observe::edges))
        .route(access::rules::TAP, get(observe::tap::tap))
        .route("/weft/v1/traces", get(traces::api::list))
        .route("/weft/v1/traces/{id}", get(traces::api::get))
        .merge(traces::jaeger::routes())
        .route("/weft/v1/history", get(history::history))
        .route("/weft/v1/history/verify", get(history::verify))
        .route("/weft/v1/rollback", post(history::rollback))
        .route("/weft/v1/tokens", get(access::handlers::list).post(access::handlers::create))
        .route("/weft/v1/tokens/{id}", delete(access::handlers::revoke))
        .route("/weft/v1/ca", get(ca::state))
        .route("/weft/v1/ca/rotation", post(ca::rotate))
        .route("/weft/v1/ca/revocations", get(ca::revocations).post(ca::revoke))
        .route("/weft/v1/ca/revocations/{id}", delete(ca::withdraw))
        .route("/weft/v1/ca/audit", get(ca::audit))
        .route(access::review::WHO, post(access::review::who))
        .route(access::review::CAN, post(access::review::can))
        .fallback(|request: Request| async move { ApiError::no_path(request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::method(request.method(), "told by the documentation of this path")
        })
        .layer(middleware::from_fn_with_state(state.access.clone(), access::check))
        .layer(middleware::from_fn_with_state(state.metrics.clone(), measure))
        .with_state(state)
}

/// What clients find the kinds by. Some, as those in Python and Java, ask with a slash at the end.
fn discovered(slash: &str) -> Router<ApiState> {
    Router::new()
        .route(&format!("/version{slash}"), get(discovery::version))
        .route(&format!("/api{slash}"), get(discovery::core))
        .route(&format!("/apis{slash}"), get(discovery::groups))
        .route(&format!("/apis/{{group}}{slash}"), get(discovery::group))
        .route(&format!("/api/v1{slash}"), get(discovery::core_resources))
        .route(&format!("/apis/{{group}}/{{version}}{slash}"), get(discovery::group_resources))
}

#[cfg(test)]
pub(crate) mod tests;
