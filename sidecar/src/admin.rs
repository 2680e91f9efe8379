//! The admin listener: liveness, readiness, metrics, and what is held. Loopback names only. The one
//! thing that it changes is that the drain begins.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::watch};
use weft_metrics::Format;

use crate::{drain::Drain, readiness::Status, snapshot::Snapshot, telemetry::Telemetry};

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    /// Metrics.
    pub telemetry: Telemetry,
    /// What is still missing for readiness.
    pub readiness: watch::Receiver<Status>,
    /// Whether we are stopping.
    pub drain: Drain,
    /// What is held.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Admin {
    /// Serves for ever.
    pub async fn run(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = admin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(std::time::Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !is_local(host) || request.headers().contains_key(header::ORIGIN) {
            return text(StatusCode::FORBIDDEN, format!("host {host:?} is not served here\n"));
        }
        if request.method() == http::Method::POST && request.uri().path() == "/drain" {
            self.drain.ask();
            return text(StatusCode::ACCEPTED, "draining\n".into());
        }
        if request.method() != http::Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET, and POST to /drain\n".into());
        }
        match request.uri().path() {
            "/live" | "/livez" => text(StatusCode::OK, "live\n".into()),
            "/ready" | "/readyz" => self.ready(),
            "/metrics" => metrics(request, &self.telemetry),
            "/config_dump" => text(StatusCode::OK, self.dump()),
            path => text(StatusCode::NOT_FOUND, format!("{path}: try /livez /readyz /metrics /config_dump\n")),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        if self.drain.is_draining() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
        }
        let readiness = self.readiness.borrow();
        let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, readiness.describe(SystemTime::now()))
    }

    fn dump(&self) -> String {
        let snapshot = Arc::clone(&self.snapshot.borrow());
        let services: serde_json::Map<String, serde_json::Value> = snapshot
            .services
            .values()
            .map(|service| (service.id.to_string(), serde_json::Value::String(format!("{service:?}"))))
            .collect();
        let clusters: serde_json::Map<String, serde_json::Value> = snapshot
            .clusters
            .values()
            .map(|cluster| {
                let endpoints = cluster.endpoints.iter().map(|endpoint| {
                    let mesh = endpoint.endpoint.mesh.as_ref();
                    serde_json::json!({
                        "address": endpoint.address.to_string(),
                        "mesh": mesh.map(|mesh| mesh.address.to_string()),
                        "spiffeId": mesh.map(|mesh| mesh.identity.to_string()),
                        "weight": endpoint.endpoint.weight,
                        "inFlight": endpoint.load.in_flight(),
                    })
                });
                (format!("{}:{}", cluster.target.service, cluster.target.port), endpoints.collect())
            })
            .collect();
        let workload = snapshot.workload.as_ref().map(|workload| format!("{workload:?}"));
        let saved = self.readiness.borrow().saved();
        let age = saved.map(|saved| SystemTime::now().duration_since(saved).unwrap_or_default().as_secs());
        let source = serde_json::json!({ "fromDisk": age.is_some(), "ageSeconds": age });
        let dump =
            serde_json::json!({ "source": source, "workload": workload, "services": services, "clusters": clusters });
        format!("{dump:#}\n")
    }
}

fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

/// All metrics, in the form that is asked for.
pub fn metrics(request: &Request<Incoming>, telemetry: &Telemetry) -> Response<Full<Bytes>> {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept);
    let mut response = text(StatusCode::OK, telemetry.registry().render(format));
    let kind = header::HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A response of plain text.
pub(crate) fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
