//! Who may register what, and what outlives a process.

use super::*;

#[test]
fn a_restart_keeps_registrations_until_their_sidecars_are_back_or_late() {
    let directory = std::env::temp_dir().join(format!("weft-registry-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join("registrations");
    let before = Registry::open(&file, Claims::Free);
    let _one = before.register(registration(1), &peer(), &Attested::default()).expect("valid");
    let other = Registration { name: "catalog-2".into(), ..registration(1) };
    let two = before.register(other, &peer(), &Attested::default()).expect("valid");
    let after = Registry::open(&file, Claims::Free);
    assert_eq!(after.watch().borrow().len(), 2);
    before.stop();
    drop(two);
    assert_eq!(Registry::open(&file, Claims::Free).watch().borrow().len(), 2, "a stop keeps what is registered");
    let _back = after.register(registration(1), &peer(), &Attested::default()).expect("the same incarnation");
    after.forget_restored();
    let names: Vec<_> = after.watch().borrow().iter().map(|r| r.registration.name.clone()).collect();
    assert_eq!(names, ["catalog-1"]);
    std::fs::write(&file, "no registration\n").expect("writable");
    assert!(Registry::open(&file, Claims::Free).watch().borrow().is_empty(), "a damaged line is left out");
    std::fs::remove_dir_all(&directory).expect("removable");
}

fn peer() -> SpiffeId {
    SpiffeId::workload("weft.local", "shop", "catalog").expect("valid")
}

fn registration(epoch_ms: u64) -> Registration {
    Registration { name: "catalog-1".into(), namespace: "shop".into(), epoch_ms, ..Registration::default() }
}

#[test]
fn a_registration_goes_with_its_lease() {
    let registry = Registry::default();
    let lease = registry.register(registration(1), &peer(), &Attested::default()).expect("valid");
    assert_eq!(registry.watch().borrow().len(), 1);
    drop(lease);
    assert!(registry.watch().borrow().is_empty());
}

#[test]
fn an_old_lease_never_removes_a_newer_registration() {
    let registry = Registry::default();
    let old = registry.register(registration(1), &peer(), &Attested::default()).expect("valid");
    let _new = registry.register(registration(2), &peer(), &Attested::default()).expect("newer");
    drop(old);
    assert_eq!(registry.watch().borrow()[0].registration.epoch_ms, 2);
}

#[test]
fn an_older_incarnation_does_not_replace_a_newer() {
    let registry = Registry::default();
    let _new = registry.register(registration(2), &peer(), &Attested::default()).expect("valid");
    assert!(registry.register(registration(1), &peer(), &Attested::default()).is_err());
}

#[test]
fn rule_01_a_workload_has_the_service_account_of_the_identity_that_was_proved() {
    let registry = Registry::default();
    let of = |account: &str| Registration { service_account: account.into(), ..registration(1) };
    assert!(registry.register(of("admin"), &peer(), &Attested::default()).is_err());
    let lease = registry.register(of("catalog"), &peer(), &Attested::default()).expect("its own");
    assert!(lease.update(of("admin")).is_err(), "nor later");
    assert_eq!(registry.watch().borrow()[0].registration.service_account, "catalog");
    let foreign = SpiffeId::parse("spiffe://weft.local/shop/catalog").expect("valid");
    assert!(
        Registry::default().register(of(""), &foreign, &Attested::default()).is_err(),
        "an identity of another form"
    );
}

#[test]
fn an_identity_registers_a_bounded_number_of_workloads() {
    let registry = Registry::default();
    let named = |count: usize| Registration { name: format!("catalog-{count}"), ..registration(1) };
    let leases: Vec<_> = (0..limits::PER_IDENTITY)
        .map(|count| registry.register(named(count), &peer(), &Attested::default()).expect("valid"))
        .collect();
    assert!(registry.register(named(leases.len()), &peer(), &Attested::default()).is_err());
    let _again = registry.register(named(0), &peer(), &Attested::default()).expect("one that it has");
    let colleague = SpiffeId::workload("weft.local", "shop", "orders").expect("valid");
    let other = Registration { name: "orders-1".into(), ..registration(1) };
    let _other = registry.register(other, &colleague, &Attested::default()).expect("another identity");
}

#[test]
fn a_workload_registers_with_the_labels_that_were_attested_and_keeps_them() {
    let registry = Registry::default();
    let of = |label: &str| Registration {
        labels: [("app".to_owned(), label.to_owned())].into_iter().collect(),
        ..registration(1)
    };
    let attested =
        Attested { name: Some("catalog-1".into()), labels: [("app".into(), "catalog".into())].into_iter().collect() };
    let error = registry.register(of("payments"), &peer(), &attested).err().expect("refused");
    assert!(error.contains("payments") && error.contains("catalog"), "{error}");
    let lease = registry.register(of("catalog"), &peer(), &attested).expect("attested");
    assert!(lease.update(of("payments")).is_err(), "nor later");
    assert!(lease.update(Registration { healthy: true, ..of("catalog") }).is_ok());
    assert_eq!(registry.watch().borrow()[0].registration.labels["app"], "catalog");
    let other = Registration { name: "catalog-2".into(), ..of("catalog") };
    assert!(registry.register(other, &peer(), &attested).is_err(), "another name");
}

#[test]
fn where_labels_must_be_attested_no_workload_gets_into_a_service_by_what_it_says_of_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = Registry::open(&directory.path().join("registrations"), Claims::Attested);
    let of = |labels: &[(&str, &str)]| Registration {
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..registration(1)
    };
    let refused = |registration: Registration, attested: &Attested, words: &[&str]| {
        let error = registry.register(registration, &peer(), attested).err().expect("refused");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    refused(of(&[]), &Attested::default(), &["--attested-labels-only", "weft token create"]);
    let named = Attested { name: Some("catalog".into()), ..Attested::default() };
    let instance = |labels: &[(&str, &str)]| Registration { name: "catalog-bcdfg".into(), ..of(labels) };
    refused(instance(&[("app", "payments")]), &named, &["app=payments"]);
    refused(instance(&[("app", "catalog"), ("tier", "db")]), &named, &["tier=db"]);
    let lease = registry.register(instance(&[("app", "catalog")]), &peer(), &named).expect("what weft run says");
    assert!(lease.update(instance(&[("app", "catalog"), ("tier", "db")])).is_err(), "nor later");
    let labels = [("tier".to_owned(), "db".to_owned())].into_iter().collect();
    let both = Attested { labels, ..named };
    let _lease = registry.register(instance(&[("tier", "db")]), &peer(), &both).expect("attested");
}

#[test]
fn a_renewed_certificate_and_connections_that_came_publish_nothing() {
    let registry = Registry::default();
    let lease = registry.register(registration(1), &peer(), &Attested::default()).expect("valid");
    let mut watch = registry.watch();
    watch.mark_unchanged();
    let came = vec![weft_proto::v1::PortConnections { port: 80, plaintext: 1, ..Default::default() }];
    lease.update(Registration { certificate_end_ms: 5, connections: came, ..registration(1) }).expect("valid");
    assert!(!watch.has_changed().expect("open"));
    lease.update(Registration { certificate_end_ms: 5, healthy: true, ..registration(1) }).expect("valid");
    assert!(watch.has_changed().expect("open"));
}

#[test]
fn a_peer_registers_in_its_own_namespace_only() {
    let registry = Registry::default();
    let other = SpiffeId::workload("weft.local", "other", "catalog").expect("valid");
    assert!(registry.register(registration(1), &other, &Attested::default()).is_err());
    let _held = registry.register(registration(1), &peer(), &Attested::default()).expect("valid");
    let colleague = SpiffeId::workload("weft.local", "shop", "orders").expect("valid");
    assert!(
        registry.register(registration(9), &colleague, &Attested::default()).is_err(),
        "the name is another identity's"
    );
}
