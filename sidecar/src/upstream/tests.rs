//! Pools against real servers on loopback.

use std::{cell::Cell, net::SocketAddr};

use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};

use super::*;
use crate::http::body::{Body, Incoming};

fn pools() -> Pools {
    let telemetry = Telemetry::default();
    let sessions = Sessions::new(weft_svid::TrustStore::default(), telemetry.clone());
    Pools::new(watch::Sender::new(None).subscribe(), sessions, telemetry)
}

/// A server that answers every request on a connection, and how many connections came.
async fn server() -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let count = Rc::new(Cell::new(0));
    let counting = Rc::clone(&count);
    tokio::task::spawn_local(async move {
        loop {
            let (mut io, _) = listener.accept().await.expect("accepts");
            counting.set(counting.get() + 1);
            tokio::task::spawn_local(async move {
                let mut head = [0; 1024];
                while io.read(&mut head).await.is_ok_and(|length| length > 0) {
                    io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("open");
                }
            });
        }
    });
    (address, count)
}

async fn exchange(pools: &Pools, key: &Key) {
    let lease = pools.lease(key, &Rules::app()).await.expect("a connection");
    let mut request = Some(Request::builder().uri("/").header("host", "app").body(Body::empty()).expect("a request"));
    let response = lease.send(&mut request).await.expect("a response");
    assert_eq!(response.status(), 200);
    assert!(request.is_none());
}

async fn local<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn a_connection_is_used_again() {
    local(async {
        let (address, count) = server().await;
        let (pools, key) = (pools(), Key::Plain { address, http2: false });
        for _ in 0..3 {
            exchange(&pools, &key).await;
        }
        assert_eq!(count.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_exchange_that_is_not_complete_gives_nothing_back() {
    local(async {
        let (address, count) = server().await;
        let (pools, key) = (pools(), Key::Plain { address, http2: false });
        drop(pools.lease(&key, &Rules::app()).await.expect("a connection"));
        exchange(&pools, &key).await;
        assert_eq!(count.get(), 2);
        pools.sweep();
        assert_eq!(pools.pools.borrow().len(), 1, "its idle connection keeps the pool");
    })
    .await;
}

#[tokio::test]
async fn a_request_of_which_nothing_was_sent_comes_back() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (pools, key) = (pools(), Key::Plain { address, http2: false });
        let lease = pools.lease(&key, &Rules::app()).await.expect("a connection");
        drop(listener.accept().await.expect("accepts"));
        // The connection task sees the end before the request is sent.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let mut request = Some(Request::new(Body::empty()));
        let error = lease.send(&mut request).await.err().expect("the connection has ended");
        assert!(error.unsent && request.is_some(), "{error}");
    })
    .await;
}

#[tokio::test]
async fn mesh_connections_end_with_their_endpoint() {
    let pools = pools();
    let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let mesh = Key::Mesh {
        address,
        identity: SpiffeId::parse("spiffe://weft.local/ns/a/sa/b").expect("an id"),
        target: Target { service: weft_policy::model::ObjectName::new("a", "b"), port: 80 },
    };
    let plain = Key::Plain { address, http2: false };
    for key in [&mesh, &plain] {
        pools.pool(key);
    }
    pools.keep_live(|live| *live == address);
    assert_eq!(pools.pools.borrow().len(), 2);
    pools.keep_live(|_| false);
    assert!(pools.pools.borrow().contains_key(&plain) && pools.pools.borrow().len() == 1);
}

#[tokio::test]
async fn a_connection_whose_request_is_still_being_sent_is_not_used_for_another() {
    local(async {
        let (address, count) = server().await;
        let (pools, key) = (pools(), Key::Plain { address, http2: false });
        // The caller has announced more than it sends; the server answers without waiting for it.
        let body = unfinished_body().await;
        let lease = pools.lease(&key, &Rules::app()).await.expect("a connection");
        let request = Request::builder().method("POST").uri("/").header("host", "app").header("content-length", "9");
        let mut request = Some(request.body(body).expect("a request"));
        let response = lease.send(&mut request).await.expect("a response");
        assert_eq!(response.status(), 200);
        drop(response);
        let next = tokio::time::timeout(std::time::Duration::from_secs(2), exchange(&pools, &key)).await;
        assert!(next.is_ok(), "the next request waits for the body of another caller");
        assert_eq!(count.get(), 2);
    })
    .await;
}

/// The body of a request of which one byte of nine came.
async fn unfinished_body() -> Body {
    use hyper_util::rt::TokioIo;
    let (mut caller, near) = tokio::io::duplex(1024);
    let (send, receive) = tokio::sync::oneshot::channel();
    let send = RefCell::new(Some(send));
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let send = send.borrow_mut().take().expect("one request");
        let _ = send.send(request.into_body());
        std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
    });
    tokio::task::spawn_local(async move {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(near), service).await;
    });
    caller.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n1").await.expect("open");
    tokio::task::spawn_local(async move {
        std::future::pending::<()>().await;
        drop(caller);
    });
    let body = receive.await.expect("a request");
    Body::incoming(Incoming::Caller(body), crate::http::body::Ends::Framed, crate::http::body::Times::default())
}

/// An address at which nobody answers, not even with a refusal, and what keeps it so.
fn black_hole() -> (SocketAddr, Vec<std::net::TcpStream>, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    socket.listen(0).expect("listens");
    let address = socket.local_addr().expect("bound").as_socket().expect("an address");
    let mut held = Vec::new();
    while let Ok(io) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        held.push(io);
    }
    (address, held, socket)
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_a_dial_that_fails_fail_with_it() {
    let (address, _held, _socket) = black_hole();
    local(async {
        let (pools, key) = (pools(), Key::Plain { address, http2: true });
        let start = tokio::time::Instant::now();
        let rules = Rules::app();
        let all = futures_util::future::join_all((0..10).map(|_| pools.lease(&key, &rules))).await;
        let errors: Vec<_> = all.into_iter().filter_map(Result::err).collect();
        assert!(errors.len() == 10 && errors.iter().all(|error| error.unsent));
        assert_eq!(errors.iter().filter(|error| !error.shared).count(), 1, "one dial is one failure");
        assert_eq!(start.elapsed().as_secs(), 2, "one after the other");
    })
    .await;
}
