//! The health listener over sockets, with apps that answer as told.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use http::header;
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

#[tokio::test]
async fn metrics_are_shown_where_they_are_asked_for() {
    let (readiness, drain) = (Readiness::default(), Drain::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free");
    let address = listener.local_addr().expect("bound");
    let telemetry = Telemetry::default();
    telemetry.gauge("weft_ready", "Ready", &[]).set(1.0);
    let health = Health::new(readiness.subscribe(), drain.clone(), [10, 1, 2, 3].into(), &[]);
    tokio::spawn(health.with_metrics(Some(telemetry)).run(listener));
    let (status, text) = Sidecar { address, readiness, drain }.get("/metrics").await;
    assert!(status == 200 && text.contains("weft_ready 1"), "{status} {text}");
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
        tokio::spawn(Health::new(readiness.subscribe(), drain.clone(), [10, 1, 2, 3].into(), &probes).run(listener));
        Self { address, readiness, drain }
    }

    /// Status and text, as the kubelet of a pod 10.1.2.3 (its advertised address) gets them.
    async fn get(&self, path: &str) -> (u16, String) {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, self.ask(Method::GET, path)).await.expect("an answer in time")
    }

    async fn ask(&self, method: Method, path: &str) -> (u16, String) {
        self.ask_as(method, path, "10.1.2.3:15021").await
    }

    /// The same with this `Host`.
    async fn ask_as(&self, method: Method, path: &str, host: &str) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(self.address).await.expect("listening");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, host);
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
    assert_eq!(get("bad").await, (503, "failed\n".into()));
    assert_eq!(get("moved").await, (503, "failed\n".into()), "as if the kubelet had followed");
    assert_eq!(get("away").await, (200, "ok\n".into()), "nobody is asked elsewhere");
    assert_eq!(get("loop").await, (503, "failed\n".into()));
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
    assert_eq!(sidecar.get("/probe/app/bad").await, (503, "failed\n".into()));
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
    assert_eq!(sidecar.get("/probe/b/livez").await, (503, "failed\n".into()), "why is for the log");
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
    assert_eq!(sidecar.get("/probe/bad").await, (503, "failed\n".into()));
    assert_eq!(sidecar.get("/probe/none").await, (503, "failed\n".into()));
}

/// What somebody may write into `Host` to have something else asked than the probe.
const HOSTS: [&str; 6] = ["x/shop.Admin/Wipe#:1", "x/shop.Admin/Wipe?:1", "x?y:1", "x#y:1", "user@x:1", "[::1]/a:1"];

#[tokio::test]
async fn the_host_of_a_request_does_not_choose_what_the_app_is_asked() {
    let (grpc, web) = (listen(grpc_app).await, listen(http_app).await);
    let probe = format!("good={{\"grpc\":{{\"port\":{grpc},\"service\":\"good\"}},\"timeoutSeconds\":5}}");
    let sidecar = Sidecar::start(&[probe, http(web, "host")]).await;
    for host in HOSTS.into_iter().chain(["example.com", "10.9.9.9:1"]) {
        for path in ["/probe/good", "/probe/app/host"] {
            assert_eq!(sidecar.ask_as(Method::GET, path, host).await, (200, "ok\n".into()), "{path} with {host}");
        }
    }
}

#[tokio::test]
async fn a_probe_is_given_up_after_its_time() {
    let port = listen(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let port = port.await;
    let probe = format!("a/livez={{\"httpGet\":{{\"port\":{port}}},\"timeoutSeconds\":1}}");
    let sidecar = Sidecar::start(&[probe]).await;
    assert_eq!(sidecar.get("/probe/a/livez").await, (503, "failed\n".into()));
}

#[tokio::test]
async fn connections_that_are_kept_do_not_keep_a_kubelet_out() {
    let sidecar = Sidecar::start(&[]).await;
    let mut kept = Vec::new();
    for _ in 0..connections::CONNECTIONS {
        kept.push(TcpStream::connect(sidecar.address).await.expect("accepted by the kernel"));
    }
    assert_eq!(sidecar.get("/livez").await, (200, "live\n".into()));
    let mut byte = [0; 1];
    let closed = kept[0].read(&mut byte);
    let closed = tokio::time::timeout(Duration::from_secs(20), closed).await.expect("the oldest is closed first");
    assert_eq!(closed.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_connection_ends_with_its_answer() {
    let sidecar = Sidecar::start(&[]).await;
    let mut stream = TcpStream::connect(sidecar.address).await.expect("listening");
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut text));
    read.await.expect("the end").expect("text");
    assert!(text.ends_with("live\n"), "{text}");
}

#[tokio::test]
async fn who_asks_while_a_probe_runs_gets_its_answer() {
    let (asked, may_answer) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(false));
    let (counted, told) = (Arc::clone(&asked), may_answer.clone());
    let port = listen(move |stream| {
        let (mut told, counted) = (told.subscribe(), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, Relaxed);
            let _ = told.wait_for(|told| *told).await;
            http_app(stream).await;
        }
    });
    let sidecar = Sidecar::start(&[http(port.await, "good")]).await;
    let get = || sidecar.get("/probe/app/good");
    let answer = async {
        // Both have been asked for when the app may answer: the second was sent before the first could end.
        while asked.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let second = get();
        let tell = async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            may_answer.send_replace(true);
        };
        tokio::join!(second, tell).0
    };
    let (first, second) = tokio::join!(get(), answer);
    assert_eq!((first.0, second.0, asked.load(Relaxed)), (200, 200, 1));
    assert_eq!(get().await.0, 200);
    assert_eq!(asked.load(Relaxed), 2, "an answer is for those who wait for it");
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
