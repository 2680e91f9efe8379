//! Certificates that live for seconds: requests never notice that they change, and a stream or tunnel ends with the
//! certificate that its connection began with, not sooner.

mod load;
mod whole;

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{self, Sender},
    time::Instant,
};

use crate::{
    mesh::{TestMesh, Workload},
    net::{connect, eventually, free, get, metric, ok},
};

/// An app whose answer to `/stream` is a line for each unit sent, without end; anything else gets `ok`.
fn streamer() -> (SocketAddr, Sender<()>) {
    let (tick, ticks) = mpsc::channel();
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut ticks = Some(ticks);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The stream gets a thread of its own when it is asked for; plain answers need none.
            let mut head = String::new();
            let mut reader = BufReader::new(stream);
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
            let mut writer = reader.into_inner();
            if !head.starts_with("GET /stream ") {
                let _ = writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
                continue;
            }
            let Some(ticks) = ticks.take() else { return };
            std::thread::spawn(move || {
                let _ = writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                ticks.iter().try_for_each(|()| writer.write_all(b"5\r\ntick\n\r\n"))
            });
        }
    });
    (address, tick)
}

/// A request on a connection that stays open, and its answer.
fn ask(stream: &mut BufReader<TcpStream>) {
    write!(stream.get_mut(), "GET / HTTP/1.1\r\nHost: streamer\r\n\r\n").expect("the connection is open");
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut answer).expect("an answer") > 0, "the connection was closed: {answer}");
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut body = [0; 2];
    stream.read_exact(&mut body).expect("a body");
    assert_eq!(&body, b"ok");
}

/// The next line that has `text` in it, if there is one.
fn line_with(text: &str, stream: &mut BufReader<TcpStream>) -> bool {
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        match stream.read_line(&mut line) {
            Ok(1..) => {}
            Ok(0) => return false,
            // The limit of the test, and not an end.
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("{error}"),
            Err(_) => return false,
        }
    }
    true
}

/// A line to the ledger and its answer.
fn charge(tunnel: &mut BufReader<TcpStream>) -> bool {
    tunnel.get_mut().write_all(b"charge 1\n").is_ok() && line_with("OK", tunnel)
}

#[test]
fn requests_outlive_certificates_and_streams_and_tunnels_end_with_theirs() {
    let (app, tick) = streamer();
    let mesh = TestMesh::builder("rotation")
        .svid_lifetime("10s")
        .workload(Workload::beside("streamer", app, "http"))
        .workload(Workload::demo("ledger", "tcp"))
        .calls("streamer")
        .calls("ledger")
        .start();
    eventually("a call", || ok(get(mesh.local("streamer"), "streamer", "/")));
    let open = |service| BufReader::new(connect(mesh.local(service)).expect("a connection"));
    let (mut kept, mut stream, mut tunnel) = (open("streamer"), open("streamer"), open("ledger"));
    write!(stream.get_mut(), "GET /stream HTTP/1.1\r\nHost: streamer\r\n\r\n").expect("open");

    // Renewed at 50 to 70 % of its life: with the fourth certificate the first has ended.
    let (mut streamed, mut charged) = (Instant::now(), Instant::now());
    let (start, mut last) = (Instant::now(), [false; 2]);
    let admins = [mesh.client_admin(), mesh.admin("streamer"), mesh.admin("ledger")];
    let mut rounds = 0;
    eventually("the fourth certificate of each sidecar", || {
        ask(&mut kept);
        // The app ends its own side when its caller has gone.
        if !last[0] && (tick.send(()).is_err() || !line_with("tick", &mut stream)) {
            (streamed, last[0]) = (Instant::now(), true);
        }
        if !last[1] && !charge(&mut tunnel) {
            (charged, last[1]) = (Instant::now(), true);
        }
        rounds += 1;
        let counts = admins.map(|admin| metric(admin, "weft_cert_rotations_total", &[]));
        if counts.iter().all(|count| *count >= 4.0) { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    assert!(rounds > 10, "only {rounds} rounds");
    assert_eq!(last, [true; 2], "the stream and the tunnel have outlived their certificates");
    for (what, end) in [("the stream", streamed), ("the tunnel", charged)] {
        println!("{what} lived for {:?}", end.duration_since(start));
    }
    assert!(charge(&mut open("ledger")), "another tunnel");
    let failed = |admin| metric(admin, "weft_http_requests_total", &["5xx"]);
    assert!(admins.into_iter().map(failed).sum::<f64>() < 0.5, "a request failed in between");
}
