//! Which endpoint gets a request and for how long connections to it are kept: the fields whose effect is seen in how
//! requests spread over apps, or in the connections that an app gets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    ALL, Row,
    apps::{Caller, Counts, Log, Observed, counting, message},
    check,
};
use crate::{
    http2::{connect, within},
    mesh::TestMesh,
    net::{LIMIT, eventually, free, metric},
    process::signal,
};

/// By the cluster IP, of Services that the sidecar holds already, which it asks for by name alone.
const ADDRESSES: &[(&str, Row)] = &[
    ("by-ip", ("GET /", &[], &["status 200", "seen 1"])),
    ("by-ips", ("GET /", &[], &["status 200", "seen 1"])),
    ("10.96.7.7", ("GET /", &[], &["status 200", "at web host: 10.96.7.7", "seen 1"])),
    ("10.96.7.7:80", ("GET /", &[], &["status 200", "seen 1"])),
    ("10.96.7.8", ("GET /", &[], &["status 200", "seen 1"])),
    ("[fd00::7]:80", ("GET /", &[], &["status 200", "seen 1"])),
    ("10.96.7.9", ("GET /", &[], &["no answer x-app", "seen 0"])),
];

/// Requests in one row, and the least and most that one app may get of them.
const SPREAD: &[(&str, usize, &str, (usize, usize))] = &[
    ("zone", 40, "near", (40, 40)),
    ("anywhere", 40, "near", (15, 25)),
    // Not new: it was there when the Service was first called.
    ("slowly", 4, "near", (4, 4)),
    ("at-once", 4, "near", (4, 4)),
];

/// The same after the endpoints have changed. A tenth of its turns is what a newcomer takes at the begin of an hour.
const SPREAD_LATER: &[(&str, usize, &str, (usize, usize))] =
    &[("zone", 40, "far", (40, 40)), ("slowly", 200, "far", (1, 60)), ("at-once", 200, "far", (90, 110))];

/// Requests that ill apps answer until they are out, each at its first failure, as far as so many may be.
const ILL: &[(&str, usize, (usize, usize))] = &[
    ("many-out", 30, (3, 3)),
    ("few-out", 30, (15, 90)),
    ("long-window", 40, (8, 16)),
    // Never are ten of them in five milliseconds.
    ("short-window", 40, (18, 40)),
];

/// Connections to an app: how many there were, and how many there are.
#[derive(Clone, Default)]
struct Connections(Arc<(AtomicUsize, AtomicUsize)>);

impl Connections {
    fn were(&self) -> usize {
        self.0.0.load(SeqCst)
    }

    fn are(&self) -> usize {
        self.0.1.load(SeqCst)
    }
}

/// Passes connections on to an app, and counts them.
async fn counted(app: SocketAddr) -> (SocketAddr, Connections) {
    let listener = TcpListener::bind(free()).await.expect("a free port");
    let (address, connections) = (listener.local_addr().expect("bound"), Connections::default());
    let counts = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let counts = counts.clone();
            tokio::spawn(async move {
                counts.0.0.fetch_add(1, SeqCst);
                counts.0.1.fetch_add(1, SeqCst);
                if let Ok(mut app) = TcpStream::connect(app).await {
                    let _ = tokio::io::copy_bidirectional(&mut caller, &mut app).await;
                }
                counts.0.1.fetch_sub(1, SeqCst);
            });
        }
    });
    (address, connections)
}

/// An app in HTTP/1.1 that keeps its connections.
async fn keeping() -> SocketAddr {
    let listener = TcpListener::bind(free()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut head).await {
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
                    }
                }
            });
        }
    });
    address
}

/// The mesh, the text of its later change, and the connections of the apps that are counted, by Service.
async fn mesh() -> (Observed, String, Vec<(&'static str, Connections)>) {
    let (log, counts) = (Log::default(), Counts::default());
    let app = |name: &'static str| counting(name, log.clone(), counts.clone());
    let (web, frozen) = (app("web").await, app("frozen").await);
    let mut ports = vec![("NEAR", app("near").await), ("FAR", app("far").await)];
    for (port, name) in [("SICK1", "sick1-0"), ("SICK2", "sick2-0"), ("SICK3", "sick3-0")] {
        ports.push((port, app(name).await));
    }
    let mut kept = Vec::new();
    for (port, service) in
        [("KEPT1", "aged-http1"), ("KEPT2", "aged-http2"), ("KEPT3", "idle-http1"), ("KEPT4", "idle-http2")]
    {
        let behind = if service.ends_with("http1") { keeping().await } else { web };
        let (address, connections) = counted(behind).await;
        ports.push((port, address));
        kept.push((service, connections));
    }
    let mesh = TestMesh::builder("endpoints")
        .replicas("web", "http2", &[web])
        .replicas("frozen", "http2", &[frozen])
        .calls("web")
        .client_at("eu/a")
        .start();
    let filled = |text: &str| {
        let port = |text: String, (name, address): &(&str, SocketAddr)| {
            text.replace(&format!("port: {name}}}"), &format!("port: {}}}", address.port()))
        };
        ports.iter().fold(text.to_owned(), port)
    };
    let (first, later) = (include_str!("endpoints.yaml"), include_str!("endpoints-later.yaml"));
    apply(&mesh, "endpoints.yaml", &filled(first));
    let (_, other) = crate::apps::recorder(b"");
    (Observed { mesh, log, other }, filled(later), kept)
}

fn apply(mesh: &TestMesh, file: &str, text: &str) {
    let path = mesh.dir.join(file);
    std::fs::write(&path, text).expect("writable");
    let applied = mesh.weft(&["apply", "--wait", "-f", &path.to_string_lossy()]);
    assert_eq!(applied.code, Some(0), "{}", applied.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_policies_say_of_endpoints_is_where_requests_and_connections_go() {
    let (observed, later, kept) = mesh().await;
    let mut wrong = Vec::new();
    for caller in ALL {
        for (service, row) in ADDRESSES {
            check(&observed, caller, service, row, &mut wrong).await;
        }
    }
    for row in SPREAD {
        spread(&observed, row, &mut wrong).await;
    }
    apply(&observed.mesh, "later.yaml", &later);
    for (service, count) in [("zone", 1), ("slowly", 2), ("at-once", 2)] {
        observed.mesh.wait_for_endpoints(service, count);
    }
    for row in SPREAD_LATER {
        spread(&observed, row, &mut wrong).await;
    }
    for (service, count, (least, most)) in ILL {
        let reached = at_the_ill(&observed, service, *count).await;
        if !(least..=most).contains(&&reached) {
            wrong.push(format!("{service}: {count} requests reached the ill {reached} times"));
        }
    }
    returns(&observed, &mut wrong).await;
    for (service, connections) in kept {
        match service {
            "idle-http1" => unused(&observed, service, &connections, &mut wrong).await,
            "idle-http2" => closed(&observed, service, &connections, &mut wrong).await,
            _ => replaced(&observed, service, &connections, &mut wrong).await,
        }
    }
    // What the apps have seen of all this.
    observed.seen();
    signal(observed.mesh.sidecar_pid("frozen-0"), Signal::STOP);
    for caller in ALL {
        waiting(&observed, caller, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

async fn spread(
    observed: &Observed,
    (service, count, app, (least, most)): &(&str, usize, &str, (usize, usize)),
    wrong: &mut Vec<String>,
) {
    let mut got = 0;
    for _ in 0..*count {
        let lines = observed.call(Caller::Http2, service, "GET /", &[]).await;
        got += lines.iter().filter(|line| **line == format!("answer x-app: {app}")).count();
    }
    if !(least..=most).contains(&&got) {
        wrong.push(format!("{service}: {app} got {got} of {count}"));
    }
}

/// How often ill apps were asked in so many requests.
async fn at_the_ill(observed: &Observed, service: &str, count: usize) -> usize {
    let mut reached = 0;
    for _ in 0..count {
        let lines = observed.call(Caller::Http2, service, "GET /sick", &[]).await;
        reached += lines.iter().filter(|line| line.starts_with("at sick") && line.ends_with("GET /sick")).count();
    }
    reached
}

/// Ejected again and again, never for longer than the longest time: doubled, the twelfth would be after minutes.
async fn returns(observed: &Observed, wrong: &mut Vec<String>) {
    let (began, mut reached) = (Instant::now(), 0);
    while reached < 12 && began.elapsed() < LIMIT {
        reached += at_the_ill(observed, "soon-back", 1).await;
    }
    if reached < 12 {
        wrong.push(format!("soon-back: asked {reached} times"));
    }
}

/// A request on a connection of the caller's that stays, so that all are the same worker's.
async fn request(sender: &mut h2::client::SendRequest<bytes::Bytes>, service: &str) {
    let (answer, _) = sender.send_request(message(Caller::Http2, service, "GET /", &[]), true).expect("open");
    let mut answer = within(service, answer).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{service}");
    assert_eq!(within(service, crate::http2::drain(answer.body_mut())).await.expect("a body"), 5, "{service}");
}

/// Too old is a connection however much it is used.
async fn replaced(observed: &Observed, service: &str, connections: &Connections, wrong: &mut Vec<String>) {
    let (mut sender, _task) = connect(observed.address(service)).await;
    let began = Instant::now();
    while connections.were() < 3 && began.elapsed() < LIMIT {
        request(&mut sender, service).await;
    }
    if connections.were() < 3 {
        wrong.push(format!("{service}: {} connections", connections.were()));
    }
}

/// What was idle for too long is not used again, though nothing has closed it yet. Without the policy it would take
/// pauses of three seconds.
async fn unused(observed: &Observed, service: &str, connections: &Connections, wrong: &mut Vec<String>) {
    let (mut sender, _task) = connect(observed.address(service)).await;
    for _ in 0..8 {
        request(&mut sender, service).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    if connections.were() != 8 {
        wrong.push(format!("{service}: {} connections for 8 requests", connections.were()));
    }
}

/// What is idle for too long is closed.
async fn closed(observed: &Observed, service: &str, connections: &Connections, wrong: &mut Vec<String>) {
    let (mut sender, _task) = connect(observed.address(service)).await;
    request(&mut sender, service).await;
    assert!(connections.were() > 0, "{service}");
    let began = Instant::now();
    while connections.are() > 0 && began.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if connections.are() > 0 {
        wrong.push(format!("{service}: {} are open", connections.are()));
    }
}

/// While the request of another caller waits for its connection, which does not come.
async fn waiting(observed: &Observed, caller: Caller, wrong: &mut Vec<String>) {
    let service = "one-pending";
    let pending = |count: f64| {
        eventually(&format!("{count} pending"), || {
            let now = metric(observed.mesh.client_admin(), "weft_upstream_pending_requests", &[service]);
            if (now - count).abs() < 0.5 { Ok(()) } else { Err(now.to_string()) }
        });
    };
    let (mut sender, task) = connect(observed.address(service)).await;
    let held = sender.send_request(message(Caller::Http2, service, "GET /", &[]), true).expect("open");
    pending(1.0);
    let row: Row = ("GET /", &[], &["status 503", "..pending_limit", "seen 0"]);
    check(observed, caller, service, &row, wrong).await;
    drop(held);
    task.abort();
    pending(0.0);
}
