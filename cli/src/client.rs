//! GET and POST over HTTP/1.1 to the control plane's API and the sidecars' admin servers.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// No answer of ours takes longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a 200 answer from `server` (`http://HOST:PORT`, the scheme may be missing) to `path`.
pub async fn get(server: &str, path: &str) -> anyhow::Result<Bytes> {
    call(Method::GET, server, path).await
}

/// The same for a POST without a body.
pub async fn post(server: &str, path: &str) -> anyhow::Result<Bytes> {
    call(Method::POST, server, path).await
}

/// The status and the text of any answer from `server` to a GET of `path`.
pub async fn ask(server: &str, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let (status, body) = answer(Method::GET, &authority(server)?, path).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn call(method: Method, server: &str, path: &str) -> anyhow::Result<Bytes> {
    let authority = authority(server)?;
    let what = format!("{method} {path}");
    let (status, body) = answer(method, &authority, path).await?;
    ensure!(
        status.is_success(),
        "{what} from {authority}: status {}: {}",
        status.as_u16(),
        String::from_utf8_lossy(&body)
    );
    Ok(body)
}

async fn answer(method: Method, authority: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let what = format!("{method} {path}");
    let answer = tokio::time::timeout(TIMEOUT, exchange(method, authority, path)).await;
    answer.with_context(|| format!("{what} from {authority}: no answer in {} s", TIMEOUT.as_secs()))?
}

async fn exchange(method: Method, authority: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let what = format!("{method} {path}");
    let stream = TcpStream::connect(authority).await.with_context(|| {
        format!("connect to {authority}: failed; is the control plane running, and is --server (WEFT_SERVER) right")
    })?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(HOST, authority).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(|| format!("{what} from {authority}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.with_context(|| format!("read {path} from {authority}"))?;
    connection.abort();
    Ok((status, body.to_bytes()))
}

fn authority(server: &str) -> anyhow::Result<String> {
    let uri: Uri = server.parse().with_context(|| format!("--server: {server}: not a URL"))?;
    if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        bail!("--server: {server}: only http is spoken here; use http://HOST:PORT");
    }
    let authority =
        uri.authority().with_context(|| format!("--server: {server}: has no host; use http://HOST:PORT"))?;
    let port = if authority.port().is_none() { ":80" } else { "" };
    Ok(format!("{authority}{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_leave_out_scheme_and_port() {
        for (server, expected) in
            [("http://127.0.0.1:15014", "127.0.0.1:15014"), ("localhost:1", "localhost:1"), ("http://h/", "h:80")]
        {
            assert_eq!(authority(server).unwrap(), expected);
        }
        for server in ["https://h", "/path", "", "http://"] {
            assert!(authority(server).is_err(), "{server}");
        }
    }
}
