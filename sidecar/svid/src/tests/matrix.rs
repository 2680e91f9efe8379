//! The matrix: certificates and chains, each shown as a client's and as a server's in a handshake over memory, each with
//! the reason for which it has to be refused, or none.

mod chains;
mod encodings;
mod leaves;
mod uris;

use std::collections::BTreeSet;

use rustls::{
    client::ResolvesClientCert,
    crypto::aws_lc_rs::sign::any_supported_type,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use weft_policy::model::Revocation;

use super::{
    forge::{Cert, basic, name, purposes, uris, usage},
    *,
};

/// Serial numbers that are revoked.
const REVOKED: [u8; 3] = [0x52, 0x45, 0x56];
const REVOKED_ID: &str = "spiffe://weft.local/ns/shop/sa/stolen";

/// Whoever signs: its name, key and certificate.
struct Ca {
    name: Vec<u8>,
    key: KeyPair,
    der: Vec<u8>,
}

/// What the cases are made from.
struct World {
    root: Ca,
    second: Ca,
    other: Ca,
    expired: Ca,
    /// The key of every leaf that says nothing else.
    key: KeyPair,
    trust: TrustStore,
    good: Svid,
}

/// A chain that is shown, and what has to come of it for a client's and for a server's.
struct Case {
    what: String,
    chain: Vec<Vec<u8>>,
    /// PKCS #8; that of `World::key` where it does not matter.
    key: Option<Vec<u8>>,
    expected: [Option<SvidReason>; 2],
}

fn case(what: &str, chain: Vec<Vec<u8>>, expected: Option<SvidReason>) -> Case {
    Case { what: what.to_owned(), chain, key: None, expected: [expected; 2] }
}

fn ca_cert(subject: &[u8], key: &KeyPair, issuer: &[u8]) -> Cert {
    let mut cert = Cert::new(subject, key, issuer);
    cert.extensions = vec![basic(true, None), usage(true, 0x06)];
    cert
}

fn root(common: &str, change: impl FnOnce(&mut Cert)) -> Ca {
    let (name, key) = (name(common), KeyPair::generate().expect("a key"));
    let mut cert = ca_cert(&name, &key, &name);
    change(&mut cert);
    let der = cert.signed(&key);
    Ca { name, key, der }
}

impl Ca {
    /// An authority below this one.
    fn issues(&self, common: &str, change: impl FnOnce(&mut Cert)) -> Self {
        let (name, key) = (name(common), KeyPair::generate().expect("a key"));
        let mut cert = ca_cert(&name, &key, &self.name);
        change(&mut cert);
        let der = cert.signed(&self.key);
        Self { name, key, der }
    }

    /// A good leaf with its changes.
    fn leaf(&self, world: &World, change: impl FnOnce(&mut Cert)) -> Vec<u8> {
        let mut cert = Cert::new(&name("catalog"), &world.key, &self.name);
        cert.extensions = vec![uris(&[ID]), usage(true, 0x80), purposes(&[1, 2])];
        change(&mut cert);
        cert.signed(&self.key)
    }
}

impl World {
    fn new() -> Self {
        let over =
            |cert: &mut Cert| cert.validity = forge::validity(-time::Duration::days(2), -time::Duration::days(1));
        let (root_ca, second) = (root("root", |_| {}), root("second", |_| {}));
        let (other, expired) = (root("other", |_| {}), root("expired", over));
        let trust = TrustStore::default();
        let revoked = Revocation::Serial(REVOKED.into());
        let stolen = SpiffeId::parse(REVOKED_ID).expect("valid");
        let stolen = Revocation::Identity { id: stolen, issued_before: u64::MAX };
        for (domain, roots, revocations) in [
            ("weft.local", vec![root_ca.der.clone(), second.der.clone()], vec![revoked, stolen]),
            ("other.local", vec![other.der.clone()], vec![]),
            ("expired.local", vec![expired.der.clone()], vec![]),
            ("empty.local", vec![], vec![]),
            (LONG_DOMAIN, vec![root_ca.der.clone()], vec![]),
            ("a-b_c.0", vec![root_ca.der.clone()], vec![]),
        ] {
            trust.set(domain, &roots, &revocations).expect("a bundle");
        }
        let key = KeyPair::generate().expect("a key");
        let identity = PeerIdentity { id: SpiffeId::parse(ID).expect("valid"), not_after: unix(0) };
        let pkcs8 = Zeroizing::new(key.serialize_der());
        let good = Svid { chain: vec![], identity, not_before: unix(0), key: pkcs8 };
        let mut world = Self { root: root_ca, second, other, expired, key, trust, good };
        world.good.chain = vec![world.root.leaf(&world, |_| {}).into()];
        world
    }

    /// The good leaf, changed.
    fn leaf(&self, change: impl FnOnce(&mut Cert)) -> Vec<u8> {
        self.root.leaf(self, change)
    }
}

/// 255 bytes.
const LONG_DOMAIN: &str = concat!(
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
);

/// Shows a chain whatever it is: rustls itself checks what it is told to show.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// What comes of a case when a client shows it and when a server does.
fn outcome(world: &World, case: &Case) -> [Result<(), rustls::Error>; 2] {
    let pkcs8 = case.key.clone().unwrap_or_else(|| world.key.serialize_der());
    let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8))).expect("a key");
    let chain: Vec<_> = case.chain.iter().cloned().map(CertificateDer::from).collect();
    let shown = Arc::new(Shown(Arc::new(CertifiedKey::new(chain, key))));
    [Role::Client, Role::Server].map(|role| {
        let mut client = client_config(Some(&world.good), &world.trust, &[b"h2"]).expect("a configuration");
        let mut server =
            server_config(&world.good, &world.trust, ClientAuth::Required, &[b"h2"]).expect("a configuration");
        match role {
            Role::Client => client.client_auth_cert_resolver = shown.clone(),
            Role::Server => server.cert_resolver = shown.clone(),
        }
        converse(client, server)
    })
}

#[test]
fn each_chain_of_the_matrix_is_accepted_or_refused_for_its_reason_on_both_sides() {
    let world = World::new();
    let cases: Vec<Case> =
        [uris::cases, leaves::cases, encodings::cases, chains::cases].iter().flat_map(|cases| cases(&world)).collect();
    let mut wrong = Vec::new();
    for case in &cases {
        let outcome = outcome(&world, case);
        for ((result, expected), side) in outcome.iter().zip(case.expected).zip(["client", "server"]) {
            let fits = match (result, expected) {
                (Ok(()), None) => true,
                (Err(error), Some(expected)) => reason(error) == Some(expected),
                _ => false,
            };
            if !fits {
                wrong.push(format!("{} as {side}: {result:?} instead of {expected:?}", case.what));
            }
        }
        // Judged later, a chain gets the same answer, but for what only a handshake shows: the key, and long messages.
        let chain: Vec<_> = case.chain.iter().cloned().map(CertificateDer::from).collect();
        for (role, expected) in [Role::Client, Role::Server].into_iter().zip(case.expected) {
            let judged = world.trust.accepts(&chain, role).err();
            if judged != expected && !case.what.starts_with("handshake: ") {
                wrong.push(format!("{} judged as {role:?}: {judged:?} instead of {expected:?}", case.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let names: BTreeSet<_> = cases.iter().map(|case| case.what.as_str()).collect();
    let chains: BTreeSet<_> = cases.iter().map(|case| case.chain.as_slice()).collect();
    assert_eq!((names.len(), chains.len()), (cases.len(), cases.len()), "each case is another one");
    let refused = cases.iter().filter(|case| case.expected != [None; 2]).count();
    assert!(refused >= 120 && cases.len() - refused >= 35, "{refused} of {}", cases.len());
}

#[test]
fn bytes_changed_at_random_are_never_accepted_and_never_panic() {
    let world = World::new();
    let issuing = world.root.issues("issuing", |_| {});
    let chain = [issuing.leaf(&world, |_| {}), issuing.der.clone()];
    // A generator with a fixed seed: a failure can be had again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).expect("small")).expect("small")
    };
    for round in 0..20_000 {
        let mut changed = chain.clone();
        for _ in 0..=next(3) {
            let which = &mut changed[next(2)];
            let at = next(which.len());
            match next(4) {
                0 => drop(which.drain(at..)),
                1 => which.insert(at, u8::try_from(next(256)).expect("a byte")),
                _ => which[at] ^= 1 << next(8),
            }
            if which.is_empty() {
                which.push(0);
            }
        }
        if changed == chain {
            continue;
        }
        let shown: Vec<_> = changed.iter().cloned().map(CertificateDer::from).collect();
        for role in [Role::Client, Role::Server] {
            assert!(world.trust.accepts(&shown, role).is_err(), "round {round}");
        }
    }
}
