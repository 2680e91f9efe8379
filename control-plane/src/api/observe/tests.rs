use std::sync::Arc;

use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use weft_proto::v1::{HttpOutcome, HttpSeries, TcpSeries};

use super::*;
use crate::{
    api::{
        self,
        access::{Access, rules::Role},
        tests::common::{Api, Reply},
    },
    observe::{Report, Workload, tests::Fleet},
    store::Store,
};

fn caller(namespace: Option<&str>) -> Caller {
    Caller { name: "x".into(), role: Role::Viewer, namespace: namespace.map(str::to_owned) }
}

fn state() -> ApiState {
    ApiState::of(Store::memory(), Access::dev())
}

fn report(count: u64) -> Report {
    let outcome = |code_class, failed, count| HttpOutcome { code_class, failed, count, reason: String::new() };
    let http = |service: &str, count| HttpSeries {
        direction: v1::Direction::Outbound.into(),
        service: service.into(),
        port: 80,
        mtls: true,
        route: String::new(),
        outcomes: vec![outcome(2, false, count - count / 10), outcome(5, true, count / 10)],
        buckets: vec![0, count],
    };
    let tcp = TcpSeries {
        direction: v1::Direction::Outbound.into(),
        service: "bank/ledger".into(),
        port: 9000,
        open: 1,
        ..TcpSeries::default()
    };
    let retries = vec![v1::Retries { service: "shop/catalog".into(), port: 80, sent: count / 4 }];
    Report {
        number: 1,
        bounds: [1000].into(),
        http: vec![http("shop/catalog", count), http("bank/vault", count)],
        tcp: vec![tcp],
        retries,
    }
}

fn collected(after: u64, count: u64) -> Collected {
    let workload = Workload {
        namespace: "shop".into(),
        name: "web-x1".into(),
        app: "web".into(),
        identity: "spiffe://weft.local/ns/shop/sa/web".into(),
        epoch_ms: 1,
    };
    let at = Instant::now() + Duration::from_secs(after);
    Collected { at, reports: vec![(workload, Arc::new(report(count)))], silent: 1 }
}

fn of(query: StatQuery, namespace: Option<&str>, show: Show) -> Wanted {
    wanted(query, caller(namespace), show).expect("a query")
}

#[tokio::test(start_paused = true)]
async fn numbers_are_those_of_the_window_and_say_so() {
    let wanted = of(StatQuery::default(), None, Show::Both);
    let value = wanted.show(&state(), Some(&collected(0, 100)), &collected(2, 200));
    assert_eq!(value["window"], json!({ "seconds": 2.0, "sinceStart": false }));
    assert_eq!(value["sidecars"], json!({ "counted": 1, "silent": 1 }));
    let names: Vec<_> = value["items"].as_array().expect("a list").iter().map(|item| &item["service"]).collect();
    assert_eq!(names, ["bank/ledger:9000", "bank/vault:80", "shop/catalog:80"]);
    let catalog = &value["items"][2];
    for (field, expected) in [
        ("requests", json!(100)),
        ("failed", json!(10)),
        ("successRate", json!(0.9)),
        ("requestsPerSecond", json!(50.0)),
        ("retries", json!(25)),
        ("tries", json!(125)),
        ("actualSuccessRate", json!(0.72)),
        ("mtlsShare", json!(1.0)),
    ] {
        assert_eq!(catalog[field], expected, "{field}");
    }
    let from = &value["edges"][2]["from"];
    assert_eq!((&from["name"], &from["serviceAccount"]), (&json!("web"), &json!("web")));
    assert_eq!(value["edges"][2]["to"]["service"], "shop/catalog:80");
    assert_eq!(value["items"][0]["tcp"]["open"], 1);
    assert_eq!(value["items"][0]["successRate"], Value::Null, "no requests, no rate");
    let all = of(StatQuery::default(), None, Show::Services).show(&state(), None, &collected(0, 100));
    assert_eq!(all["window"], json!({ "seconds": null, "sinceStart": true }));
    assert_eq!((&all["items"][2]["requests"], &all["items"][2]["requestsPerSecond"]), (&json!(100), &Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_namespace_sees_its_services_and_the_edges_that_begin_or_end_in_it() {
    let shown = |namespace, show, query| {
        let value = of(query, namespace, show).show(&state(), None, &collected(0, 100));
        let of = |item: &Value| match show {
            Show::Edges => item["to"]["service"].clone(),
            _ => item["service"].clone(),
        };
        value["items"].as_array().expect("a list").iter().map(of).collect::<Vec<_>>()
    };
    let none = StatQuery::default;
    assert_eq!(shown(Some("shop"), Show::Services, none()), ["shop/catalog:80"]);
    assert_eq!(shown(Some("bank"), Show::Edges, none()), ["bank/ledger:9000", "bank/vault:80"]);
    assert_eq!(shown(Some("shop"), Show::Edges, none()).len(), 3, "all of them begin in it");
    assert_eq!(shown(Some("other"), Show::Edges, none()), [""; 0]);
    let asked = |namespace: &str| StatQuery { namespace: Some(namespace.into()), ..none() };
    assert_eq!(shown(Some("shop"), Show::Services, asked("bank")), [""; 0], "asking does not widen it");
    assert_eq!(shown(None, Show::Services, asked("bank")).len(), 2);
    let service = StatQuery { service: Some("bank/vault".into()), ..none() };
    assert_eq!(shown(None, Show::Services, service), ["bank/vault:80"]);
}

#[test]
fn queries_that_make_no_sense_are_refused_by_name() {
    let none = StatQuery::default;
    for (field, query) in [
        ("window", StatQuery { window: Some("0".into()), ..none() }),
        ("window", StatQuery { window: Some("1h".into()), ..none() }),
        ("since: ", StatQuery { since: Some("yesterday".into()), ..none() }),
        ("since and window", StatQuery { since: Some("start".into()), window: Some("1".into()), ..none() }),
        ("interval", StatQuery { interval: Some("61s".into()), ..none() }),
        ("service", StatQuery { service: Some("catalog".into()), ..none() }),
    ] {
        let refused = wanted(query, caller(None), Show::Services).err().expect(field).to_json();
        assert!(refused["message"].as_str().is_some_and(|text| text.starts_with(field)), "{refused}");
    }
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).header(header::HOST, "127.0.0.1:1").body(Body::empty()).expect("a request")
}

async fn line(body: &mut Body) -> Value {
    let frame = tokio::time::timeout(Duration::from_secs(60), body.frame()).await.expect("in time");
    let data = frame.expect("not the end").expect("no error").into_data().expect("data");
    serde_json::from_slice(&data).expect("JSON")
}

#[tokio::test(start_paused = true)]
async fn one_answer_comes_after_its_window_and_a_watch_goes_on() {
    let api = Api::of(api::router(state()));
    let began = Instant::now();
    let reply = api.get("/weft/v1/stat?window=1s").await;
    assert_eq!((reply.code.as_u16(), &reply.body["items"]), (200, &json!([])), "{reply:?}");
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let mut body = api.raw(get("/weft/v1/edges?watch=true&window=3s")).await.into_body();
    let mut windows = Vec::new();
    for _ in 0..5 {
        windows.push(line(&mut body).await["window"]["seconds"].as_f64().expect("a number").round());
    }
    assert_eq!(windows, [1.0, 2.0, 3.0, 3.0, 3.0]);
}

#[tokio::test(start_paused = true)]
async fn a_long_window_keeps_few_collections() {
    let (mut before, window) = (VecDeque::new(), Duration::from_secs(300));
    for second in 0..1000 {
        let now = collected(second, 1);
        forget(&mut before, now.at, window);
        keep(&mut before, now, window);
        assert!(before.len() <= 18, "{}", before.len());
    }
    assert!(before.len() >= 15, "{}", before.len());
}

#[tokio::test(start_paused = true)]
async fn a_tap_shows_requests_as_they_end_up_to_its_limit() {
    let fleet = Fleet::new();
    let mut sidecar = fleet.sidecar("shop", "web").await;
    let api = Api::of(api::router(ApiState { observers: fleet.observers.clone(), ..state() }));
    let mut body = api.raw(get("/weft/v1/tap?service=shop/catalog&limit=2")).await.into_body();
    let tap = sidecar.begun().await;
    sidecar.tapped(tap, &[], 0).await;
    assert_eq!(line(&mut body).await, json!({ "type": "STARTED", "sidecars": 1, "silent": 0 }));
    sidecar.tapped(tap, &["/a", "/b", "/c"], 7).await;
    for path in ["/a", "/b"] {
        let request = line(&mut body).await;
        assert_eq!((&request["type"], &request["path"]), (&json!("REQUEST"), &json!(path)));
        assert_eq!(request["workload"]["identity"], "spiffe://weft.local/ns/shop/sa/web");
        assert_eq!((&request["mtls"], &request["status"]), (&json!(false), &Value::Null));
    }
    assert_eq!(line(&mut body).await, json!({ "type": "ENDED", "reason": "limit", "shown": 2, "dropped": 7 }));
}

#[tokio::test(start_paused = true)]
async fn of_a_hundred_taps_of_one_caller_those_beyond_its_limit_are_refused() {
    let api = Api::of(api::router(state()));
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let response = api.raw(get("/weft/v1/tap")).await;
        if response.status() == 200 {
            open.push(response);
        } else {
            Reply::read(response).await.failed(429, "TooManyRequests");
            refused += 1;
        }
    }
    let (_, most) = tap::TAPPING;
    assert_eq!((open.len(), refused), (most, 100 - most));
    drop(open);
    let again = async {
        while api.raw(get("/weft/v1/tap")).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("those that are gone make room");
}

#[tokio::test(start_paused = true)]
async fn query_strings_are_for_administrators_and_a_token_without_the_role_taps_nothing() {
    let tokens = api::access::tokens::Tokens::memory();
    let token = |name: &str, role| {
        let new = api::access::tokens::NewToken { name: name.into(), role, namespace: None, expires: None };
        let made = tokens.create(new, k8s_openapi::jiff::Timestamp::now()).expect("made");
        made.1.to_string()
    };
    let made = [Role::Admin, Role::Observer, Role::Editor, Role::Viewer].map(|role| token(&role.to_string(), role));
    let api = Api::of(api::router(ApiState::of(Store::memory(), Access::tokens(tokens.clone()))));
    let code = async |token: &str, path: &str| {
        let request = Request::get(path).header(header::AUTHORIZATION, format!("Bearer {token}"));
        api.raw(request.body(Body::empty()).expect("a request")).await.status().as_u16()
    };
    let (mut plain, mut query) = (Vec::new(), Vec::new());
    for token in &made {
        plain.push(code(token, "/weft/v1/tap").await);
        query.push(code(token, "/weft/v1/tap?query=true").await);
    }
    assert_eq!(plain, [200, 200, 403, 403], "admin, observer, editor, viewer");
    assert_eq!(query, [200, 403, 403, 403]);
}
