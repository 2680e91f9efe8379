//! Connections of callers over a pipe in memory.

use std::{cell::Cell, rc::Rc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{caller::HALF_CLOSED, *};

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

/// Two ends of a TCP connection: how a caller ends is the kernel's to tell.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (caller, near) = tokio::join!(TcpStream::connect(address), listener.accept());
    (caller.expect("connects"), near.expect("accepts").0)
}

/// A caller that asks and then does this, of a server that never answers, and for how long its request lives after that.
async fn until_given_up(then: impl AsyncFnOnce(TcpStream) -> Option<TcpStream>) -> Duration {
    let (mut caller, near) = connection().await;
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
    let mut serving = std::pin::pin!(http1(near, Drain::default(), Phase::Stopped, IDLE, never));
    let work = async {
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
        tokio::time::sleep(Duration::from_secs(1)).await;
        (then(caller).await, tokio::time::Instant::now())
    };
    let (held, since) = tokio::select! {
        result = serving.as_mut() => panic!("the connection ended: {result:?}"),
        done = work => done,
    };
    assert!(!dropped.get(), "nothing has ended yet");
    let ended = tokio::time::timeout(Duration::from_secs(3600), serving).await;
    assert!(
        ended.is_ok() && dropped.get(),
        "nobody waits for the answer any more, and the request still holds its permit"
    );
    drop(held);
    since.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_has_gone_is_given_up() {
    let closed = until_given_up(async |caller| {
        drop(caller);
        None
    });
    let closed = closed.await;
    assert!(closed <= HALF_CLOSED + Duration::from_secs(1), "{closed:?}");
    let reset = until_given_up(async |caller| {
        crate::opaque::Stream::abort(caller);
        None
    });
    let reset = reset.await;
    assert!(reset < Duration::from_secs(1), "a reset says that nobody waits: {reset:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_has_ended_its_side_gets_its_answer() {
    let (mut caller, near) = connection().await;
    let late = |request: Request<Incoming>| async move {
        let body = http_body_util::BodyExt::collect(request.into_body()).await.expect("whole").to_bytes();
        tokio::time::sleep(HALF_CLOSED / 2).await;
        Ok(Response::new(Body::full(body)))
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, late);
    let call = async {
        caller.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await.expect("open");
        caller.shutdown().await.expect("half-close");
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).await.expect("ends");
        String::from_utf8(answer).expect("text")
    };
    let (served, answer) = tokio::join!(serving, call);
    served.expect("well");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nbody"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_moves_is_not_cut_short_for_a_caller_that_has_ended_its_side() {
    let (mut caller, near) = connection().await;
    const BYTES: usize = 20_000;
    let slow = |_| async move {
        let mut body = Body::full(vec![b'x'; BYTES]);
        body.pace(200);
        Ok(Response::new(body))
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, slow);
    let call = async {
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
        caller.shutdown().await.expect("half-close");
        let (start, mut answer) = (tokio::time::Instant::now(), Vec::new());
        caller.read_to_end(&mut answer).await.expect("ends");
        (start.elapsed(), answer.iter().filter(|byte| **byte == b'x').count())
    };
    let (served, (took, got)) = tokio::join!(serving, call);
    served.expect("well");
    assert_eq!(got, BYTES);
    assert!(took > HALF_CLOSED * 3, "{took:?}: too soon to say anything");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_too_soon_is_no_request() {
    let (mut caller, near) = connection().await;
    let whole = |request: Request<Incoming>| async move {
        let body = http_body_util::BodyExt::collect(request.into_body()).await;
        assert!(body.is_err(), "half a body was taken for a whole one");
        Ok(Response::new(Body::empty()))
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, whole);
    let call = async {
        caller.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\n\r\nbody").await.expect("open");
        caller.shutdown().await.expect("half-close");
        let mut answer = Vec::new();
        let _ = caller.read_to_end(&mut answer).await;
    };
    let start = tokio::time::Instant::now();
    let _ = tokio::join!(serving, call);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
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
        while start.elapsed() < IDLE * 5 && caller.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        drop(caller);
    };
    let (result, ()) = tokio::join!(serving, calls);
    result.expect("closed");
    assert!(start.elapsed() >= IDLE && start.elapsed() <= IDLE * 2 + Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Reads until `count` answers with the body `ok` have come, or the end.
async fn answers(caller: &mut tokio::io::DuplexStream, count: usize) -> String {
    let (mut seen, mut bytes) = (String::new(), [0; 1024]);
    while seen.matches("\r\n\r\nok").count() < count {
        match caller.read(&mut bytes).await.expect("open") {
            0 => break,
            length => seen.push_str(&String::from_utf8_lossy(&bytes[..length])),
        }
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_longer_than_a_connection_may_be_idle() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let late = |_| async {
        tokio::time::sleep(IDLE * 3).await;
        Ok(Response::new(Body::full("ok")))
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, late);
    let calls = async {
        for _ in 0..2 {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
            let seen = answers(&mut caller, 1).await;
            assert!(seen.starts_with("HTTP/1.1 200"), "{seen:?}");
        }
    };
    tokio::select! {
        result = serving => panic!("the connection ended: {result:?}"),
        () = calls => {}
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_come_in_one_piece_are_all_answered() {
    let (mut caller, near) = tokio::io::duplex(4096);
    let answer = |_| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(Response::new(Body::full("ok")))
    };
    let serving = http1(near, Drain::default(), Phase::Stopped, IDLE, answer);
    let calls = async {
        caller.write_all("GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3).as_bytes()).await.expect("open");
        let seen = answers(&mut caller, 3).await;
        assert_eq!(seen.matches("HTTP/1.1 200").count(), 3, "{seen:?}");
    };
    tokio::select! {
        result = serving => panic!("the connection ended: {result:?}"),
        () = calls => {}
    }
}
