//! The HTTP/1.1 server that the demo's services share: one task per connection, keep-alive on.

use std::{convert::Infallible, future::Future, net::SocketAddr};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Binds `listen` with an error that says which address was refused.
pub(crate) async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("listen: {listen}: cannot bind; choose another port"))
}

/// Accepts the next connection; errors such as a lack of file descriptors are waited out.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it a small answer waits for the acknowledgement of the one before.
                stream.set_nodelay(true).ok();
                return stream;
            }
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

/// Serves every connection of `listener` with `handler`; a failed handler answers 502 with the chain of causes.
pub(crate) async fn http<H, F>(listener: TcpListener, handler: H) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = anyhow::Result<Response<Full<Bytes>>>> + Send + 'static,
{
    loop {
        let stream = accept(&listener).await;
        let handler = handler.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move {
                    Ok::<_, Infallible>(answer.await.unwrap_or_else(|error| {
                        json(StatusCode::BAD_GATEWAY, &serde_json::json!({ "error": format!("{error:#}") }))
                    }))
                }
            });
            // The peer's end of a connection is its own affair.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// The answer to a path or method that the service does not know.
pub(crate) fn not_found() -> Response<Full<Bytes>> {
    json(StatusCode::NOT_FOUND, &serde_json::json!({ "error": "no such resource" }))
}
