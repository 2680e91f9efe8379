//! Opaque connections from the app: one CONNECT stream to the endpoint's sidecar, or plain TCP to an endpoint
//! outside the mesh. A failed dial tries another endpoint, since no byte was sent.

use std::{net::IpAddr, sync::Arc, time::Instant};

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::net::TcpStream;
use weft_policy::{balance::hash, circuit::Outcome, limits::Permit};

use super::admission::{Admission, Asked, is_available, outcome_of_error};
use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    first::Speaks,
    http::body::LoadGuard,
    opaque::{self, Primed},
    snapshot::{Cluster, EndpointState},
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

/// A far end that was dialled, with its places among the connections and at its endpoint.
pub struct Opened {
    remote: Remote,
    _load: LoadGuard,
    _permit: Permit,
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
            cluster.shared.tcp[0].refused(error.reason);
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
    let permit = cluster.shared.limits.connections.try_acquire().ok_or_else(|| {
        let detail = format!("service {} has as many connections as its limit allows", cluster.target.service);
        ProxyError::unsent(Reason::ConnectionLimit, detail)
    })?;
    let (remote, load) = dial_any(worker, cluster, source).await?;
    Ok(Opened { remote, _load: load, _permit: permit })
}

async fn copy<IO: opaque::Stream>(cluster: &Cluster, io: IO, opened: Opened) {
    let mtls = matches!(opened.remote, Remote::Mesh(..));
    let metrics = &cluster.shared.tcp[usize::from(mtls)];
    let open = metrics.opened();
    let result = match opened.remote {
        Remote::Plain(remote) => opaque::copy(io, remote, |sent| metrics.sent(sent), |got| metrics.received(got)).await,
        Remote::Mesh(tunnel, _guard) => {
            opaque::copy(io, tunnel, |sent| metrics.sent(sent), |got| metrics.received(got)).await
        }
    };
    let reason = result.err().map(|failure| {
        tracing::debug!(error = %failure, "opaque connection ended");
        Reason::ConnectionTerminated
    });
    open.closed(reason);
}

async fn dial_any(worker: &Worker, cluster: &Cluster, source: IpAddr) -> Result<(Remote, LoadGuard), ProxyError> {
    let mut failed: SmallVec<[Arc<EndpointState>; 1]> = SmallVec::new();
    // Bytes have no headers: only the address can be hashed.
    let hash = cluster.balancer.hash_on().and_then(|on| hash::of_request(on, &HeaderMap::new(), None, source));
    let mut number = 0;
    loop {
        number += 1;
        // Nothing is sent before the connection is there: each try can be made again elsewhere.
        let admission = Admission::ask(worker, cluster, &Asked { hash, repeatable: true, failed: &failed })?;
        let endpoint = Arc::clone(admission.endpoint());
        let mut load = LoadGuard::new(Arc::clone(&endpoint), worker.clock);
        let begun = Instant::now();
        let error = match dial(worker, cluster, &endpoint).await {
            Ok(remote) => {
                load.observe(begun.elapsed(), false);
                admission.record(worker, cluster, Outcome::Success);
                return Ok((remote, load));
            }
            Err(error) => error,
        };
        let outcome = outcome_of_error(&error);
        admission.record(worker, cluster, outcome);
        if outcome != Outcome::Neutral || error.reason != Reason::ConnectionTerminated {
            load.observe(begun.elapsed(), true);
            failed.push(endpoint);
        }
        // A pooled connection that had ended says nothing of the endpoint: it is dialled anew.
        let elsewhere = cluster.endpoints.iter().any(|endpoint| is_available(endpoint, &failed));
        if number == TRIES || !elsewhere {
            return Err(error);
        }
    }
}

async fn dial(worker: &Worker, cluster: &Cluster, endpoint: &EndpointState) -> Result<Remote, ProxyError> {
    let connect = cluster.policy.connect_timeout;
    match &endpoint.endpoint.mesh {
        None => Ok(Remote::Plain(Primed::new(connect_tcp(endpoint.address, connect).await?))),
        Some(mesh) => {
            let (tunnel, guard) = worker.pools.tunnel(mesh, &cluster.target, connect).await?;
            Ok(Remote::Mesh(Primed::new(tunnel), guard))
        }
    }
}
