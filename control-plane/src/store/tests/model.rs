//! Random writes against each engine and a store that is too simple to be wrong; the one on disk is closed and
//! opened again in between, so that its snapshots and its replay are put to use.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Fixture, options};
use crate::store::{AppendError, Batch, Expect, HistoryFilter, Key, Store, Write, verify};

/// What a batch of the test is made of.
#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u8, u8, Option<Value>)>),
    Reopen,
}

/// Everything that was accepted, and all objects: created, revision, value.
#[derive(Clone, Default)]
struct Model {
    log: Vec<(Key, Option<Value>)>,
    states: Vec<BTreeMap<Key, (u64, u64, Value)>>,
}

impl Model {
    fn state(&self) -> BTreeMap<Key, (u64, u64, Value)> {
        self.states.last().cloned().unwrap_or_default()
    }

    /// All writes, or none.
    fn append(&mut self, writes: &[Write]) -> bool {
        let mut after = self.clone();
        for write in writes {
            let mut state = after.state();
            let revision = after.log.len() as u64 + 1;
            let now = state.get(&write.key).map(|(_, revision, _)| *revision);
            let met = match write.expect {
                Expect::Any => true,
                Expect::Absent => now.is_none(),
                Expect::Revision(expected) => now == Some(expected),
            };
            if !met || (write.object.is_none() && now.is_none()) {
                return false;
            }
            match &write.object {
                Some(object) => {
                    let created = state.get(&write.key).map_or(revision, |(created, ..)| *created);
                    state.insert(write.key.clone(), (created, revision, object.clone()));
                }
                None => _ = state.remove(&write.key),
            }
            after.log.push((write.key.clone(), write.object.clone()));
            after.states.push(state);
        }
        *self = after;
        true
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let write = (0..6u8, 0..10u8, prop::option::weighted(0.7, any_value()));
    prop_oneof![8 => prop::collection::vec(write, 0..4).prop_map(Step::Append), 1 => Just(Step::Reopen)]
}

/// Writes that are often, not always, as expected.
fn writes(store: &Store, drawn: &[(u8, u8, Option<Value>)]) -> Vec<Write> {
    let key = |n: u8| {
        Key::new(if n < 3 { "Service" } else { "Route" }, if n.is_multiple_of(2) { "a" } else { "" }, &n.to_string())
    };
    let expect = |key: &Key, draw: u8| match (draw, store.get(key)) {
        (0..=4, _) => Expect::Any,
        (5..=8, None) => Expect::Absent,
        (5..=8, Some(stored)) => Expect::Revision(stored.revision),
        _ => Expect::Revision(u64::from(draw)),
    };
    drawn
        .iter()
        .map(|(n, draw, object)| Write { key: key(*n), expect: expect(&key(*n), *draw), object: object.clone() })
        .collect()
}

fn current(store: &Store) -> BTreeMap<Key, (u64, u64, Value)> {
    let entry = |stored: &std::sync::Arc<crate::store::Stored>| {
        (stored.key.clone(), (stored.created, stored.revision, Value::clone(&stored.object)))
    };
    store.snapshot().iter().map(entry).collect()
}

async fn run(fixture: Fixture, steps: Vec<Step>) {
    let Fixture { mut store, directory } = fixture;
    let mut model = Model::default();
    for step in steps {
        match (step, &directory) {
            (Step::Append(drawn), _) => {
                let writes = writes(&store, &drawn);
                let accepted = model.append(&writes);
                let result = store.append(Batch { author: "a".into(), reason: String::new(), writes }).await;
                match result {
                    Ok(_) => assert!(accepted),
                    Err(AppendError::Conflict { .. }) => assert!(!accepted),
                    Err(error) => panic!("{error}"),
                }
            }
            (Step::Reopen, Some(directory)) => {
                let head = store.head();
                drop(store);
                assert_eq!(verify(directory.path()), Ok(head));
                store = Store::open_with(directory.path(), options()).unwrap();
                assert_eq!(store.head(), head);
            }
            (Step::Reopen, None) => {}
        }
        assert_eq!(current(&store), model.state());
        assert_eq!(store.revision(), model.log.len() as u64);
    }
    let history = store.history(HistoryFilter { limit: usize::MAX, ..HistoryFilter::default() }).await.unwrap().events;
    let events: Vec<_> = history.iter().rev().map(|e| (e.key.clone(), e.object.as_deref().cloned())).collect();
    assert_eq!(events, model.log);
    for (revision, state) in (1..).zip(&model.states) {
        let at = store.state_at(revision).await.unwrap();
        let at: BTreeMap<_, _> =
            at.into_iter().map(|(key, s)| (key, (s.created, s.revision, Value::clone(&s.object)))).collect();
        assert_eq!(at, *state);
    }
    assert_eq!(store.verify().await, Ok(store.head()));
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_in_memory_does_what_the_model_does(steps in prop::collection::vec(any_step(), 0..40)) {
        block_on(run(Fixture::memory(), steps));
    }

    #[test]
    fn the_engine_on_disk_does_what_the_model_does(steps in prop::collection::vec(any_step(), 0..40)) {
        block_on(run(Fixture::embedded(), steps));
    }
}
