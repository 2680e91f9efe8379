//! The health listener over sockets, with apps that answer as told.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{drain::Phase, readiness::Readiness};

/// A listener that serves connections until the test ends.
async fn listen<F, Fut>(serve: F) -> u16
where
    F: Fn(tokio::net::TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// Answers a path with a status, and redirects from `/moved`.
async fn http_app(io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (status, location) = match request.uri().path() {
            "/good" => (200, ""),
            "/moved" => (302, "/bad"),
            "/away" => (302, "http://example.com/"),
            "/loop" => (302, "/loop"),
            "/headers" if header("x-probe") == "$(X)" && header("host") == "10.1.2.3:7" => (204, ""),
            "/host" if header("host").starts_with("10.1.2.3:") => (200, ""),
            _ => (500, ""),
        };
        let answer = Response::builder().status(status).header(header::LOCATION, location);
        answer.body(Empty::<Bytes>::new())
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

struct Sidecar {
    address: SocketAddr,
    readiness: Readiness,
    drain: Drain,
}

impl Sidecar {
    async fn start(probes: &[String]) -> Self {
        let (readiness, drain) = (Readiness::default(), Drain::default());
        let probes: Vec<AppProbe> = probes.iter().map(|probe| probe.parse().expect("a probe")).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(Health::new(readiness.subscribe(), drain.clone(), &probes).run(listener));
        Self { address, readiness, drain }
    }

    /// Status and text, as the kubelet of a pod 10.1.2.3 gets them.
    async fn get(&self, path: &str) -> (u16, String) {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, self.ask(Method::GET, path)).await.expect("an answer in time")
    }

    async fn ask(&self, method: Method, path: &str) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(self.address).await.expect("listening");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "10.1.2.3:15021");
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await;
        let answer = answer.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

fn http(port: u16, path: &str) -> String {
    format!(
        "app/{}={{\"httpGet\":{{\"port\":{port},\"path\":\"/{path}\"}},\"timeoutSeconds\":5}}",
        path.replace('/', "")
    )
}

#[tokio::test]
async fn readiness_and_liveness_are_told_to_everybody_and_nothing_else() {
    let sidecar = Sidecar::start(&[]).await;
    assert_eq!(sidecar.get("/livez").await, (200, "live\n".into()));
    assert_eq!(sidecar.get("/readyz").await, (503, "not ready\n".into()));
    sidecar.readiness.configuration(Vec::new());
    sidecar.readiness.certificate(None);
    assert_eq!(sidecar.get("/readyz").await, (200, "ready\n".into()));
    sidecar.drain.advance(Phase::LameDuck);
    assert_eq!(sidecar.get("/readyz").await, (503, "draining\n".into()));
    for hidden in ["/metrics", "/config_dump", "/drain", "/probe/", "/probe/app/livez"] {
        assert_eq!(sidecar.get(hidden).await.0, 404, "{hidden}");
    }
    assert_eq!(sidecar.ask(Method::POST, "/drain").await.0, 405);
    assert!(tokio::time::timeout(Duration::from_millis(1), sidecar.drain.asked()).await.is_err());
}

#[tokio::test]
async fn an_http_probe_says_what_the_app_says() {
    let port = listen(http_app).await;
    let mut probes: Vec<String> = ["good", "bad", "moved", "away", "loop", "host"].map(|path| http(port, path)).into();
    probes.push(format!(
        "app/headers={{\"httpGet\":{{\"port\":{port},\"path\":\"headers\",\"httpHeaders\":[{{\"name\":\"X-Probe\",\
         \"value\":\"$(X)\"}},{{\"name\":\"Host\",\"value\":\"10.1.2.3:7\"}}]}}}}"
    ));
    let sidecar = Sidecar::start(&probes).await;
    let get = async |name: &str| sidecar.get(&format!("/probe/app/{name}")).await;
    assert_eq!(get("good").await, (200, "ok\n".into()));
    assert_eq!(get("bad").await, (503, "status 500\n".into()));
    assert_eq!(get("moved").await, (503, "status 500\n".into()), "as if the kubelet had followed");
    assert_eq!(get("away").await, (200, "ok\n".into()), "nobody is asked elsewhere");
    assert_eq!(get("loop").await, (503, "more than 10 redirections\n".into()));
    assert_eq!(get("host").await, (200, "ok\n".into()));
    assert_eq!(get("headers").await, (200, "ok\n".into()));
}

#[tokio::test]
async fn an_https_probe_takes_any_certificate() {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["app.example".into()]).and_then(|params| params.self_signed(&key));
    let certificate = certificate.expect("a certificate").der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let port = listen(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                http_app(stream).await;
            }
        }
    });
    let port = port.await;
    let with = |path: &str| http(port, path).replace("\"port\"", "\"scheme\":\"HTTPS\",\"port\"");
    let sidecar = Sidecar::start(&[with("good"), with("bad")]).await;
    assert_eq!(sidecar.get("/probe/app/good").await, (200, "ok\n".into()));
    assert_eq!(sidecar.get("/probe/app/bad").await, (503, "status 500\n".into()));
}

#[tokio::test]
async fn a_tcp_probe_is_a_connection() {
    let port = listen(|_| async {}).await;
    // Bound and not listening: refused for as long as it is held.
    let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("free");
    let taken = closed.local_addr().expect("bound").as_socket().expect("IP").port();
    let probe = |name: &str, port: u16| format!("{name}={{\"tcpSocket\":{{\"port\":{port}}},\"timeoutSeconds\":5}}");
    let sidecar = Sidecar::start(&[probe("a/livez", port), probe("b/livez", taken)]).await;
    assert_eq!(sidecar.get("/probe/a/livez").await, (200, "ok\n".into()));
    let (status, text) = sidecar.get("/probe/b/livez").await;
    assert!(status == 503 && text.starts_with(&format!("connect to port {taken}: ")), "{text}");
}

/// gRPC's health service: `good` is serving, `bad` is not, of others nothing is known.
async fn grpc_app(stream: tokio::net::TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let body = request.into_body().collect().await.expect("a message").to_bytes();
        let (message, status) = match &body[5..] {
            b"\x0a\x04good" => (&b"\0\0\0\0\x02\x08\x01"[..], "0"),
            b"\x0a\x03bad" => (&b"\0\0\0\0\x02\x08\x02"[..], "0"),
            _ => (&b""[..], "5"),
        };
        let trailers =
            http::HeaderMap::from_iter([("grpc-status".parse().expect("a name"), status.parse().expect("a value"))]);
        let frames = [hyper::body::Frame::data(Bytes::from_static(message)), hyper::body::Frame::trailers(trailers)];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
        Ok::<_, Infallible>(Response::new(body))
    });
    let executor = hyper_util::rt::TokioExecutor::new();
    let _ = hyper::server::conn::http2::Builder::new(executor).serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn a_grpc_probe_asks_the_health_service() {
    let port = listen(grpc_app).await;
    let probe =
        |name: &str| format!("{name}={{\"grpc\":{{\"port\":{port},\"service\":\"{name}\"}},\"timeoutSeconds\":5}}");
    let sidecar = Sidecar::start(&[probe("good"), probe("bad"), probe("none")]).await;
    assert_eq!(sidecar.get("/probe/good").await, (200, "ok\n".into()));
    assert_eq!(sidecar.get("/probe/bad").await, (503, "not serving (status 2)\n".into()));
    assert_eq!(sidecar.get("/probe/none").await, (503, "grpc-status 5\n".into()));
}

#[tokio::test]
async fn a_probe_is_given_up_after_its_time() {
    let port = listen(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let port = port.await;
    let probe = format!("a/livez={{\"httpGet\":{{\"port\":{port}}},\"timeoutSeconds\":1}}");
    let sidecar = Sidecar::start(&[probe]).await;
    assert_eq!(sidecar.get("/probe/a/livez").await, (503, "no answer in 1 s\n".into()));
}

#[tokio::test]
async fn as_many_connections_are_open_as_the_limit_allows() {
    let sidecar = Sidecar::start(&[]).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = tokio::net::TcpStream::connect(sidecar.address).await.expect("listening");
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
        assert!(stream.read(&mut [0; 256]).await.expect("answered") > 0);
        open.push(stream);
    }
    let mut one_more = tokio::net::TcpStream::connect(sidecar.address).await.expect("accepted by the kernel");
    assert_eq!(one_more.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed");
}

#[test]
fn probes_are_checked_when_they_are_read() {
    let error = |text: &str| text.parse::<AppProbe>().expect_err(text);
    assert_eq!(error("a"), "expected NAME=JSON");
    assert!(error("a={}").contains("expected one of httpGet, tcpSocket and grpc"));
    assert!(error("a={\"tcpSocket\":{\"port\":1},\"grpc\":{\"port\":1}}").contains("expected one of"));
    assert!(error("a={\"tcpSocket\":{\"port\":70000}}").contains("70000"));
    assert!(error("a={\"tcpSocket\":{\"port\":1,\"host\":\"x\"}}").contains("unknown field `host`"));
    assert!(error("a={\"exec\":{}}").contains("unknown field `exec`"));
}
