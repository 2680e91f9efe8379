//! Asks the app as a kubelet would: HTTP with redirections on the same host, TCP, gRPC's health protocol.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::TcpStream;

use super::{Grpc, HttpGet, Scheme, What, tls};
use crate::upstream::chain;

/// Redirections that are followed, as by a kubelet.
const REDIRECTIONS: usize = 10;
/// Bytes of an answer of gRPC's health protocol.
const MAX_ANSWER: usize = 4096;
const USER_AGENT: HeaderValue = HeaderValue::from_static("kube-probe/weft");

/// Whether the app is well, or why not. `host` is what it is called by, an address and never text that somebody sent.
pub async fn ask(what: &What, host: IpAddr) -> Result<(), String> {
    match what {
        What::Grpc(grpc) => grpc_health(grpc, host).await,
        What::Http(get) => http_get(get, host).await,
        What::Tcp(port) => connect(*port).await.map(drop),
    }
}

async fn connect(port: u16) -> Result<TcpStream, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect(address).await.map_err(|error| format!("connect to port {port}: {error}"))
}

async fn http_get(get: &HttpGet, host: IpAddr) -> Result<(), String> {
    let mut path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    for _ in 0..=REDIRECTIONS {
        let stream = connect(get.port).await?;
        let answer = match get.scheme {
            Scheme::Http => exchange(TokioIo::new(stream), request(get, &path, host)?).await?,
            Scheme::Https => exchange(TokioIo::new(tls::connect(stream).await?), request(get, &path, host)?).await?,
        };
        let status = answer.status();
        match location(&answer).filter(|_| status.is_redirection()) {
            Some(next) => path = next,
            None if status.is_success() || status.is_redirection() => return Ok(()),
            None => return Err(format!("status {}", status.as_u16())),
        }
    }
    Err(format!("more than {REDIRECTIONS} redirections"))
}

/// Where a redirection goes, if to the same app; one to elsewhere is an answer.
fn location(answer: &Response<Incoming>) -> Option<String> {
    let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
    (location.starts_with('/') && !location.starts_with("//")).then(|| location.to_owned())
}

fn request(get: &HttpGet, path: &str, host: IpAddr) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::get(path).body(Full::default()).map_err(|error| format!("path {path:?}: {error}"))?;
    let host =
        HeaderValue::from_str(&SocketAddr::new(host, get.port).to_string()).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, host);
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for written in &get.http_headers {
        let name = HeaderName::try_from(&written.name).map_err(|_| format!("header {:?}", written.name))?;
        let value = HeaderValue::try_from(&written.value).map_err(|_| format!("value of header {:?}", written.name))?;
        // The first of a name takes the place of ours.
        let ours = [header::HOST, header::USER_AGENT, header::ACCEPT].contains(&name);
        if ours {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
    Ok(request)
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String>
where
    I: Read + Write + Unpin,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|error| chain(&error))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // Nobody reads the body: the connection ends with this. When it ends before, the answer is there or will never be.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    answer.map_err(|error| chain(&error))
}

#[derive(prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.Health/Check`.
async fn grpc_health(grpc: &Grpc, host: IpAddr) -> Result<(), String> {
    const SERVING: i32 = 1;
    let message = HealthCheckRequest { service: grpc.service.clone() }.encode_to_vec();
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|error| error.to_string())?);
    body.put_slice(&message);
    let uri = Uri::builder()
        .scheme("http")
        .authority(SocketAddr::new(host, grpc.port).to_string())
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(|error| error.to_string())?;
    let request = Request::post(uri)
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(body.freeze()))
        .map_err(|error| error.to_string())?;
    let io = TokioIo::new(connect(grpc.port).await?);
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = handshake.map_err(|error| chain(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| chain(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("status {}", answer.status().as_u16()));
        }
        // An error has its status in the head, or behind the message.
        let early = answer.headers().get("grpc-status").cloned();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
        let late = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        let status = early.or(late).ok_or("the answer has no grpc-status")?;
        if status != "0" {
            return Err(format!("grpc-status {}", status.to_str().unwrap_or("?")));
        }
        let bytes = body.to_bytes();
        let message = bytes.get(5..).ok_or("the answer has no message")?;
        let answer = HealthCheckResponse::decode(message).map_err(|error| error.to_string())?;
        if answer.status == SERVING { Ok(()) } else { Err(format!("not serving (status {})", answer.status)) }
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // What it had sent before is still to be read.
        _ = connection => exchange.await,
    }
}
