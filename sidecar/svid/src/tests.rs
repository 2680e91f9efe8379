//! The SVID matrix, as client and as server, over an in-memory handshake.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConnection, ServerConnection, client::danger::ServerCertVerifier, pki_types::ServerName,
    server::danger::ClientCertVerifier,
};

use super::*;

mod forge;
mod matrix;
mod trust;

const ID: &str = "spiffe://weft.local/ns/shop/sa/catalog";

/// Whoever signs, with its own certificate.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn authority(name: &str) -> Authority {
    let params = ca_params(name);
    let key = KeyPair::generate().expect("a key");
    let root = params.self_signed(&key).expect("a root").der().to_vec();
    Authority { issuer: Issuer::new(params, key), root }
}

/// An authority whose certificate `above` has signed.
fn issuing(above: &Authority, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Authority {
    let mut params = ca_params(name);
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &above.issuer).expect("a certificate").der().to_vec();
    Authority { issuer: Issuer::new(params, key), root: certificate }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn good() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(ID)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(5);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    params
}

fn with(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = good();
    change(&mut params);
    params
}

/// A chain and key that skip [`Svid::new`]'s own check, as a hostile peer would.
fn hostile(authority: &Authority, params: CertificateParams) -> Svid {
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, &authority.issuer).expect("a certificate").der().clone();
    Svid {
        chain: vec![leaf],
        identity: PeerIdentity { id: SpiffeId::parse(ID).expect("valid"), not_after: unix(0) },
        not_before: unix(0),
        key: Zeroizing::new(key.serialize_der()),
    }
}

fn trust(authority: &Authority) -> TrustStore {
    let store = TrustStore::default();
    store.set("weft.local", std::slice::from_ref(&authority.root), &[]).expect("a root");
    store
}

/// Runs a handshake to its end; the error is the one of the side that refused.
fn handshake(client: &Svid, server: &Svid, trust: &TrustStore) -> Result<(), rustls::Error> {
    let client = client_config(Some(client), trust, &[b"h2"]).expect("a configuration");
    let server = server_config(server, trust, ClientAuth::Required, &[b"h2"]).expect("a configuration");
    converse(client, server)
}

fn converse(client: ClientConfig, server: ServerConfig) -> Result<(), rustls::Error> {
    let name = ServerName::try_from("p80.a.b.weft").expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a connection");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a connection");
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).expect("memory");
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).expect("memory");
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

/// The reasons with which the same certificate is refused as a server's and as a client's.
fn refused(params: CertificateParams) -> [Option<SvidReason>; 2] {
    let ca = authority("root");
    refused_by(&ca, &hostile(&ca, params))
}

fn refused_by(trusted: &Authority, svid: &Svid) -> [Option<SvidReason>; 2] {
    let (trust, fine) = (trust(trusted), hostile(trusted, good()));
    [handshake(&fine, svid, &trust), handshake(svid, &fine, &trust)].map(|result| reason(&result.err()?))
}

fn both(reason: SvidReason) -> [Option<SvidReason>; 2] {
    [Some(reason); 2]
}

#[test]
fn a_good_svid_is_accepted_on_both_sides() {
    let ca = authority("root");
    let svid = hostile(&ca, good());
    handshake(&svid, &svid, &trust(&ca)).expect("accepted");
    assert_eq!(peer_identity(&svid.chain).expect("an identity").id.as_str(), ID);
}

#[test]
fn extended_key_usage_may_be_absent() {
    let ca = authority("root");
    let mut params = good();
    params.extended_key_usages.clear();
    let svid = hostile(&ca, params);
    handshake(&svid, &svid, &trust(&ca)).expect("accepted");
}

#[test]
fn names_that_are_not_one_spiffe_id_are_refused() {
    let named = |names: Vec<SanType>| refused(with(|p| p.subject_alt_names = names));
    assert_eq!(named(vec![]), both(SvidReason::NoUriSan));
    assert_eq!(named(vec![SanType::DnsName("catalog".try_into().expect("ASCII"))]), both(SvidReason::NoUriSan));
    assert_eq!(named(vec![uri(ID), uri(ID)]), both(SvidReason::SeveralUriSans));
    assert_eq!(named(vec![uri(ID), uri("spiffe://weft.local/other")]), both(SvidReason::SeveralUriSans));
    for bad in [
        "https://weft.local/a",
        "SPIFFE://weft.local/a",
        "spiffe://WEFT.local/a",
        "spiffe://weft.local/a%20",
        "spiffe://weft.local/../a",
    ] {
        assert_eq!(named(vec![uri(bad)]), both(SvidReason::BadSpiffeId), "{bad}");
    }
}

#[test]
fn a_ca_or_a_signer_is_no_leaf() {
    let mut ca = good();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(refused(ca), both(SvidReason::LeafIsCa));
    for usages in [
        vec![],
        vec![KeyUsagePurpose::KeyEncipherment],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
    ] {
        assert_eq!(refused(with(|p| p.key_usages = usages)), both(SvidReason::KeyUsage));
    }
}

#[test]
fn extended_key_usage_must_name_both_sides() {
    for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let params = with(|p| p.extended_key_usages = vec![usage]);
        assert_eq!(refused(params), both(SvidReason::ExtendedKeyUsage));
    }
}

#[test]
fn time_is_checked() {
    let now = time::OffsetDateTime::now_utc();
    let expired = with(|p| p.not_after = now - time::Duration::minutes(1));
    assert_eq!(refused(expired), both(SvidReason::Expired));
    let future = with(|p| p.not_before = now + time::Duration::minutes(1));
    assert_eq!(refused(future), both(SvidReason::NotYetValid));
}

#[test]
fn another_root_another_domain_and_the_same_name_with_another_key_are_refused() {
    let (trusted, other) = (authority("root"), authority("other"));
    assert_eq!(refused_by(&trusted, &hostile(&other, good())), both(SvidReason::UnknownRoot));
    let foreign = with(|p| p.subject_alt_names = vec![uri("spiffe://other.local/ns/a/sa/b")]);
    assert_eq!(refused(foreign), both(SvidReason::ForeignTrustDomain));
    let impostor = authority("root");
    let got = refused_by(&trusted, &hostile(&impostor, good()));
    assert!(matches!(got, [Some(SvidReason::UnknownRoot | SvidReason::BadSignature), Some(_)]), "{got:?}");
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let mut params = good();
    let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4, 5], vec![5, 0]);
    extension.set_criticality(true);
    params.custom_extensions = vec![extension];
    let ca = authority("root");
    let svid = hostile(&ca, params);
    // rustls does not even present such a certificate, so the verifier is asked directly.
    let verifier = Verifier::new(trust(&ca), &provider(), true);
    let now = rustls::pki_types::UnixTime::now();
    let server = ServerCertVerifier::verify_server_cert(
        &verifier,
        &svid.chain[0],
        &[],
        &ServerName::try_from("a.b").expect("a name"),
        &[],
        now,
    );
    assert_eq!(reason(&server.expect_err("unknown")), Some(SvidReason::UnknownExtension));
    let client = ClientCertVerifier::verify_client_cert(&verifier, &svid.chain[0], &[], now);
    assert_eq!(reason(&client.expect_err("unknown")), Some(SvidReason::UnknownExtension));
}

#[test]
fn an_empty_bundle_trusts_nobody() {
    let ca = authority("root");
    let store = trust(&ca);
    store.set("weft.local", &[], &[]).expect("nothing to parse");
    let svid = hostile(&ca, good());
    let error = handshake(&svid, &svid, &store).expect_err("no roots");
    assert_eq!(reason(&error), Some(SvidReason::ForeignTrustDomain));
}

#[test]
fn roots_change_for_configurations_that_exist() {
    let (old, new) = (authority("old"), authority("new"));
    let store = trust(&old);
    let svid = hostile(&new, good());
    assert!(handshake(&svid, &svid, &store).is_err());
    store.set("weft.local", &[old.root.clone(), new.root.clone()], &[]).expect("roots");
    handshake(&svid, &svid, &store).expect("the new root is trusted at once");
    assert!(store.set("weft.local", &[b"no certificate".to_vec()], &[]).is_err());
    handshake(&svid, &svid, &store).expect("a bad bundle changes nothing");
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let ca = authority("root");
    let (store, svid) = (trust(&ca), hostile(&ca, good()));
    let client = client_config(None, &store, &[b"h2"]).expect("a configuration");
    let server = server_config(&svid, &store, ClientAuth::Required, &[b"h2"]).expect("a configuration");
    let name = ServerName::try_from("a.b").expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a connection");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a connection");
    let mut result = Ok(());
    for _ in 0..4 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut input = wire.as_slice();
        while !input.is_empty() && result.is_ok() {
            server.read_tls(&mut input).expect("memory");
            result = server.process_new_packets().map(|_| ());
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).expect("memory");
            let _ = client.process_new_packets();
        }
    }
    assert_eq!(reason(&result.expect_err("no certificate")), Some(SvidReason::NoCertificate));
}

#[test]
fn a_key_is_that_of_its_leaf_and_is_never_shown() {
    let authority = authority("weft.local");
    let (svid, other) = (hostile(&authority, good()), hostile(&authority, good()));
    svid.check_key().expect("its own");
    let mixed = Svid { chain: other.chain.clone(), key: svid.key.clone(), ..hostile(&authority, good()) };
    assert!(mixed.check_key().is_err(), "another leaf's");
    assert!(client_config(Some(&mixed), &trust(&authority), &[]).is_err());
    let none = Svid { key: Zeroizing::new(b"no key".to_vec()), ..hostile(&authority, good()) };
    assert!(none.check_key().is_err(), "no key at all");
    let shown = format!("{svid:?}");
    assert!(shown.contains(ID) && !shown.contains("key"), "{shown}");
}
