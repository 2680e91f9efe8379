//! Somebody changes the file, or the disk forgets: it is noticed, and the place is named.

use std::{os::unix::fs::FileExt, path::Path, time::Duration};

use tempfile::TempDir;

use super::filled;
use crate::store::{
    AppendError, Expect, HistoryFilter, OpenError, ReadError, Store, VerifyError, embedded,
    tests::{put, write},
    verify,
};

/// Flips one bit of an event, in every place of the file where its marker lies.
fn flip(directory: &Path, revision: u64) {
    let path = directory.join(embedded::file::NAME);
    let bytes = std::fs::read(&path).unwrap();
    let marker = format!("marker-{revision:06}-end").into_bytes();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    // Pages that were replaced still hold it as well.
    let places = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(&marker));
    let flipped = places.map(|at| file.write_all_at(&[bytes[at + 7] ^ 1], (at + 7) as u64).unwrap()).count();
    assert!(flipped > 0);
}

#[tokio::test]
async fn one_changed_byte_of_any_event_is_found_and_named() {
    for revision in [1, 13, 29, 40] {
        let directory = TempDir::new().unwrap();
        filled(directory.path(), 40, 1000).await;
        assert_eq!(verify(directory.path()).unwrap().revision, 40);
        flip(directory.path(), revision);
        assert_eq!(verify(directory.path()).unwrap_err().revision, revision);
        match Store::open(directory.path()).err().unwrap() {
            OpenError::Damaged { source: VerifyError { revision: named, .. }, .. } => assert_eq!(named, revision),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn damage_before_the_snapshot_is_found_in_the_background_and_stops_writes() {
    let directory = TempDir::new().unwrap();
    filled(directory.path(), 40, 10).await;
    flip(directory.path(), 3);
    let store = Store::open(directory.path()).unwrap();
    let why = eventually(|| store.stopped()).await;
    assert!(why.contains("revision 3"), "{why}");
    let refused = write(&store, put("a", Expect::Any, 1)).await.unwrap_err();
    assert!(matches!(refused, AppendError::Stopped { .. }), "{refused}");
    assert_eq!(store.verify().await.unwrap_err().revision, 3);
    // What is not damaged can be read; what is, is not given out.
    assert_eq!(store.history(HistoryFilter { limit: 20, ..HistoryFilter::default() }).await.unwrap().events.len(), 20);
    let all = store.history(HistoryFilter { limit: 40, ..HistoryFilter::default() }).await;
    assert!(matches!(all, Err(ReadError::Damaged { revision: 3, .. })), "{all:?}");
    let mut watcher = store.watch(1).unwrap();
    assert!(watcher.next().await.is_none());
    assert!(matches!(watcher.failure(), Some(ReadError::Damaged { revision: 3, .. })));
}

#[tokio::test]
async fn a_changed_byte_anywhere_is_harmless_or_refused() {
    let original = TempDir::new().unwrap();
    filled(original.path(), 25, 10).await;
    let bytes = std::fs::read(original.path().join(embedded::file::NAME)).unwrap();
    let head = verify(original.path()).unwrap();
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 500) {
        let directory = TempDir::new().unwrap();
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        std::fs::write(directory.path().join(embedded::file::NAME), &changed).unwrap();
        match verify(directory.path()) {
            Ok(found) => assert_eq!(found, head, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20, "{refused}");
}

/// Waits for something to be there.
async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "it did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
