//! Replicas that answer with failures: one of several is hidden, left out, probed and taken back; when all fail, the
//! budget bounds what retries add.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    addresses,
    backend::{Backend, Reply},
    load::{Tally, gets},
};
use crate::{
    mesh::TestMesh,
    net::{eventually, metric},
};

const TRANSITIONS: &str = "weft_circuit_transitions_total";

/// A backend of which every other answer is a 503 while it is sick, and how many of them there were.
fn sick() -> (Backend, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (sick, failing, turn) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let (state, count) = (Arc::clone(&sick), Arc::clone(&failing));
    let backend = Backend::start(move |_| {
        if state.load(Relaxed) && turn.fetch_add(1, Relaxed) % 2 == 0 {
            count.fetch_add(1, Relaxed);
            return Reply::status(503);
        }
        Reply::ok("well")
    });
    (backend, sick, failing)
}

#[test]
fn a_replica_that_fails_half_of_the_time_is_hidden_ejected_within_ten_requests_probed_and_taken_back() {
    sick_and_well_again("sick-one", 1);
    sick_and_well_again("sick-four", 4);
}

fn sick_and_well_again(name: &str, callers: usize) {
    let (bad, sick, failing) = sick();
    let backends = [bad, Backend::start(|_| Reply::ok("well")), Backend::start(|_| Reply::ok("well"))];
    let mesh = TestMesh::builder(name).replicas("web", "http", &addresses(&backends)).calls("web").start();
    let (local, admin) = (mesh.local("web"), mesh.client_admin());
    let changes = |to: &str| metric(admin, TRANSITIONS, &["scope=\"endpoint\"", &format!("to=\"{to}\"")]);

    // Until it is out, in small steps, so that what it takes can be counted.
    let (mut all, began) = (Tally::default(), Instant::now());
    eventually("the ejection", || {
        all.add(gets(local, callers, 5));
        if changes("open") > 0.5 {
            Ok(())
        } else {
            Err(format!("{all:?}, {} of {}", failing.load(Relaxed), backends[0].requests()))
        }
    });
    let (tried, failed) = (backends[0].requests(), failing.load(Relaxed));
    let (total, time) = (all.total, began.elapsed());
    eprintln!("ejected after {tried} requests to it, {failed} of which failed, {total} in all, {time:?}");
    // Ten, and what the other callers have under way when the last of them is answered.
    assert!(tried < 10 + callers, "{failed} of {tried} failed before the ejection");
    eventually("the gauge", || match metric(admin, "weft_upstream_ejected_endpoints", &["default/web"]) {
        1.0 => Ok(()),
        other => Err(other.to_string()),
    });

    // It goes on being sick: probes let it in now and then, and it is ejected again.
    all.add(gets(local, 4, 4000));
    eprintln!("{all:?}; {} of {} at the sick one", failing.load(Relaxed), backends[0].requests());
    assert!(all.failures() * 1000 <= all.total, "{all:?}");

    sick.store(false, Relaxed);
    eventually("its return", || {
        all.add(gets(local, 4, 20));
        let out = metric(admin, "weft_upstream_ejected_endpoints", &["default/web"]);
        if changes("closed") > 0.5 && out < 0.5 { Ok(()) } else { Err(format!("{out} are out")) }
    });
    assert!(changes("half_open") > 0.5, "it was let in without a probe");
    eventually("its share", || {
        let before = backends[0].requests();
        all.add(gets(local, 4, 600));
        let share = backends[0].requests() - before;
        if share >= 100 { Ok(()) } else { Err(format!("{share} of 600")) }
    });
    assert!(all.failures() * 1000 <= all.total, "{all:?}");
}

#[test]
fn when_all_replicas_fail_retries_stay_within_their_budget() {
    let backends: Vec<_> = (0..3).map(|_| Backend::start(|_| Reply::status(503))).collect();
    let mesh = TestMesh::builder("failing").replicas("web", "http", &addresses(&backends)).calls("web").start();
    let began = Instant::now();
    let tally = gets(mesh.local("web"), 4, 3000);
    assert_eq!(tally.failures(), 3000, "{tally:?}");
    let load: usize = backends.iter().map(Backend::requests).sum();
    let seconds = began.elapsed().as_secs_f64();
    // A fifth more and ten a second: nothing was saved before the load, and the ten of its first second may come at once.
    let most = 3000.0 * 1.2 + 10.0 * seconds.max(1.0);
    eprintln!("3000 requests made {load} in {seconds:.2} s, of {most:.1} that may be");
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let load = load as f64;
    assert!(load <= most, "{load} of at most {most}");
    assert!(load > 3000.0, "nothing was tried again");
    assert!(metric(mesh.client_admin(), "weft_upstream_retries_denied_total", &["reason=\"budget\""]) > 0.5);
}
