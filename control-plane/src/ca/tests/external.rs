//! Issuing certificates from files: good ones, each kind of bad one with its message, and changes.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose, SanType};

use super::{super::rotation::ChangeError, super::rotation::Step, *};

/// A company's root, which signs what it is told to.
struct Company {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Company {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a root").der().clone();
        Self { issuer: Issuer::from_ca_cert_der(&root, key).expect("an issuer"), root }
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "mesh issuer");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = time::OffsetDateTime::now_utc() - HOUR;
        params.not_after = time::OffsetDateTime::now_utc() + HOUR;
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate").der().clone(), key)
    }
}

/// The three files.
struct Written(TempDir);

impl Written {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self) -> Files {
        Files::new(self.path("ca.pem"), self.path("ca-key.pem"), self.path("roots.pem"))
    }

    fn write(&self, chain: &[&CertificateDer<'static>], key: &KeyPair, roots: &[&CertificateDer<'static>]) {
        let text = |all: &[&CertificateDer<'static>]| {
            all.iter().map(|der| trusted::pem("CERTIFICATE", der)).collect::<String>()
        };
        std::fs::write(self.path("ca.pem"), text(chain)).expect("written");
        write_private(&self.path("ca-key.pem"), key.serialize_pem().as_bytes()).expect("written");
        std::fs::write(self.path("roots.pem"), text(roots)).expect("written");
    }

    /// Why they are refused.
    fn refused(&self) -> String {
        let directory = temporary();
        let opened = Ca::open_external(directory.path(), DOMAIN, HOUR, self.files());
        format!("{:#}", opened.err().expect("refused"))
    }
}

#[test]
fn good_files_issue_and_nothing_of_an_own_authority_is_made() {
    let (company, written, directory) = (Company::new("company"), Written(temporary()), temporary());
    let (certificate, key) = company.sign(|_| {});
    written.write(&[&certificate], &key, &[&company.root]);
    let ca = Ca::open_external(directory.path(), DOMAIN, HOUR * 24, written.files()).expect("good files");
    let leaf = issue(&ca);
    assert_eq!((leaf.chain.len(), ca.roots()), (2, vec![company.root.to_vec()]));
    assert!(accepted(&leaf, &ca.roots()));
    assert!(leaf.life.to <= seconds(SystemTime::now() + HOUR), "no longer than the issuing certificate");
    assert!(!ca.directory.names().expect("listed").iter().any(|name| state::is_key(name)));
    let error = ca.step(Step::RootPrepare, "test", "").expect_err("from files");
    assert!(matches!(&error, ChangeError::Conflict(text) if text.contains("roots.pem")), "{error}");
    // With what lies between, and the root in the file, which is not sent.
    let (between, between_key) = company.sign(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)));
    let below =
        Company { issuer: Issuer::from_ca_cert_der(&between, between_key).expect("valid"), root: between.clone() };
    let (certificate, key) = below.sign(|_| {});
    written.write(&[&certificate, &between, &company.root], &key, &[&company.root]);
    let ca = Ca::open_external(temporary().path(), DOMAIN, HOUR, written.files()).expect("good files");
    assert_eq!(issue(&ca).chain.len(), 3);
}

#[test]
fn each_kind_of_bad_file_has_its_message() {
    let (company, stranger, written) = (Company::new("company"), Company::new("stranger"), Written(temporary()));
    let (good, good_key) = company.sign(|_| {});
    let check = |words: &[&str]| {
        let text = written.refused();
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    check(&["--ca-cert", "ca.pem", "cannot be read"]);
    written.write(&[&good], &good_key, &[&stranger.root]);
    check(&["--ca-cert", "does not chain to any of the roots"]);
    written.write(&[&good], &KeyPair::generate().expect("a key"), &[&company.root]);
    check(&["--ca-key", "ca-key.pem", "not the key of the first certificate"]);
    written.write(&[&company.root], &good_key, &[&company.root]);
    check(&["not the key"]);
    written.write(&[], &good_key, &[&company.root]);
    check(&["--ca-cert", "no certificate in it"]);
    written.write(&[&good], &good_key, &[]);
    check(&["--ca-roots", "roots.pem", "no certificate in it"]);
    written.write(&[&good], &good_key, &[&good, &company.root, &company.root]);
    check(&["--ca-cert", "one of the roots"]);
    written.write(&[&good], &good_key, &[&company.root; 17]);
    check(&["--ca-roots", "17"]);
    let leaf = company.sign(|params| params.is_ca = IsCa::ExplicitNoCa);
    written.write(&[&good], &good_key, &[&leaf.0]);
    check(&["--ca-roots", "CA:TRUE"]);
    let now = time::OffsetDateTime::now_utc;
    let cases: [(&str, (CertificateDer<'static>, KeyPair)); 5] = [
        ("CA:TRUE", leaf),
        ("keyCertSign", company.sign(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature])),
        ("expired", company.sign(|params| params.not_after = now() - Duration::from_secs(60))),
        ("not valid before", company.sign(|params| params.not_before = now() + Duration::from_secs(600))),
        (
            "spiffe://other.local",
            company.sign(|params| {
                params.subject_alt_names = vec![SanType::URI("spiffe://other.local".try_into().expect("ASCII"))];
            }),
        ),
    ];
    for (word, (certificate, key)) in cases {
        written.write(&[&certificate], &key, &[&company.root]);
        check(&["--ca-cert", word]);
    }
    written.write(&[&good], &good_key, &[&company.root]);
    std::fs::set_permissions(written.path("ca-key.pem"), std::fs::Permissions::from_mode(0o640)).expect("set");
    check(&["--ca-key", "0640", "chmod 600"]);
    for (text, words) in
        [("", "no private key"), ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PKCS #8")]
    {
        write_private(&written.path("ca-key.pem"), text.as_bytes()).expect("written");
        check(&["--ca-key", words]);
    }
    write_private(&written.path("ca-key.pem"), good_key.serialize_pem().as_bytes()).expect("written");
    std::fs::write(written.path("roots.pem"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
        .expect("written");
    check(&["--ca-roots", "not PEM"]);
}

#[test]
fn files_are_followed_and_bad_ones_change_nothing() {
    let (company, written, directory) = (Company::new("company"), Written(temporary()), temporary());
    let (first, first_key) = company.sign(|_| {});
    written.write(&[&first], &first_key, &[&company.root]);
    let ca = Ca::open_external(directory.path(), DOMAIN, HOUR, written.files()).expect("good files");
    let (old, mut watch) = (issue(&ca), ca.watch());
    ca.maintain(SystemTime::now());
    assert_eq!((issue(&ca).chain[1].clone(), ca.bundle().renew_issued_before), (first.clone(), 0));
    let (second, second_key) = company.sign(|_| {});
    // Half of a change: the certificate is new, the key is not.
    written.write(&[&second], &first_key, &[&company.root]);
    for _ in 0..3 {
        ca.maintain(SystemTime::now());
    }
    assert_eq!(issue(&ca).chain[1], first);
    let refused = |ca: &Ca| ca.audit().entries(None, 50).iter().filter(|entry| entry.reason == "refused").count();
    assert_eq!(refused(&ca), 1, "told once");
    assert!(!watch.has_changed().expect("open"));
    written.write(&[&second], &second_key, &[&company.root]);
    ca.maintain(SystemTime::now());
    let new = issue(&ca);
    assert_eq!(new.chain[1], second);
    assert!(watch.has_changed().expect("open"));
    let renew = i64::try_from(ca.bundle().renew_issued_before / 1000).expect("seconds");
    assert!(presented(&old).not_before < renew && presented(&new).not_before >= renew);
    watch.mark_unchanged();
    // A root is added: trusted at once, and nobody has to renew.
    let other = Company::new("other");
    written.write(&[&second], &second_key, &[&company.root, &other.root]);
    ca.maintain(SystemTime::now());
    assert_eq!(ca.roots().len(), 2);
    assert_eq!(i64::try_from(ca.bundle().renew_issued_before / 1000).expect("seconds"), renew);
    drop(ca);
    // What changed while nobody looked counts too.
    let (third, third_key) = other.sign(|_| {});
    written.write(&[&third], &third_key, &[&company.root, &other.root]);
    let ca = Ca::open_external(directory.path(), DOMAIN, HOUR, written.files()).expect("good files");
    assert!(i64::try_from(ca.bundle().renew_issued_before / 1000).expect("seconds") > renew);
    assert!(accepted(&issue(&ca), &ca.roots()));
}

#[test]
fn an_own_authority_and_files_follow_each_other() {
    let (company, written, directory) = (Company::new("company"), Written(temporary()), temporary());
    let ca = open(&directory);
    let own = ca.roots();
    drop(ca);
    let (certificate, key) = company.sign(|_| {});
    let root = CertificateDer::from(own[0].clone());
    written.write(&[&certificate], &key, &[&company.root, &root]);
    let ca = Ca::open_external(directory.path(), DOMAIN, HOUR, written.files()).expect("good files");
    assert!(ca.bundle().renew_issued_before > 0, "sidecars take certificates of the new issuer");
    let from_files = issue(&ca);
    let before = ca.bundle().renew_issued_before;
    drop(ca);
    let ca = open(&directory);
    assert_eq!(ca.roots(), own, "the own authority was kept");
    assert!(ca.bundle().renew_issued_before > before && !accepted(&from_files, &ca.roots()));
}

#[test]
fn a_former_issuing_certificate_of_files_stays_revoked_until_its_own_end_and_does_not_come_back() {
    let (company, written, directory) = (Company::new("company"), Written(temporary()), temporary());
    let ends = |days: u64| {
        move |params: &mut CertificateParams| {
            params.not_after = time::OffsetDateTime::now_utc() + HOUR * 24 * u32::try_from(days).expect("small");
        }
    };
    let (between, between_key) = company.sign(|params| {
        ends(300)(params);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    });
    let below =
        Company { issuer: Issuer::from_ca_cert_der(&between, between_key).expect("valid"), root: between.clone() };
    let (first, first_key) = below.sign(ends(100));
    written.write(&[&first, &between], &first_key, &[&company.root]);
    let ca = Ca::open_external(directory.path(), DOMAIN, HOUR, written.files()).expect("good files");
    let old = issue(&ca);
    let serials = ca.active().signer.serials.clone();
    let (second, second_key) = company.sign(ends(50));
    written.write(&[&second], &second_key, &[&company.root]);
    // Half of the time the change is seen while the process runs, half of the time by the next one.
    ca.maintain(SystemTime::now());
    drop(ca);
    let (third, third_key) = company.sign(ends(50));
    written.write(&[&third], &third_key, &[&company.root]);
    let ca = Ca::open_external(directory.path(), DOMAIN, HOUR, written.files()).expect("good files");
    for (serial, days) in serials.iter().zip([100, 300]) {
        let entry = ca.revoke(&Subject::Serial(serial.clone()), "ann", "stolen").expect("revoked");
        let end = seconds(SystemTime::now() + HOUR * 24 * days);
        assert!((end - 60..=end).contains(&entry.not_after.expect("known")), "{entry:?}");
    }
    ca.maintain(SystemTime::now() + HOUR * 24 * 99);
    assert!(ca.is_revoked(&id(), &presented(&old)));
    // Put back, it is refused, by a process that runs and by one that starts.
    written.write(&[&first, &between], &first_key, &[&company.root]);
    ca.maintain(SystemTime::now());
    assert_eq!(issue(&ca).chain[1], third);
    let told = ca.audit().entries(None, 1);
    assert!(told[0].reason == "refused" && told[0].detail.contains("revoked"), "{told:?}");
    drop(ca);
    let error = Ca::open_external(directory.path(), DOMAIN, HOUR, written.files()).err().expect("revoked");
    let text = format!("{error:#}");
    assert!(text.contains("--ca-cert") && text.contains("revoked") && text.contains("another"), "{text}");
}
