//! Pools against real servers on loopback.

use std::net::SocketAddr;

use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};

use super::*;

fn pools() -> Pools {
    Pools::new(watch::Sender::new(None).subscribe(), Telemetry::default())
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
    let mut lease = pools.lease(key).await.expect("a connection");
    let mut request = Some(Request::builder().uri("/").header("host", "app").body(Body::empty()).expect("a request"));
    let response = lease.send(&mut request).await.expect("a response");
    assert_eq!(response.status(), 200);
    assert!(request.is_none());
    lease.give_back();
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
        drop(pools.lease(&key).await.expect("a connection"));
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
        let mut lease = pools.lease(&key).await.expect("a connection");
        drop(listener.accept().await.expect("accepts"));
        // The connection task sees the end before the request is sent.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let mut request = Some(Request::new(Body::empty()));
        let error = lease.send(&mut request).await.expect_err("the connection has ended");
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
