//! Tunnels between two h2 ends in memory.

use http::{Method, Request, Response};

use super::*;

/// Both ends of one CONNECT stream.
async fn pair() -> (Tunnel, Tunnel) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (client, server) = tokio::join!(h2::client::handshake(near), h2::server::handshake(far));
    let ((mut sender, connection), mut server) = (client.expect("a handshake"), server.expect("a handshake"));
    tokio::spawn(connection);
    let request = Request::builder().method(Method::CONNECT).uri("ledger.shop:5432").body(()).expect("a request");
    let (response, send) = sender.send_request(request, false).expect("sent");
    let (request, mut respond) = server.accept().await.expect("a request").expect("a request");
    let far = Tunnel::new(respond.send_response(Response::new(()), false).expect("sent"), request.into_body());
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    let near = Tunnel::new(send, response.await.expect("a response").into_body());
    // The connection lives as long as its sender.
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(sender);
    });
    (near, far)
}

#[tokio::test]
async fn many_windows_of_bytes_arrive_whole_and_the_end_is_an_end() {
    let (near, far) = pair().await;
    let (mut to_far, mut from_near) = (near.split().1, far.split().0);
    let data = Bytes::from(vec![7; 3_000_000]);
    let send = async {
        to_far.send(data.clone()).await.expect("open");
        to_far.finish().await.expect("open");
    };
    let receive = async {
        let mut length = 0;
        while let Some(bytes) = from_near.next().await.expect("open") {
            assert!(bytes.iter().all(|byte| *byte == 7));
            length += bytes.len();
            from_near.passed(bytes.len());
        }
        length
    };
    assert_eq!(tokio::join!(send, receive).1, data.len());
}

#[tokio::test]
async fn an_aborted_tunnel_is_a_failure_for_the_peer_and_not_an_end() {
    let (near, far) = pair().await;
    let (mut from_near, mut to_near) = far.split();
    let (source, mut sink) = near.split();
    sink.send(Bytes::from_static(b"half")).await.expect("open");
    assert_eq!(from_near.next().await.expect("open").expect("bytes"), "half");
    Tunnel::abort(source, sink);
    assert_eq!(from_near.next().await.expect_err("no end").kind(), io::ErrorKind::ConnectionReset);
    assert!(to_near.send(Bytes::from_static(b"too late")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_dead_within_fifteen_seconds() {
    // Nobody reads the other end, so that no PING is answered.
    let (near, _far) = tokio::io::duplex(64 * 1024);
    let (_sender, mut connection) = h2::client::handshake(near).await.expect("a handshake");
    let ping = connection.ping_pong();
    tokio::spawn(connection);
    let start = tokio::time::Instant::now();
    dead(ping, || true).await;
    assert_eq!(start.elapsed(), PING_INTERVAL + PING_TIMEOUT);
}

/// PROOF: slow readers of a few tunnels must not stop the others of the connection.
#[tokio::test(start_paused = true)]
async fn proof_slow_readers_do_not_stop_the_other_tunnels() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(near);
    let server = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(far);
    let (client, server) = tokio::join!(client, server);
    let ((mut sender, connection), mut server) = (client.expect("a handshake"), server.expect("a handshake"));
    tokio::spawn(connection);
    let (to_test, mut streams) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let send = respond.send_response(Response::new(()), false).expect("sent");
            let _ = to_test.send((send, request.into_body()));
        }
    });
    let mut held = Vec::new();
    for n in 0..5 {
        let request = Request::builder().method(Method::CONNECT).uri("ledger.shop:5432").body(()).expect("a request");
        let (response, mut send) = sender.send_request(request, false).expect("sent");
        let body = response.await.expect("a response").into_body();
        let (_far_send, mut far) = streams.recv().await.expect("a stream");
        if n < 4 {
            // Nobody reads this one.
            let fill = Sink::send(&mut send, Bytes::from(vec![0; 2 * 1024 * 1024]));
            assert!(tokio::time::timeout(Duration::from_secs(5), fill).await.is_err());
            held.push((send, body, _far_send, far));
        } else {
            let fifth = async {
                Sink::send(&mut send, Bytes::from_static(b"hello")).await.expect("open");
                far.next().await
            };
            let got = tokio::time::timeout(Duration::from_secs(60), fifth).await;
            assert!(got.is_ok(), "the fifth tunnel is stuck behind four slow readers");
        }
    }
}
