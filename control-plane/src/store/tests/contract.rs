//! The contract of an engine, one sentence each.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::{Value, json};

use super::{Fixture, batch, delete, key, put, value, write};
use crate::store::{
    Action, AppendError, Batch, Expect, HistoryFilter, Key, MAX_DEPTH, MAX_OBJECT, ReadError, Store, WatchError, Write,
    model::Head,
};

/// Makes a test of each function for each engine.
macro_rules! contract {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Fixture::memory()).await;
            })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Fixture::embedded()).await;
            })*
        }
    };
}

contract! {
    revisions_are_dense_and_start_at_one
    an_event_tells_all_about_its_write
    events_are_chained_by_their_hashes
    writes_are_made_only_as_expected
    a_batch_is_made_wholly_or_not_at_all
    a_batch_sees_its_own_writes
    of_those_who_expect_the_same_revision_one_wins
    what_is_too_large_is_refused
    a_batch_without_writes_is_nothing
    a_list_is_one_kind_by_namespace_and_name
    a_watch_misses_and_repeats_nothing_while_others_write
    a_watcher_that_sees_an_event_sees_it_in_the_state
    a_slow_watcher_still_gets_everything
    a_watch_cannot_start_in_the_future
    a_watch_ends_when_the_store_is_closed
    history_is_newest_first_filtered_and_paged
    history_leaves_out_statuses_and_objects_and_is_bounded_in_bytes
    the_state_at_every_revision_can_be_had
    an_intact_log_verifies
}

async fn revisions_are_dense_and_start_at_one(fixture: Fixture) {
    let store = &fixture.store;
    assert_eq!((store.revision(), store.head()), (0, Head::default()));
    for revision in 1..=20 {
        let event = write(store, put("a", Expect::Any, revision)).await.unwrap();
        assert_eq!((event.revision, store.revision()), (revision, revision));
    }
    let events = store.append(batch([put("b", Expect::Any, 0), put("c", Expect::Any, 0)])).await.unwrap();
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [21, 22]);
}

async fn an_event_tells_all_about_its_write(fixture: Fixture) {
    let store = &fixture.store;
    let created = write(store, put("a", Expect::Absent, 1)).await.unwrap();
    assert_eq!((created.action, &created.before), (Action::Create, &None));
    assert_eq!(created.object.as_deref(), Some(&json!({ "value": 1 })));
    assert_eq!((created.author.as_str(), created.reason.as_str()), ("ada", "because"));
    assert!(created.time_ms > 1_600_000_000_000);

    let updated = write(store, put("a", Expect::Revision(1), 2)).await.unwrap();
    let before = updated.before.as_ref().unwrap();
    assert_eq!(updated.action, Action::Update);
    assert_eq!((before.created, before.revision, &*before.object), (1, 1, &json!({ "value": 1 })));
    let stored = store.get(&key("a")).unwrap();
    assert_eq!((stored.created, stored.revision), (1, 2));

    let deleted = write(store, delete("a", Expect::Revision(2))).await.unwrap();
    assert_eq!((deleted.action, &deleted.object), (Action::Delete, &None));
    assert_eq!(deleted.before.as_ref().map(|before| (before.created, before.revision)), Some((1, 2)));
    assert_eq!(store.get(&key("a")), None);

    write(store, put("a", Expect::Absent, 3)).await.unwrap();
    assert_eq!(store.get(&key("a")).map(|stored| (stored.created, stored.revision)), Some((4, 4)));
    // What a watcher and the history get is what the writer got.
    let history = store.history(HistoryFilter::default()).await.unwrap().events;
    assert_eq!(history[2], *updated);
    assert_eq!(history[1], *deleted);
    assert_eq!(store.watch(1).unwrap().next().await.unwrap(), updated);
}

async fn events_are_chained_by_their_hashes(fixture: Fixture) {
    let store = &fixture.store;
    let mut previous = [0; 32];
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let event = write(store, put("a", Expect::Any, 1)).await.unwrap();
        assert_eq!(event.previous_hash, previous);
        assert!(seen.insert(event.hash));
        previous = event.hash;
        assert_eq!(store.head(), Head { revision: event.revision, hash: event.hash });
    }
}

async fn writes_are_made_only_as_expected(fixture: Fixture) {
    let store = &fixture.store;
    let refused = |error: AppendError, expected_actual| match error {
        AppendError::Conflict { key: conflicting, actual, .. } => {
            assert_eq!((conflicting, actual), (key("a"), expected_actual));
        }
        other => panic!("{other}"),
    };
    refused(write(store, put("a", Expect::Revision(1), 0)).await.unwrap_err(), None);
    for expect in [Expect::Any, Expect::Absent, Expect::Revision(1)] {
        refused(write(store, delete("a", expect)).await.unwrap_err(), None);
    }
    write(store, put("a", Expect::Absent, 1)).await.unwrap();
    refused(write(store, put("a", Expect::Absent, 2)).await.unwrap_err(), Some(1));
    refused(write(store, put("a", Expect::Revision(2), 2)).await.unwrap_err(), Some(1));
    refused(write(store, delete("a", Expect::Absent)).await.unwrap_err(), Some(1));
    write(store, put("a", Expect::Any, 2)).await.unwrap();
    refused(write(store, delete("a", Expect::Revision(1))).await.unwrap_err(), Some(2));
    assert_eq!((store.revision(), value(store, "a")), (2, Some(json!({ "value": 2 }))));
    write(store, delete("a", Expect::Any)).await.unwrap();
}

async fn a_batch_is_made_wholly_or_not_at_all(fixture: Fixture) {
    let store = &fixture.store;
    write(store, put("a", Expect::Any, 1)).await.unwrap();
    let writes = [put("b", Expect::Absent, 1), delete("a", Expect::Any), put("c", Expect::Revision(9), 1)];
    let error = store.append(batch(writes.clone())).await.unwrap_err();
    assert!(matches!(&error, AppendError::Conflict { key: k, .. } if *k == key("c")), "{error}");
    assert_eq!((store.revision(), store.snapshot().len()), (1, 1));
    store.append(batch(&writes[..2])).await.unwrap();
    assert_eq!((store.revision(), value(store, "a")), (3, None));
}

async fn a_batch_sees_its_own_writes(fixture: Fixture) {
    let store = &fixture.store;
    let writes = [put("a", Expect::Absent, 1), put("a", Expect::Revision(1), 2), delete("a", Expect::Revision(2))];
    let events = store.append(batch(writes)).await.unwrap();
    let actions: Vec<_> = events.iter().map(|event| event.action).collect();
    assert_eq!(actions, [Action::Create, Action::Update, Action::Delete]);
}

async fn of_those_who_expect_the_same_revision_one_wins(fixture: Fixture) {
    let store = &fixture.store;
    write(store, put("a", Expect::Any, 0)).await.unwrap();
    for round in 1..=5 {
        let tasks: Vec<_> = (0..16)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { write(&store, put("a", Expect::Revision(round), n)).await.is_ok() })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            won += u32::from(task.await.unwrap());
        }
        assert_eq!((won, store.revision()), (1, round + 1));
    }
}

async fn what_is_too_large_is_refused(fixture: Fixture) {
    let store = &fixture.store;
    let big = |size| Write { key: key("a"), expect: Expect::Any, object: Some(json!("x".repeat(size))) };
    let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    let deep = |depth| Write { key: key("a"), expect: Expect::Any, object: Some(nested(depth)) };
    let long = Write { key: key(&"n".repeat(600)), expect: Expect::Any, object: Some(json!(1)) };
    for refused in [big(2 * MAX_OBJECT), deep(MAX_DEPTH + 1), long] {
        let error = write(store, refused).await.unwrap_err();
        assert!(matches!(error, AppendError::TooLarge { .. }), "{error}");
    }
    let author = Batch { author: "x".repeat(10_000), reason: String::new(), writes: vec![put("a", Expect::Any, 1)] };
    assert!(matches!(store.append(author).await, Err(AppendError::TooLarge { .. })));
    assert_eq!(store.revision(), 0);
    for taken in [big(MAX_OBJECT), deep(MAX_DEPTH)] {
        write(store, taken).await.unwrap();
    }
    assert_eq!(store.state_at(2).await.unwrap()[&key("a")].object.as_ref(), &nested(MAX_DEPTH));
}

async fn a_batch_without_writes_is_nothing(fixture: Fixture) {
    assert!(fixture.store.append(batch([])).await.unwrap().is_empty());
    assert_eq!(fixture.store.revision(), 0);
}

async fn a_list_is_one_kind_by_namespace_and_name(fixture: Fixture) {
    let store = &fixture.store;
    let keys = [
        Key::new("Service", "b", "x"),
        Key::new("Service", "a", "z"),
        Key::new("Service", "a", "y"),
        Key::new("Service", "", "cluster"),
        Key::new("ServiceX", "a", "other"),
        Key::new("Serv", "a", "other"),
        Key::new("Service", "ab", "w"),
    ];
    let writes: Vec<_> =
        keys.iter().map(|key| Write { key: key.clone(), expect: Expect::Any, object: Some(json!(1)) }).collect();
    store.append(batch(writes)).await.unwrap();
    let names = |namespace| {
        let (revision, list) = store.list("Service", namespace);
        assert_eq!(revision, 7);
        list.iter().map(|stored| stored.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["Service cluster", "Service a/y", "Service a/z", "Service ab/w", "Service b/x"]);
    assert_eq!(names(Some("a")), ["Service a/y", "Service a/z"]);
    assert_eq!(names(Some("")), ["Service cluster"]);
    assert!(names(Some("c")).is_empty());
    assert!(store.list("Nothing", None).1.is_empty());
}

/// Reads `count` events and checks that they are the ones after `after`.
async fn follow(store: Store, after: u64, count: u64) {
    let mut watcher = store.watch(after).unwrap();
    for revision in after + 1..=after + count {
        let event = watcher.next().await.unwrap_or_else(|| panic!("{:?}", watcher.failure()));
        assert_eq!(event.revision, revision);
    }
}

async fn a_watch_misses_and_repeats_nothing_while_others_write(fixture: Fixture) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 60;
    let store = &fixture.store;
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for n in 0..WRITES {
                write(&store, put(&format!("w{writer}-{}", n % 5), Expect::Any, n)).await.unwrap();
            }
        }));
    }
    let total = WRITERS * WRITES;
    for _ in 0..20 {
        let after = store.revision();
        tasks.push(tokio::spawn(follow(store.clone(), after, total - after)));
        tasks.push(tokio::spawn(follow(store.clone(), 0, total)));
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.revision(), total);
}

async fn a_watcher_that_sees_an_event_sees_it_in_the_state(fixture: Fixture) {
    let store = fixture.store.clone();
    let writer = tokio::spawn(async move {
        for n in 0..200 {
            write(&store, put("a", Expect::Any, n)).await.unwrap();
        }
    });
    let mut watcher = fixture.store.watch(0).unwrap();
    for revision in 1..=200 {
        let event = watcher.next().await.unwrap();
        assert_eq!(event.revision, revision);
        assert!(fixture.store.revision() >= revision);
    }
    writer.await.unwrap();
}

async fn a_slow_watcher_still_gets_everything(fixture: Fixture) {
    let store = &fixture.store;
    let mut watcher = store.watch(0).unwrap();
    write(store, put("a", Expect::Any, 0)).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().revision, 1);
    // Far more than is kept in memory for those that keep up.
    let writes: Vec<_> = (0..9_000).map(|n| put(&format!("n{}", n % 50), Expect::Any, n)).collect();
    let written = store.append(batch(writes)).await.unwrap();
    for event in &written {
        assert_eq!(watcher.next().await.as_ref(), Some(event));
    }
}

async fn a_watch_cannot_start_in_the_future(fixture: Fixture) {
    let store = &fixture.store;
    assert_eq!(store.watch(1).err(), Some(WatchError::Future { after: 1, head: 0 }));
    write(store, put("a", Expect::Any, 0)).await.unwrap();
    assert!(store.watch(1).is_ok());
    assert!(matches!(store.state_at(2).await, Err(ReadError::Future { revision: 2, head: 1 })));
}

async fn a_watch_ends_when_the_store_is_closed(fixture: Fixture) {
    let mut watcher = fixture.store.watch(0).unwrap();
    let waiting = tokio::spawn(async move { (watcher.next().await, watcher.failure().cloned().is_none()) });
    tokio::task::yield_now().await;
    drop(fixture.store);
    assert_eq!(waiting.await.unwrap(), (None, true));
}

async fn history_is_newest_first_filtered_and_paged(fixture: Fixture) {
    let store = &fixture.store;
    for n in 0..30 {
        write(store, put(if n % 3 == 0 { "a" } else { "b" }, Expect::Any, n)).await.unwrap();
    }
    let other = Write { key: Key::new("Service", "prod", "a"), expect: Expect::Any, object: Some(json!(1)) };
    write(store, other).await.unwrap();
    let history = async |filter| -> Vec<u64> {
        store.history(filter).await.unwrap().events.iter().map(|event| event.revision).collect()
    };
    let all = HistoryFilter::default;
    assert_eq!(history(all()).await, (1..=31).rev().collect::<Vec<_>>());
    assert_eq!(history(HistoryFilter { limit: 2, ..all() }).await, [31, 30]);
    assert_eq!(history(HistoryFilter { limit: 2, before_revision: Some(30), ..all() }).await, [29, 28]);
    assert_eq!(history(HistoryFilter { before_revision: Some(1), ..all() }).await, [0; 0]);
    assert_eq!(history(HistoryFilter { limit: 0, ..all() }).await, [0; 0]);
    let named = HistoryFilter { kind: Some("HTTPRoute".into()), name: Some("a".into()), limit: 3, ..all() };
    assert_eq!(history(named).await, [28, 25, 22]);
    assert_eq!(history(HistoryFilter { namespace: Some("prod".into()), ..all() }).await, [31]);
    assert_eq!(history(HistoryFilter { name: Some("nobody".into()), ..all() }).await, [0; 0]);
}

async fn history_leaves_out_statuses_and_objects_and_is_bounded_in_bytes(fixture: Fixture) {
    let store = &fixture.store;
    let large = "x".repeat(1000);
    for (author, reason) in [("weft", "defaults"), ("weft", "status"), ("ada", "status"), ("weft", "status")] {
        let writes = vec![Write { key: key("a"), expect: Expect::Any, object: Some(json!(large)) }];
        store.append(Batch { author: author.into(), reason: reason.into(), writes }).await.unwrap();
    }
    let history = async |filter| {
        let past = store.history(filter).await.unwrap();
        (past.events.iter().map(|event| event.revision).collect::<Vec<_>>(), past.more)
    };
    let all = HistoryFilter::default;
    assert_eq!(history(all()).await, (vec![4, 3, 2, 1], false));
    assert_eq!(history(HistoryFilter { statuses: false, ..all() }).await, (vec![3, 1], false));
    assert_eq!(history(HistoryFilter { limit: 1, ..all() }).await, (vec![4], true));
    // An event has the object before, too.
    assert_eq!(history(HistoryFilter { objects: Some(3000), ..all() }).await, (vec![4, 3], true));
    assert_eq!(history(HistoryFilter { objects: Some(0), ..all() }).await, (vec![4], true), "at least one");
    assert_eq!(history(HistoryFilter { objects: None, ..all() }).await, (vec![4, 3, 2, 1], false));
    let bare = store.history(HistoryFilter { objects: None, ..all() }).await.unwrap().events;
    let whole = store.history(all()).await.unwrap().events;
    assert_eq!((&bare[0].object, bare[0].hash), (&None, whole[0].hash));
    assert_eq!(bare[0].before.as_ref().map(|before| (before.created, before.revision)), Some((1, 3)));
    assert_eq!(bare[0].before.as_ref().map(|before| before.object.is_null()), Some(true));
    assert_eq!(bare[3].before, None);
}

async fn the_state_at_every_revision_can_be_had(fixture: Fixture) {
    let store = &fixture.store;
    let mut states = vec![store.snapshot()];
    for n in 0..25 {
        let name = format!("n{}", n % 4);
        let event =
            if n % 5 == 4 { delete(&format!("n{}", (n - 1) % 4), Expect::Any) } else { put(&name, Expect::Any, n) };
        write(store, event).await.unwrap();
        states.push(store.snapshot());
    }
    for (revision, state) in states.iter().enumerate() {
        let at = store.state_at(revision as u64).await.unwrap();
        assert_eq!(at.values().collect::<Vec<_>>(), state.iter().collect::<Vec<_>>(), "at {revision}");
    }
}

async fn an_intact_log_verifies(fixture: Fixture) {
    let store = &fixture.store;
    assert_eq!(store.verify().await, Ok(Head::default()));
    for n in 0..20 {
        let object: Value = json!({ "z": 0.1 + f64::from(n), "a": ["ü", null, { "b": 1, "a": n }], "big": u64::MAX });
        let write = Write { key: key("a"), expect: Expect::Any, object: Some(object) };
        store.append(batch([write])).await.unwrap();
    }
    assert_eq!(store.verify().await, Ok(store.head()));
    assert_eq!(Arc::strong_count(&store.snapshot()), 2, "the snapshot is shared, not copied");
}
