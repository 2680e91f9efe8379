//! Tokens of requests through a whole mesh: a policy as people write it, applied by the command, and real tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

use crate::{
    mesh::TestMesh,
    net::eventually,
    routes::apps::{Caller, Log, Observed, app},
};

const ALL: [Caller; 3] = [Caller::Http1, Caller::Http2, Caller::Grpc];
const ISSUER: &str = "https://id.example";

/// Who makes tokens.
struct Issuer(KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"))
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.der_bytes());
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"one","use":"sig","x":"{x}"}}]}}"#)
    }

    /// A token that ends in so many seconds, with more claims behind a comma.
    fn token(&self, seconds: i64, more: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let end = i64::try_from(now).expect("small") + seconds;
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","kid":"one"}"#);
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":"{ISSUER}","aud":"shop","exp":{end}{more}}}"#));
        let signed = format!("{header}.{claims}");
        let signature = self.0.sign(signed.as_bytes()).expect("signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn bearer(&self, seconds: i64, more: &str) -> String {
        format!("authorization: Bearer {}", self.token(seconds, more))
    }
}

fn policy(keys: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {{name: users}}\nspec:\n  targetRefs: \
         [{{kind: Service, name: web}}]\n  required: true\n  jwt:\n  - issuer: {ISSUER}\n    audiences: [shop]\n    \
         {keys}\n    claimsToHeaders: {{sub: x-user, realm.roles: x-roles}}\n"
    )
}

const RATE: &str = "apiVersion: weft.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: each-user}\nspec:\n  \
                    targetRefs: [{kind: Service, name: web}]\n  limits: [{requests: 3, per: 1h, key: Claim, claim: sub}]\n";

impl Observed {
    fn apply(&self, text: &str) -> String {
        let file = self.mesh.dir.join("applied.yaml");
        std::fs::write(&file, text).expect("writable");
        let ran = self.mesh.weft(&["apply", "--wait", "-f", &file.to_string_lossy()]);
        assert!(matches!(ran.code, Some(0 | 3)), "{}", ran.text);
        ran.text
    }

    /// Whether it is programmed, and the reason word.
    fn programmed(&self) -> (bool, String) {
        let object = self.mesh.weft(&["get", "requestauthentication/users", "-o", "json"]).json();
        let conditions = object["status"]["ancestors"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let of =
            |name: &str| conditions.iter().find(|condition| condition["type"] == name).cloned().unwrap_or_default();
        assert_ne!(of("Accepted")["status"], "False", "{object}");
        (of("Programmed")["status"] == "True", of("Programmed")["reason"].as_str().unwrap_or_default().to_owned())
    }
}

async fn mesh(name: &str) -> Observed {
    let log = Log::default();
    let web = app("web", log.clone()).await;
    let mesh = TestMesh::builder(name).replicas("web", "http2", &[web]).calls("web").start();
    Observed { mesh, log, other: std::sync::mpsc::channel().1 }
}

fn refused(caller: Caller, lines: &[String], challenge: &str) {
    let all = format!("{caller:?}: {lines:#?}");
    let status = if caller == Caller::Grpc { "answer grpc-status: 16" } else { "status 401" };
    assert!(lines.iter().any(|line| line == status), "{all}");
    assert!(lines.iter().any(|line| *line == format!("answer www-authenticate: {challenge}")), "{all}");
    assert!(lines.iter().any(|line| line == "seen 0"), "nothing reaches the app: {all}");
}

const INVALID: &str = "Bearer realm=\"weft\", error=\"invalid_token\", error_description=\"the token is not valid\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_need_a_good_token_and_the_app_sees_its_claims_alone() {
    let observed = mesh("jwt").await;
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    observed.apply(&policy("jwks: '@'").replace('@', &issuer.jwks()));
    eventually("the status", || {
        if observed.programmed().0 { Ok(()) } else { Err(format!("{:?}", observed.programmed())) }
    });
    let good = issuer.bearer(600, r#","sub":"ann","realm":{"roles":["a","b"]}"#);
    for caller in ALL {
        let lines =
            observed.call(caller, "web", "GET /a", &[&good, "x-user: root", "x_user: root", "x-roles: admin"]).await;
        let all = format!("{caller:?}: {lines:#?}");
        for expected in ["status 200", "seen 1", "at web x-user: ann", "at web x-roles: a,b"] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {all}");
        }
        for absent in ["at web authorization", "at web x-user: root", "at web x_user", "at web x-roles: admin"] {
            assert!(!lines.iter().any(|line| line.starts_with(absent)), "{absent}: {all}");
        }
        refused(caller, &observed.call(caller, "web", "GET /a", &["x-user: root"]).await, "Bearer realm=\"weft\"");
        let expired = "Bearer realm=\"weft\", error=\"invalid_token\", error_description=\"the token has expired\"";
        refused(caller, &observed.call(caller, "web", "GET /a", &[&issuer.bearer(-90, "")]).await, expired);
        for bad in [
            stranger.bearer(600, ""),
            issuer.bearer(600, r#","nbf":9999999999"#),
            format!("{good}A"),
            "authorization: Bearer x".into(),
        ] {
            refused(caller, &observed.call(caller, "web", "GET /a", &[&bad]).await, INVALID);
        }
        refused(caller, &observed.call(caller, "web", "GET /a", &[&good, &good]).await, INVALID);
    }
    let metrics = crate::net::get(observed.mesh.admin("web-0"), "localhost", "/metrics").expect("metrics").1;
    for word in ["accepted", "missing", "expired", "signature", "not_yet_valid", "malformed", "several"] {
        let line = format!("weft_jwt_requests_total{{policy=\"default/users\",result=\"{word}\"}}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_value_of_a_claim_has_its_own_rate() {
    let observed = mesh("jwt-rate").await;
    let issuer = Issuer::new();
    observed.apply(&format!("{}---\n{RATE}", policy("jwks: '@'").replace('@', &issuer.jwks())));
    for user in ["ann", "bob"] {
        let mut statuses = Vec::new();
        for number in 0..4 {
            // Another token each time: the claim counts.
            let bearer = issuer.bearer(600 + number, &format!(r#","sub":"{user}""#));
            statuses.push(observed.call(Caller::Http2, "web", "GET /a", &[&bearer]).await.remove(0));
        }
        assert_eq!(statuses, ["status 200", "status 200", "status 200", "status 429"], "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_cannot_be_fetched_refuse_tokens_and_the_status_says_why() {
    let observed = mesh("jwt-missing").await;
    let issuer = Issuer::new();
    observed.apply(&policy("jwksUri: https://localhost:1/jwks.json"));
    let good = issuer.bearer(600, "");
    refused(Caller::Http1, &observed.call(Caller::Http1, "web", "GET /a", &[&good]).await, INVALID);
    eventually("the status", || match observed.programmed() {
        (false, reason) if reason == "KeysMissing" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    observed.apply(&policy("jwks: '@'").replace('@', &issuer.jwks()));
    let lines = observed.call(Caller::Http1, "web", "GET /a", &[&good]).await;
    assert_eq!(lines[0], "status 200", "{lines:#?}");
    eventually("the status", || {
        if observed.programmed().0 { Ok(()) } else { Err(format!("{:?}", observed.programmed())) }
    });
}

const ADMINS: &str = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: admins}\nspec:\n  \
                      targetRefs: [{kind: Service, name: web}]\n  rules: [{claims: {realm.roles: [admin]}}]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_decides_who_is_let_in_and_a_header_does_not() {
    let observed = mesh("jwt-claims").await;
    let issuer = Issuer::new();
    observed.apply(&format!("{}---\n{ADMINS}", policy("jwks: '@'").replace('@', &issuer.jwks())));
    let with = |roles: &str| issuer.bearer(600, &format!(r#","realm":{{"roles":[{roles}]}}"#));
    for caller in ALL {
        let denied = if caller == Caller::Grpc { "answer grpc-status: 7" } else { "status 403" };
        for (roles, expected) in [(r#""a","admin""#, "seen 1"), (r#""a","admins""#, denied), ("", denied)] {
            let lines = observed.call(caller, "web", "GET /a", &[&with(roles), "x-roles: admin"]).await;
            assert!(lines.iter().any(|line| line == expected), "{caller:?} {roles}: {lines:#?}");
        }
        refused(caller, &observed.call(caller, "web", "GET /a", &[]).await, "Bearer realm=\"weft\"");
    }
}
