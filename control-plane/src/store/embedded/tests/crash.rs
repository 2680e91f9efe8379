//! kill -9: what was acknowledged is there, and nothing that nobody asked for.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::Rng;
use serde_json::json;
use tempfile::TempDir;

use crate::store::{Event, Expect, HistoryFilter, Key, Store, Write, embedded::Options, tests::batch, verify};

const ROUNDS: u64 = 24;
const DIRECTORY: &str = "WEFT_TEST_CRASH";
const ROUND: &str = "WEFT_TEST_ROUND";

/// One write of the process that is killed, which tells itself apart from all others.
fn write_of(writer: u64, round: u64, n: u64) -> Write {
    let padding = "x".repeat(usize::try_from(n % 7 * 300).unwrap());
    let object = Some(json!({ "writer": writer, "round": round, "n": n, "padding": padding }));
    Write { key: Key::new("Service", "default", &format!("w{writer}")), expect: Expect::Any, object }
}

/// Runs in the process that is killed: four writers, each says what it tries and what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashing_process() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    let options = Options { snapshot_every: 50, ..Options::default() };
    let store = Store::open_with(Path::new(&directory), options).unwrap();
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).unwrap();
    say(format!("opened {}\n", store.revision()));
    let mut writers = Vec::new();
    for writer in 0..4u64 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for n in 0.. {
                say(format!("try {writer} {n}\n"));
                let events = store.append(batch([write_of(writer, round, n)])).await.unwrap();
                say(format!("ok {writer} {n} {}\n", events[0].revision));
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

fn start(directory: &Path, round: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::embedded::tests::crash::crashing_process", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a process said before it was killed.
#[derive(Default)]
struct Said {
    opened: Option<u64>,
    tried: BTreeSet<(u64, u64)>,
    acknowledged: Vec<(u64, u64, u64)>,
}

/// Hears a process to its end. A last line that was cut off does not count.
fn listen(child: &mut Child) -> Said {
    let mut said = Said::default();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match (line.split(' ').next(), numbers.as_slice()) {
            (Some("opened"), &[revision]) => said.opened = Some(revision),
            (Some("try"), &[writer, n]) => _ = said.tried.insert((writer, n)),
            (Some("ok"), &[writer, n, revision]) => said.acknowledged.push((writer, n, revision)),
            _ => {}
        }
        line.clear();
    }
    said
}

/// Checks the events of one round against what its process said.
fn check(events: &[Event], round: u64, said: &Said) {
    let mut found = BTreeSet::new();
    for event in events {
        let object = event.object.as_ref().unwrap();
        let field = |name: &str| object[name].as_u64().unwrap();
        let (writer, n) = (field("writer"), field("n"));
        assert!(said.tried.contains(&(writer, n)), "nobody asked for {writer} {n}");
        assert_eq!(event.object.as_deref(), write_of(writer, round, n).object.as_ref());
        assert!(found.insert((writer, n, event.revision)));
    }
    for acknowledged in &said.acknowledged {
        assert!(found.contains(acknowledged), "{acknowledged:?} was acknowledged and is lost");
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_to_a_kill_and_nothing_appears() {
    let directory = TempDir::new().unwrap();
    let (mut acknowledged, mut previous) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = start(directory.path(), round);
        // Anywhere: while it opens, before the first commit, in the middle of many.
        let life = Duration::from_micros(rand::rng().random_range(0..400_000));
        let process = rustix::process::Pid::from_child(&child);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(life);
            rustix::process::kill_process(process, rustix::process::Signal::KILL)
        });
        let said = listen(&mut child);
        killer.join().unwrap().unwrap();
        assert!(!child.wait().unwrap().success());

        // Looking does not change it, recovering does, and both see the same.
        let looked = said.opened.map(|_| verify(directory.path()).unwrap());
        let store = Store::open(directory.path()).unwrap();
        assert!(looked.is_none_or(|head| head == store.head()));
        assert!(said.opened.is_none_or(|revision| revision == previous));
        assert_eq!(store.verify().await, Ok(store.head()));
        let mut events =
            store.history(HistoryFilter { limit: usize::MAX, ..HistoryFilter::default() }).await.unwrap().events;
        events.retain(|event| event.revision > previous);
        check(&events, round, &said);
        previous = store.revision();
        acknowledged += said.acknowledged.len();
    }
    assert!(acknowledged > 100, "only {acknowledged} acknowledged in {ROUNDS} rounds: this means nothing");
}
