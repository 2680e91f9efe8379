//! Probes of the app, and what systemd is told of it.

use std::{
    os::unix::net::UnixDatagram,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::process::Signal;

use super::{command, end, has_line, start, wait_for};
use crate::{
    mesh::TestMesh,
    net::{LIMIT, free},
    process::{Process, signal},
};

#[test]
fn an_app_whose_command_fails_leaves_discovery_and_comes_back() {
    let mesh = TestMesh::builder("run-exec-probe").start();
    let well = mesh.dir.join("well");
    let probe = format!("exec:test -f {}", well.display());
    let app = free().port().to_string();
    let _app =
        start(&mesh, "app", &["--port", &app, "--probe", &probe, "--probe-interval", "50ms"], &["sleep", "1000"]);
    wait_for(&mesh, "app", &[false]);
    for _ in 0..2 {
        std::fs::write(&well, "").expect("writable");
        wait_for(&mesh, "app", &[true]);
        std::fs::remove_file(&well).expect("there");
        wait_for(&mesh, "app", &[false]);
    }
}

#[test]
fn an_app_that_answers_503_or_is_not_serving_leaves_discovery_and_comes_back() {
    let mesh = TestMesh::builder("run-http-probes").start();
    let well = Arc::new(AtomicBool::new(false));
    let (http, grpc) = (free(), free());
    let seen = Arc::clone(&well);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.spawn(serve_http(http, Arc::clone(&seen)));
    runtime.spawn(serve_grpc(grpc, seen));
    let flags = |port: u16, probe: &str| {
        ["--port", &port.to_string(), "--probe", probe, "--probe-interval", "50ms"].map(str::to_owned).to_vec()
    };
    let begin = |name: &str, flags: &[String]| {
        start(&mesh, name, &flags.iter().map(String::as_str).collect::<Vec<_>>(), &["sleep", "1000"])
    };
    let _http = begin("over-http", &flags(http.port(), "http:/healthz"));
    let _grpc = begin("over-grpc", &flags(grpc.port(), "grpc:shop"));
    for (now, expected) in [(false, false), (true, true), (false, false), (true, true)] {
        well.store(now, Ordering::SeqCst);
        wait_for(&mesh, "over-http", &[expected]);
        wait_for(&mesh, "over-grpc", &[expected]);
    }
}

/// 200 at /healthz, or 503.
async fn serve_http(address: std::net::SocketAddr, well: Arc<AtomicBool>) {
    let answer = move || {
        let well = well.load(Ordering::SeqCst);
        async move { if well { axum::http::StatusCode::OK } else { axum::http::StatusCode::SERVICE_UNAVAILABLE } }
    };
    let app = axum::Router::new().route("/healthz", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind(address).await.expect("free");
    axum::serve(listener, app).await.expect("serves");
}

/// gRPC's health protocol for the service `shop`: SERVING, or NOT_SERVING.
async fn serve_grpc(address: std::net::SocketAddr, well: Arc<AtomicBool>) {
    let listener = tokio::net::TcpListener::bind(address).await.expect("free");
    while let Ok((stream, _)) = listener.accept().await {
        let well = Arc::clone(&well);
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let mut body = request.into_body();
                let (status, well) = (if well.load(Ordering::SeqCst) { 1 } else { 2 }, Arc::clone(&well));
                tokio::spawn(async move {
                    let asked = body.data().await.and_then(Result::ok).unwrap_or_default();
                    assert!(asked.ends_with(b"\x0a\x04shop"), "{asked:?}");
                    let head = http::Response::builder().header("content-type", "application/grpc");
                    let mut send = respond.send_response(head.body(()).expect("valid"), false).expect("open");
                    send.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false).expect("open");
                    let trailers = std::iter::once((http::HeaderName::from_static("grpc-status"), "0"));
                    let trailers = trailers.map(|(name, value)| (name, http::HeaderValue::from_static(value)));
                    send.send_trailers(trailers.collect()).expect("open");
                    drop(well);
                });
            }
        });
    }
}

#[test]
fn systemd_hears_when_the_app_is_healthy_that_it_stays_so_and_that_it_stops_and_the_app_hears_nothing() {
    let mesh = TestMesh::builder("run-systemd").start();
    let (well, variables) = (mesh.dir.join("well"), mesh.dir.join("variables"));
    let socket = UnixDatagram::bind(mesh.dir.join("notify")).expect("a socket");
    socket.set_read_timeout(Some(LIMIT)).expect("settable");
    let probe = format!("exec:test -f {}", well.display());
    let app = free().port().to_string();
    let script = format!("env > {0}; echo END >> {0}; exec sleep 1000", variables.display());
    let flags = ["--port", &app, "--probe", &probe, "--probe-interval", "50ms", "--lame-duck", "0"];
    let mut command = command(&mesh, "app", &flags, &["sh", "-c", &script]);
    command.env("NOTIFY_SOCKET", mesh.dir.join("notify")).env("WATCHDOG_USEC", "200000");
    let mut process = Process::start(&mut command, &mesh.dir.join("app.log"));
    has_line(&variables, "END");
    wait_for(&mesh, "app", &[false]);
    let next = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).lines().next().unwrap_or_default().to_owned()
    };
    socket.set_nonblocking(true).expect("settable");
    assert!(socket.recv(&mut [0; 256]).is_err(), "nothing is said of an app that is not healthy");
    socket.set_nonblocking(false).expect("settable");
    std::fs::write(&well, "").expect("writable");
    assert_eq!([next(), next(), next()], ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]);
    signal(process.id(), Signal::TERM);
    let mut said = next();
    while said == "WATCHDOG=1" {
        said = next();
    }
    assert_eq!(said, "STOPPING=1");
    assert_eq!(end(&mut process).code(), Some(143), "{}", process.output());
    let variables = std::fs::read_to_string(variables).expect("written");
    assert!(!variables.contains("NOTIFY_SOCKET") && !variables.contains("WATCHDOG"), "{variables}");
    assert!(variables.contains("WEFT_ADMIN="), "{variables}");
}
