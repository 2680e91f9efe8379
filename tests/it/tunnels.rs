//! Opaque connections end at one side as they ended at the other: a half-close, an end, a reset.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use crate::{
    mesh::{TestMesh, Workload},
    net::{LIMIT, connect, free},
};

/// An app that hands over each connection on which a byte came; a probe's connection says nothing.
fn app() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let (sender, connections) = mpsc::channel();
    let listener = TcpListener::bind(free()).expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let sender = sender.clone();
            thread::spawn(move || {
                if stream.peek(&mut [0]).is_ok_and(|length| length > 0) {
                    let _ = stream.set_read_timeout(Some(LIMIT));
                    let _ = sender.send(stream);
                }
            });
        }
    });
    (address, connections)
}

/// A tunnel: the client's end and the app's.
fn tunnel(mesh: &TestMesh, connections: &mpsc::Receiver<TcpStream>) -> (TcpStream, TcpStream) {
    let mut client = connect(mesh.local("app")).expect("the sidecar listens");
    client.write_all(b"question").expect("open");
    (client, connections.recv_timeout(LIMIT).expect("the app was called"))
}

/// Resets a connection: that is what closing does while bytes are there that nobody has read.
fn reset(stream: TcpStream) {
    stream.peek(&mut [0]).expect("bytes to leave unread");
    drop(stream);
}

#[test]
fn a_tunnel_ends_as_the_connection_behind_it_ended() {
    let (address, connections) = app();
    let mesh = TestMesh::builder("tunnels").workload(Workload::beside("app", address, "tcp")).calls("app").start();

    let (mut client, mut app) = tunnel(&mesh, &connections);
    client.shutdown(Shutdown::Write).expect("open");
    let mut bytes = Vec::new();
    app.read_to_end(&mut bytes).expect("the end of the question");
    assert_eq!(bytes, b"question");
    app.write_all(b"answer").expect("open after the half-close");
    drop(app);
    bytes.clear();
    client.read_to_end(&mut bytes).expect("the end of the answer");
    assert_eq!(bytes, b"answer");

    let (mut client, app) = tunnel(&mesh, &connections);
    reset(app);
    let error = client.read_to_end(&mut Vec::new()).expect_err("a truncated answer is not a whole one");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");

    let (client, mut app) = tunnel(&mesh, &connections);
    app.write_all(b"answer").expect("open");
    reset(client);
    let error = app.read_to_end(&mut Vec::new()).expect_err("a truncated question is not a whole one");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}
