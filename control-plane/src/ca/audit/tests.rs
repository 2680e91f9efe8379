//! The record as its readers see it.

use super::*;

fn refused(reason: &'static str, detail: &str, audit: &Audit) {
    audit.refused(&Refused { reason, identity: "spiffe://td/x", by: Credential::None, from: None, detail });
}

#[test]
fn a_record_is_continued_after_a_restart_and_read_newest_first() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("audit.jsonl");
    let id = SpiffeId::workload("weft.local", "shop", "catalog").expect("valid");
    let audit = Audit::open(&path).expect("opened");
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let (serial, from) = ("0a", Some(([127, 0, 0, 1], 9).into()));
    audit.issued(&Issued { identity: &id, serial, not_after, by: Credential::JoinToken, from });
    refused("bad_request", "line\nbreak \u{1b}[31m", &audit);
    drop(audit);
    let audit = Audit::open(&path).expect("opened");
    audit.changed(Entry { event: "rotation".into(), reason: "root_prepare".into(), ..Entry::default() });
    let all = audit.entries(None, 10);
    assert_eq!(all.iter().map(|entry| entry.number).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!((all[2].serial.as_str(), all[2].by.as_str()), ("0a", "join_token"));
    assert_eq!((all[2].from.as_str(), all[2].not_after.as_str()), ("127.0.0.1:9", "1970-01-01T00:00:01Z"));
    assert_eq!(audit.entries(Some(3), 1), [all[1].clone()]);
    let text = std::fs::read_to_string(&path).expect("readable");
    assert_eq!(text.lines().count(), 3, "control characters are escaped");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn a_flood_of_refusals_is_counted_and_does_not_fill_the_record() {
    let audit = Audit::in_memory();
    for _ in 0..1000 {
        refused("bad_request", &"x".repeat(10_000), &audit);
    }
    let kept = audit.entries(None, KEPT);
    assert!(kept.len() < 200, "{}", kept.len());
    assert!(kept.iter().all(|entry| entry.detail.len() <= TEXT));
    assert!(audit.metrics().contains("weft_ca_refused_total{reason=\"bad_request\"} 1000\n"), "{}", audit.metrics());
}

#[test]
fn memory_is_bounded() {
    let audit = Audit::in_memory();
    for _ in 0..KEPT + 10 {
        audit.changed(Entry::default());
    }
    let all = audit.entries(None, usize::MAX);
    assert_eq!((all.len(), all[0].number), (KEPT, KEPT as u64 + 10));
}
