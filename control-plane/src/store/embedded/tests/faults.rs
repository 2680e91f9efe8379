//! The disk fails: syncs, writes, and room. Nothing acknowledged is lost, reads go on, and what can heal heals.

use std::{
    io::{self, Write as _},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use serde_json::json;
use tempfile::TempDir;

use crate::store::{
    AppendError, Expect, HistoryFilter, Key, Store, Write,
    embedded::{Options, disk::Operation},
    tests::{batch, put, write},
    verify,
};

const NONE: u8 = 0;
const SYNC_FAILS: u8 = 1;
const WRITE_FAILS: u8 = 2;
const FULL: u8 = 3;
const FULL_ON_SYNC: u8 = 4;

/// A store whose disk does what the switch says.
fn faulty(directory: &Path) -> (Store, Arc<AtomicU8>) {
    let mode = Arc::new(AtomicU8::new(NONE));
    let switch = Arc::clone(&mode);
    let fault = Arc::new(move |operation: Operation<'_>| match (switch.load(Ordering::SeqCst), operation) {
        (SYNC_FAILS, Operation::Sync) | (WRITE_FAILS, Operation::Write(..)) => Err(io::Error::from_raw_os_error(5)),
        (FULL, Operation::Write(..) | Operation::Resize(_)) | (FULL_ON_SYNC, Operation::Sync) => {
            Err(io::Error::from_raw_os_error(28))
        }
        _ => Ok(()),
    });
    (Store::open_with(directory, Options { fault, ..Options::default() }).unwrap(), mode)
}

/// Writes stop, and stay stopped when the disk works again; reads and watches go on; a restart heals.
async fn stops_until_a_restart(how: u8) {
    let directory = TempDir::new().unwrap();
    let (store, mode) = faulty(directory.path());
    // More than is kept in memory, so that reading needs the disk.
    let many: Vec<_> = (0..6_000).map(|n| put("a", Expect::Any, n)).collect();
    store.append(batch(many)).await.unwrap();
    let head = store.head();
    mode.store(how, Ordering::SeqCst);
    let failed = write(&store, put("b", Expect::Any, 1)).await.unwrap_err();
    assert!(matches!(failed, AppendError::Io { .. }), "{failed}");
    mode.store(NONE, Ordering::SeqCst);
    let stopped = write(&store, put("b", Expect::Any, 1)).await.unwrap_err();
    assert!(matches!(stopped, AppendError::Stopped { .. }), "{stopped}");
    assert!(store.stopped().is_some());

    assert_eq!((store.head(), store.snapshot().len()), (head, 1));
    let history = HistoryFilter { before_revision: Some(3), ..HistoryFilter::default() };
    assert_eq!(store.history(history).await.unwrap().events.len(), 2);
    let mut watcher = store.watch(0).unwrap();
    for revision in 1..=head.revision {
        assert_eq!(watcher.next().await.unwrap().revision, revision);
    }
    assert_eq!(store.verify().await, Ok(head));
    drop(store);

    let store = Store::open(directory.path()).unwrap();
    // The failed one may be there or not: its writer was told so.
    assert!(store.revision() == head.revision || store.revision() == head.revision + 1);
    write(&store, put("c", Expect::Absent, 1)).await.unwrap();
    assert_eq!(store.verify().await, Ok(store.head()));
}

#[tokio::test]
async fn a_failed_sync_stops_writes_until_a_restart() {
    stops_until_a_restart(SYNC_FAILS).await;
}

#[tokio::test]
async fn a_failed_write_stops_writes_until_a_restart() {
    stops_until_a_restart(WRITE_FAILS).await;
}

#[tokio::test]
async fn a_sync_that_says_full_is_a_failed_sync() {
    stops_until_a_restart(FULL_ON_SYNC).await;
}

#[tokio::test]
async fn a_full_disk_rejects_writes_until_there_is_room() {
    let directory = TempDir::new().unwrap();
    let (store, mode) = faulty(directory.path());
    write(&store, put("a", Expect::Any, 1)).await.unwrap();
    for round in 1..4 {
        mode.store(FULL, Ordering::SeqCst);
        let many: Vec<_> = (0..2_000).map(|n| put("b", Expect::Any, n)).collect();
        // Even what opening the file anew writes does not fit.
        let full = store.append(batch(many)).await.unwrap_err();
        assert!(matches!(full, AppendError::Full { .. }), "{full}");
        assert_eq!((store.revision(), store.stopped()), (round, None));
        assert_eq!(store.history(HistoryFilter::default()).await.unwrap().events.len() as u64, round);
        mode.store(NONE, Ordering::SeqCst);
        write(&store, put("a", Expect::Revision(round), 1)).await.unwrap();
        assert_eq!(store.history(HistoryFilter::default()).await.unwrap().events.len() as u64, round + 1);
        assert_eq!(store.verify().await, Ok(store.head()));
    }
    let head = store.head();
    drop(store);
    assert_eq!(verify(directory.path()), Ok(head));
}

fn big(n: u64) -> Write {
    let object = Some(json!({ "padding": "x".repeat(100_000) }));
    Write { key: Key::new("Service", "default", &n.to_string()), expect: Expect::Any, object }
}

/// Appends until there is no room: how many fitted.
async fn fill(store: &Store) -> u64 {
    for n in 0..2_000 {
        match store.append(batch([big(n)])).await {
            Ok(_) => {}
            Err(AppendError::Full { .. }) => return n,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the disk never was full");
}

const DIRECTORY: &str = "WEFT_TEST_FULL_DISK";
const LIMITED: &str = "WEFT_TEST_FILE_LIMIT";

/// Runs in the processes that the two tests below start.
#[tokio::test]
async fn full_disk_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let (data, ballast) = (Path::new(&directory).join("data"), Path::new(&directory).join("ballast"));
    // Where it is the limit on a file that is reached, only another process could lift it.
    let can_heal = std::env::var_os(LIMITED).is_none();
    if can_heal {
        std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    }
    let store = Store::open(&data).unwrap();
    let fitted = fill(&store).await;
    assert!(fitted > 5, "{fitted}");
    assert_eq!((store.revision(), store.stopped()), (fitted, None));
    assert_eq!(store.history(HistoryFilter { limit: 5, ..HistoryFilter::default() }).await.unwrap().events.len(), 5);
    assert_eq!(store.verify().await, Ok(store.head()));
    let again = store.append(batch([big(0)])).await.unwrap_err();
    assert!(matches!(again, AppendError::Full { .. }), "{again}");
    if can_heal {
        std::fs::remove_file(ballast).unwrap();
        store.append(batch([big(0)])).await.unwrap();
    }
    let head = store.head();
    drop(store);
    assert_eq!(verify(&data), Ok(head));
    assert_eq!(Store::open(&data).unwrap().head(), head);
    println!("the disk was full, and all was well");
}

/// Runs `full_disk_process` under a shell script that ends in `exec "$0" "$@"`.
fn run_under(script: &str, directory: &Path, limited: bool) {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "store::embedded::tests::faults::full_disk_process", "--nocapture"]);
    command.env(DIRECTORY, directory);
    if limited {
        command.env(LIMITED, "1");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("all was well") && output.status.success(), "{text}\n{errors}");
}

#[test]
fn a_file_that_may_not_grow_is_a_full_disk() {
    let directory = TempDir::new().unwrap();
    // 6000 blocks of 512 bytes; the signal that comes with it is ignored, and stays so over exec.
    run_under(r#"trap "" XFSZ && ulimit -f 6000 && exec "$0" "$@""#, directory.path(), true);
}

#[test]
fn a_small_file_system_that_is_full_heals_when_there_is_room() {
    let unshare = Command::new("unshare").args(["-m", "true"]).output();
    if !rustix::process::geteuid().is_root() || !unshare.is_ok_and(|output| output.status.success()) {
        let line = "a_small_file_system_that_is_full_heals_when_there_is_room: needs root and unshare(1)\n";
        eprint!("left out: {line}");
        if let Some(path) = std::env::var_os("WEFT_LEFT_OUT") {
            let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
        return;
    }
    let directory = TempDir::new().unwrap();
    let script = r#"mount -t tmpfs -o size=12m weft "$WEFT_TEST_FULL_DISK" && exec "$0" "$@""#;
    run_under(&format!(r#"exec unshare -m sh -c '{script}' "$0" "$@""#), directory.path(), false);
}
