//! Bodies that are sent again: another replica gets all of it, and what is too large to keep is sent once.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{
    addresses,
    backend::{Backend, Reply},
    load::Caller,
};
use crate::{
    mesh::{Builder, TestMesh},
    net::metric,
};

/// What backends were sent: body and trailers.
type Sent = Arc<Mutex<Vec<(Vec<u8>, String)>>>;

/// Two backends, of which whichever gets a PUT first reads and resets it.
fn pair(sent: &Sent, armed: &Arc<AtomicBool>) -> Vec<Backend> {
    let backend = || {
        let (sent, armed) = (Arc::clone(sent), Arc::clone(armed));
        Backend::start(move |request| {
            sent.lock().expect("no panic").push((request.body.clone(), request.trailers.to_lowercase()));
            if armed.swap(false, Relaxed) { Reply::Reset } else { Reply::ok("kept") }
        })
    };
    vec![backend(), backend()]
}

/// A body whose every part is different.
fn text(length: usize) -> String {
    let numbers: String = (0..=length / 8).map(|number| format!("{number:08}")).collect();
    numbers[..length].to_owned()
}

fn put(body: &str) -> String {
    format!("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn chunked(body: &str) -> String {
    let mut text = String::from(
        "PUT / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    for part in body.as_bytes().chunks(5000) {
        text += &format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
    }
    text + "0\r\nX-Sum: 17\r\n\r\n"
}

fn check(mesh: &TestMesh, backends: &[Backend], sent: &Sent, armed: &AtomicBool) {
    let mut caller = Caller::new(mesh.local("web"));
    let mut deliver = |request: &str| {
        sent.lock().expect("no panic").clear();
        armed.store(true, Relaxed);
        let answer = caller.send(request).expect("an answer");
        (answer.status, std::mem::take(&mut *sent.lock().expect("no panic")))
    };
    let denied = || metric(mesh.client_admin(), "weft_upstream_retries_denied_total", &["reason=\"too_large\""]);
    let (small, large) = (text(30 * 1024), text(100 * 1024));
    for (request, trailers) in [(put(&small), ""), (chunked(&small), "x-sum: 17\r\n\r\n")] {
        let before: Vec<_> = backends.iter().map(Backend::requests).collect();
        let (status, got) = deliver(&request);
        assert_eq!((status, got.len()), (200, 2));
        for (body, last) in got {
            assert!(body == small.as_bytes(), "{} bytes of {}", body.len(), small.len());
            assert_eq!(last.trim_start_matches("\r\n"), trailers);
        }
        let each: Vec<_> = backends.iter().zip(before).map(|(backend, before)| backend.requests() - before).collect();
        assert_eq!(each, [1, 1], "the second try goes to the other replica");
    }
    for (number, request) in (1_u32..).zip([put(&large), chunked(&large)]) {
        let (status, got) = deliver(&request);
        assert_eq!((status, got.len()), (502, 1), "sent once, and the caller is told");
        assert!(got[0].0 == large.as_bytes());
        assert!((denied() - f64::from(number)).abs() < 0.5, "{} were too large", denied());
    }
}

fn with(name: &str, build: impl FnOnce(Builder, &[Backend]) -> Builder) {
    let (sent, armed) = (Sent::default(), Arc::new(AtomicBool::new(false)));
    let backends = pair(&sent, &armed);
    let mesh = build(TestMesh::builder(name), &backends).calls("web").start();
    check(&mesh, &backends, &sent, &armed);
}

#[test]
fn a_body_is_replayed_to_another_replica_behind_its_sidecar() {
    with("bodies", |mesh, backends| mesh.replicas("web", "http", &addresses(backends)));
}

#[test]
fn a_body_is_replayed_to_another_plaintext_endpoint() {
    with("bodies-plain", |mesh, backends| mesh.outside("web", "http", &addresses(backends)));
}
