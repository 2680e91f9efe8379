//! Keep-alive races: a backend closes idle connections at random, also in the moment in which a request comes.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{
    addresses,
    backend::{After, Backend, Reply},
    load::gets,
};
use crate::{mesh::TestMesh, net::metric};

/// 20,000 requests, or as many as `WEFT_RACES` says.
fn count() -> usize {
    std::env::var("WEFT_RACES").ok().and_then(|count| count.parse().ok()).unwrap_or(20_000)
}

/// Numbers that look random and are the same in each run.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let x = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }
}

/// A backend that ends a tenth of its connections after each answer, in different ways.
fn closing() -> Backend {
    let dice = Dice(AtomicU64::new(7));
    Backend::start(move |_| {
        let after = match dice.roll(60) {
            0 | 1 => After::Close,
            2 | 3 => After::CloseUnread,
            4 | 5 => After::CloseWhenIdle(Duration::from_micros(1 + dice.roll(3000))),
            _ => After::Keep,
        };
        Reply::Answer(200, "ok".into(), after)
    })
}

#[test]
fn connections_that_close_while_idle_fail_no_idempotent_request() {
    let backends = [closing()];
    let mesh = TestMesh::builder("races").outside("web", "http", &addresses(&backends)).calls("web").start();
    let tally = gets(mesh.local("web"), 4, count());
    let retries = metric(mesh.client_admin(), "weft_upstream_retries_total", &["connection_terminated"]);
    eprintln!("{tally:?}; {retries} retries, {} connections", backends[0].connections());
    assert_eq!(tally.failures(), 0, "{tally:?}");
    assert!(retries > 0.5 && backends[0].connections() > 100, "there was no race");
}

#[test]
fn connections_that_an_app_closes_behind_its_sidecar_fail_no_idempotent_request() {
    let backends = [closing()];
    let mesh = TestMesh::builder("far-races").replicas("web", "http", &addresses(&backends)).calls("web").start();
    let tally = gets(mesh.local("web"), 4, count());
    let retries = metric(mesh.client_admin(), "weft_upstream_retries_total", &[]);
    eprintln!("{tally:?}; {retries} retries, {} connections", backends[0].connections());
    assert_eq!(tally.failures(), 0, "{tally:?}");
    assert!(retries > 0.5 && backends[0].connections() > 100, "there was no race");
}
