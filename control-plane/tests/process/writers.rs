//! Somebody who writes as fast as the answers come, in a namespace of its own, and remembers what it asked for and
//! what was acknowledged.

use std::{collections::BTreeMap, io, sync::mpsc::Sender};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};

use crate::http::{Client, Reply};

/// Objects of one writer; few, so that most writes change what is there.
const NAMES: usize = 12;

/// What an event should be: this object, or that it is deleted.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Name of the object.
    pub name: String,
    /// As it was sent.
    pub object: Option<Value>,
}

/// A write that was acknowledged.
#[derive(Debug)]
pub struct Done {
    /// Of its first event; the others follow.
    pub revision: u64,
    /// Its events.
    pub effects: Vec<Effect>,
}

/// What one writer did in one life of the control plane.
#[derive(Debug, Default)]
pub struct Journal {
    /// In order.
    pub done: Vec<Done>,
    /// The write that got no answer.
    pub in_flight: Vec<Effect>,
}

/// The writer.
pub struct Writer {
    /// Nobody else writes there.
    pub namespace: String,
    /// What is there by all that is known.
    pub objects: BTreeMap<String, Value>,
    random: SmallRng,
    written: u64,
}

enum Change {
    Create(Effect),
    Replace(Effect),
    Delete(Effect),
    /// Everything at once: many events in one commit.
    Clear(Vec<Effect>),
}

impl Writer {
    /// The writer of this number.
    pub fn new(number: u64) -> Self {
        let (namespace, random) = (format!("writer-{number}"), SmallRng::seed_from_u64(number));
        Self { namespace, objects: BTreeMap::new(), random, written: 0 }
    }

    /// Writes until the connection fails; tells of every acknowledgement.
    pub fn run(&mut self, mut client: Client, acknowledged: &Sender<()>) -> Journal {
        let mut journal = Journal::default();
        loop {
            let change = self.next();
            match self.send(&mut client, &change) {
                Ok(reply) => {
                    assert!(matches!(reply.code, 200 | 201), "{reply:?}");
                    let effects = change.effects();
                    self.apply(&effects);
                    journal.done.push(Done { revision: reply.revision(), effects });
                    let _ = acknowledged.send(());
                }
                Err(_) => {
                    journal.in_flight = change.effects();
                    return journal;
                }
            }
        }
    }

    /// These have happened.
    pub fn apply(&mut self, effects: &[Effect]) {
        for effect in effects {
            match &effect.object {
                Some(object) => _ = self.objects.insert(effect.name.clone(), object.clone()),
                None => _ = self.objects.remove(&effect.name),
            }
        }
    }

    fn next(&mut self) -> Change {
        let name = format!("service-{:02}", self.random.random_range(0..NAMES));
        let gone = |name: &String| Effect { name: name.clone(), object: None };
        let there = self.objects.contains_key(&name);
        match self.random.random_range(0..100) {
            0..3 if there => Change::Clear(self.objects.keys().map(gone).collect()),
            3..25 if there => Change::Delete(gone(&name)),
            _ if there => Change::Replace(self.object(name)),
            _ => Change::Create(self.object(name)),
        }
    }

    /// No two of a writer are the same.
    fn object(&mut self, name: String) -> Effect {
        self.written += 1;
        let padding = "x".repeat(self.random.random_range(0..2000));
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "annotations": { "written": self.written.to_string(), "padding": padding } },
            "spec": { "selector": { "app": name, "written": self.written.to_string() }, "ports": [{ "port": 80, "name": "http" }] },
        });
        Effect { name, object: Some(object) }
    }

    fn send(&self, client: &mut Client, change: &Change) -> io::Result<Reply> {
        let all = format!("/api/v1/namespaces/{}/services", self.namespace);
        let body = |effect: &Effect| effect.object.as_ref().map(Value::to_string).unwrap_or_default();
        match change {
            Change::Create(effect) => client.send("POST", &all, &body(effect)),
            Change::Replace(effect) => client.send("PUT", &format!("{all}/{}", effect.name), &body(effect)),
            Change::Delete(effect) => client.send("DELETE", &format!("{all}/{}", effect.name), ""),
            Change::Clear(_) => client.send("DELETE", &all, ""),
        }
    }
}

impl Change {
    fn effects(self) -> Vec<Effect> {
        match self {
            Self::Create(effect) | Self::Replace(effect) | Self::Delete(effect) => vec![effect],
            Self::Clear(effects) => effects,
        }
    }
}
