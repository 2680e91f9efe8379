//! Spans from the request to the collector: a chain of three services whose sidecars export to the control plane's own
//! receiver, and what its API then gives, over HTTP/1.1, HTTP/2 and gRPC.

mod broken;
mod chain;
mod collectors;
mod long;
mod refused;
mod rows;
mod second;
mod trace;
mod websocket;

use self::{
    chain::{ANSWER, Chain, field},
    rows::{GRPC, HTTP, Row},
    trace::{CALLER, check_attributes, check_links, context, fresh, is_kept, lines, spans},
};
use crate::routes::apps::Caller;

fn holds(expected: &str, lines: &[String]) -> bool {
    match expected.strip_prefix("no ") {
        Some(absent) => !lines.iter().any(|line| line.starts_with(absent)),
        None => lines.iter().any(|line| line == expected),
    }
}

/// Every row, all with a context that is recorded, in a mesh that records nothing of its own accord.
async fn table(name: &str, caller: Caller, rows: &[Row]) {
    let chain = Chain::start(name, caller, 0, None).await;
    let grpc = caller == Caller::Grpc;
    let mut wrong = Vec::new();
    for (target, answer, status, count, expected) in rows {
        let trace = fresh();
        let fields = [
            ("traceparent", context(&trace, true)),
            (ANSWER, (*answer).to_owned()),
            ("baggage", "a=1,saga.id=s-7".into()),
        ];
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        let got = chain.send("front", target, &fields).await;
        assert_eq!(got, *status, "{caller:?} {target} {answer}");
        let spans = spans(&chain.mesh, &trace, *count);
        check_links(&spans, CALLER);
        check_attributes(&spans, grpc);
        let lines = lines(&spans);
        for expected in expected.iter().filter(|expected| !holds(expected, &lines)) {
            wrong.push(format!("{caller:?} {target} {answer}: {expected:?} in {lines:#?}"));
        }
    }
    // Nobody listens where this service is.
    let trace = fresh();
    let status = chain.send("gone", "/orders/17", &[("traceparent", &context(&trace, true))]).await;
    assert_eq!(status, if grpc { 14 } else { 503 });
    let spans = spans(&chain.mesh, &trace, 1);
    check_links(&spans, CALLER);
    check_attributes(&spans, grpc);
    let lines = lines(&spans);
    for expected in ["client CLIENT 1 failed", "client CLIENT 1 error.type: connection_refused"] {
        assert!(holds(expected, &lines), "{expected:?} in {lines:#?}");
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_of_http1_follow_the_conventions_across_three_services() {
    table("spans-http1", Caller::Http1, HTTP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_of_http2_follow_the_conventions_across_three_services() {
    table("spans-http2", Caller::Http2, HTTP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_of_grpc_follow_the_conventions_across_three_services() {
    table("spans-grpc", Caller::Grpc, GRPC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_decision_and_its_formats_travel_through_the_mesh() {
    let chain = Chain::start("spans-context", Caller::Http1, 0, None).await;
    let (unsampled, unasked, forced) = (fresh(), fresh(), fresh());

    // Not recorded: as if we were not there.
    let list = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7";
    let baggage = "saga.id=17;a=b,user=%41";
    let told = context(&unsampled, false);
    chain.send("front", "/", &[("traceparent", &told), ("tracestate", list), ("baggage", baggage)]).await;
    let seen = chain.told("back");
    assert_eq!(field(&seen, "traceparent"), Some(told.as_str()));
    assert_eq!((field(&seen, "tracestate"), field(&seen, "baggage")), (Some(list), Some(baggage)));
    assert!(!seen.iter().any(|(name, _)| name.contains("b3")), "{seen:?}");

    // Without a context, a trace begins; at 0 % it is not recorded, and says so.
    chain.send("front", "/", &[]).await;
    let begun = field(&chain.told("back"), "traceparent").expect("a trace begins").to_owned();
    assert!(begun.starts_with("00-") && (begun.ends_with("-00") || begun.ends_with("-02")), "{begun}");

    // By its app's word, which goes no further.
    chain.send("front", "/", &[("x-weft-force-trace", "1")]).await;
    let seen = chain.told("front");
    assert_eq!(field(&seen, "x-weft-force-trace"), None);
    let by_word = field(&seen, "traceparent").expect("a trace begins").split('-').nth(1).expect("an id").to_owned();
    check_links(&spans(&chain.mesh, &by_word, 6), "");
    let not_one = [("traceparent", context(&unasked, false)), ("x-weft-force-trace", "0".into())];
    chain.send("front", "/", &not_one.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
    assert_eq!(field(&chain.told("front"), "x-weft-force-trace"), None);
    let against = [("traceparent", context(&forced, false)), ("x-weft-force-trace", "1".into())];
    chain.send("front", "/", &against.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
    check_links(&spans(&chain.mesh, &forced, 6), CALLER);

    // Recorded: tracestate and baggage pass as they are.
    let sampled = fresh();
    let told = context(&sampled, true);
    chain.send("front", "/", &[("traceparent", &told), ("tracestate", list), ("baggage", baggage)]).await;
    let seen = chain.told("back");
    assert_eq!((field(&seen, "tracestate"), field(&seen, "baggage")), (Some(list), Some(baggage)));
    let recorded = spans(&chain.mesh, &sampled, 6);
    let back = recorded.iter().find(|span| span.is_of("back")).expect("a span of back");
    assert_eq!(field(&seen, "traceparent"), Some(format!("00-{sampled}-{}-01", back.id).as_str()));

    // B3 with an id of 64 bits, in one field and in several.
    for (number, (name, rest)) in [("b3", "b3"), ("x-b3-traceid", "x-b3-")].into_iter().enumerate() {
        let short = format!("4bf92f3577b3{:04x}", number + 1);
        let trace = format!("{short:0>32}");
        let single = format!("{short}-{CALLER}-1");
        let several = [("x-b3-traceid", short.as_str()), ("x-b3-spanid", CALLER), ("x-b3-sampled", "1")];
        let fields = if name == "b3" { vec![("b3", single.as_str())] } else { several.to_vec() };
        chain.send("front", "/", &fields).await;
        let seen = chain.told("back");
        let kept = spans(&chain.mesh, &trace, 6);
        check_links(&kept, CALLER);
        let back = kept.iter().find(|span| span.is_of("back")).expect("a span of back");
        assert_eq!(field(&seen, "traceparent"), Some(format!("00-{trace}-{}-01", back.id).as_str()));
        let in_kind: Vec<_> = seen.iter().filter(|(name, _)| name.contains("b3")).collect();
        assert!(!in_kind.is_empty() && in_kind.iter().all(|(name, _)| name.starts_with(rest)), "{seen:?}");
        if name == "b3" {
            let whole = format!("{trace}-{}-1-{}", back.id, back.parent);
            assert_eq!(field(&seen, "b3"), Some(whole.as_str()));
        } else {
            let field = |name| field(&seen, name);
            assert_eq!((field("x-b3-traceid"), field("x-b3-spanid")), (Some(trace.as_str()), Some(back.id.as_str())));
            assert_eq!((field("x-b3-parentspanid"), field("x-b3-sampled")), (Some(back.parent.as_str()), Some("1")));
        }
    }

    // Later spans of each sidecar have come; these would have come before them.
    let begun = begun.split('-').nth(1).expect("an id");
    for trace in [&unsampled, &unasked, begun] {
        assert!(!is_kept(&chain.mesh, trace), "{trace} was not to be recorded");
    }
}
