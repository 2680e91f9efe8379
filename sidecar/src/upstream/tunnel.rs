//! Connections for CONNECT streams: made, shared by up to [`tunnel::STREAMS`] tunnels, watched.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderMap, Method, Request, Version};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use weft_policy::model::Target;

use super::{StreamGuard, chain};
use crate::{
    error::{ProxyError, Reason},
    http::UNSENT,
    live::{Cut, Session},
    tunnel::{self, Tunnel},
};

/// How long the far side may take to reach its app: longer than its own connect timeout.
const OPEN: Duration = Duration::from_secs(5);

/// One connection of tunnels.
#[derive(Clone)]
pub struct Carrier {
    address: SocketAddr,
    sender: SendRequest<Bytes>,
    streams: Rc<Cell<u32>>,
    /// It ended, or takes no more streams.
    closed: Rc<Cell<bool>>,
    /// Fired when the session is to take no more.
    leaving: Rc<Cut<()>>,
    until: Instant,
}

impl Carrier {
    /// Speaks HTTP/2 on a TLS session; no new tunnels after `life`.
    pub async fn new(
        address: SocketAddr,
        io: TlsStream<TcpStream>,
        session: Session,
        life: Duration,
    ) -> Result<Self, ProxyError> {
        let (sender, mut connection) = client::Builder::new()
            .initial_window_size(tunnel::STREAM_WINDOW)
            .initial_connection_window_size(tunnel::CONNECTION_WINDOW)
            .max_send_buffer_size(tunnel::SEND_BUFFER)
            .max_header_list_size(tunnel::HEAD_BYTES)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(|error| ProxyError::unsent(Reason::ConnectFailed, format!("{address}: {}", chain(&error))))?;
        let (streams, closed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let carrier = Self {
            address,
            sender,
            streams: Rc::clone(&streams),
            closed: Rc::clone(&closed),
            leaving: Rc::clone(session.leaving()),
            until: Instant::now() + life,
        };
        tokio::task::spawn_local(async move {
            let ping = connection.ping_pong();
            tokio::select! {
                result = connection => if let Err(error) = result {
                    tracing::debug!(%address, error = chain(&error), "tunnel connection ended");
                },
                () = tunnel::dead(ping, || streams.get() > 0) => tracing::info!(%address, "no answer to PING: dropped"),
                _ = session.ended() => {}
            }
            closed.set(true);
        });
        Ok(carrier)
    }

    /// Takes another tunnel.
    pub fn is_free(&self) -> bool {
        !self.closed.get() && self.streams.get() < tunnel::STREAMS && self.is_young()
    }

    /// Worth keeping.
    pub fn is_open(&self) -> bool {
        !self.closed.get() && (self.streams.get() > 0 || self.is_young())
    }

    fn is_young(&self) -> bool {
        !self.leaving.has_fired() && Instant::now() < self.until
    }

    /// Opens a tunnel to a service port behind this connection; `context` tells of its trace.
    ///
    /// # Errors
    /// When the connection has ended, in which case nothing was sent, or the far sidecar refuses.
    pub async fn open(self, target: &Target, context: HeaderMap) -> Result<(Tunnel, StreamGuard), ProxyError> {
        let Self { address, sender, streams, closed, .. } = self;
        let guard = StreamGuard::new(streams);
        let authority = format!("{}.{}:{}", target.service.name(), target.service.namespace(), target.port);
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(authority)
            .version(Version::HTTP_2)
            .body(())
            .map_err(|error| ProxyError::unsent(Reason::Internal, error.to_string()))?;
        *request.headers_mut() = context;
        let ended = |error: h2::Error| {
            // A stream that was reset says nothing of the others.
            if !error.is_reset() {
                closed.set(true);
            }
            ProxyError::unsent(Reason::ConnectionTerminated, format!("{address}: {}", chain(&error)))
        };
        let mut sender = sender.ready().await.map_err(ended)?;
        let (response, send) = sender.send_request(request, false).map_err(ended)?;
        // Of the bytes of the app nothing is sent before the far side has its connection.
        let response = tokio::time::timeout(OPEN, response).await.map_err(|_| {
            ProxyError::unsent(Reason::ConnectTimeout, format!("{address}: CONNECT was not answered within {OPEN:?}"))
        })?;
        let response = response.map_err(ended)?;
        if !response.status().is_success() {
            let why =
                response.headers().get("proxy-status").and_then(|value| value.to_str().ok()).unwrap_or("no reason");
            let detail = format!("{address}: CONNECT answered {}: {why}", response.status());
            // Its own word for an app that cannot be reached: the circuits hear of it as of any endpoint.
            let unreachable = response.headers().contains_key(UNSENT);
            let reason = if unreachable { Reason::ConnectFailed } else { Reason::UpgradeRefused };
            return Err(ProxyError::unsent(reason, detail));
        }
        Ok((Tunnel::new(send, response.into_body()), guard))
    }
}
