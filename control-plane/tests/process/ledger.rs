//! What must be in the store after a crash, against what is there.

use serde_json::Value;

use crate::{
    history,
    http::Client,
    writers::{Effect, Journal, Writer},
};

/// Everything that was found so far.
#[derive(Default)]
pub struct Ledger {
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Events of acknowledged writes that are not as they were written.
    pub lost: Vec<String>,
    /// Events and objects that nobody wrote, or of which only a part was kept.
    pub phantom: Vec<String>,
    /// Unacknowledged writes that were kept.
    pub kept: usize,
    /// Unacknowledged writes that were not.
    pub gone: usize,
    /// The hash of each event, by revision less one.
    hashes: Vec<Value>,
}

impl Ledger {
    /// Looks at what the new process has of these writers, and takes it over into what they know.
    pub fn check(&mut self, client: &mut Client, writers: &mut [Writer], journals: Vec<Journal>) {
        let known = self.hashes.len() as u64;
        let (head, events) = history::after(client, known);
        let revisions: Vec<u64> = events.iter().map(history::revision).collect();
        assert!(revisions.iter().copied().eq(known + 1..=head), "revisions after {known} up to {head}: {revisions:?}");
        self.hashes.extend(events.iter().map(|event| event["hash"].clone()));
        let written: Vec<&Value> = events.iter().filter(|event| history::is_of_client(event)).collect();
        for event in written.iter().filter(|event| !writers.iter().any(|of| event["namespace"] == *of.namespace)) {
            self.phantom.push(format!("an event of nobody: {event}"));
        }
        for (writer, journal) in writers.iter_mut().zip(journals) {
            let own: Vec<&Value> =
                written.iter().copied().filter(|event| event["namespace"] == *writer.namespace).collect();
            self.check_writer(writer, &journal, &own);
        }
        self.check_objects(client, writers);
    }

    fn check_writer(&mut self, writer: &mut Writer, journal: &Journal, events: &[&Value]) {
        self.acknowledged += journal.done.len();
        let numbered = journal.done.iter().flat_map(|done| (done.revision..).zip(&done.effects));
        let expected: Vec<(u64, &Effect)> = numbered.collect();
        let (written, rest) = events.split_at(expected.len().min(events.len()));
        for (index, (revision, effect)) in expected.iter().enumerate() {
            let found = written.get(index);
            if !found.is_some_and(|event| history::revision(event) == *revision && is(event, effect)) {
                let namespace = &writer.namespace;
                self.lost.push(format!("{namespace}: revision {revision}: {effect:?}, but there is {found:?}"));
            }
        }
        let in_flight = &journal.in_flight;
        let whole =
            rest.len() == in_flight.len() && rest.iter().zip(in_flight).all(|(event, effect)| is(event, effect));
        match (rest.is_empty(), whole) {
            (true, _) => self.gone += usize::from(!in_flight.is_empty()),
            (false, true) => {
                self.kept += 1;
                writer.apply(in_flight);
            }
            (false, false) => {
                self.phantom.push(format!("{}: {rest:?}, but in flight was {in_flight:?}", writer.namespace));
            }
        }
    }

    /// The state is what the events make it.
    fn check_objects(&mut self, client: &mut Client, writers: &[Writer]) {
        let list = client.send("GET", "/api/v1/services", "").expect("an answer");
        // Statuses may be written meanwhile.
        assert!(list.code == 200 && list.revision() >= self.hashes.len() as u64, "{list:?}");
        let items = list.body["items"].as_array().unwrap_or_else(|| panic!("{list:?}"));
        let mut found = 0;
        for writer in writers {
            for (name, object) in &writer.objects {
                let named = |item: &&Value| {
                    item["metadata"]["name"] == **name && item["metadata"]["namespace"] == *writer.namespace
                };
                match items.iter().find(named) {
                    Some(item) if contains(item, object) => found += 1,
                    other => self.lost.push(format!("object {}/{name}: {other:?}", writer.namespace)),
                }
            }
        }
        if items.len() != found {
            self.phantom.push(format!("{} objects, and {found} of them are known", items.len()));
        }
    }

    /// Every event is still what it was when it was first seen, and the chain is whole.
    pub fn verify(&self, client: &mut Client) {
        let (head, events) = history::after(client, 0);
        assert!(history::verified(client) >= head);
        let (past, since) = events.split_at(self.hashes.len());
        assert!(past.iter().map(|event| &event["hash"]).eq(&self.hashes), "the past has changed");
        assert!(!since.iter().any(history::is_of_client), "nobody writes any more: {since:?}");
    }
}

fn is(event: &Value, effect: &Effect) -> bool {
    let object = match &effect.object {
        Some(object) => contains(&event["object"], object),
        None => event["action"] == "delete" && event["object"].is_null(),
    };
    object && event["name"] == *effect.name
}

/// Whether everything in `part` is in `whole`, which may have more fields: the server fills in what was left out.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, value)| whole.get(name).is_some_and(|whole| contains(whole, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        _ => whole == part,
    }
}
