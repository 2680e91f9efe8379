//! The health listener of a pod: liveness and readiness for the kubelet, and the app's own probes, which this sidecar
//! makes for a kubelet that has no identity in the mesh. It shows nothing else, because the whole network reaches it.

mod ask;
mod tls;

use std::{collections::BTreeMap, convert::Infallible, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::Semaphore, sync::watch};

pub use self::ask::ask;
use crate::{admin, drain::Drain, readiness::Status};

/// Connections at once; one more is closed. A kubelet opens one for each probe.
const CONNECTIONS: usize = 64;
/// A request head that takes longer, and a probe without a time of its own, are given up.
const LIMIT: Duration = Duration::from_secs(10);
/// No probe may take longer.
const LONGEST: u64 = 3600;
/// Path of the app's probes.
const PREFIX: &str = "/probe/";

/// One `--app-probe`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppProbe {
    /// `CONTAINER/KIND`.
    pub name: String,
    what: What,
    limit: Duration,
}

/// What the app is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// gRPC's health protocol.
    Grpc(Grpc),
    /// A GET.
    Http(HttpGet),
    /// A connection to a port.
    Tcp(u16),
}

impl What {
    /// A GET of `path`.
    #[must_use]
    pub fn http(port: u16, path: &str) -> Self {
        Self::Http(HttpGet { port, path: path.into(), scheme: Scheme::Http, http_headers: Vec::new() })
    }

    /// The health of a gRPC service; an empty name is that of the whole server.
    #[must_use]
    pub fn grpc(port: u16, service: &str) -> Self {
        Self::Grpc(Grpc { port, service: service.into() })
    }
}

/// As in a pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    port: u16,
    #[serde(default)]
    service: String,
}

/// As in a pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpGet {
    port: u16,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: Scheme,
    #[serde(default)]
    http_headers: Vec<HttpHeader>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
enum Scheme {
    #[default]
    Http,
    Https,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
struct HttpHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    grpc: Option<Grpc>,
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    timeout_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpSocket {
    port: u16,
}

impl FromStr for AppProbe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, json) = text.split_once('=').ok_or("expected NAME=JSON")?;
        let written: Written = serde_json::from_str(json).map_err(|error| format!("probe {name:?}: {error}"))?;
        let what = match (written.grpc, written.http_get, written.tcp_socket) {
            (Some(grpc), None, None) => What::Grpc(grpc),
            (None, Some(http), None) => What::Http(http),
            (None, None, Some(tcp)) => What::Tcp(tcp.port),
            _ => return Err(format!("probe {name:?}: expected one of httpGet, tcpSocket and grpc")),
        };
        let limit = written.timeout_seconds.map_or(LIMIT, |seconds| Duration::from_secs(seconds.clamp(1, LONGEST)));
        Ok(Self { name: name.into(), what, limit })
    }
}

/// What the health listener answers from.
#[derive(Clone)]
pub struct Health {
    readiness: watch::Receiver<Status>,
    drain: Drain,
    probes: Arc<BTreeMap<String, AppProbe>>,
}

impl Health {
    /// With these probes.
    #[must_use]
    pub fn new(readiness: watch::Receiver<Status>, drain: Drain, probes: &[AppProbe]) -> Self {
        let probes = probes.iter().map(|probe| (probe.name.clone(), probe.clone())).collect();
        Self { readiness, drain, probes: Arc::new(probes) }
    }

    /// Serves for ever.
    pub async fn run(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let health = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let health = health.clone();
                    async move { Ok::<_, Infallible>(health.answer(&request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(LIMIT)
                    .max_headers(64)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "health connection ended");
                }
                drop(slot);
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return admin::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        }
        let path = request.uri().path();
        match path {
            "/livez" => admin::text(StatusCode::OK, "live\n".into()),
            // What is missing is for the admin listener, whose readers are on this machine.
            "/readyz" if self.drain.is_draining() => admin::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into()),
            "/readyz" if self.readiness.borrow().is_ready() => admin::text(StatusCode::OK, "ready\n".into()),
            "/readyz" => admin::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
            path => match path.strip_prefix(PREFIX).and_then(|name| self.probes.get(name)) {
                Some(probe) => probed(probe, request).await,
                None => admin::text(StatusCode::NOT_FOUND, "try /livez /readyz\n".into()),
            },
        }
    }
}

/// Asks the app, and answers what it said.
async fn probed(probe: &AppProbe, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    // The app sees the name by which the kubelet called, with its own port, as if it had been called itself.
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("127.0.0.1");
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let asked = tokio::time::timeout(probe.limit, ask(&probe.what, host)).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer in {} s", probe.limit.as_secs())));
    match asked {
        Ok(()) => admin::text(StatusCode::OK, "ok\n".into()),
        Err(why) => {
            tracing::debug!(probe = probe.name, why, "the app's probe failed");
            admin::text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
    }
}

#[cfg(test)]
mod tests;
