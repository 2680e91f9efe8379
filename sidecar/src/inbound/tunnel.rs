//! Opaque bytes from the mesh: each CONNECT stream of a tunnel connection becomes a TCP connection to the app.

use std::{cell::Cell, net::IpAddr, rc::Rc};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use weft_policy::model::Protocol;
use weft_svid::PeerIdentity;

use super::{
    HANDSHAKE, Peer, Permit,
    connection::{Connection, LeadsTo},
    parse_authority,
};
use crate::{
    app::worker::Worker,
    drain::Phase,
    error::{Blame, ProxyError, Reason},
    http::{UNSENT, reply},
    telemetry::{TcpMetrics, trace::OpenSpan},
    tunnel::{self, Tunnel},
    upstream::chain,
};

/// Streams that a peer may open and reset before the connection is ended.
const RESETS: usize = 20;

/// Serves a connection of tunnels until it ends; no new ones after the peer's time or once the drain has begun.
pub async fn serve(worker: Rc<Worker>, io: TlsStream<TcpStream>, peer: Peer) {
    let handshake = server::Builder::new()
        .initial_window_size(tunnel::STREAM_WINDOW)
        .initial_connection_window_size(tunnel::CONNECTION_WINDOW)
        .max_send_buffer_size(tunnel::SEND_BUFFER)
        .max_header_list_size(tunnel::HEAD_BYTES)
        .max_concurrent_streams(tunnel::STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .handshake(io);
    let mut connection: server::Connection<_, Bytes> = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(error = chain(&error), "no HTTP/2 on a tunnel connection"),
        Err(_) => return tracing::debug!("no HTTP/2 on a tunnel connection in time"),
    };
    let open = Rc::new(Cell::new(0_u32));
    let drain = worker.context.drain.clone();
    let ends = async {
        tokio::select! {
            () = drain.reached(Phase::Draining) => {}
            () = peer.session.left(peer.life) => {}
        }
    };
    let dead = tunnel::dead(connection.ping_pong(), || open.get() > 0);
    let (mut ends, mut dead, mut ending) = (std::pin::pin!(ends), std::pin::pin!(dead), false);
    let mut closed = std::pin::pin!(peer.session.ended());
    let why = Rc::new(Cell::new(None));
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = &mut ends, if !ending => {
                connection.graceful_shutdown();
                ending = true;
                continue;
            }
            () = &mut dead => return tracing::info!("no answer to PING: tunnel connection dropped"),
            _ = &mut closed => return why.set(Some(Reason::TlsCertificate)),
        };
        match accepted {
            None => return,
            Some(Err(error)) => return tracing::debug!(error = chain(&error), "tunnel connection ended"),
            // A stream that is reset frees its place for HTTP/2 while we may still be dialling for it.
            Some(Ok((_, mut respond))) if open.get() >= tunnel::STREAMS => {
                respond.send_reset(h2::Reason::REFUSED_STREAM)
            }
            Some(Ok((request, respond))) => {
                let (worker, open, why) = (Rc::clone(&worker), Rc::clone(&open), Rc::clone(&why));
                open.set(open.get() + 1);
                let caller = (peer.identity.clone(), peer.address.ip());
                tokio::task::spawn_local(async move {
                    run(&worker, caller, request, respond, &why).await;
                    open.set(open.get() - 1);
                });
            }
        }
    }
}

/// One tunnel, or the answer that refuses it.
async fn run(
    worker: &Worker,
    caller: (PeerIdentity, IpAddr),
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    closed: &Cell<Option<Reason>>,
) {
    let mut span = OpenSpan::default();
    let (permit, app, metrics) = match open(worker, caller, &request, &mut span).await {
        Ok(opened) => opened,
        Err(error) => {
            span.refused(error.reason);
            // What policies refuse is in their log.
            if error.reason != Reason::RbacDenied {
                tracing::info!(%error, "tunnel refused");
            }
            let _ = respond.send_response(refusal(&error), true);
            return;
        }
    };
    let open = metrics.opened();
    let reason = match respond.send_response(Response::new(()), false) {
        Ok(send) => permit.copy(Tunnel::new(send, request.into_body()), app, &metrics, &mut span).await,
        Err(error) => {
            tracing::debug!(error = chain(&error), "tunnel ended before its answer");
            Some(Reason::ConnectionTerminated)
        }
    };
    // Of a session that was closed under it, the tunnel sees a broken connection only.
    let reason = reason.map(|reason| closed.get().unwrap_or(reason));
    span.add(|span| span.reason = reason);
    open.closed(reason);
}

/// The app's connection for a tunnel. What policies say is asked before the dial. The span begins once it is known whose
/// telemetry is in force.
async fn open(
    worker: &Worker,
    (peer, source): (PeerIdentity, IpAddr),
    request: &Request<RecvStream>,
    span: &mut OpenSpan,
) -> Result<(Permit, TcpStream, TcpMetrics), ProxyError> {
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let target = parse_authority(authority).filter(|_| request.method() == Method::CONNECT).ok_or_else(|| {
        let detail = format!("{} {authority:?}: expected CONNECT <service>.<namespace>:<port>", request.method());
        ProxyError::unsent(Reason::BadRequest, detail)
    })?;
    let connection = Connection::new(worker, Some(peer), source, LeadsTo::Service(Some(target)), None);
    let app = connection.app(worker)?;
    *span = connection.span_of_bytes(worker, &app, request.headers());
    let limited = app.config().is_none_or(|port| !port.rate_limits.is_empty());
    // Through a tunnel nobody looks at requests: what is declared as HTTP, or has limits on requests, comes as such.
    if !(app.protocol.is_opaque() || app.protocol == Protocol::Undeclared) || limited {
        let detail = format!("{authority}: requests to this port are not taken through a tunnel");
        return Err(ProxyError::unsent(Reason::UpgradeRefused, detail));
    }
    let metrics = app.metrics.tcp.clone();
    let opened = async {
        let permit = Permit::bytes(worker, &connection, &app)?;
        connection.count(worker, &app);
        let stream = permit.dial().await?;
        Ok((permit, stream))
    };
    match opened.await {
        Ok((permit, stream)) => Ok((permit, stream, metrics)),
        Err(error) => {
            let error: ProxyError = error;
            metrics.refused(error.reason);
            Err(error)
        }
    }
}

fn refusal(error: &ProxyError) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(error.reason.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let value = HeaderValue::from_str(&reply::proxy_status(error)).unwrap_or(HeaderValue::from_static("weft"));
    response.headers_mut().insert(reply::PROXY_STATUS, value);
    if error.unsent && error.reason.blame() == Blame::Upstream {
        response.headers_mut().insert(UNSENT, HeaderValue::from_static("1"));
    }
    response
}
