//! Power loss: of what was not synced, any part may be missing, torn or there before what was written earlier. A kill
//! does not show that, because the kernel still has it.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use crate::store::{
    Expect, Hash, Store,
    embedded::{Options, disk::Operation, file},
    tests::{put, write},
};

/// What was done to the file, in order.
enum Done {
    Resize(u64),
    Sync,
    Write(usize, Vec<u8>),
}

/// What a run did to its file, and after how many of these operations each event was acknowledged, with its hash.
struct Recording {
    /// The file, made but empty. Making it is safe by its rename.
    base: Vec<u8>,
    done: Vec<Done>,
    acknowledged: Vec<(usize, Hash)>,
}

/// Appends some, with snapshots, and writes down every operation.
async fn record(events: u64) -> Recording {
    let directory = TempDir::new().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let base = std::fs::read(directory.path().join(file::NAME)).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&log);
    let fault = Arc::new(move |operation: Operation<'_>| {
        let done = match operation {
            Operation::Read => return Ok(()),
            Operation::Resize(length) => Done::Resize(length),
            Operation::Sync => Done::Sync,
            Operation::Write(offset, data) => Done::Write(usize::try_from(offset).unwrap(), data.to_vec()),
        };
        sink.lock().unwrap().push(done);
        Ok(())
    });
    let store = Store::open_with(directory.path(), Options { snapshot_every: 5, fault }).unwrap();
    let mut acknowledged = Vec::new();
    for n in 0..events {
        let event = write(&store, put(&format!("n{}", n % 3), Expect::Any, n)).await.unwrap();
        acknowledged.push((log.lock().unwrap().len(), event.hash));
    }
    drop(store);
    let done = std::mem::take(&mut *log.lock().unwrap());
    Recording { base, done, acknowledged }
}

/// A file as the power loss leaves it: what was synced, and of the rest whatever the dice say, sector by sector.
fn image(base: &[u8], done: &[Done], dice: &mut StdRng) -> Vec<u8> {
    const SECTOR: usize = 512;
    let synced = done.iter().rposition(|done| matches!(done, Done::Sync)).unwrap_or(0);
    let mut file = base.to_vec();
    for (index, done) in done.iter().enumerate() {
        let certain = index < synced;
        match done {
            Done::Sync => {}
            Done::Resize(length) if certain || dice.random() => file.resize(usize::try_from(*length).unwrap(), 0),
            Done::Resize(_) => {}
            Done::Write(offset, data) => {
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    if certain || dice.random() {
                        let start = offset + number * SECTOR;
                        file.resize(file.len().max(start + sector.len()), 0);
                        file[start..start + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }
    file
}

/// Opens what is left and checks that it holds what was acknowledged, and nothing that was not written.
async fn check(directory: &Path, recording: &Recording, lost_at: usize) {
    let acknowledged = recording.acknowledged.iter().filter(|(at, _)| *at <= lost_at).count();
    let store = Store::open(directory).unwrap_or_else(|error| panic!("lost at {lost_at}: {error:?}"));
    let found = usize::try_from(store.revision()).unwrap();
    assert!(found >= acknowledged, "lost at {lost_at}: {acknowledged} were acknowledged, {found} are there");
    if found > 0 {
        assert_eq!(store.head().hash, recording.acknowledged[found - 1].1, "lost at {lost_at}");
    }
    assert_eq!(store.verify().await, Ok(store.head()));
    write(&store, put("after", Expect::Absent, 0)).await.unwrap();
}

#[tokio::test]
async fn a_power_loss_after_any_operation_loses_nothing_acknowledged() {
    let recording = record(24).await;
    let mut dice = StdRng::seed_from_u64(7);
    for lost_at in 0..=recording.done.len() {
        for _ in 0..3 {
            let directory = TempDir::new().unwrap();
            let left = image(&recording.base, &recording.done[..lost_at], &mut dice);
            crate::ca::write_private(&directory.path().join(file::NAME), &left).unwrap();
            check(directory.path(), &recording, lost_at).await;
        }
    }
}
