//! What is read from the parts when somebody asks: everything that is a number now, whoever keeps it.

use std::{collections::BTreeMap, sync::PoisonError};

use weft_metrics::{Collector, Labels, Snapshot, float};

use crate::api::ApiState;

/// Everything, now.
#[must_use]
pub fn snapshot(parts: &ApiState) -> Snapshot {
    parts.metrics.registry().snapshot_with(|out| {
        mesh(parts, out);
        store(parts, out);
        parts.access.collect(out);
        match (&parts.ca, &parts.enrolment) {
            (Some(ca), _) => ca.collect(out),
            (None, Some(enrolment)) => enrolment.audit().collect(out),
            (None, None) => {}
        }
        if let Some(enrolment) = &parts.enrolment
            && let Ok(tokens) = enrolment.joins().list()
        {
            let help = "Join tokens that are kept, used and expired ones included";
            out.gauge("weft_join_tokens", help, &Labels::new(&[]), count(tokens.len()));
        }
    })
}

fn mesh(parts: &ApiState, out: &mut Collector) {
    let none = Labels::new(&[]);
    let rows = parts.proxies.rows();
    out.gauge("weft_connected_proxies", "Sidecars connected", &none, count(rows.len()));
    let mut states: BTreeMap<(&'static str, &'static str), usize> = BTreeMap::new();
    for of in rows.iter().flat_map(|row| &row.types) {
        *states.entry((of.kind.name(), of.state.as_str())).or_default() += 1;
    }
    for ((kind, state), number) in states {
        let family = ("weft_proxy_sync", "Connected sidecars by type of configuration and state of it");
        out.gauge_with(family, &none, &[("type", kind), ("state", state)], count(number));
    }
    let (revision, pushed) = (parts.pushed.view.borrow().revision, *parts.pushed.reflected.borrow());
    out.gauge("weft_config_revision", "Revision of what is pushed", &none, float(revision));
    let help = "Last event of the store that what is pushed reflects";
    out.gauge("weft_pushed_store_revision", help, &none, float(pushed.store));
    let problems = parts.pushed.problems.lock().unwrap_or_else(PoisonError::into_inner).len();
    out.gauge("weft_resource_problems", "Problems of the resources", &none, count(problems));
}

fn store(parts: &ApiState, out: &mut Collector) {
    let none = Labels::new(&[]);
    let stopped = if parts.store.stopped().is_some() { 1.0 } else { 0.0 };
    out.gauge("weft_store_stopped", "Whether the store takes no writes until a restart", &none, stopped);
    let snapshot = parts.store.snapshot();
    out.gauge("weft_store_revision", "Last event of the store", &none, float(snapshot.revision()));
    out.gauge("weft_store_objects", "Objects in the store", &none, count(snapshot.len()));
    if let Some(bytes) = parts.store.bytes() {
        out.gauge("weft_store_size_bytes", "Size of the store's file", &none, float(bytes));
    }
}

fn count(number: usize) -> f64 {
    float(u64::try_from(number).unwrap_or(u64::MAX))
}
