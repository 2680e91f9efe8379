//! Apps that do not pass on what they receive of a trace are found and named, others are not.

use super::{
    chain::{ANSWER, Chain},
    trace::{context, fresh},
};
use crate::{
    net::{eventually, get, metric, ok},
    routes::apps::Caller,
};

/// Requests before an app is accused, and some.
const REQUESTS: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_traces_itself_can_ask_for_the_share_of_its_sidecar() {
    let chain = Chain::start("spans-sampling", Caller::Http1, 25, None).await;
    let ask =
        |service: &str| get(chain.mesh.api, "localhost", &format!("/sampling?service={service}")).expect("an answer");
    let (status, answer) = ask("front");
    assert_eq!(status, 200, "{answer}");
    let expected = "{\"probabilisticSampling\":{\"samplingRate\":0.25},\"strategyType\":\"PROBABILISTIC\"}";
    assert!(answer.ends_with(expected), "{answer}");
    assert_eq!(ask("nobody").0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_loses_trace_contexts_is_named_by_check_with_the_fix() {
    let chain = Chain::start("spans-broken", Caller::Http1, 0, None).await;
    let mesh = &chain.mesh;
    // Not sampled: that is the usual trace, and as good as a sampled one here.
    let send = async |fields: &[(&str, &str)]| {
        for _ in 0..REQUESTS {
            assert_eq!(chain.send("front", "/orders/17", fields).await, 200);
        }
    };
    let traces =
        || mesh.weft(&["check"]).text.lines().filter(|line| line.contains("traces")).collect::<Vec<_>>().join("\n");
    send(&[("traceparent", &context(&fresh(), false))]).await;
    eventually("what front has passed on", || {
        let labels = ["direction=\"outbound\"", "parent=\"true\""];
        match metric(mesh.admin("front"), "weft_trace_contexts_total", &labels) {
            count if count >= 30.0 => Ok(()),
            count => Err(format!("{count}")),
        }
    });
    assert!(traces().contains("no app is known to break them"), "{}", traces());

    // Enough of them that what was passed on before is less than a tenth.
    for _ in 0..15 {
        send(&[("traceparent", &context(&fresh(), false)), (ANSWER, "loses")]).await;
    }
    eventually("the warning", || {
        let told = traces();
        let named = ["front", "middle"].iter().all(|app| told.contains(&format!("default/{app}: traces end at it")));
        if named && told.contains("copy traceparent, tracestate and baggage") { Ok(()) } else { Err(told) }
    });
    // To middle its caller's sidecar told a trace of its own. back calls nobody, and the client only begins requests.
    let told = traces();
    assert!(["default/back", "default/client:"].iter().all(|other| !told.contains(other)), "{told}");
    let proxies = ok(get(mesh.api, "localhost", "/weft/v1/proxies")).expect("an answer");
    assert!(proxies.contains("\"orphansMeanwhile\":"), "{proxies}");
    assert!(metric(mesh.admin("front"), "weft_trace_propagation_broken", &[]) > 0.5);
    assert!(metric(mesh.client_admin(), "weft_trace_propagation_broken", &[]) < 0.5);
}
