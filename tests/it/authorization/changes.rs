//! What is open when a policy changes.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::ends::{applied, echo, endless, policy};
use crate::{
    apps::recorder,
    http2,
    mesh::{TestMesh, Workload},
    net::{call, connect, eventually, free, get, ok},
};

/// The design says 1 s; a machine that is busy with other tests may need longer.
const SOON: Duration = Duration::from_secs(5);

/// A byte there and back.
fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"a").expect("open");
    stream.read_exact(&mut [0; 1]).expect("an echo");
}

/// When a connection ends on which nothing more is sent.
fn end_of(mut stream: TcpStream) -> mpsc::Receiver<Instant> {
    let (sender, ends) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(1..) = stream.read(&mut [0; 64]) {}
        let _ = sender.send(Instant::now());
    });
    ends
}

#[test]
fn a_policy_closes_a_live_connection_of_whom_it_denies_and_no_other() {
    let (app, _count) = echo();
    let mut mesh = TestMesh::builder("live-tcp").workload(Workload::beside("db", app, "tcp")).calls("db").start();
    let orders = mesh.caller("orders", "db");
    let open = |address| {
        eventually("a connection", || {
            let mut stream = connect(address)?;
            stream.write_all(b"a").map_err(|error| error.to_string())?;
            stream.read_exact(&mut [0; 1]).map_err(|error| error.to_string())?;
            Ok(stream)
        })
    };
    let (mut denied, mut stays) = (open(mesh.local("db")), open(orders));
    echoes(&mut denied);
    let ends = end_of(denied);
    let begun = Instant::now();
    applied(&mesh, &policy("orders-only", "db", "Allow", "[{from: [{serviceAccounts: [orders]}]}]"));
    let end = ends.recv_timeout(SOON).expect("it is closed");
    println!("a live TCP connection is closed {:?} after the policy was given to the command", end - begun);
    echoes(&mut stays);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_resets_a_live_stream_that_it_denies_and_no_other() {
    let app = endless();
    let mesh = TestMesh::builder("live-http").workload(Workload::beside("web", app, "http")).calls("web").start();
    let (mut sender, _connection) = http2::connect(mesh.local("web")).await;
    let mut bodies = Vec::new();
    for path in ["/secret", "/open"] {
        let request = http::Request::builder().uri(format!("http://web{path}")).body(()).expect("valid");
        let (answer, _) = sender.send_request(request, true).expect("open");
        let answer = http2::within("an answer", answer).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        let mut body = answer.into_body();
        assert_eq!(http2::within("a chunk", body.data()).await.expect("a chunk").expect("open"), "hello");
        bodies.push(body);
    }
    let mut open = bodies.pop().expect("two");
    let mut secret = bodies.pop().expect("two");
    let end = tokio::spawn(async move { (secret.data().await.map(|data| data.is_err()), Instant::now()) });
    let begun = Instant::now();
    tokio::task::block_in_place(|| {
        applied(&mesh, &policy("no-secrets", "web", "Deny", "[{to: [{paths: [/secret]}]}]"));
    });
    let (ended, at) = tokio::time::timeout(SOON, end).await.expect("it ends").expect("no panic");
    assert_eq!(ended, Some(true), "reset, and not ended well");
    println!("a live HTTP/2 stream is reset {:?} after the policy was given to the command", at - begun);
    let more = tokio::time::timeout(Duration::from_millis(200), open.data()).await;
    assert!(more.is_err(), "the other one goes on: {more:?}");
    let (status, text) = get(mesh.local("web"), "web", "/secret").expect("an answer");
    assert_eq!(status, 403, "{text}");
}

#[test]
fn strict_mode_closes_plaintext_of_which_check_has_warned() {
    let (app, _heads) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    let front = free();
    let workload = Workload::beside("web", app, "http").front(front);
    let mesh = TestMesh::builder("strict").workload(workload).calls("web").start();
    eventually("a call", || ok(get(mesh.local("web"), "web", "/")));
    let plaintext = format!("default/web port {}: ", app.port());
    assert!(!mesh.weft(&["check"]).text.contains(&plaintext));
    ok(get(front, "web", "/")).expect("let in while the mode is permissive");
    let mut idle = connect(front).expect("the front listens");
    idle.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").expect("open");
    assert_eq!(idle.read(&mut [0; 5]).expect("an answer"), 5);
    eventually("the warning", || {
        let checked = mesh.weft(&["check"]);
        let warned = checked.code == Some(3) && checked.text.contains(&plaintext);
        if warned { Ok(()) } else { Err(checked.text) }
    });

    let ends = end_of(idle);
    let begun = Instant::now();
    let strict = "apiVersion: weft.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: web}\nspec:\n  targetRefs: \
                  [{kind: Service, name: web}]\n  mode: Strict\n";
    applied(&mesh, strict);
    let end = ends.recv_timeout(SOON).expect("it is closed");
    println!("a plaintext connection is closed {:?} after STRICT was given to the command", end - begun);
    assert!(call(front, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").is_err(), "another one");
    ok(get(mesh.local("web"), "web", "/")).expect("mutual TLS goes on");
    eventually("no warning any more", || {
        let text = mesh.weft(&["check"]).text;
        if text.contains(&plaintext) { Err(text) } else { Ok(()) }
    });
}
