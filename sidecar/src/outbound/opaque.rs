//! Opaque connections from the app: one CONNECT stream to the endpoint's sidecar, or plain TCP to an endpoint
//! outside the mesh. A failed dial tries another endpoint, since no byte was sent. Bytes tell no trace, so that each
//! connection begins one; the CONNECT tells the far sidecar, whose span belongs to the same trace.

use std::{cell::Cell, net::IpAddr, sync::Arc, time::Instant};

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use weft_policy::{balance::hash, circuit::Outcome, limits::Permit, trace::SpanId};

use super::admission::{Admission, Asked, is_available, outcome_of_error};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    first::Speaks,
    http::body::LoadGuard,
    opaque::{self, Primed},
    snapshot::{Cluster, EndpointState},
    telemetry::{
        span::Kind,
        trace::{OpenSpan, Traced},
    },
    tunnel::Tunnel,
    upstream::{StreamGuard, connect_tcp},
};

/// Dials for one connection.
const TRIES: u32 = 3;

/// The far end of an opaque connection.
enum Remote {
    Plain(Primed<TcpStream>),
    Mesh(Primed<Tunnel>, StreamGuard),
}

/// A far end that was dialled, with its places among the connections and at its endpoint, and its span.
pub struct Opened {
    remote: Remote,
    span: Ahead,
    _load: LoadGuard,
    _permit: Permit,
}

/// The span of what may not be used after all: then there is none.
struct Ahead(Option<OpenSpan>);

impl Ahead {
    fn used(mut self) -> OpenSpan {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(span) = &mut self.0 {
            span.forget();
        }
    }
}

impl Speaks for Opened {
    async fn speaks(&mut self) {
        match &mut self.remote {
            Remote::Plain(remote) => remote.speaks().await,
            Remote::Mesh(remote, _) => remote.speaks().await,
        }
    }
}

/// Serves one opaque connection from the app at `source` to what `opened` leads to, or is opened now.
pub async fn serve<IO: opaque::Stream>(
    worker: &Worker,
    cluster: &Cluster,
    source: IpAddr,
    opened: Option<Opened>,
    io: IO,
) {
    let opened = match opened {
        Some(opened) => Ok(opened),
        None => open(worker, cluster, source).await,
    };
    match opened {
        Ok(opened) => copy(cluster, io, opened).await,
        Err(error) => {
            let target = &cluster.target;
            tracing::info!(service = %target.service, port = target.port, %error, "opaque connection failed");
            cluster.shared.tcp(false).refused(error.reason);
            // An end would be taken for that of the data.
            io.abort();
        }
    }
}

/// Dials an endpoint.
///
/// # Errors
/// When there are as many connections as may be, or none of the endpoints takes one.
pub async fn open(worker: &Worker, cluster: &Cluster, source: IpAddr) -> Result<Opened, ProxyError> {
    let started = Instant::now();
    let mut snapshot = worker.snapshot();
    let telemetry = snapshot.load().workload.as_ref().map(|workload| &workload.telemetry);
    let traced = telemetry.map(|told| Traced::of(told, &HeaderMap::new(), false, || worker.random()));
    let Some(permit) = cluster.shared.limits.connections.try_acquire() else {
        open_span(worker, traced.as_ref(), cluster).1.refused(Reason::ConnectionLimit);
        let detail = format!("service {} has as many connections as its limit allows", cluster.target.service);
        return Err(ProxyError::unsent(Reason::ConnectionLimit, detail));
    };
    let (remote, load, span) = dial_any(worker, cluster, source, (traced.as_ref(), started)).await?;
    Ok(Opened { remote, span: Ahead(Some(span)), _load: load, _permit: permit })
}

/// The span of a try of a connection, where somebody wants it, and its id.
fn open_span(worker: &Worker, traced: Option<&Traced>, cluster: &Cluster) -> (SpanId, OpenSpan) {
    let id = SpanId::random(worker.random());
    let span = traced.map(|traced| traced.begin_bytes(Kind::Client, id, Some(&cluster.target), &worker.spans));
    (id, span.unwrap_or_default())
}

async fn copy<IO: opaque::Stream>(cluster: &Cluster, io: IO, opened: Opened) {
    let mut span = opened.span.used();
    let mtls = matches!(opened.remote, Remote::Mesh(..));
    let metrics = cluster.shared.tcp(mtls);
    let open = metrics.opened();
    let moved = (Cell::new(0), Cell::new(0));
    let sent = |bytes| {
        moved.0.set(moved.0.get() + bytes);
        metrics.sent(bytes);
    };
    let received = |bytes| {
        moved.1.set(moved.1.get() + bytes);
        metrics.received(bytes);
    };
    let result = match opened.remote {
        Remote::Plain(remote) => opaque::copy(io, remote, sent, received).await,
        Remote::Mesh(tunnel, _guard) => opaque::copy(io, tunnel, sent, received).await,
    };
    let reason = result.err().map(|failure| {
        tracing::debug!(error = %failure, "opaque connection ended");
        Reason::ConnectionTerminated
    });
    span.moved(moved.0.get(), moved.1.get(), reason);
    open.closed(reason);
}

async fn dial_any(
    worker: &Worker,
    cluster: &Cluster,
    source: IpAddr,
    (traced, started): (Option<&Traced>, Instant),
) -> Result<(Remote, LoadGuard, OpenSpan), ProxyError> {
    let mut failed: SmallVec<[Arc<EndpointState>; 1]> = SmallVec::new();
    // Bytes have no headers: only the address can be hashed.
    let hash = cluster.balancer.hash_on().and_then(|on| hash::of_request(on, &HeaderMap::new(), None, source));
    let mut number = 0;
    loop {
        number += 1;
        // Nothing is sent before the connection is there: each try can be made again elsewhere.
        let (id, mut span) = open_span(worker, traced, cluster);
        span.of_request(started, None);
        span.add(|span| span.resend = number - 1);
        let asked = Asked { hash, bound: None, repeatable: true, failed: &failed };
        let admission = Admission::ask(worker, cluster, &asked).inspect_err(|error| span.refused(error.reason))?;
        let endpoint = Arc::clone(admission.endpoint());
        span.to_endpoint(&endpoint);
        let mut load = LoadGuard::new(Arc::clone(&endpoint), worker.clock);
        let begun = Instant::now();
        let error = match dial(worker, cluster, &endpoint, traced.map(|traced| (traced, id))).await {
            Ok(remote) => {
                load.observe(begun.elapsed(), false);
                admission.record(worker, cluster, Outcome::Success, &mut span);
                return Ok((remote, load, span));
            }
            Err(error) => error,
        };
        let outcome = outcome_of_error(&error);
        admission.record(worker, cluster, outcome, &mut span);
        if outcome != Outcome::Neutral || error.reason != Reason::ConnectionTerminated {
            load.observe(begun.elapsed(), true);
            failed.push(endpoint);
        }
        // A pooled connection that had ended says nothing of the endpoint: it is dialled anew.
        let elsewhere = cluster.endpoints.iter().any(|endpoint| is_available(endpoint, &failed));
        span.refused(error.reason);
        if number == TRIES || !elsewhere {
            return Err(error);
        }
        span.event("weft.retry", || [("weft.reason", error.reason.as_str().to_owned())]);
        span.retried();
    }
}

async fn dial(
    worker: &Worker,
    cluster: &Cluster,
    endpoint: &EndpointState,
    traced: Option<(&Traced, SpanId)>,
) -> Result<Remote, ProxyError> {
    let connect = cluster.policy.connect_timeout;
    match &endpoint.endpoint.mesh {
        None => Ok(Remote::Plain(Primed::new(connect_tcp(endpoint.address, connect).await?))),
        Some(mesh) => {
            let mut context = HeaderMap::new();
            if let Some((traced, span)) = traced {
                traced.tell(&mut context, span);
            }
            let (tunnel, guard) = worker.pools.tunnel(mesh, &cluster.target, context, connect).await?;
            Ok(Remote::Mesh(Primed::new(tunnel), guard))
        }
    }
}
