//! What the control plane says of itself.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use weft_metrics::{Format, Sample};

use super::{Metrics, follow};
use crate::compile::Output;
use crate::push::{
    Reflected, View,
    proxies::{Proxies, tests::proxy},
};

fn count(metrics: &Metrics, name: &str) -> f64 {
    metrics.registry().snapshot().samples(name).iter().map(Sample::number).sum()
}

#[tokio::test]
async fn a_change_has_converged_when_all_who_were_connected_hold_it() {
    let (metrics, proxies) = (Metrics::default(), Proxies::default());
    let view = watch::Sender::new(Arc::new(View::default()));
    tokio::spawn(follow(view.subscribe(), proxies.clone(), metrics.clone()));
    let converged = || count(&metrics, "weft_convergence_duration_seconds");
    let settle = || async {
        for _ in 0..20 {
            tokio::task::yield_now().await
        }
    };
    let holds = |stream, revision| proxies.synced(stream, Vec::new(), Reflected { view: revision, store: 0 });
    proxies.set(1, proxy("a", 1, ""));
    proxies.set(2, proxy("b", 1, ""));
    settle().await;
    let first = View::default().next(&Output::default(), 0);
    let second = first.next(&Output::default(), 0);
    view.send_replace(Arc::new(first));
    settle().await;
    holds(1, 1);
    settle().await;
    assert_eq!(converged(), 0.0, "b does not hold it");
    // It came after the change: nobody waits for it.
    proxies.set(3, proxy("c", 1, ""));
    holds(2, 1);
    settle().await;
    assert_eq!(converged(), 1.0);
    view.send_replace(Arc::new(second));
    settle().await;
    for stream in [1, 2] {
        holds(stream, 2);
    }
    settle().await;
    assert_eq!(converged(), 1.0, "c is connected by now");
    proxies.remove(3);
    settle().await;
    assert_eq!(converged(), 2.0, "who has gone is not waited for");
}

#[test]
fn what_happens_is_counted_by_type() {
    let metrics = Metrics::default();
    metrics.pushed(weft_proto::ResourceType::Service);
    metrics.answered(weft_proto::ResourceType::Service, Some(Duration::from_millis(3)), true);
    metrics.answered(weft_proto::ResourceType::Service, None, false);
    metrics.written(Duration::from_millis(1), "ok");
    let waiting = metrics.waits();
    let text = metrics.registry().render(Format::Prometheus);
    let kind = weft_proto::ResourceType::Service.name();
    for line in [
        format!("weft_pushes_total{{type=\"{kind}\"}} 1"),
        format!("weft_config_rejects_total{{type=\"{kind}\"}} 1"),
        "weft_push_duration_seconds_count 1".to_owned(),
        "weft_store_write_duration_seconds_count{result=\"ok\"} 1".to_owned(),
        "weft_push_queue 1".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    drop(waiting);
    assert!(metrics.registry().render(Format::Prometheus).contains("weft_push_queue 0\n"));
}
