//! An HTTPS server for the tests, with a certificate of its own for `localhost`.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// Answers each request with the bytes that a function makes of its head; no bytes: never.
pub struct Server {
    pub port: u16,
    /// Its certificate, PEM.
    pub ca: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    _files: tempfile::TempDir,
}

impl Server {
    pub async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let files = tempfile::tempdir().expect("a directory");
        let ca = files.path().join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).expect("writable");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into());
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a key pair")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (seen, connections, answer) = (Arc::default(), Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let server = Self { port, ca, seen: Arc::clone(&seen), connections: Arc::clone(&connections), _files: files };
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                connections.fetch_add(1, Relaxed);
                let (acceptor, answer, seen) = (acceptor.clone(), Arc::clone(&answer), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(mut io) = acceptor.accept(io).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = io.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let bytes = answer(&head);
                    seen.lock().expect("whole").push(head);
                    if bytes.is_empty() {
                        return std::future::pending().await;
                    }
                    let _ = io.write_all(&bytes).await;
                    let _ = io.shutdown().await;
                });
            }
        });
        server
    }

    /// A good answer.
    pub fn ok(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// The heads of all requests.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("whole").clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}
