//! Who may speak on the mesh port, and whom a client's sidecar believes: certificates that a hostile peer could have,
//! each refused with its own reason.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};

use crate::{
    apps::recorder,
    mesh::{Builder, TestMesh, Workload},
    net::{call, connect, eventually, free, get, metric, ok},
};

const CLIENT: &str = "spiffe://weft.local/ns/default/sa/client";

/// A chain and its key.
pub type Credential = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// Believes everybody: the test looks at what the other side believes.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The mesh's own authority, whose key a test may take from the control plane's directory.
pub fn mesh_authority(mesh: &TestMesh) -> Issuer<'static, KeyPair> {
    let read = |file: &str| std::fs::read_to_string(mesh.dir.join("data").join(file)).expect("the authority's file");
    let key = KeyPair::from_pem(&read("ca.key")).expect("its key");
    Issuer::from_ca_cert_pem(&read("ca.crt"), key).expect("its certificate")
}

/// Somebody else's authority.
fn other_authority() -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "somebody else");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Issuer::new(params, KeyPair::generate().expect("a key"))
}

/// An SVID for `id` that ends this far from now.
pub fn svid(issuer: &Issuer<'static, KeyPair>, id: &str, left: time::Duration) -> Credential {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(2);
    params.not_after = time::OffsetDateTime::now_utc() + left;
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, issuer).expect("a certificate").der().clone();
    (leaf, PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8"))
}

/// The HTTP/2 preface and empty SETTINGS.
pub const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A session with `address` as a sidecar would make it, for requests or for tunnels.
pub fn session(
    address: SocketAddr,
    credential: Option<Credential>,
    alpn: &str,
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match credential {
        Some((leaf, key)) => builder.with_client_auth_cert(vec![leaf], key).expect("a key pair"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.into()];
    let name = ServerName::try_from("p80.catalog.default.weft").expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    Ok(StreamOwned::new(session, connect(address)?))
}

/// Calls `address` as a sidecar would, and reads what comes back.
pub fn knock(address: SocketAddr, credential: Option<Credential>) -> Result<Vec<u8>, String> {
    let mut stream = session(address, credential, "h2")?;
    // A server that let us in answers with its own SETTINGS.
    stream.write_all(OPENING).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; 9];
    stream.read_exact(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Asks for a tunnel to `authority` and sends `bytes` through it; whether it was opened.
fn opens_tunnel(address: SocketAddr, credential: Credential, authority: &str, bytes: &[u8]) -> bool {
    let mut stream = session(address, Some(credential), "weft-tunnel").expect("a session");
    let literal = |index: u8, value: &str| {
        [&[0x40 | index, u8::try_from(value.len()).expect("short")], value.as_bytes()].concat()
    };
    // RFC 7541: literals with the static names :method (2) and :authority (1).
    let head = [literal(2, "CONNECT"), literal(1, authority)].concat();
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        [&[0, 0, u8::try_from(payload.len()).expect("short"), kind, flags, 0, 0, 0, 1], payload].concat()
    };
    stream.write_all(&[OPENING, &frame(1, 4, &head), &frame(0, 0, bytes)].concat()).expect("sent");
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).expect("an answer");
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        stream.read_exact(&mut payload).expect("the whole of a frame");
        // The head of the answer: `:status: 200` is entry 8 of the static table.
        if head[3] == 1 {
            return payload[0] == 0x88;
        }
    }
}

fn one_hour() -> time::Duration {
    time::Duration::hours(1)
}

fn catalog(name: &str) -> Builder {
    TestMesh::builder(name).workload(Workload::demo("catalog", "http")).calls("catalog")
}

/// The refusal is in the server's metrics and in its log.
pub fn refused_with(mesh: &TestMesh, reason: &str) {
    let label = format!("reason=\"{reason}\"");
    eventually(&format!("the refusal for {reason} in the server's metrics"), || {
        let labels = ["side=\"server\"", &label];
        let count = metric(mesh.admin("catalog"), "weft_mesh_refused_total", &labels);
        if count > 0.0 { Ok(()) } else { Err(format!("{count}")) }
    });
    // Counted first, then logged.
    eventually(&format!("the refusal for {reason} in the server's log"), || {
        let told = |line: &str| line.contains("mesh connection refused") && line.contains(reason);
        if mesh.log("catalog").lines().any(told) { Ok(()) } else { Err("is not there".to_owned()) }
    });
}

#[test]
fn the_mesh_port_lets_in_its_own_trust_domain_and_refuses_others_each_with_its_reason() {
    let mesh = catalog("knock").start();
    let (address, own) = (mesh.mesh_address("catalog"), mesh_authority(&mesh));
    let settings = knock(address, Some(svid(&own, CLIENT, one_hour()))).expect("let in");
    assert_eq!(settings[3], 4, "SETTINGS come first: {settings:?}");
    assert!((metric(mesh.admin("catalog"), "weft_mesh_refused_total", &[])).abs() < 0.5);

    let foreign = "spiffe://elsewhere.example/ns/default/sa/client";
    for (reason, credential) in [
        ("unknown_root", Some(svid(&other_authority(), CLIENT, one_hour()))),
        ("expired", Some(svid(&own, CLIENT, -one_hour()))),
        ("foreign_trust_domain", Some(svid(&own, foreign, one_hour()))),
        ("no_certificate", None),
    ] {
        assert!(knock(address, credential).is_err(), "{reason}");
        refused_with(&mesh, reason);
    }
    // A plaintext request gets no answer of HTTP, only the end of the connection or a TLS alert.
    let answer = get(address, "catalog", "/");
    assert!(answer.is_err(), "{answer:?}");
    refused_with(&mesh, "tls_plaintext");
}

#[test]
fn a_certificate_of_another_mesh_is_refused_even_for_the_same_names() {
    let mesh = catalog("first").trust_domain("one.example").start();
    let other = TestMesh::builder("second").trust_domain("one.example").start();
    let stranger = svid(&mesh_authority(&other), "spiffe://one.example/ns/default/sa/client", one_hour());
    assert!(knock(mesh.mesh_address("catalog"), Some(stranger)).is_err());
    eventually("the refusal", || {
        let count = metric(mesh.admin("catalog"), "weft_mesh_refused_total", &["side=\"server\""]);
        if count > 0.0 { Ok(()) } else { Err("none".into()) }
    });
    let friend = svid(&mesh_authority(&mesh), "spiffe://one.example/ns/default/sa/client", one_hour());
    knock(mesh.mesh_address("catalog"), Some(friend)).expect("let in");
}

/// A TLS server that shows `credential` to everybody, for as long as the test lives.
fn impostor(listener: TcpListener, credential: Credential) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![credential.0], credential.1)
        .expect("a key pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let serve = move |mut socket: TcpStream| {
        let mut session = ServerConnection::new(Arc::clone(&config)).expect("a session");
        let _ = Stream::new(&mut session, &mut socket).read(&mut [0; 1024]);
    };
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
}

#[test]
fn a_server_that_is_not_who_discovery_says_is_refused_each_with_its_reason() {
    let names = ["mismatch", "unknown-root", "expired", "foreign"];
    let listeners = names.map(|_| TcpListener::bind(free()).expect("a free port"));
    let mut builder = TestMesh::builder("impostors");
    for (name, listener) in names.iter().zip(&listeners) {
        let address = listener.local_addr().expect("bound");
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}-1, labels: {{app: {name}}}}}\n\
             spec: {{address: 127.0.0.1, meshAddress: '{address}', serviceAccount: {name}, ports: [{{port: 80, \
             protocol: http}}]}}\n"
        );
        builder = builder.resource(&format!("{name}.yaml"), text).calls(name);
    }
    let mesh = builder.start();
    let own = mesh_authority(&mesh);
    let id = |domain: &str, account: &str| format!("spiffe://{domain}/ns/default/sa/{account}");
    let credentials = [
        svid(&own, &id("weft.local", "somebody"), one_hour()),
        svid(&other_authority(), &id("weft.local", names[1]), one_hour()),
        svid(&own, &id("weft.local", names[2]), -one_hour()),
        svid(&own, &id("elsewhere.example", names[3]), one_hour()),
    ];
    listeners.into_iter().zip(credentials).for_each(|(listener, credential)| impostor(listener, credential));
    for (name, reason, detail) in [
        (names[0], "tls_identity_mismatch", "expected spiffe://weft.local/ns/default/sa/mismatch"),
        (names[1], "tls_certificate", "unknown_root"),
        (names[2], "tls_certificate", "expired"),
        (names[3], "tls_certificate", "foreign_trust_domain"),
    ] {
        let result = format!("result=\"{reason}\"");
        let count = || metric(mesh.client_admin(), "weft_upstream_connects_total", &["kind=\"mesh\"", &result]);
        let before = count();
        let (status, text) = get(mesh.local(name), name, "/").expect("an answer");
        assert_eq!(status, 503, "{text}");
        let line = text.lines().find(|line| line.to_lowercase().starts_with("proxy-status:")).expect("Proxy-Status");
        for part in ["error=tls_certificate_error", reason, detail] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(count() > before, "{name} is counted as {reason}");
    }
}

#[test]
fn a_caller_without_a_certificate_never_reaches_the_app() {
    let (app, heads) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let mesh = TestMesh::builder("alone").workload(Workload::beside("catalog", app, "http")).calls("catalog").start();
    assert!(knock(mesh.mesh_address("catalog"), None).is_err());
    eventually("a call", || {
        ok(call(mesh.local("catalog"), "GET /asked HTTP/1.1\r\nHost: catalog\r\nConnection: close\r\n\r\n"))
    });
    let first = heads.recv().expect("called");
    assert!(first.starts_with("get /asked "), "nothing came before the call of the mesh: {first}");
}

#[test]
fn a_tunnel_carries_no_requests_past_what_guards_the_port() {
    let (web, requests) = recorder(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let (raw, bytes) = recorder(b"answer");
    let mesh = TestMesh::builder("smuggle")
        .workload(Workload::beside("web", web, "http"))
        .workload(Workload::beside("raw", raw, "tcp"))
        .calls("web")
        .calls("raw")
        .start();
    let own = mesh_authority(&mesh);
    let send = |service: &str, port: u16| {
        let authority = format!("{service}.default:{port}");
        let request = b"GET / HTTP/1.1\r\nHost: web\r\nx-forwarded-client-cert: By=somebody\r\n\r\n";
        opens_tunnel(mesh.mesh_address(service), svid(&own, CLIENT, one_hour()), &authority, request)
    };
    assert!(send("raw", raw.port()), "bytes go through");
    assert!(bytes.recv_timeout(crate::net::LIMIT).expect("the app was called").contains("by=somebody"));
    assert!(!send("web", web.port()), "requests go where they are looked at");
    assert!(requests.try_recv().is_err(), "the app has seen a request that nobody looked at");
}
