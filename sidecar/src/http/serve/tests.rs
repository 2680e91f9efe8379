//! Connections of callers over a pipe in memory.

use std::{cell::Cell, rc::Rc};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const IDLE: Duration = Duration::from_secs(120);

/// Says when it is dropped.
struct Dropped(Rc<Cell<bool>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_be_idle_between_two_requests() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let answer = |_| async { Ok(Response::new(Body::full("ok"))) };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, answer);
    let calls = async {
        for _ in 0..2 {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
            let mut bytes = [0; 1024];
            let length = caller.read(&mut bytes).await.expect("open");
            assert!(bytes[..length].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&bytes[..length]));
            tokio::time::sleep(IDLE / 2).await;
        }
    };
    tokio::select! {
        result = serving => panic!("the connection ended: {result:?}"),
        () = calls => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_has_gone_is_given_up() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let dropped = Rc::new(Cell::new(false));
    let flag = Rc::clone(&dropped);
    let never = move |_| {
        let held = Dropped(Rc::clone(&flag));
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Ok(Response::new(Body::empty()))
        }
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, never);
    let gone = async {
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(caller);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(dropped.get(), "nobody waits for the answer any more, and the request still holds its permit");
    };
    tokio::select! {
        () = gone => {}
        () = async {
            let _ = serving.await;
            std::future::pending::<()>().await;
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_sends_its_first_head_too_slowly_is_closed() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let never = |_| async { unreachable!("no request is complete") };
    let (start, serving) = (tokio::time::Instant::now(), http1(near, Drain::default(), Phase::Stopped, IDLE, never));
    let trickle = async {
        caller.write_all(b"GET / HTTP/1.1\r\n").await.expect("open");
        while caller.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (result, ()) = tokio::join!(serving, trickle);
    result.expect("closed");
    assert!(start.elapsed() <= HEAD + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_another_request_is_closed() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let answer = |_| async { Ok(Response::new(Body::full("ok"))) };
    let (start, serving) = (tokio::time::Instant::now(), http1(near, Drain::default(), Phase::Stopped, IDLE, answer));
    let calls = async {
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
        // A head that never ends is no other request.
        caller.write_all(b"GET / HTTP/1.1\r\n").await.expect("open");
        while caller.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (result, ()) = tokio::join!(serving, calls);
    result.expect("closed");
    assert!(start.elapsed() >= IDLE && start.elapsed() <= IDLE * 2 + Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_longer_than_a_connection_may_be_idle_comes() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let late = |_| async {
        tokio::time::sleep(IDLE * 3).await;
        Ok(Response::new(Body::full("ok")))
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, late);
    let call = async {
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
        let mut bytes = Vec::new();
        caller.read_to_end(&mut bytes).await.expect("open");
        assert!(bytes.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&bytes));
    };
    let (result, ()) = tokio::join!(serving, call);
    result.expect("answered, then closed");
}
