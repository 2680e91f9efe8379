//! The circuit breaker of a service of one replica: when it cannot be reached callers are told at once, nobody knocks
//! at its door but a probe, and they get their answers again when it is back.

use std::time::Instant;

use super::{
    addresses,
    backend::{Backend, Reply},
    load::Caller,
};
use crate::{
    mesh::TestMesh,
    net::{eventually, metric},
};

/// Calls until the answer is a failure with this reason or detail.
fn until(caller: &mut Caller, word: &str) {
    eventually(word, || {
        let answer = caller.get()?;
        if answer.status == 503 && answer.head.contains(word) { Ok(()) } else { Err(answer.head) }
    });
}

/// The time in milliseconds after which the service is tried again, as the answer tells it.
fn wait(head: &str) -> Option<u64> {
    head.split_once("it is tried again in ")?.1.split_once(" ms")?.0.parse().ok()
}

#[test]
fn a_service_of_one_replica_that_is_gone_fails_fast_without_a_connection_per_request() {
    let backends = [Backend::start(|_| Reply::ok("here"))];
    let mesh = TestMesh::builder("gone").outside("web", "http", &addresses(&backends)).calls("web").start();
    let (mut caller, admin) = (Caller::new(mesh.local("web")), mesh.client_admin());
    assert_eq!(caller.get().expect("an answer").status, 200);

    backends[0].stop();
    let tried = || metric(admin, "weft_upstream_connects_total", &["connection_refused"]);
    until(&mut caller, "circuit_open");
    let before = tried();
    assert!(before <= 6.0, "five refusals in a row open it, but there were {before}");
    for _ in 0..500 {
        let answer = caller.get().expect("an answer");
        assert_eq!(answer.status, 503);
        assert!(answer.head.contains("error=destination_unavailable"), "{}", answer.head);
    }
    let probes = metric(admin, "weft_circuit_transitions_total", &["scope=\"service\"", "to=\"half_open\""]);
    assert!(tried() - before <= probes, "{} connections for 500 requests, {probes} probes", tried() - before);
    assert!(probes <= 20.0, "{probes} probes for 500 requests");
    assert!(metric(admin, "weft_circuit_state", &["default/web"]) > 0.5);

    // Away for so long that the time between two probes has grown to its longest.
    let half_open = || metric(admin, "weft_circuit_transitions_total", &["scope=\"service\"", "to=\"half_open\""]);
    eventually("four probes", || {
        let wait = wait(&caller.get()?.head).ok_or("no time")?;
        assert!(wait <= 5000, "the next probe only in {wait} ms");
        if half_open() > 3.5 { Ok(()) } else { Err(format!("{} probes", half_open())) }
    });
    let before = half_open();
    backends[0].listen();
    let began = Instant::now();
    eventually("its return", || match caller.get()?.status {
        200 => Ok(()),
        other => Err(other.to_string()),
    });
    eprintln!("answers again {:?} after its return", began.elapsed());
    assert!(half_open() - before < 1.5, "the first probe after its return finds it");
    for _ in 0..100 {
        assert_eq!(caller.get().expect("an answer").status, 200, "it is back for everyone");
    }
    let closed = metric(admin, "weft_circuit_transitions_total", &["scope=\"service\"", "to=\"closed\""]);
    assert!(closed > 0.5 && metric(admin, "weft_circuit_state", &["default/web"]) < 0.5);
}

#[test]
fn an_app_that_is_gone_behind_its_sidecar_opens_the_circuit_too() {
    let backends = [Backend::start(|_| Reply::ok("here"))];
    let mesh = TestMesh::builder("far-gone").replicas("web", "http", &addresses(&backends)).calls("web").start();
    let (mut caller, admin) = (Caller::new(mesh.local("web")), mesh.client_admin());
    assert_eq!(caller.get().expect("an answer").status, 200);

    backends[0].stop();
    until(&mut caller, "circuit_open");
    let tried = || metric(mesh.admin("web-0"), "weft_upstream_connects_total", &["connection_refused"]);
    let opened = tried();
    assert!(opened <= 6.0, "five refusals in a row open it, but there were {opened}");
    for _ in 0..500 {
        assert_eq!(caller.get().expect("an answer").status, 503);
    }
    let half_open = || metric(admin, "weft_circuit_transitions_total", &["scope=\"service\"", "to=\"half_open\""]);
    assert!(tried() - opened <= half_open(), "{} connections, {} probes", tried() - opened, half_open());

    // The far sidecar finds out by itself, and then there is nobody to be probed.
    until(&mut caller, "no healthy endpoint");
    let before = half_open();
    for _ in 0..100 {
        assert_eq!(caller.get().expect("an answer").status, 503);
    }
    assert!(half_open() - before < 2.0, "{} probes of nothing", half_open() - before);

    backends[0].listen();
    eventually("its return", || match caller.get()?.status {
        200 => Ok(()),
        other => Err(other.to_string()),
    });
    assert!(metric(admin, "weft_circuit_state", &["default/web"]) < 0.5);
}
