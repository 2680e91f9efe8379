//! The authority as a whole: what it issues, what survives a crash, what it takes over, what it refuses.

mod crash;
mod external;
mod revoking;
mod rotation;

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::{rotation::Step, *};

pub(super) const DOMAIN: &str = "weft.local";
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn temporary() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

pub(super) fn open(directory: &TempDir) -> Ca {
    Ca::open(directory.path(), DOMAIN, HOUR).expect("an authority")
}

pub(super) fn id() -> SpiffeId {
    SpiffeId::workload(DOMAIN, "shop", "catalog").expect("valid")
}

pub(super) fn csr(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).expect("a key");
    let mut params = rcgen::CertificateParams::default();
    let name = "spiffe://weft.local/ns/shop/sa/admin".try_into().expect("ASCII");
    params.subject_alt_names = vec![rcgen::SanType::URI(name)];
    params.serialize_request(&key).expect("a request").der().to_vec()
}

pub(super) fn issue(ca: &Ca) -> Leaf {
    ca.issue(&csr(&PKCS_ECDSA_P256_SHA256), &id(), &Attested::default(), None).expect("issued")
}

pub(super) fn presented(leaf: &Leaf) -> Presented {
    Presented::of(&leaf.chain).expect("a chain")
}

/// Whether a peer that trusts these roots accepts the chain.
pub(super) fn accepted(leaf: &Leaf, roots: &[Vec<u8>]) -> bool {
    let roots: Vec<_> = roots.iter().map(|root| CertificateDer::from(root.clone())).collect();
    let anchors: Vec<_> = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).expect("a root")).collect();
    let end = webpki::EndEntityCert::try_from(&leaf.chain[0]).expect("a certificate");
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let (now, usage) = (rustls::pki_types::UnixTime::now(), webpki::KeyUsage::client_auth());
    end.verify_for_usage(algorithms, &anchors, &leaf.chain[1..], now, usage, None, None).is_ok()
}

#[test]
fn a_leaf_comes_from_an_issuing_certificate_below_the_root() {
    let directory = temporary();
    let ca = open(&directory);
    let leaf = issue(&ca);
    assert_eq!(leaf.chain.len(), 2, "leaf and issuing certificate, no root");
    assert!(accepted(&leaf, &ca.roots()));
    let (_, issuer) = x509_parser::parse_x509_certificate(&leaf.chain[1]).expect("a certificate");
    let constraints = issuer.basic_constraints().expect("readable").expect("there");
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let names = issuer.subject_alternative_name().expect("readable").expect("there").value;
    assert_eq!(format!("{:?}", names.general_names), "[URI(\"spiffe://weft.local\")]");
    let usage = issuer.key_usage().expect("readable").expect("there").value;
    assert!(usage.key_cert_sign() && !usage.digital_signature());
    assert!(issuer.validity().not_after.timestamp() < seconds(SystemTime::now()) + 366 * 86_400);
    let svid = ca.own_svid(HOUR).expect("an SVID");
    assert_eq!(svid.chain.len(), 2);
    let (https, _) = ca.https(&["localhost".into()], HOUR).expect("a certificate");
    assert_eq!(https.len(), 2);
}

#[test]
fn names_in_a_request_are_ignored_and_the_lifetime_is_clamped() {
    let directory = temporary();
    let ca = open(&directory);
    let now = seconds(SystemTime::now());
    for (wished, life) in [(None, 3600), (Some(365 * 86_400), 3600), (Some(60), 60)] {
        let leaf = ca
            .issue(&csr(&PKCS_ECDSA_P256_SHA256), &id(), &Attested::default(), wished.map(Duration::from_secs))
            .expect("issued");
        assert_eq!(weft_svid::peer_identity(&leaf.chain).expect("an SVID").id, id());
        let read = presented(&leaf);
        assert!((life..life + 30).contains(&(read.not_after - now)), "{wished:?}: {}", read.not_after - now);
        assert!((-300..-270).contains(&(read.not_before - now)), "back-dated by five minutes");
    }
}

#[test]
fn what_is_attested_is_in_the_certificate_which_is_an_svid_all_the_same() {
    let directory = temporary();
    let attested =
        Attested { name: Some("web".into()), labels: [("app".to_owned(), "web".to_owned())].into_iter().collect() };
    let leaf = open(&directory).issue(&csr(&PKCS_ECDSA_P256_SHA256), &id(), &attested, None).expect("issued");
    assert_eq!(Attested::of(&leaf.chain[0]).expect("readable"), attested);
    assert_eq!(weft_svid::peer_identity(&leaf.chain).expect("an SVID").id, id());
}

#[test]
fn another_kind_of_key_and_a_damaged_request_are_refused() {
    let directory = temporary();
    let ca = open(&directory);
    assert!(ca.issue(&csr(&rcgen::PKCS_ED25519), &id(), &Attested::default(), None).is_err());
    let mut damaged = csr(&PKCS_ECDSA_P256_SHA256);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert!(ca.issue(&damaged, &id(), &Attested::default(), None).is_err(), "its signature is wrong");
}

#[test]
fn the_authority_survives_a_restart_and_all_its_keys_are_private() {
    let directory = temporary();
    let first = open(&directory);
    let leaf = issue(&first);
    first.step(Step::RootPrepare, "test", "").expect("prepared");
    let roots = first.roots();
    drop(first);
    let again = open(&directory);
    assert_eq!(again.roots(), roots);
    assert_eq!(issue(&again).chain[1], leaf.chain[1], "the same issuing certificate");
    again.write_root().expect("written");
    let names = again.directory.names().expect("listed");
    assert_eq!(names.iter().filter(|name| state::is_key(name)).count(), 4, "{names:?}");
    for name in names {
        let mode = std::fs::metadata(again.directory.path(&name)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_key_that_others_may_read_is_refused_whichever_it_is() {
    let directory = temporary();
    let ca = open(&directory);
    ca.step(Step::RootPrepare, "test", "").expect("prepared");
    let files = ca.directory.clone();
    drop(ca);
    for name in files.names().expect("listed").iter().filter(|name| state::is_key(name) || *name == state::STATE) {
        let mode = |mode| std::fs::set_permissions(files.path(name), std::fs::Permissions::from_mode(mode));
        mode(0o644).expect("set");
        let result = Ca::open(directory.path(), DOMAIN, HOUR);
        // Of the root that does not issue yet nothing is needed: it is told in the log and not used.
        if let Err(error) = result {
            let text = format!("{error:#}");
            assert!(text.contains("0644") && text.contains(name.as_str()), "{text}");
        } else {
            assert!(lock(&open(&directory).kept).other.is_none(), "{name}: a loose key is not used");
        }
        mode(0o600).expect("set");
    }
}

#[test]
fn the_directory_of_an_earlier_version_is_taken_over() {
    let directory = temporary();
    // As it was: one self-signed root that signs leaves.
    let key = KeyPair::generate().expect("a key");
    let root = signer::make_root(&key, DOMAIN, SystemTime::now()).expect("a root");
    let files = Directory::open(directory.path()).expect("private");
    files.write("ca.crt", trusted::pem("CERTIFICATE", &root).as_bytes()).expect("written");
    files.write("ca.key", key.serialize_pem().as_bytes()).expect("written");
    let issuer = rcgen::Issuer::from_ca_cert_der(&root, key).expect("an issuer");
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(id().as_str().try_into().expect("ASCII"))];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.not_after = time::OffsetDateTime::now_utc() + HOUR;
    let old = params.signed_by(&KeyPair::generate().expect("a key"), &issuer).expect("a leaf").der().clone();
    let ca = open(&directory);
    assert_eq!(ca.roots(), [root.to_vec()], "running sidecars trust it already");
    assert!(accepted(&issue(&ca), &ca.roots()));
    let life = Life { from: 0, to: 0 };
    let old = Leaf { chain: vec![old], serial: Serial::new(&[1]), life };
    assert!(accepted(&old, &ca.roots()), "their certificates stay valid");
    assert!(open(&directory).roots() == ca.roots() && files.path("ca.key").is_file());
}

#[test]
fn what_does_not_go_together_is_refused_with_its_reason() {
    let refused = |directory: &TempDir, domain: &str, words: &[&str]| {
        let error = Ca::open(directory.path(), domain, HOUR).err().expect("refused");
        let text = format!("{error:#}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    let directory = temporary();
    let ca = open(&directory);
    let files = ca.directory.clone();
    drop(ca);
    refused(&directory, "other.local", &["weft.local", "other.local", "--data-dir"]);
    let state = files.read(state::STATE).expect("readable").expect("there");
    files.write(state::STATE, b"{").expect("written");
    refused(&directory, DOMAIN, &["ca.json", "backup"]);
    files.write(state::STATE, state.replace("\"version\": 1", "\"version\": 2").as_bytes()).expect("written");
    refused(&directory, DOMAIN, &["version 2"]);
    files.remove(state::STATE).expect("removed");
    let first = files.read("ca.key").expect("readable").expect("there");
    files.remove("ca.key").expect("removed");
    refused(&directory, DOMAIN, &["ca-issuer-", "ca.json", "backup"]);
    let another = KeyPair::generate().expect("a key").serialize_pem();
    files.write("ca.key", another.as_bytes()).expect("written");
    refused(&directory, DOMAIN, &["ca.key", "not that of the root"]);
    files.write("ca.key", b"nonsense").expect("written");
    refused(&directory, DOMAIN, &["ca.key", "no private key"]);
    files.write("ca.key", first.as_bytes()).expect("written");
    files.remove("ca.crt").expect("removed");
    refused(&directory, DOMAIN, &["ca.crt", "gone"]);
    files.write(state::STATE, state.as_bytes()).expect("written");
    assert!(Ca::open(directory.path(), DOMAIN, HOUR).is_ok(), "restored: the state has the certificates");
}

#[test]
fn the_roots_key_may_be_kept_elsewhere_until_it_is_needed() {
    let directory = temporary();
    let ca = open(&directory);
    let (files, key) = (ca.directory.clone(), ca.directory.read("ca.key").expect("readable").expect("there"));
    drop(ca);
    files.remove("ca.key").expect("removed");
    let ca = open(&directory);
    assert!(accepted(&issue(&ca), &ca.roots()));
    let error = ca.step(Step::Issuer, "test", "").expect_err("no key").to_string();
    assert!(error.contains("ca.key") && error.contains("needed"), "{error}");
    files.write("ca.key", key.as_bytes()).expect("written");
    ca.step(Step::Issuer, "test", "").expect("it is back");
}
