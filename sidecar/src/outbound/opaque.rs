//! Opaque connections from the app: one CONNECT stream to the endpoint's sidecar, or plain TCP to an endpoint
//! outside the mesh. A failed dial tries another endpoint, since no byte was sent.

use std::{sync::Arc, time::Instant};

use tokio::net::TcpStream;
use weft_policy::{balance, model::Target};

use crate::{
    app::worker::Worker,
    error::{ProxyError, Reason},
    http::body::LoadGuard,
    opaque,
    snapshot::{Cluster, EndpointState},
    tunnel::Tunnel,
    upstream::{StreamGuard, connect_tcp},
};

const TRIES: usize = 3;

/// The far end of an opaque connection.
enum Remote {
    Plain(TcpStream),
    Mesh(Tunnel, StreamGuard),
}

/// Serves one opaque connection to `target`.
pub async fn serve<IO: opaque::Stream>(worker: &Worker, target: &Target, io: IO) {
    let mut snapshot = worker.snapshot();
    let Some(cluster) = snapshot.load().clusters.get(target).cloned() else {
        return tracing::debug!(service = %target.service, port = target.port, "no such service port");
    };
    let Some(_permit) = cluster.shared.limits.connections.try_acquire() else {
        cluster.shared.tcp[0].refused(Reason::ConnectionLimit);
        return;
    };
    match dial_any(worker, &cluster).await {
        Ok((remote, load)) => copy(&cluster, io, remote, load).await,
        Err(error) => {
            tracing::info!(service = %target.service, port = target.port, %error, "opaque connection failed");
            cluster.shared.tcp[0].refused(error.reason);
        }
    }
}

async fn copy<IO: opaque::Stream>(cluster: &Cluster, io: IO, remote: Remote, _load: LoadGuard) {
    let mtls = matches!(remote, Remote::Mesh(..));
    let metrics = &cluster.shared.tcp[usize::from(mtls)];
    let open = metrics.opened();
    let result = match remote {
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

async fn dial_any(worker: &Worker, cluster: &Cluster) -> Result<(Remote, LoadGuard), ProxyError> {
    let mut failed: Vec<Arc<EndpointState>> = Vec::new();
    let mut last =
        ProxyError::unsent(Reason::NoEndpoints, format!("service {} has no endpoint", cluster.target.service));
    for _ in 0..TRIES {
        let excluded = |endpoint: &Arc<EndpointState>| failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint));
        let picked = balance::pick(&cluster.endpoints, excluded, worker.clock.now(), || worker.random());
        let Some(endpoint) = picked else { break };
        let mut load = LoadGuard::new(Arc::clone(endpoint), worker.clock);
        let begun = Instant::now();
        match dial(worker, cluster, endpoint).await {
            Ok(remote) => {
                load.observe(begun.elapsed(), false);
                return Ok((remote, load));
            }
            Err(error) => {
                // A pooled connection that had ended says nothing of the endpoint: it is dialled anew.
                if error.reason != Reason::ConnectionTerminated {
                    load.observe(begun.elapsed(), true);
                    failed.push(Arc::clone(endpoint));
                }
                last = error;
            }
        }
    }
    Err(last)
}

async fn dial(worker: &Worker, cluster: &Cluster, endpoint: &EndpointState) -> Result<Remote, ProxyError> {
    let connect = cluster.policy.connect_timeout;
    match &endpoint.endpoint.mesh {
        None => Ok(Remote::Plain(connect_tcp(endpoint.address, connect).await?)),
        Some(mesh) => {
            let (tunnel, guard) = worker.pools.tunnel(mesh, &cluster.target, connect).await?;
            Ok(Remote::Mesh(tunnel, guard))
        }
    }
}
