//! A small HTTP/1.1 client with keep-alive: idle connections to one address wait in a stack.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header::HOST};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Sender = SendRequest<Full<Bytes>>;

/// Calls one service at one address.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    host: Arc<str>,
    idle: Arc<Mutex<Vec<Sender>>>,
}

impl Client {
    /// A client of `address` that sends `host` as the Host header.
    pub fn new(address: SocketAddr, host: &str) -> Self {
        Self { address, host: host.into(), idle: Arc::default() }
    }

    /// Sends one request that belongs to no other.
    pub async fn call(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Bytes>> {
        self.call_for(&HeaderMap::new(), method, path, body).await
    }

    /// Sends one request on behalf of the one whose context is given, and reads the whole answer; the connection is kept
    /// when the answer allows it.
    pub async fn call_for(
        &self,
        context: &HeaderMap,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Bytes>> {
        let mut sender = self.connection().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &*self.host)
            .body(Full::new(body))
            .with_context(|| format!("request: {path}: not a valid path"))?;
        request.headers_mut().extend(context.clone());
        let response = sender
            .send_request(request)
            .await
            .with_context(|| format!("call {} at {}: no answer", self.host, self.address))?;
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .with_context(|| format!("call {} at {}: answer broke off", self.host, self.address))?
            .to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Ok(Response::from_parts(parts, body))
    }

    async fn connection(&self) -> anyhow::Result<Sender> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut sender) = kept else { break };
            // An idle connection that its peer has closed says so here, before a request is risked on it.
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("connect to {} at {}: refused; is it running", self.host, self.address))?;
        stream.set_nodelay(true).ok();
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
