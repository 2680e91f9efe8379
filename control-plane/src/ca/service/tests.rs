use tonic::Code;
use weft_proto::identity::identity_server::Identity as _;

use super::*;
use crate::ca::{
    audit::Audit,
    enrolment::{
        attested::Attested,
        joins::{Joins, NewJoin},
        refusal::PUSHBACK,
    },
};

const HOUR: Duration = Duration::from_secs(3600);

struct Plane {
    service: IdentityService,
    _directory: tempfile::TempDir,
}

/// What the service says: the leaf, or the code and the reason that was counted.
type Outcome = Result<CertificateDer<'static>, Status>;

impl Plane {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = Arc::new(Ca::open(directory.path(), "weft.local", HOUR).expect("an authority"));
        let joins = Joins::open(directory.path()).expect("opened");
        let enrolment = Enrolment::new(Arc::clone(&ca), joins, Audit::in_memory());
        let service = IdentityService { ca, token: None, enrolment, reviewer: None };
        Self { service, _directory: directory }
    }

    fn token(&self, account: &str, attested: Attested) -> String {
        let new = NewJoin {
            namespace: "shop".into(),
            service_account: account.into(),
            attested,
            ttl: Duration::from_secs(60),
        };
        let made = self.service.enrolment.joins().create(new, "ann", Timestamp::now()).expect("made");
        made.1.to_string()
    }

    async fn sign(&self, token: &str, peer: PeerInfo, message: SignCertificateRequest) -> Outcome {
        let mut request = Request::new(message);
        request.extensions_mut().insert(peer);
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", bearer);
        }
        let answer = self.service.sign_certificate(request).await?.into_inner();
        Ok(CertificateDer::from(answer.chain[0].to_vec()))
    }

    /// With a token and a new key, as the service account `catalog`.
    async fn enrol(&self, token: &str) -> Outcome {
        self.sign(token, nobody(1), catalog(csr())).await
    }

    fn refused(&self, reason: &str) -> u32 {
        let line = format!("weft_ca_refused_total{{reason=\"{reason}\"}} ");
        let metrics = self.service.enrolment.audit().metrics();
        metrics.lines().find_map(|found| found.strip_prefix(&line)).map_or(0, |count| count.parse().expect("a number"))
    }

    /// The reason of the last refusal, as the record has it.
    fn last(&self) -> String {
        let entries = self.service.enrolment.audit().entries(None, 100);
        entries.into_iter().find(|entry| entry.event == "refused").map(|entry| entry.reason).unwrap_or_default()
    }
}

fn csr() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    rcgen::CertificateParams::default().serialize_request(&key).expect("a request").der().to_vec()
}

fn catalog(csr: Vec<u8>) -> SignCertificateRequest {
    SignCertificateRequest {
        csr: csr.into(),
        namespace: "shop".into(),
        service_account: "catalog".into(),
        lifetime: None,
    }
}

fn nobody(host: u8) -> PeerInfo {
    let address = ([10, 0, 0, host], 1).into();
    PeerInfo { identity: None, presented: None, attested: Attested::default(), address }
}

fn holder(account: &str, not_after: SystemTime, attested: Attested) -> PeerInfo {
    let id = SpiffeId::workload("weft.local", "shop", account).expect("valid");
    PeerInfo { identity: Some(PeerIdentity { id, not_after }), attested, ..nobody(2) }
}

fn web() -> Attested {
    Attested { name: Some("web".into()), labels: [("app".to_owned(), "web".to_owned())].into_iter().collect() }
}

#[tokio::test]
async fn every_refusal_is_answered_counted_and_recorded_with_its_reason_and_uses_no_token_up() {
    let plane = Plane::new();
    let (good, gone) = (plane.token("catalog", web()), plane.token("catalog", web()));
    let id = gone.split('.').nth(1).expect("an id");
    plane.service.enrolment.joins().revoke(id, Timestamp::now()).expect("there");
    let orders = plane.token("orders", web());
    let wrong = format!("{}beef", &good[..good.len() - 4]);
    let own = SignCertificateRequest {
        namespace: "weft-system".into(),
        service_account: "control-plane".into(),
        ..catalog(csr())
    };
    let strange = SignCertificateRequest { namespace: "a/b".into(), ..catalog(csr()) };
    let ended = holder("catalog", SystemTime::now(), Attested::default());
    let other = holder("orders", SystemTime::now() + HOUR, Attested::default());
    for (case, token, peer, message, code, reason) in [
        ("nothing", "", nobody(1), catalog(csr()), Code::Unauthenticated, "missing"),
        ("a guess", "weft1.abc", nobody(1), catalog(csr()), Code::Unauthenticated, "invalid"),
        ("a wrong secret", &wrong, nobody(1), catalog(csr()), Code::Unauthenticated, "invalid"),
        (
            "an operator's token",
            "weft1a.0123456789abcdef.x",
            nobody(1),
            catalog(csr()),
            Code::Unauthenticated,
            "invalid",
        ),
        ("Kubernetes, which is off", "a.b.c", nobody(1), catalog(csr()), Code::Unauthenticated, "invalid"),
        ("revoked", &gone, nobody(1), catalog(csr()), Code::Unauthenticated, "revoked"),
        ("another workload's", &orders, nobody(1), catalog(csr()), Code::PermissionDenied, "wrong_identity"),
        ("the control plane", &good, nobody(1), own, Code::PermissionDenied, "wrong_identity"),
        ("no identity", &good, nobody(1), strange, Code::PermissionDenied, "wrong_identity"),
        ("no request", &good, nobody(1), catalog(Vec::new()), Code::InvalidArgument, "csr"),
        ("an ended certificate", "", ended, catalog(csr()), Code::Unauthenticated, "certificate_expired"),
        ("another's certificate", &good, other, catalog(csr()), Code::PermissionDenied, "wrong_identity"),
    ] {
        let before = plane.refused(reason);
        let status = plane.sign(token, peer, message).await.expect_err(case);
        assert_eq!((status.code(), plane.last().as_str()), (code, reason), "{case}: {status:?}");
        assert_eq!(plane.refused(reason), before + 1, "{case}");
        assert!(!status.message().contains(&good[30..]), "{case}");
    }
    plane.enrol(&good).await.expect("it is still there");
    let status = plane.enrol(&good).await.expect_err("another key");
    assert_eq!((status.code(), plane.last().as_str()), (Code::PermissionDenied, "other_key"));
}

#[tokio::test]
async fn an_answer_that_got_lost_is_given_again_to_the_same_key() {
    let plane = Plane::new();
    let (token, request) = (plane.token("catalog", web()), csr());
    let first = plane.sign(&token, nobody(1), catalog(request.clone())).await.expect("valid");
    let again = plane.sign(&token, nobody(3), catalog(request)).await.expect("the same key");
    assert_eq!(first, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_32_requests_with_one_token_exactly_one_is_served() {
    let plane = Arc::new(Plane::new());
    let token = plane.token("catalog", Attested::default());
    let tasks: Vec<_> = (0..32)
        .map(|host| {
            let (plane, token) = (Arc::clone(&plane), token.clone());
            tokio::spawn(async move { plane.sign(&token, nobody(host), catalog(csr())).await })
        })
        .collect();
    let mut served = 0;
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(_) => served += 1,
            Err(status) => assert_eq!(status.code(), Code::PermissionDenied, "{status:?}"),
        }
    }
    assert_eq!((served, plane.refused("other_key")), (1, 31));
}

#[tokio::test]
async fn a_renewal_attests_what_the_certificate_before_did_whatever_it_asks_for() {
    let plane = Plane::new();
    let leaf = plane.enrol(&plane.token("catalog", web())).await.expect("valid");
    assert_eq!(Attested::of(&leaf).expect("readable"), web());
    // At its very end, and with a token that would attest something else: the certificate decides.
    let end = SystemTime::now() + Duration::from_secs(5);
    let free = plane.token("catalog", Attested::default());
    let renewed = plane.sign(&free, holder("catalog", end, web()), catalog(csr())).await.expect("renewed");
    assert_eq!(Attested::of(&renewed).expect("readable"), web());
    let plain = plane.enrol(&free).await.expect("not used by the renewal");
    assert_eq!(Attested::of(&plain).expect("readable"), Attested::default());
}

#[tokio::test]
async fn a_wished_life_is_kept_within_bounds() {
    let plane = Plane::new();
    let wish = |seconds, nanos| SignCertificateRequest {
        lifetime: Some(prost_types::Duration { seconds, nanos }),
        ..catalog(csr())
    };
    for (message, least, most) in
        [(wish(0, 0), 3, 5), (wish(-5, 0), 3598, 3600), (wish(60, 0), 58, 60), (wish(i64::MAX, 0), 3598, 3600)]
    {
        let peer = holder("catalog", SystemTime::now() + HOUR, Attested::default());
        let leaf = plane.sign("", peer, message).await.expect("renewed");
        let end = weft_svid::peer_identity(&[leaf]).expect("an SVID").not_after;
        let left = end.duration_since(SystemTime::now()).expect("in the future").as_secs();
        assert!((least..=most).contains(&left), "{left} in {least}..={most}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_often_is_slowed_down_and_a_good_token_is_served_all_the_same() {
    let plane = Plane::new();
    let good = plane.token("catalog", Attested::default());
    let mut limited = None;
    for _ in 0..30 {
        let status = plane.enrol("weft1.guess").await.expect_err("a guess");
        if status.code() == Code::ResourceExhausted {
            limited = Some(status);
        }
    }
    let status = limited.expect("too many");
    let wait: u64 = status.metadata().get(PUSHBACK).expect("a hint").to_str().expect("text").parse().expect("ms");
    assert!((1..=3000).contains(&wait), "{wait}");
    assert_eq!((plane.refused("invalid"), plane.refused("rate_limited")), (20, 10));
    let jwt = plane.enrol("a.b.c").await.expect_err("off");
    assert_eq!(jwt.code(), Code::ResourceExhausted, "and nobody asks Kubernetes for it");
    plane.enrol(&good).await.expect("its secret is right");
}

#[tokio::test(start_paused = true)]
async fn an_identity_and_an_address_have_their_limits() {
    let plane = Plane::new();
    let peer =
        |host| PeerInfo { address: ([10, 0, 1, host], 1).into(), ..holder("catalog", SystemTime::now() + HOUR, web()) };
    let mut codes = Vec::new();
    for number in 0..210_u8 {
        codes.push(plane.sign("", peer(number), catalog(csr())).await.err().map(|status| status.code()));
    }
    assert_eq!(codes.iter().filter(|code| code.is_none()).count(), 200);
    assert_eq!(codes.last(), Some(&Some(Code::ResourceExhausted)));
    let orders = holder("orders", SystemTime::now() + HOUR, web());
    let message = SignCertificateRequest { service_account: "orders".into(), ..catalog(csr()) };
    plane.sign("", orders, message).await.expect("another identity has its own");
    let mut refused = 0;
    for _ in 0..1010 {
        let status = plane.sign("", nobody(9), catalog(Vec::new())).await.expect_err("nothing presented");
        refused += u32::from(status.message().contains("from this address"));
    }
    assert_eq!(refused, 10);
}
