//! The health listener of a pod: liveness and readiness for the kubelet, and the app's own probes, which this sidecar
//! makes for a kubelet that has no identity in the mesh. It shows nothing else, because the whole network
//! reaches it, but for metrics where they are asked for.

mod ask;
mod connections;
mod tls;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::IpAddr,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub use self::ask::ask;
use self::connections::{Connection, Connections};
use crate::{admin, drain::Drain, readiness::Status, telemetry::Telemetry};

/// A request head that takes longer is given up.
const HEAD: Duration = Duration::from_secs(2);
/// A probe or hook without a time of its own that takes longer is given up: as long as a pod has for its end.
const LIMIT: Duration = Duration::from_secs(30);
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
    probes: Arc<BTreeMap<String, Asked>>,
    /// What the app is called by: nothing of a request comes to it.
    host: IpAddr,
    open: Connections,
    metrics: Option<Telemetry>,
}

/// A probe, and its run while there is one. Whoever asks meanwhile gets the answer of that run, so that nobody can have
/// the app asked more than once at a time.
struct Asked {
    probe: AppProbe,
    running: Mutex<Option<WeakShared<Run>>>,
}

/// Whether the app was well.
type Run = BoxFuture<'static, bool>;

impl Health {
    /// With these probes, which call the app by `host`.
    #[must_use]
    pub fn new(readiness: watch::Receiver<Status>, drain: Drain, host: IpAddr, probes: &[AppProbe]) -> Self {
        let asked = |probe: &AppProbe| Asked { probe: probe.clone(), running: Mutex::default() };
        let probes = probes.iter().map(|probe| (probe.name.clone(), asked(probe))).collect();
        Self { readiness, drain, probes: Arc::new(probes), host, open: Connections::default(), metrics: None }
    }

    /// Shows these metrics too.
    #[must_use]
    pub fn with_metrics(self, metrics: Option<Telemetry>) -> Self {
        Self { metrics, ..self }
    }

    /// Serves for ever.
    pub async fn run(self, listener: TcpListener) {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Some(connection) = self.open.open(from.ip().to_canonical()) else { continue };
            tokio::spawn(self.clone().serve(stream, connection));
        }
    }

    /// One request, unless another connection needs the place before.
    async fn serve(self, stream: TcpStream, connection: Connection) {
        let (health, connection) = (&self, &connection);
        let service =
            service_fn(move |request| async move { Ok::<_, Infallible>(health.answer(&request, connection).await) });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .keep_alive(false)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            ended = served => if let Err(error) = ended {
                tracing::debug!(%error, "health connection ended");
            },
            () = connection.closed() => {}
        }
    }

    async fn answer(&self, request: &Request<Incoming>, connection: &Connection) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return admin::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
        }
        let path = request.uri().path();
        if let Some(telemetry) = self.metrics.as_ref().filter(|_| path == "/metrics") {
            return admin::metrics(request, telemetry);
        }
        match path {
            "/livez" => admin::text(StatusCode::OK, "live\n".into()),
            // What is missing is for the admin listener, whose readers are on this machine.
            "/readyz" if self.drain.is_draining() => admin::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into()),
            "/readyz" if self.readiness.borrow().is_ready() => admin::text(StatusCode::OK, "ready\n".into()),
            "/readyz" => admin::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".into()),
            path => match path.strip_prefix(PREFIX).and_then(|name| self.probes.get(name)) {
                Some(asked) => {
                    let _probing = connection.probing();
                    asked.answer(self.host).await
                }
                None => admin::text(StatusCode::NOT_FOUND, "try /livez /readyz\n".into()),
            },
        }
    }
}

impl Asked {
    /// What the app says, in a word: why is for the log, whose readers are on this machine.
    async fn answer(&self, host: IpAddr) -> Response<Full<Bytes>> {
        if self.run(host).await {
            admin::text(StatusCode::OK, "ok\n".into())
        } else {
            admin::text(StatusCode::SERVICE_UNAVAILABLE, "failed\n".into())
        }
    }

    /// The run that there is, else another one. It ends when nobody waits for it any more.
    fn run(&self, host: IpAddr) -> Shared<Run> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let found = running.as_ref().and_then(WeakShared::upgrade).filter(|run| run.peek().is_none());
        found.unwrap_or_else(|| {
            let run = is_well(self.probe.clone(), host).boxed().shared();
            *running = run.downgrade();
            run
        })
    }
}

/// Asks the app.
async fn is_well(probe: AppProbe, host: IpAddr) -> bool {
    let asked = tokio::time::timeout(probe.limit, ask(&probe.what, host)).await;
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer in {} s", probe.limit.as_secs())));
    if let Err(why) = &asked {
        tracing::debug!(probe = probe.name, why, "the app's probe failed");
    }
    asked.is_ok()
}

#[cfg(test)]
mod tests;
