use axum::routing::get;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{https::Source, *};
use crate::ca::Ca;

const LIMIT: Duration = Duration::from_secs(20);

/// A server, its address and its root. It ends with the value.
struct Server {
    address: SocketAddr,
    roots: RootCertStore,
    task: JoinHandle<Infallible>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn new(connections: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = Arc::new(Ca::open(directory.path(), "weft.local", LIMIT).expect("an authority"));
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(ca.roots().into_iter().map(Into::into));
        let names = https::names("127.0.0.1:1".parse().expect("an address"), "box", &[]);
        let https = Https::new(Source::Own { ca, names }, std::time::SystemTime::now()).expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let peer = |axum::Extension(Peer(peer)): axum::Extension<Peer>| async move { peer.ip().to_string() };
        let router = Router::new().route("/", get(peer));
        let task = tokio::spawn(serve(listener, router, Some(https), connections));
        Self { address, roots, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    async fn session(
        &self,
        name: &str,
        version: &'static SupportedProtocolVersion,
        alpn: &[&str],
    ) -> io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]);
        let mut config = config.expect("a version").with_root_certificates(self.roots.clone()).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, self.connect().await).await
    }
}

/// All that the server says until it closes.
async fn said(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("closed in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn every_name_of_the_machine_is_served_over_tls_1_2_and_1_3() {
    let server = Server::new(10).await;
    for name in ["localhost", "127.0.0.1", "::1", "box"] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let mut session = server.session(name, version, &["h2", "http/1.1"]).await.expect("a session");
            assert_eq!(session.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            session.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
            let said = said(&mut session).await;
            assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("127.0.0.1"), "{said}");
        }
    }
    assert!(server.session("evil.example", &rustls::version::TLS13, &[]).await.is_err());
    assert!(server.session("localhost", &rustls::version::TLS13, &["h2"]).await.is_err(), "it is not spoken");
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_told_to_use_https() {
    let server = Server::new(10).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /api HTTP/1.1\r\nhost: x\r\nauthorization: Bearer s3cret\r\n\r\n").await.expect("sent");
    let said = said(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("use https://") && !said.contains("s3cret"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_closed_before_and_after_the_handshake() {
    let server = Server::new(10).await;
    // Time is paused: the runtime moves it on when nothing else is to be done, so nobody waits.
    assert_eq!(said(&mut server.connect().await).await, "");
    let mut half = server.connect().await;
    half.write_all(&[22, 3, 1]).await.expect("sent");
    assert_eq!(said(&mut half).await, "");
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed_and_one_that_ends_makes_room() {
    let server = Server::new(1).await;
    let first = server.session("localhost", &rustls::version::TLS13, &[]).await.expect("a session");
    assert!(server.session("localhost", &rustls::version::TLS13, &[]).await.is_err(), "one too many");
    drop(first);
    let room = async { while server.session("localhost", &rustls::version::TLS13, &[]).await.is_err() {} };
    timeout(LIMIT, room).await.expect("a place");
}

#[tokio::test]
async fn a_head_that_never_ends_is_refused() {
    let server = Server::new(10).await;
    for (field, count) in [("x: y\r\n".to_owned(), MAX_FIELDS + 1), (format!("x: {}\r\n", "y".repeat(9000)), 10)] {
        let mut session = server.session("localhost", &rustls::version::TLS13, &[]).await.expect("a session");
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", field.repeat(count));
        let _ = session.write_all(head.as_bytes()).await;
        let said = said(&mut session).await;
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
    }
}
