//! The API with tokens, request by request.

use std::sync::Mutex;

use axum::{Router, http::request::Builder};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{tokens::NewToken, *};
use crate::{
    api::{
        self, ApiState,
        tests::common::{CART, Reply, SERVICES, service},
    },
    store::Store,
};

const TOKENS: &str = "/weft/v1/tokens";

struct Api {
    store: Store,
    access: Access,
    router: Router,
    admin: String,
}

impl Api {
    fn new() -> Self {
        let (store, tokens) = (Store::memory(), Tokens::memory());
        let access = Access::tokens(tokens);
        let router = api::router(ApiState::of(store.clone(), access.clone()));
        let mut api = Self { store, access, router, admin: String::new() };
        api.admin = api.token("root", Role::Admin, None);
        api
    }

    fn tokens(&self) -> &Tokens {
        self.access.0.tokens.as_ref().expect("tokens")
    }

    fn token(&self, name: &str, role: Role, namespace: Option<&str>) -> String {
        let new = NewToken { name: name.into(), role, namespace: namespace.map(str::to_owned), expires: None };
        self.tokens().create(new, Timestamp::now()).expect("made").1.to_string()
    }

    async fn raw(&self, request: Builder, body: impl Into<Body>) -> Response {
        let request = request.header(header::HOST, "weft.example").header(header::CONTENT_TYPE, "application/json");
        self.router.clone().oneshot(request.body(body.into()).expect("a request")).await.expect("infallible")
    }

    async fn send(&self, token: &str, method: &str, path: &str, body: &Value) -> Reply {
        let request = axum::http::Request::builder().method(method).uri(path);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        Reply::read(self.raw(request, if body.is_null() { String::new() } else { body.to_string() }).await).await
    }

    async fn get(&self, token: &str, path: &str) -> Reply {
        self.send(token, "GET", path, &Value::Null).await
    }

    fn denied(&self, reason: Denied) -> u64 {
        self.access.0.denied[reason as usize].load(Relaxed)
    }
}

fn get(path: &str) -> Builder {
    axum::http::Request::builder().uri(path)
}

#[tokio::test]
async fn without_a_valid_token_only_the_probes_are_served() {
    let api = Api::new();
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(api.raw(get(path), "").await.status(), 200);
    }
    for path in ["/metrics", "/version", "/api", "/openapi/v2", SERVICES, TOKENS, "/weft/v1/history", "/nothing", "/"] {
        let response = api.raw(get(path), "").await;
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer realm=\"weft\"");
        Reply::read(response).await.failed(401, "Unauthorized");
    }
    assert_eq!(api.denied(Denied::Missing), 9);
    assert_eq!(api.store.revision(), 0);
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_and_not_repeated() {
    for headers in [
        vec!["Bearer weft1a.0123456789abcdef.s3cret".to_owned()],
        vec!["Basic YTpi".to_owned()],
        vec!["Bearer".to_owned()],
        vec![String::new()],
        vec!["Bearer a".to_owned(), "TOKEN".to_owned()],
        vec!["TOKEN".to_owned(), "TOKEN".to_owned()],
    ] {
        let api = Api::new();
        let mut request = get(SERVICES);
        for value in &headers {
            request = request.header(header::AUTHORIZATION, value.replace("TOKEN", &format!("Bearer {}", api.admin)));
        }
        let reply = Reply::read(api.raw(request, "").await).await;
        reply.failed(401, "Unauthorized");
        assert!(!reply.text.contains("s3cret"), "{reply:?}");
    }
    let api = Api::new();
    let request = get(SERVICES).header(header::AUTHORIZATION, format!("bEARER  {}", api.admin));
    assert_eq!(api.raw(request, "").await.status(), 200, "the scheme has no case");
}

#[tokio::test]
async fn an_expired_token_says_so_and_a_revoked_one_is_none() {
    let api = Api::new();
    let new = NewToken { name: "old".into(), role: Role::Admin, namespace: None, expires: Some(Timestamp::UNIX_EPOCH) };
    let (_, text) = api.tokens().create(new, Timestamp::now()).expect("made");
    assert_eq!(api.get(&text, SERVICES).await.failed(401, "Unauthorized"), "the token has expired");
    let viewer = api.token("v", Role::Viewer, None);
    assert_eq!(api.get(&viewer, SERVICES).await.code, 200);
    let listed = api.get(&api.admin, TOKENS).await;
    let item = listed.body["items"].as_array().unwrap().iter().find(|item| item["name"] == "v").expect("listed");
    assert!(item["lastUsed"].is_string(), "{item}");
    let path = format!("{TOKENS}/{}", item["id"].as_str().unwrap());
    assert_eq!(api.send(&api.admin, "DELETE", &path, &Value::Null).await.code, 200);
    assert_eq!(api.get(&viewer, SERVICES).await.failed(401, "Unauthorized"), "the token is not valid here");
    api.send(&api.admin, "DELETE", &path, &Value::Null).await.failed(404, "NotFound");
    assert_eq!((api.denied(Denied::Expired), api.denied(Denied::Invalid)), (1, 1));
}

#[tokio::test]
async fn roles_and_namespaces_are_enforced_with_a_text_that_says_who_and_what() {
    let api = Api::new();
    let (viewer, editor) = (api.token("ann", Role::Viewer, None), api.token("ed", Role::Editor, Some("shop")));
    let reply = api.send(&viewer, "POST", SERVICES, &service("cart")).await;
    let text = "User \"ann\" (role viewer) cannot create resource \"services\" in namespace \"shop\"";
    assert_eq!(reply.failed(403, "Forbidden"), text);
    assert_eq!(reply.body["details"]["kind"], "services");
    assert_eq!(api.send(&editor, "POST", SERVICES, &service("cart")).await.code, 201);
    assert_eq!(api.get(&viewer, CART).await.code, 200);
    let other = "/apis/weft.dev/v1alpha1/namespaces/bank/trafficpolicies/p";
    let text = "User \"ed\" (role editor in namespace \"shop\") cannot delete resource \"trafficpolicies.weft.dev\" in namespace \"bank\"";
    let reply = api.send(&editor, "DELETE", other, &Value::Null).await;
    assert_eq!(reply.failed(403, "Forbidden"), text);
    api.send(&editor, "POST", TOKENS, &json!({ "name": "x", "role": "admin" })).await.failed(403, "Forbidden");
    assert_eq!((api.denied(Denied::Role), api.denied(Denied::Namespace)), (2, 1));
    assert_eq!(api.store.revision(), 1, "nothing else was written");
    let metrics = api.get(&viewer, "/metrics").await.text;
    assert!(metrics.contains("weft_api_denied_total{reason=\"namespace\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn the_author_of_an_event_is_the_name_of_the_token() {
    let api = Api::new();
    let editor = api.token("ed", Role::Editor, None);
    assert_eq!(api.send(&editor, "POST", SERVICES, &service("cart")).await.code, 201);
    let rollback = json!({ "toRevision": 0 });
    assert_eq!(api.send(&api.admin, "POST", "/weft/v1/rollback", &rollback).await.code, 200);
    let history = api.get(&api.admin, "/weft/v1/history").await;
    let authors: Vec<&Value> = history.body["items"].as_array().unwrap().iter().map(|item| &item["author"]).collect();
    assert_eq!(authors, ["root", "ed"]);
}

#[tokio::test]
async fn a_rollback_reaches_no_further_than_the_callers_namespace() {
    let api = Api::new();
    let editor = api.token("ed", Role::Editor, Some("shop"));
    let bank = "/api/v1/namespaces/bank/services";
    for path in [SERVICES, bank] {
        assert_eq!(api.send(&api.admin, "POST", path, &service("cart")).await.code, 201);
    }
    for body in [json!({ "toRevision": 0 }), json!({ "toRevision": 0, "namespace": "bank" })] {
        let reply = api.send(&editor, "POST", "/weft/v1/rollback", &body).await;
        assert!(reply.failed(403, "Forbidden").contains("cannot roll back resource \"*\" in "), "{reply:?}");
    }
    let own = json!({ "toRevision": 0, "namespace": "shop" });
    let reply = api.send(&editor, "POST", "/weft/v1/rollback", &own).await;
    assert_eq!((reply.code.as_u16(), reply.body["items"].as_array().map(Vec::len)), (200, Some(1)), "{reply:?}");
    api.get(&api.admin, CART).await.failed(404, "NotFound");
    assert_eq!(api.get(&api.admin, &format!("{bank}/cart")).await.code, 200);
    assert_eq!(api.denied(Denied::Namespace), 2);
}

#[tokio::test]
async fn the_secret_of_a_new_token_is_answered_once_and_works() {
    let api = Api::new();
    let wanted = json!({ "name": "ci", "role": "viewer", "namespace": "shop", "expiresInSeconds": 60 });
    let made = api.send(&api.admin, "POST", TOKENS, &wanted).await;
    assert_eq!(made.code, 201, "{made:?}");
    let text = made.body["token"].as_str().expect("a token");
    assert_eq!(api.get(text, SERVICES).await.code, 200);
    let listed = api.get(&api.admin, TOKENS).await;
    let (_, secret) = text.rsplit_once('.').expect("a secret");
    assert!(listed.text.contains("\"ci\"") && !listed.text.contains(secret) && !listed.text.contains("hash"));
    for (bad, says) in [
        (json!({ "name": "x" }), "missing field `role`"),
        (json!({ "name": "x", "role": "king" }), "unknown variant `king`"),
        (json!({ "name": "x", "role": "viewer", "rule": 1 }), "unknown field `rule`"),
        (json!({ "name": "x", "role": "viewer", "expiresInSeconds": 0 }), "expiresInSeconds: 0 is not 1 to"),
        (json!({ "name": "x", "role": "viewer", "expiresInSeconds": u64::MAX }), "is not 1 to"),
        (json!({ "name": "x\n", "role": "viewer" }), "name: \"x\\n\" is not"),
    ] {
        let reply = api.send(&api.admin, "POST", TOKENS, &bad).await;
        assert!(reply.failed(400, "BadRequest").contains(says), "{reply:?}");
    }
    api.send(&api.admin, "POST", TOKENS, &wanted).await.failed(409, "AlreadyExists");
}

#[tokio::test]
async fn many_bad_tokens_are_slowed_down_and_a_good_one_is_still_served() {
    let api = Api::new();
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(api.get("weft1a.x.y", SERVICES).await.code.as_u16());
    }
    assert_eq!(codes, [[401; 10], [429; 10]].concat());
    assert_eq!(api.get(&api.admin, SERVICES).await.code, 200);
    assert_eq!((api.denied(Denied::Invalid), api.denied(Denied::RateLimited)), (10, 10));
}

#[tokio::test]
async fn a_watch_ends_with_its_token() {
    let api = Api::new();
    let viewer = api.token("v", Role::Viewer, None);
    let id = api.tokens().list().into_iter().find(|token| token.name == "v").expect("there").id;
    let request = get("/api/v1/services?watch=1").header(header::AUTHORIZATION, format!("Bearer {viewer}"));
    let mut body = api.raw(request, "").await.into_body().into_data_stream();
    assert_eq!(api.send(&api.admin, "POST", SERVICES, &service("cart")).await.code, 201);
    assert!(body.next().await.expect("a line").expect("read").starts_with(b"{"));
    api.tokens().revoke(&id).expect("revoked");
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), body.next()).await;
    assert!(ended.expect("at once").is_none());
}

#[tokio::test]
async fn who_am_i_and_may_i_are_answered() {
    let api = Api::new();
    let editor = api.token("ed", Role::Editor, Some("shop"));
    let reply = api.send(&editor, "POST", review::WHO, &json!({})).await;
    assert_eq!(reply.code, 201);
    let user = json!({ "username": "ed", "extra": { "weft.dev/role": ["editor"], "weft.dev/namespace": ["shop"] } });
    assert_eq!(reply.body["status"]["userInfo"], user);
    for (spec, allowed) in [
        (json!({ "resourceAttributes": { "verb": "delete", "resource": "services", "namespace": "shop" } }), true),
        (json!({ "resourceAttributes": { "verb": "delete", "resource": "services", "namespace": "bank" } }), false),
        (json!({ "resourceAttributes": { "verb": "list", "resource": "services" } }), false),
        (json!({ "nonResourceAttributes": { "verb": "get", "path": "/version" } }), true),
        (json!({ "nonResourceAttributes": { "verb": "get", "path": "/weft/v1/tokens" } }), false),
    ] {
        let reply = api.send(&editor, "POST", review::CAN, &json!({ "spec": spec })).await;
        assert_eq!((reply.code.as_u16(), &reply.body["status"]["allowed"]), (201, &json!(allowed)), "{reply:?}");
    }
    let path = json!({ "nonResourceAttributes": { "verb": "get", "path": "/version" } });
    for bad in [json!({ "spec": {} }), json!([path]), json!({ "spec": [path, path] }), json!(1), Value::Null] {
        api.send(&editor, "POST", review::CAN, &bad).await.failed(400, "BadRequest");
    }
}

#[tokio::test]
async fn with_dev_the_local_user_needs_no_token_and_a_web_page_gets_nothing() {
    let access = Access::dev();
    let router = api::router(ApiState::of(Store::memory(), access.clone()));
    let send = |host: &str, origin: bool, path: &str| {
        let mut request = get(path).header(header::HOST, host);
        if origin {
            request = request.header(header::ORIGIN, "http://127.0.0.1:1");
        }
        router.clone().oneshot(request.body(Body::empty()).expect("a request"))
    };
    let code = |response: Result<Response, _>| response.expect("infallible").status().as_u16();
    assert_eq!(code(send("127.0.0.1:1", false, SERVICES).await), 200);
    assert_eq!(code(send("127.0.0.1:1", true, SERVICES).await), 403);
    assert_eq!(code(send("evil.example", false, "/healthz").await), 403);
    assert_eq!(code(send("127.0.0.1:1", false, TOKENS).await), 200, "workloads may have tokens");
    let body = json!({ "name": "ci", "role": "viewer" }).to_string();
    let request = axum::http::Request::builder().method("POST").uri(TOKENS).header(header::HOST, "127.0.0.1:1");
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body));
    let made = router.clone().oneshot(request.expect("a request")).await;
    assert_eq!(code(made), 404, "operators have none");
    assert_eq!(access.0.denied[Denied::Host as usize].load(Relaxed), 2);
}

/// Everything that is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Takes no event and leaves it open whether it will the next time, so that each thread's own subscriber is asked.
struct Undecided;

impl tracing::Subscriber for Undecided {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> tracing::subscriber::Interest {
        tracing::subscriber::Interest::sometimes()
    }

    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        false
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::TRACE)
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Makes a token, and requests that are refused; the token and one that is wrong.
async fn provoke(api: &Api) -> [String; 2] {
    let made = api.send(&api.admin, "POST", TOKENS, &json!({ "name": "ci", "role": "viewer" })).await;
    let text = made.body["token"].as_str().expect("a token").to_owned();
    api.send(&text, "DELETE", CART, &Value::Null).await.failed(403, "Forbidden");
    let wrong = format!("{}{}", &text[..text.len() - 4], "beef");
    api.get(&wrong, "/weft/v1/%0Aforged").await.failed(401, "Unauthorized");
    [text, wrong]
}

#[tokio::test]
async fn refusals_and_tokens_are_in_the_audit_log_and_secrets_are_not() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    let subscriber = subscriber.with_writer(move || writer.clone()).finish();
    // Without it an event that another test's thread meets first, where nobody listens, may be off for good.
    let _ = tracing::subscriber::set_global_default(Undecided);
    let _guard = tracing::subscriber::set_default(subscriber);
    let api = Api::new();
    let [text, wrong] = provoke(&api).await;
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).expect("text");
    for part in [
        "audit: token made user=\"root\"",
        "user=\"ci\" role=\"viewer\" peer=0.0.0.0 reason=\"role\" asked=delete resource \"services\" in namespace \"shop\"",
        "reason=\"invalid\" asked=get path \"/weft/v1/%0Aforged\"",
    ] {
        assert!(logged.contains(part), "{part}\n{logged}");
    }
    for secret in [&text, &wrong, &api.admin] {
        let (_, secret) = secret.rsplit_once('.').expect("a secret");
        assert!(!logged.contains(&secret[..32]), "{logged}");
    }
}

#[test]
fn the_local_user_is_known_by_name_and_number() {
    let users = "root:x:0:0:root:/root:/bin/sh\n# comment\n+\n:x:7::::\nann:x:1000:1000::/home/ann:/bin/sh\n";
    assert_eq!(user_name(users, 0), Some("root"));
    assert_eq!(user_name(users, 1000), Some("ann"));
    assert_eq!((user_name(users, 7), user_name(users, 100)), (None, None));
    let uid = rustix::process::getuid().as_raw();
    assert!(Caller::local().name.ends_with(&format!("uid {uid})")) || Caller::local().name == format!("uid {uid}"));
}
