//! Against a server of our own: HTTPS on real sockets, with answers that are right and wrong in every way.

use std::{net::SocketAddr, path::Path};

use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// What the server does with a request.
#[derive(Clone)]
enum Answer {
    /// Status line and body.
    Says(&'static str, String),
    /// Reads and says nothing.
    Silence,
    /// Closes.
    Closes,
    /// More than anybody reads.
    Endless,
}

/// An API server: where it listens, what it was asked, and the files with which to ask it.
struct Kubernetes {
    reviewer: Reviewer,
    asked: mpsc::UnboundedReceiver<String>,
    directory: tempfile::TempDir,
}

impl Kubernetes {
    async fn start(answer: Answer) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        let certificate = params.self_signed(&key).expect("signed");
        std::fs::write(directory.path().join("ca.crt"), certificate.pem()).expect("written");
        std::fs::write(directory.path().join("token"), "its-own-token\n").expect("written");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8"),
            )
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), answer, sender));
        Self { reviewer: reviewer(address, directory.path()), asked, directory }
    }

    async fn says(status: &Value) -> Self {
        Self::start(Answer::Says("201 Created", review(status))).await
    }

    async fn review(&self) -> Result<ServiceAccount, Refusal> {
        self.reviewer.review("a.b.c").await
    }
}

fn reviewer(address: SocketAddr, files: &Path) -> Reviewer {
    let url = format!("https://{address}");
    Reviewer::from_flags(Some(&url), Some(files.join("ca.crt")), Some(files.join("token")))
        .expect("a URL")
        .expect("given")
}

fn files(reviewer: &Reviewer) -> Files {
    match &reviewer.server {
        Server::Files(files) => files.clone(),
        Server::Client(_) => panic!("it asks by a kubeconfig"),
    }
}

fn with(files: Files) -> Reviewer {
    Reviewer::at(Server::Files(files))
}

fn review(status: &Value) -> String {
    json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status })
        .to_string()
}

fn good() -> Value {
    json!({ "authenticated": true, "audiences": ["weft"], "user": { "username": "system:serviceaccount:shop:catalog" } })
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, answer: Answer, asked: mpsc::UnboundedSender<String>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, answer, asked) = (acceptor.clone(), answer.clone(), asked.clone());
        tokio::spawn(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut text = String::new();
            while !text.ends_with('}') {
                let mut bytes = [0; 4096];
                match stream.read(&mut bytes).await {
                    Ok(length @ 1..) => text.push_str(&String::from_utf8_lossy(&bytes[..length])),
                    _ => return,
                }
            }
            let _ = asked.send(text);
            let head = |status: &str, length: usize| {
                format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
            };
            match answer {
                Answer::Says(status, body) => {
                    let text = head(status, body.len()) + &body;
                    let _ = stream.write_all(text.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
                Answer::Silence => std::future::pending().await,
                Answer::Closes => {}
                Answer::Endless => {
                    let _ = stream.write_all(head("200 OK", usize::MAX / 2).as_bytes()).await;
                    while stream.write_all(&[b' '; 4096]).await.is_ok() {}
                }
            }
        });
    }
}

#[tokio::test]
async fn a_token_that_kubernetes_vouches_for_is_its_service_accounts() {
    let mut kubernetes = Kubernetes::says(&good()).await;
    let account = kubernetes.review().await.expect("vouched for");
    assert_eq!((account.namespace.as_str(), account.name.as_str()), ("shop", "catalog"));
    let asked = kubernetes.asked.recv().await.expect("asked");
    let (head, body) = asked.split_once("\r\n\r\n").expect("a head");
    let head = head.to_lowercase();
    assert!(head.starts_with("post /apis/authentication.k8s.io/v1/tokenreviews http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nauthorization: bearer its-own-token\r\n"), "{head}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["spec"], json!({ "audiences": ["weft"], "token": "a.b.c" }));
    // Both files are rotated while we run.
    std::fs::write(kubernetes.directory.path().join("token"), "newer").expect("written");
    kubernetes.review().await.expect("vouched for");
    assert!(kubernetes.asked.recv().await.expect("asked again: nothing is remembered").contains("Bearer newer\r\n"));
}

#[tokio::test]
async fn whatever_else_kubernetes_says_refuses() {
    let with = |key: &str, value: Value| {
        let mut status = good();
        status[key] = value;
        status
    };
    let user = |name: &str| with("user", json!({ "username": name }));
    for status in [
        json!({}),
        Value::Null,
        with("authenticated", json!(false)),
        with("authenticated", Value::Null),
        with("error", json!("token has expired")),
        with("audiences", Value::Null),
        with("audiences", json!([])),
        with("audiences", json!(["https://kubernetes.default.svc"])),
        with("audiences", json!(["Weft", "weft "])),
        with("user", Value::Null),
        user(""),
        user("alice"),
        user("system:node:a"),
        user("system:serviceaccount:shop"),
        user("system:serviceaccount:shop:"),
        user("system:serviceaccount::catalog"),
        user("system:serviceaccount:shop:catalog:x"),
        user("system:serviceaccount:shop:cat/alog"),
        user("system:serviceaccount:../x:catalog"),
        user("xsystem:serviceaccount:shop:catalog"),
        user("System:ServiceAccount:shop:catalog"),
    ] {
        let refusal = Kubernetes::says(&status).await.review().await.expect_err(&status.to_string());
        let asked = if status.is_null() { refusal.retry.is_some() } else { refusal.retry.is_none() };
        assert!(refusal.reason == Reason::Review && asked, "{status}: {refusal:?}");
    }
    for (code, body) in [
        ("401 Unauthorized", review(&good())),
        ("403 Forbidden", review(&good())),
        ("302 Found", review(&good())),
        ("500 Internal Server Error", review(&good())),
        ("201 Created", "no JSON {}".into()),
        ("201 Created", "{}".into()),
        ("201 Created", review(&good()).replace("TokenReview", "SubjectAccessReview")),
        ("201 Created", review(&good()).replace("/v1", "/v1beta1")),
        ("200 OK", review(&json!("authenticated"))),
    ] {
        let refusal = Kubernetes::start(Answer::Says(code, body.clone())).await.review().await.expect_err(&body);
        assert_eq!(refusal.reason, Reason::Review, "{code} {body}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_refuses_and_the_caller_may_come_back() {
    let expect = |result: Result<ServiceAccount, Refusal>, case: &str| {
        let refusal = result.expect_err(case);
        assert!(refusal.reason == Reason::Review && refusal.retry.is_some(), "{case}: {refusal:?}");
    };
    expect(Kubernetes::start(Answer::Closes).await.review().await, "closes");
    expect(Kubernetes::start(Answer::Endless).await.review().await, "endless");
    let (kubernetes, other) = (Kubernetes::says(&good()).await, Kubernetes::says(&good()).await);
    let file = |of: &Kubernetes, name: &str| of.directory.path().join(name);
    let stranger = with(Files { ca: file(&other, "ca.crt"), ..files(&kubernetes.reviewer) });
    expect(stranger.review("a.b.c").await, "another authority vouches for it");
    let named = with(Files { host: "localhost".into(), ..files(&kubernetes.reviewer) });
    expect(named.review("a.b.c").await, "a name that its certificate does not have");
    for name in ["token", "ca.crt"] {
        std::fs::write(file(&kubernetes, name), "\u{0}\n-----BEGIN CERTIFICATE-----\n").expect("written");
        expect(kubernetes.review().await, name);
        std::fs::remove_file(file(&kubernetes, name)).expect("there");
        expect(kubernetes.review().await, name);
        std::fs::copy(file(&other, name), file(&kubernetes, name)).expect("copied");
    }
    let nowhere = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    expect(reviewer(nowhere, other.directory.path()).review("a.b.c").await, "nobody listens");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_and_holds_no_more_than_its_share() {
    let mut kubernetes = Kubernetes::start(Answer::Silence).await;
    let waiting: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let reviewer = kubernetes.reviewer.clone();
            tokio::spawn(async move { reviewer.review("a.b.c").await })
        })
        .collect();
    for _ in 0..AT_ONCE {
        kubernetes.asked.recv().await.expect("asked");
    }
    let refusal = kubernetes.review().await.expect_err("too many at once");
    assert_eq!(refusal.reason, Reason::RateLimited);
    tokio::time::pause();
    tokio::time::advance(LIMIT).await;
    for task in waiting {
        assert_eq!(task.await.expect("no panic").expect_err("given up").reason, Reason::Review);
    }
}

#[test]
fn where_to_ask_is_an_https_url_without_a_path() {
    let new = |url: &str| Reviewer::new(url, PathBuf::new(), PathBuf::new());
    let ok = |url: &str| {
        new(url).map(|reviewer| (files(&reviewer).host, files(&reviewer).port)).map_err(|error| error.to_string())
    };
    assert_eq!(ok("https://10.0.0.1:6443"), Ok(("10.0.0.1".into(), 6443)));
    assert_eq!(ok("https://kubernetes.default.svc/"), Ok(("kubernetes.default.svc".into(), 443)));
    assert_eq!(ok("https://[fd00::1]:6443"), Ok(("fd00::1".into(), 6443)));
    for bad in ["", "http://10.0.0.1", "10.0.0.1:6443", "https://", "https://a/b", "ftp://a"] {
        assert!(new(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn the_cluster_of_a_kubeconfig_is_asked_in_the_same_way() {
    let answers = |code: StatusCode, body: String| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let answer = move || std::future::ready((code, [(header::CONTENT_TYPE, "application/json")], body.clone()));
        let router = axum::Router::new().route(PATH, axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = kube::Config::new(url.parse().expect("a URL"));
        config.default_retry = false;
        Reviewer::of(Client::try_from(config).expect("a client")).review("a.b.c").await
    };
    let account = answers(StatusCode::CREATED, review(&good())).await.expect("vouched for");
    assert_eq!((account.namespace.as_str(), account.name.as_str()), ("shop", "catalog"));
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "a.b.c",
        "reason": "Forbidden", "code": 403 });
    let refused = answers(StatusCode::FORBIDDEN, status.to_string()).await.expect_err("refused");
    assert!(refused.retry.is_some(), "it can be asked again");
}
