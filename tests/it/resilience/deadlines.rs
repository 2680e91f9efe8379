//! Deadlines and callers that go away: nobody works for a caller who has stopped waiting.

use std::{
    io::Write,
    sync::mpsc::{self, Receiver},
};

use super::{
    addresses,
    backend::{Backend, Reply},
    load::Caller,
};
use crate::{
    mesh::{Builder, TestMesh},
    net::{LIMIT, connect, eventually},
};

/// A backend that never answers, and how long each caller of it said that it waits.
fn silent() -> (Backend, Receiver<Option<u64>>) {
    let (sender, waits) = mpsc::channel();
    let backend = Backend::start(move |request| {
        let _ = sender.send(request.field("x-weft-timeout-ms").map(|wait| wait.parse().expect("milliseconds")));
        Reply::Hang
    });
    (backend, waits)
}

fn is_told(backend: &Backend, before: usize) {
    eventually("the end of the work", || match backend.abandoned() {
        count if count > before => Ok(()),
        _ => Err(String::from("the backend still works")),
    });
}

fn check(mesh: &TestMesh, backend: &Backend, waits: &Receiver<Option<u64>>) {
    let request = "GET / HTTP/1.1\r\nHost: web\r\nX-Weft-Timeout-Ms: 300\r\n\r\n";
    let answer = Caller::new(mesh.local("web")).send(request).expect("an answer");
    assert_eq!(answer.status, 504, "{}", answer.head);
    assert!(answer.head.contains("http_response_timeout"), "{}", answer.head);
    let wait = waits.recv_timeout(LIMIT).expect("the backend was called").expect("the field is passed on");
    // Whole milliseconds, rounded down: some time has passed.
    assert!((1..300).contains(&wait), "{wait} ms of 300 are left");
    is_told(backend, 0);

    let mut stream = connect(mesh.local("web")).expect("the sidecar listens");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").expect("open");
    assert_eq!(waits.recv_timeout(LIMIT), Ok(None), "the backend was called, and no time was made up");
    assert_eq!(backend.abandoned(), 1, "the caller still waits");
    drop(stream);
    is_told(backend, 1);
    assert!(waits.try_recv().is_err(), "what nobody waits for is not tried again");
}

fn with(name: &str, build: impl FnOnce(Builder, &[Backend]) -> Builder) {
    let (backend, waits) = silent();
    let backends = [backend];
    let mesh = build(TestMesh::builder(name), &backends).calls("web").start();
    check(&mesh, &backends[0], &waits);
}

#[test]
fn a_deadline_or_a_caller_that_goes_away_ends_the_work_behind_two_sidecars() {
    with("deadline", |mesh, backends| mesh.replicas("web", "http", &addresses(backends)));
}

#[test]
fn a_deadline_or_a_caller_that_goes_away_ends_the_work_at_a_plaintext_endpoint() {
    with("deadline-plain", |mesh, backends| mesh.outside("web", "http", &addresses(backends)));
}
