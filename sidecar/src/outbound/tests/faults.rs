//! Failures on purpose, in each protocol.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;
use weft_policy::model::{Abort, Fault, RequestPolicy, RouteRule};

use super::net::{ALL, Answer, App, Net, Spoken, local, rule, to};

const ALWAYS: u32 = 1_000_000;

fn fault() -> Fault {
    Fault { name: "shop/chaos".into(), headers: vec![], delay: None, abort: None, bandwidth: None, expires: None }
}

fn with(fault: Fault) -> RouteRule {
    let requests = RequestPolicy { faults: vec![fault], ..RequestPolicy::default() };
    RouteRule { requests: requests.into(), ..rule(vec![to("web")]) }
}

fn abort(abort: Abort) -> RouteRule {
    with(Fault { abort: Some((abort, ALWAYS)), ..fault() })
}

fn counted(class: &str, reason: &str) -> String {
    let labels = "direction=\"outbound\",service=\"shop/web\",port=\"80\",tls=\"none\"";
    format!("weft_http_requests_total{{{labels},code_class=\"{class}\",reason=\"{reason}\"")
}

fn says(answer: &Answer, what: &str) {
    let lines = answer.headers.get_all("proxy-status");
    let lines: Vec<_> = lines.iter().map(|line| line.to_str().expect("ASCII")).collect();
    assert!(lines.iter().any(|line| line.contains(what)), "{lines:?}");
}

#[tokio::test]
async fn an_abort_answers_in_the_callers_protocol() {
    local(async {
        for (how, status, code) in [(Abort::Http(StatusCode::NOT_FOUND), 404, "12"), (Abort::Grpc(8), 429, "8")] {
            for spoken in ALL {
                let app = App::start("web", &[]).await;
                let net = Net::start(spoken, &[("web", app.address)], abort(how)).await;
                let answer = net.get("/api", &[]).await;
                if spoken == Spoken::Grpc {
                    assert_eq!(answer.status, 200);
                    assert_eq!(answer.headers["grpc-status"], code);
                } else {
                    assert_eq!(answer.status, status);
                }
                says(&answer, "fault_abort: by FaultInjection shop/chaos");
                assert_eq!(app.count(), 0);
                net.counts(&counted("4xx", "fault_abort"), 1).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_gives_no_answer() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let net = Net::start(spoken, &[("web", app.address)], abort(Abort::Reset)).await;
            let error = net.send("GET", "/api", &[], b"").await.expect_err("a reset");
            let reset = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
            if spoken == Spoken::Http1 {
                assert!(error.is_incomplete_message(), "{error:?}");
            } else {
                assert!(reset.is_some_and(|reset| reset.is_reset() && reset.is_remote()), "{error:?}");
            }
            assert_eq!(app.count(), 0);
            net.counts(&counted("other", "fault_abort"), 1).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_delay_is_a_wait_before_the_request_is_sent() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let wait = Duration::from_millis(30);
            let delay = Some((wait, ALWAYS));
            let net = Net::start(spoken, &[("web", app.address)], with(Fault { delay, ..fault() })).await;
            let begun = Instant::now();
            let answer = net.get("/api", &[]).await;
            assert!(begun.elapsed() >= wait);
            assert_eq!((answer.status, answer.body.as_ref()), (200, &b"web"[..]), "{spoken:?}");
            says(&answer, "fault_delay: by FaultInjection shop/chaos");
            net.counts(&counted("2xx", "fault_delay"), 1).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_delay_ends_with_the_timeout_of_the_request() {
    local(async {
        let app = App::start("web", &[]).await;
        let mut rule = with(Fault { delay: Some((Duration::from_secs(3600), ALWAYS)), ..fault() });
        Arc::make_mut(&mut rule.requests).timeout = Some(Duration::from_millis(20));
        let net = Net::start(Spoken::Http1, &[("web", app.address)], rule).await;
        let begun = Instant::now();
        let answer = net.get("/api", &[]).await;
        assert!(begun.elapsed() < Duration::from_secs(3600));
        assert_eq!((answer.status, app.count()), (504, 0));
        says(&answer, "fault_delay: delayed for longer than its timeout by FaultInjection shop/chaos");
        net.counts(&counted("5xx", "fault_delay"), 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_bandwidth_slows_the_answer_down() {
    local(async {
        for spoken in ALL {
            let app = App::start("web", &[]).await;
            let rule = with(Fault { bandwidth: Some((100, ALWAYS)), ..fault() });
            let net = Net::start(spoken, &[("web", app.address)], rule).await;
            let begun = Instant::now();
            let answer = net.get("/api", &[]).await;
            assert!(begun.elapsed() >= Duration::from_millis(30), "three bytes at a hundred a second");
            assert_eq!(answer.body, "web", "{spoken:?}");
            says(&answer, "fault_bandwidth: by FaultInjection shop/chaos");
        }
    })
    .await;
}
