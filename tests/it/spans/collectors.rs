//! A collector that stands still, crawls or is gone costs requests nothing and memory little, and what is lost is counted.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::{
    chain::{Chain, listens, stalled},
    trace::{CALLER, check_links, context, fresh, is_kept, spans},
};
use crate::{
    bulk::memory,
    http2::{self, End},
    net::{eventually, metric},
    routes::apps::Caller,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_fails_no_request_and_drops_are_counted() {
    let chain = Chain::start("spans-stalled", Caller::Http2, 100, Some(stalled())).await;
    // More than the queue and a batch hold.
    assert_eq!(chain.flood(3000, &[]).await, 0, "requests that failed");
    let admin = chain.mesh.client_admin();
    let dropped = |reason: &str| metric(admin, "weft_spans_dropped_total", &[&format!("reason=\"{reason}\"")]);
    eventually("the queue is full", || match dropped("queue_full") {
        count if count >= 1.0 => Ok(()),
        count => Err(format!("{count} dropped")),
    });
    eventually("a batch is given up", || match dropped("export_failed") {
        count if count >= 1.0 => Ok(()),
        count => Err(format!("{count} dropped")),
    });
    assert!(metric(admin, "weft_spans_exported_total", &[]).abs() < 0.5);
    // The queue is as full as it can be: what comes now takes no memory.
    let resident = || memory(chain.mesh.client_pid(), "VmRSS:");
    let before = resident();
    assert_eq!(chain.flood(4000, &[]).await, 0, "requests that failed");
    let grown = resident().saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more than {before}");
}

/// A collector that takes two seconds for each export.
async fn slow() -> SocketAddr {
    http2::serve(|request, mut respond| async move {
        let mut body = request.into_body();
        let _ = http2::drain(&mut body).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut answer = Response::new(());
        answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        if let Ok(mut stream) = respond.send_response(answer, false) {
            // One empty message.
            let _ = stream.send_data(Bytes::from_static(&[0; 5]), false);
            let code = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
            let _ = stream.send_trailers(HeaderMap::from_iter([code]));
        }
        End::Stays
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_collector_gets_what_it_can_take_and_each_span_is_either_exported_or_counted_as_dropped() {
    let chain = Chain::start("spans-slow", Caller::Http2, 100, Some(slow().await)).await;
    assert_eq!(chain.flood(4000, &[]).await, 0, "requests that failed");
    let admin = chain.mesh.client_admin();
    eventually("the books of 4000 spans", || {
        let exported = metric(admin, "weft_spans_exported_total", &[]);
        let dropped = metric(admin, "weft_spans_dropped_total", &["reason=\"queue_full\""]);
        // Those of the first calls, while the mesh came up, were not sampled.
        if exported >= 512.0 && (exported + dropped - 4000.0).abs() < 0.5 {
            Ok(())
        } else {
            Err(format!("{exported} exported, {dropped} dropped"))
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_fails_no_request_and_is_found_again() {
    let mut chain = Chain::start("spans-gone", Caller::Http2, 100, None).await;
    // The collector is in it.
    chain.mesh.kill_control_plane();
    let lost = fresh();
    assert_eq!(chain.flood(50, &[("traceparent", &context(&lost, true))]).await, 0, "requests that failed");
    let admin = chain.mesh.client_admin();
    let count = |name: &str| metric(admin, name, &[]);
    eventually("drops are counted", || match count("weft_spans_dropped_total") {
        count if count >= 50.0 => Ok(()),
        count => Err(format!("{count} dropped")),
    });
    chain.mesh.start_control_plane();
    listens(chain.mesh.api);
    let (found, before) = (fresh(), count("weft_spans_exported_total"));
    let status = chain.send("front", "/orders/17", &[("traceparent", &context(&found, true))]).await;
    assert_eq!(status, chain.fine());
    check_links(&spans(&chain.mesh, &found, 6), CALLER);
    // Counted once the collector has answered.
    eventually("spans are counted as exported", || match count("weft_spans_exported_total") {
        count if count > before => Ok(()),
        count => Err(format!("{count}, as before")),
    });
    assert!(!is_kept(&chain.mesh, &lost), "given up is given up");
}
