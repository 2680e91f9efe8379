//! What only an engine on disk can get wrong: `crash` kills it, `damage` changes its file, `faults` breaks its disk,
//! `power` takes away what was not synced. `figures` prints how fast it is.

mod crash;
mod damage;
mod faults;
mod figures;
mod power;

use std::{os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;
use tempfile::TempDir;

use crate::store::{
    Expect, Key, OpenError, Store, Write,
    tests::{batch, put, value, write},
};

/// A store with `count` events, each with a text that can be found in the file, closed again.
async fn filled(directory: &Path, count: u64, snapshot_every: u64) {
    let options = super::Options { snapshot_every, ..super::Options::default() };
    let store = Store::open_with(directory, options).unwrap();
    for n in 1..=count {
        let object = json!({ "marker": format!("marker-{n:06}-end") });
        let write = Write {
            key: Key::new("Service", "default", &format!("s{}", n % 10)),
            expect: Expect::Any,
            object: Some(object),
        };
        store.append(batch([write])).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    write(&store, put("a", Expect::Absent, 1)).await.unwrap();
    let head = store.head();
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!((store.head(), value(&store, "a")), (head, Some(json!({ "value": 1 }))));
    write(&store, put("a", Expect::Revision(1), 2)).await.unwrap();
}

#[tokio::test]
async fn a_new_data_directory_is_private() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("some/where");
    let _store = Store::open(&directory).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("weft.redb"))), (0o700, 0o600));
}

#[tokio::test]
async fn a_log_that_others_may_change_or_that_is_elsewhere_is_refused() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("weft.redb");
    drop(Store::open(directory.path()).unwrap());
    let refused = |word: &str| {
        let error = Store::open(directory.path()).err().expect("refused").to_string();
        assert!(error.contains("weft.redb") && error.contains(word), "{error}");
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o664)).unwrap();
    refused("chmod 600");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&file, directory.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &file).unwrap();
    refused("a link");
}

#[tokio::test]
async fn a_start_that_was_interrupted_while_it_made_the_file_does_no_harm() {
    let directory = TempDir::new().unwrap();
    for leftover in ["weft.redb.new", "weft.redb"] {
        // What redb leaves when it is interrupted has no magic number yet; a file may also be there but empty.
        let bytes = if leftover.ends_with("new") { vec![0; 8192] } else { Vec::new() };
        crate::ca::write_private(&directory.path().join(leftover), &bytes).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    write(&store, put("a", Expect::Absent, 1)).await.unwrap();
    assert!(!directory.path().join("weft.redb.new").exists());
}

#[tokio::test]
async fn a_directory_has_one_writer() {
    let directory = TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("in use by another control plane: stop it"), "{error}");
    assert!(super::verify(directory.path()).unwrap_err().why.contains("in use"));
    drop(store);
    Store::open(directory.path()).unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let file = directory.path().join(super::file::NAME);
    super::tables::set_format(&redb::Database::open(&file).unwrap(), 9);
    let before = std::fs::read(&file).unwrap();
    let error = Store::open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 9, known: 1, .. }), "{error}");
    assert!(super::verify(directory.path()).unwrap_err().why.contains("format 9"));
    assert!(std::fs::read(&file).unwrap() == before);
}

#[tokio::test]
async fn a_file_that_is_not_a_store_is_refused() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join(super::file::NAME);
    crate::ca::write_private(&file, "kind: Service\n".repeat(1000).as_bytes()).unwrap();
    let error = Store::open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::Unreadable { .. }), "{error}");
    assert!(super::verify(directory.path()).is_err());

    std::fs::remove_file(&file).unwrap();
    let other = redb::Database::create(&file).unwrap();
    let txn = other.begin_write().unwrap();
    txn.open_table(redb::TableDefinition::<u64, u64>::new("theirs")).unwrap();
    txn.commit().unwrap();
    drop(other);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = Store::open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_or_foreign_snapshot_is_not_believed() {
    use super::tables::set_snapshot;
    let directory = TempDir::new().unwrap();
    filled(directory.path(), 30, 7).await;
    let store = Store::open(directory.path()).unwrap();
    let (head, objects) = (store.head(), store.snapshot().len());
    drop(store);
    let file = directory.path().join(super::file::NAME);
    // Garbage; then one that is whole, but of a log with other hashes.
    let foreign = super::chain::snapshot(&super::Head { revision: 28, hash: [7; 32] }, std::iter::empty());
    for bytes in [b"garbage".to_vec(), foreign] {
        set_snapshot(&redb::Database::open(&file).unwrap(), 28, &bytes);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!((store.head(), store.snapshot().len()), (head, objects));
        assert_eq!(store.verify().await, Ok(head));
    }
}
