//! What is counted and logged of refusals: for each port one set of counters by policy, resolved when a configuration is
//! first used. Names of policies are for logs and metrics, never for callers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use weft_policy::{
    balance::Nanos,
    model::{ConditionKind, InboundPort, WorkloadConfig},
};

use super::{
    connection::Connection,
    permit::{Judged, Refused},
};
use crate::{app::worker::Worker, telemetry::Telemetry};

/// One line in the log for each policy and worker in this time; how many were left out is said in the next one.
const LOG: Duration = Duration::from_secs(1);
/// In place of a policy, where no policy that allows has matched.
const NONE: &str = "none-allows";

/// The books of one worker, as of one configuration.
#[derive(Default)]
pub struct Books(RefCell<Option<Held>>);

/// The configuration, and the books of its ports.
type Held = (Arc<WorkloadConfig>, HashMap<u16, Rc<Book>>);

/// The books of one port.
pub struct Book {
    port: u16,
    /// One for each policy, and the last for none.
    policies: Box<[Entry]>,
    looks_at_headers: bool,
}

struct Entry {
    policy: Box<str>,
    denied: metrics::Counter,
    shadow: metrics::Counter,
    logged: Cell<Option<Nanos>>,
    left_out: Cell<u64>,
}

impl Books {
    /// The book of a port.
    pub fn of(&self, workload: &Arc<WorkloadConfig>, port: &InboundPort, telemetry: &Telemetry) -> Rc<Book> {
        let mut held = self.0.borrow_mut();
        let books = match &mut *held {
            Some((of, books)) if Arc::ptr_eq(of, workload) => books,
            other => &mut other.insert((Arc::clone(workload), HashMap::new())).1,
        };
        Rc::clone(books.entry(port.port).or_insert_with(|| Rc::new(Book::new(port, telemetry))))
    }
}

impl Book {
    fn new(port: &InboundPort, telemetry: &Telemetry) -> Self {
        let policies = port.access.authorization.policies();
        let number = port.port.to_string();
        let entry = |policy: &str| {
            let labels = [("policy", policy), ("port", &*number)];
            let denied = "Connections and requests that a policy refused";
            let shadow = "Connections and requests that a policy in dry run would have refused";
            Entry {
                policy: policy.into(),
                denied: telemetry.counter_of("weft_authorization_denied_total", denied, &labels),
                shadow: telemetry.counter_of("weft_authorization_shadow_denied_total", shadow, &labels),
                logged: Cell::new(None),
                left_out: Cell::new(0),
            }
        };
        let conditions = policies.iter().flat_map(|policy| &policy.rules).flat_map(|rule| &rule.groups);
        let mut conditions = conditions.flatten().flatten();
        Self {
            port: port.port,
            // A port without policies refuses nobody: no series for it.
            policies: match policies {
                [] => Box::default(),
                some => some.iter().map(|policy| entry(policy.name.as_str())).chain([entry(NONE)]).collect(),
            },
            looks_at_headers: conditions.any(|condition| matches!(condition.kind, ConditionKind::Header(..))),
        }
    }

    /// Whether a policy looks at headers.
    pub const fn looks_at_headers(&self) -> bool {
        self.looks_at_headers
    }

    /// Counts and logs what a policy has refused or would have refused.
    pub fn note(&self, worker: &Worker, connection: &Connection, judged: Judged<'_>) {
        if let Some(Refused::Policy(policy)) = judged.refused {
            self.write(worker, connection, policy.unwrap_or(NONE), false);
        }
        if let Some(policy) = judged.shadow {
            self.write(worker, connection, policy, true);
        }
    }

    fn write(&self, worker: &Worker, connection: &Connection, policy: &str, dry_run: bool) {
        let Some(entry) = self.policies.iter().find(|entry| *entry.policy == *policy) else { return };
        if dry_run { &entry.shadow } else { &entry.denied }.increment(1);
        let now = worker.clock.now();
        let silent = u64::try_from(LOG.as_nanos()).unwrap_or(u64::MAX);
        if entry.logged.get().is_some_and(|last| now.0.saturating_sub(last.0) < silent) {
            return entry.left_out.set(entry.left_out.get() + 1);
        }
        entry.logged.set(Some(now));
        let peer = connection.peer.as_ref().map_or("none", |peer| peer.id.as_str());
        let (port, source, left_out) = (self.port, connection.source, entry.left_out.take());
        let what = if dry_run { "would be refused (dry run)" } else { "refused" };
        tracing::info!(policy, port, peer, %source, left_out, "{what}");
    }
}
