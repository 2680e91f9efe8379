//! A connection to an address that nothing in the mesh has. The Host of a request or the SNI of a TLS handshake may still
//! name a service; all else goes where the app wants, byte for byte, unless MeshConfig refuses that.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_policy::model::{ObjectName, OutboundTraffic, Target};

use super::{
    super::{DETECT, Destination, find, named, opaque as bytes_to, peer, requests},
    head,
};
use crate::{
    app::worker::Worker,
    detect::{self, Protocol, Rewind},
    error::{ProxyError, Reason},
    first::{First, first},
    http::reply,
    opaque::{self, Primed, Stream as _},
    snapshot::Cluster,
    upstream::{CONNECT, connect_tcp},
};

/// The far end of a connection that is passed on.
type Called = Primed<TcpStream>;

/// One connection to `original`.
pub async fn serve(worker: Rc<Worker>, original: SocketAddr, mut io: TcpStream) {
    let allowed = worker.snapshot().load().workload.as_ref().map(|workload| workload.outbound);
    let allowed = allowed == Some(OutboundTraffic::AllowAny);
    let dial = async { connect_tcp(original, CONNECT).await.map(Primed::new) };
    let called = match allowed {
        true => match first(&io, dial).await {
            First::Called(called) => return pass(&worker, original, io, Some(called)).await,
            First::Caller(called) => called,
        },
        false => None,
    };
    let Ok(detected) = detect::detect(&mut io, DETECT).await else { return };
    let (protocol, mut prefix) = (detected.protocol, detected.prefix);
    match protocol {
        Protocol::Http1 => {
            let host = within(head::host(&mut io, &mut prefix)).await;
            if let Some(host) = host
                && service(&worker, &host).await.is_some()
            {
                let source = peer(&io);
                return requests(worker, Rewind::new(io, prefix), false, Destination::Host, source).await;
            }
        }
        Protocol::Tls => {
            let name = within(head::sni(&mut io, &mut prefix)).await;
            if let Some(name) = name
                && let Some(cluster) = cluster(&worker, &name, original.port()).await
            {
                let source = peer(&io);
                return bytes_to::serve(&worker, &cluster, source, None, Rewind::new(io, prefix)).await;
            }
        }
        Protocol::Http2 | Protocol::Opaque | Protocol::Silent => {}
    }
    if allowed {
        pass(&worker, original, Rewind::new(io, prefix), called).await;
    } else {
        refuse(&worker, original, protocol, Rewind::new(io, prefix)).await;
    }
}

/// Head or handshake in time, or no name.
async fn within(name: impl Future<Output = Option<String>>) -> Option<String> {
    tokio::time::timeout(DETECT, name).await.ok().flatten()
}

/// The service of a name, if the mesh has one. A name that may be one, and is somewhere else's, is asked for once.
async fn service(worker: &Worker, host: &str) -> Option<ObjectName> {
    if let Some(name) = worker.snapshot().load().by_host(host) {
        return Some(name.clone());
    }
    let name = named(host, &worker.context.config.namespace).filter(|_| worker.context.demand.is_answered())?;
    find(worker, &name).await.is_ok().then_some(name)
}

async fn cluster(worker: &Worker, host: &str, port: u16) -> Option<Arc<Cluster>> {
    let target = Target { service: service(worker, host).await?, port };
    worker.snapshot().load().clusters.get(&target).cloned()
}

/// Byte for byte to where the app wants to go.
async fn pass<IO: opaque::Stream>(worker: &Worker, original: SocketAddr, io: IO, called: Option<Called>) {
    let metrics = worker.passed();
    let called = match called {
        Some(called) => Ok(called),
        None => connect_tcp(original, CONNECT).await.map(Primed::new),
    };
    let called = match called {
        Ok(called) => called,
        Err(error) => {
            tracing::info!(%error, "connection to outside the mesh failed");
            metrics.refused(error.reason);
            return io.abort();
        }
    };
    let open = metrics.opened();
    let result = opaque::copy(io, called, |sent| metrics.sent(sent), |got| metrics.received(got)).await;
    open.closed(result.err().map(|_| Reason::ConnectionTerminated));
}

/// HTTP/1.1 is told why; others see a reset.
async fn refuse(worker: &Worker, original: SocketAddr, protocol: Protocol, io: Rewind<TcpStream>) {
    let detail = format!("{original} is not in the mesh, and MeshConfig's outboundTraffic is RegistryOnly");
    let error = ProxyError::unsent(Reason::OutboundDenied, detail);
    tracing::info!(%error, "connection refused");
    worker.passed().refused(error.reason);
    if protocol == Protocol::Http1 {
        answer(&error, io).await;
    } else {
        io.abort();
    }
}

/// A whole response to a request that nobody reads.
async fn answer(error: &ProxyError, io: Rewind<TcpStream>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (body, status) = (format!("weft: {error}\n"), error.reason.status());
    let head = format!(
        "HTTP/1.1 {status} \r\nproxy-status: {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        reply::proxy_status(error),
        body.len(),
    );
    let mut io = io.into_inner();
    let answered = async {
        io.write_all(head.as_bytes()).await?;
        io.write_all(body.as_bytes()).await?;
        io.shutdown().await?;
        // Closing with bytes unread would reset the answer away.
        let mut rest = BytesMut::with_capacity(4096);
        while io.read_buf(&mut rest).await? > 0 {
            rest.clear();
        }
        Ok::<_, std::io::Error>(())
    };
    if !matches!(tokio::time::timeout(DETECT, answered).await, Ok(Ok(()))) {
        tracing::debug!("the app did not wait for its answer");
    }
}
