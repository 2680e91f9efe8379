//! A POST is never delivered twice, whatever is killed under it; one of which nothing was sent finds another replica.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use super::{
    addresses,
    backend::{Backend, Reply, Request},
    load::{Tally, while_running},
};
use crate::{
    mesh::TestMesh,
    net::{eventually, metric},
};

const CALLERS: usize = 4;

/// What all backends together have seen.
#[derive(Default)]
struct Ledger {
    /// How often each body came.
    seen: Mutex<HashMap<String, usize>>,
    requests: AtomicUsize,
    resets: AtomicUsize,
}

impl Ledger {
    /// Writes a request down; one of 40 is reset after that.
    fn handle(&self, request: &Request) -> Reply {
        let id = String::from_utf8_lossy(&request.body).into_owned();
        *self.seen.lock().expect("no panic").entry(id).or_default() += 1;
        if self.requests.fetch_add(1, Relaxed) % 40 == 39 {
            self.resets.fetch_add(1, Relaxed);
            return Reply::Reset;
        }
        Reply::ok("done")
    }

    fn backend(self: &Arc<Self>) -> Backend {
        let ledger = Arc::clone(self);
        Backend::start(move |request| ledger.handle(request))
    }

    fn most(&self) -> (usize, String) {
        let seen = self.seen.lock().expect("no panic");
        seen.iter().map(|(id, count)| (*count, id.clone())).max().unwrap_or_default()
    }
}

/// POSTs with bodies of their own, `name` (of four letters) and a number, to `mesh` by several callers while `disturb` runs, which can ask how many there were.
fn posts_while(name: &str, mesh: &mut TestMesh, disturb: impl FnOnce(&mut TestMesh, &AtomicUsize)) -> Tally {
    let (done, sent, local) = (AtomicBool::new(false), AtomicUsize::new(0), mesh.local("web"));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while_running(CALLERS, local, |_| {
                let id = format!("{name}-{:08}", sent.fetch_add(1, Relaxed));
                let head = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 13\r\n\r\n";
                (!done.load(Relaxed)).then(|| format!("{head}{id}"))
            })
        });
        // The load ends whatever happens here, or the test would hang rather than fail.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(mesh, &sent)));
        done.store(true, Relaxed);
        let tally = load.join().expect("no panic");
        outcome.map_or_else(|panic| std::panic::resume_unwind(panic), |()| tally)
    })
}

/// Waits until this many more have been sent.
fn more(sent: &AtomicUsize, count: usize) {
    let goal = sent.load(Relaxed) + count;
    eventually("more load", || match sent.load(Relaxed) {
        enough if enough >= goal => Ok(()),
        few => Err(few.to_string()),
    });
}

#[test]
fn no_post_is_delivered_twice_while_sidecars_are_killed_and_apps_reset_connections() {
    const KILLS: usize = 6;
    let ledger = Arc::new(Ledger::default());
    let backends: Vec<_> = (0..3).map(|_| ledger.backend()).collect();
    let mut mesh = TestMesh::builder("posts").replicas("web", "http", &addresses(&backends)).calls("web").start();
    let tally = posts_while("post", &mut mesh, |mesh, sent| {
        for kill in 0..KILLS {
            more(sent, 400);
            mesh.kill_and_restart(&format!("web-{}", kill % 3));
        }
        more(sent, 400);
    });
    let resets = ledger.resets.load(Relaxed);
    eprintln!("{tally:?}; {resets} resets");
    let (most, id) = ledger.most();
    assert_eq!(most, 1, "{id} was delivered {most} times");
    // Each failure has its reason: the app reset it, or it was on its way to a sidecar that was killed.
    assert!(tally.failures() <= resets + KILLS * CALLERS, "{tally:?} with {resets} resets");
    assert!(resets > 10, "only {resets} resets");
    let unsent = |reason: &str| metric(mesh.client_admin(), "weft_upstream_retries_total", &[reason]);
    assert!(unsent("connection_refused") > 0.5, "no POST came to a sidecar that was gone");
}

#[test]
fn a_post_to_an_app_that_refuses_connections_finds_another_replica() {
    let ledger = Arc::new(Ledger::default());
    let backends: Vec<_> = (0..3).map(|_| ledger.backend()).collect();
    let load = |name, mesh: &mut TestMesh| {
        posts_while(name, mesh, |_, sent| {
            for backend in &backends {
                more(sent, 200);
                backend.stop();
                more(sent, 400);
                backend.listen();
            }
        })
    };
    // Behind sidecars, which say that nothing has reached the app, and without them.
    let mut mesh = TestMesh::builder("refused").replicas("web", "http", &addresses(&backends)).calls("web").start();
    let behind = load("mesh", &mut mesh);
    let retried = metric(mesh.client_admin(), "weft_upstream_retries_total", &["reason=\"unsent\""]);
    drop(mesh);
    let mut mesh =
        TestMesh::builder("refused-plain").outside("web", "http", &addresses(&backends)).calls("web").start();
    let plain = load("next", &mut mesh);
    let refused = metric(mesh.client_admin(), "weft_upstream_retries_total", &["reason=\"connection_refused\""]);

    let resets = ledger.resets.load(Relaxed);
    eprintln!("{behind:?}; {plain:?}; {resets} resets, {retried} and {refused} retries");
    let (most, id) = ledger.most();
    assert_eq!(most, 1, "{id} was delivered {most} times");
    // What was under way at an app when it stopped is lost, and no more.
    assert!(behind.failures() + plain.failures() <= resets + 6 * CALLERS, "{behind:?} {plain:?} {resets} resets");
    assert!(retried > 0.5 && refused > 0.5, "{retried} and {refused} found another replica");
}
