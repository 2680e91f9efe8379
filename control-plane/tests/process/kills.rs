//! kill -9 of the program while clients write. `WEFT_KILLS` and `WEFT_WRITES` make it the full figure:
//!
//! `WEFT_KILLS=100 WEFT_WRITES=10000 cargo test --release -p weft-control-plane --test process kills -- --nocapture`

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use rand::Rng;

use crate::{
    control_plane::{ControlPlane, LIMIT, command},
    ledger::Ledger,
    writers::{Journal, Writer},
};

const WRITERS: u64 = 4;
/// A commit takes less: the kill meets it anywhere.
const AFTER: u64 = 10_000;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// Lets everybody write, and kills after so many acknowledgements and a moment.
fn round(control_plane: &mut ControlPlane, writers: &mut [Writer], acknowledgements: usize) -> Vec<Journal> {
    let (sender, acknowledged) = mpsc::channel();
    std::thread::scope(|scope| {
        let running: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let (client, sender) = (control_plane.client(), sender.clone());
                scope.spawn(move || writer.run(client, &sender))
            })
            .collect();
        let until = Instant::now() + LIMIT;
        for _ in 0..acknowledgements {
            acknowledged.recv_timeout(until.saturating_duration_since(Instant::now())).expect("acknowledged in time");
        }
        // Not to wait for something, but to be anywhere between two acknowledgements.
        std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..AFTER)));
        control_plane.kill();
        running.into_iter().map(|writer| writer.join().expect("a journal")).collect()
    })
}

/// The smallest time that is not less than this share of them.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[test]
fn kill_9_loses_no_acknowledged_write_and_makes_up_none() {
    let (kills, writes) = (number("WEFT_KILLS", 20), number("WEFT_WRITES", 1000));
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = command(&directory.path().join("data"), directory.path());
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let (mut ledger, mut restarts) = (Ledger::default(), Vec::new());
    let (mut control_plane, _) = ControlPlane::start_serving(&mut command);
    for kill in 0..kills {
        let wanted = writes.saturating_sub(ledger.acknowledged).div_ceil(kills - kill);
        let journals = round(&mut control_plane, &mut writers, wanted);
        let (started, took) = ControlPlane::start_serving(&mut command);
        control_plane = started;
        restarts.push(took);
        ledger.check(&mut control_plane.client(), &mut writers, journals);
    }
    ledger.verify(&mut control_plane.client());
    restarts.sort_unstable();
    let Ledger { acknowledged, lost, phantom, kept, gone, .. } = &ledger;
    println!(
        "{kills} kills, {acknowledged} acknowledged writes: {} lost, {} phantom; in flight {kept} kept, {gone} gone; \
         restart to serving p50 {:.0?}, p99 {:.0?}",
        lost.len(),
        phantom.len(),
        percentile(&restarts, 50),
        percentile(&restarts, 99),
    );
    assert!(lost.is_empty() && phantom.is_empty(), "lost: {lost:#?}\nphantom: {phantom:#?}");
    assert!(*acknowledged >= writes && kept + gone > 0, "the kills met nobody who wrote");
}
