//! What a scraper sees, and what becomes of series that nobody uses.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{Collector, Format, Histogram, IDLE, Labels, Registry, Series, TraceId};

#[derive(Default)]
struct Timed(Histogram);

impl Series for Timed {
    fn collect(&self, labels: &Labels, out: &mut Collector) {
        out.histogram("t_seconds", "T.", labels, self.0.value());
    }
}

#[test]
fn handles_of_the_same_series_add_up() {
    let registry = Registry::default();
    registry.counter("weft_c_total", "C.", &[("type", "Service")]).increment(2);
    registry.counter("weft_c_total", "C.", &[("type", "Service")]).increment(3);
    registry.gauge("weft_ready", "Ready.", &[]).set(1.0);
    let text = registry.render(Format::Prometheus);
    assert!(text.contains("# HELP weft_c_total C.\n# TYPE weft_c_total counter\nweft_c_total{type=\"Service\"} 5\n"));
    assert!(text.contains("# TYPE weft_ready gauge\nweft_ready 1\n"));
}

#[test]
fn label_values_are_escaped_and_those_without_a_value_are_left_out() {
    let registry = Registry::default();
    registry.counter("weft_c_total", "C.", &[("n", ""), ("v", "a\"b\\c\nd")]).increment(1);
    assert!(registry.render(Format::Prometheus).contains(r#"weft_c_total{v="a\"b\\c\nd"} 1"#));
}

#[test]
fn openmetrics_has_exemplars_and_an_end_and_the_other_form_has_neither() {
    let registry = Registry::default();
    let timed = registry.series("t", &[("a", "b")], Timed::default);
    timed.0.record(Duration::from_millis(2), Some(TraceId([0xab; 16])));
    timed.0.record(Duration::from_secs(90), None);
    let text = registry.render(Format::OpenMetrics);
    let trace = "ab".repeat(16);
    let line = text.lines().find(|line| line.contains("le=\"0.0025\"")).expect("a bucket");
    assert!(
        line.starts_with(&format!("t_seconds_bucket{{a=\"b\",le=\"0.0025\"}} 1 # {{trace_id=\"{trace}\"}} 0.002 "))
    );
    assert!(text.contains("t_seconds_bucket{a=\"b\",le=\"+Inf\"} 2\n"), "no exemplar where no trace was recorded");
    assert!(text.contains("# TYPE weft_series_overflowed counter\nweft_series_overflowed_total 0\n"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    let text = registry.render(Format::Prometheus);
    assert!(!text.contains("trace_id") && !text.contains("EOF"), "{text}");
    assert!(text.contains("# TYPE weft_series_overflowed_total counter\n"));
}

#[test]
fn a_client_gets_the_form_that_it_asks_for() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
    assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
    for other in [None, Some("*/*"), Some("text/plain"), Some("application/openmetrics-text;q=0, text/plain")] {
        assert_eq!(Format::accepted(other), Format::Prometheus, "{other:?}");
    }
}

#[test]
fn a_series_goes_when_nobody_has_held_it_for_the_idle_time() {
    let (registry, start) = (Registry::default(), Instant::now());
    let counter = registry.counter_of("weft_c_total", "C.", &[("service", "a")]);
    counter.increment(7);
    let shown = |wanted: bool, what: &str| {
        assert_eq!(registry.render(Format::Prometheus).contains("weft_c_total{service=\"a\"} 7"), wanted, "{what}");
    };
    registry.expire(start);
    registry.expire(start + 10 * IDLE);
    shown(true, "it is held");
    drop(counter);
    let left = start + 20 * IDLE;
    registry.expire(left);
    registry.expire(left + IDLE - Duration::from_secs(1));
    shown(true, "not long enough");
    // Somebody asks for it: the time begins anew.
    drop(registry.counter_of("weft_c_total", "C.", &[("service", "a")]));
    registry.expire(left + IDLE);
    shown(true, "it came back");
    registry.expire(left + 2 * IDLE);
    shown(false, "nobody wants it");
}

#[test]
fn a_series_of_a_closed_set_stays() {
    let (registry, start) = (Registry::default(), Instant::now());
    registry.counter("weft_c_total", "C.", &[("result", "ok")]).increment(1);
    registry.expire(start);
    registry.expire(start + 2 * IDLE);
    assert!(registry.render(Format::Prometheus).contains("weft_c_total{result=\"ok\"} 1"));
}

#[test]
fn beyond_the_cap_all_share_a_series_and_are_counted() {
    let registry = Registry::new(10);
    for number in 0..100 {
        registry.counter("weft_c_total", "C.", &[("peer", &number.to_string())]).increment(1);
    }
    let text = registry.render(Format::Prometheus);
    assert_eq!(text.lines().filter(|line| line.starts_with("weft_c_total{")).count(), 11, "{text}");
    assert!(text.contains("weft_c_total{peer=\"overflow\"} 90\n"), "{text}");
    assert!(text.contains("weft_series_overflowed_total 90\n"), "{text}");
    assert!(text.contains("weft_series 11\n"), "{text}");
}

#[test]
fn series_beyond_the_cap_keep_their_direction_and_whether_they_are_secured() {
    let registry = Registry::new(0);
    for (direction, tls) in [("inbound", "mtls"), ("outbound", "mtls"), ("outbound", "none")] {
        for peer in ["a", "b"] {
            registry
                .counter("weft_c_total", "C.", &[("direction", direction), ("peer", peer), ("tls", tls)])
                .increment(1);
        }
    }
    let text = registry.render(Format::Prometheus);
    for line in [
        "weft_c_total{direction=\"inbound\",peer=\"overflow\",tls=\"mtls\"} 2\n",
        "weft_c_total{direction=\"outbound\",peer=\"overflow\",tls=\"mtls\"} 2\n",
        "weft_c_total{direction=\"outbound\",peer=\"overflow\",tls=\"none\"} 2\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

/// A series that makes another one when it is read, as a worker may at any time.
struct Busy(Registry);

impl Series for Busy {
    fn collect(&self, _: &Labels, _: &mut Collector) {
        self.0.counter("weft_made_total", "M.", &[]).increment(1);
    }
}

#[test]
fn series_can_be_made_while_others_are_read() {
    let registry = Registry::default();
    let numbers = 0..1000;
    let names: Vec<String> = numbers.map(|number| number.to_string()).collect();
    let held: Vec<_> =
        names.iter().map(|name| registry.series("busy", &[("n", name)], || Busy(registry.clone()))).collect();
    let (sender, read) = std::sync::mpsc::channel();
    let reader = registry.clone();
    std::thread::spawn(move || sender.send(reader.snapshot()));
    read.recv_timeout(Duration::from_secs(20)).expect("nobody waits for the reader");
    let text = registry.render(Format::Prometheus);
    assert!(
        text.contains("weft_made_total 2000\n") && text.contains("weft_series 1001\n"),
        "each is read once: {text}"
    );
    drop(held);
}

#[test]
fn a_source_of_what_comes_back_takes_the_place_of_the_one_before_and_goes_unread() {
    let (registry, start) = (Registry::default(), Instant::now());
    let labels = Labels::new(&[("service", "a")]);
    let say = |value: f64, alive: &std::sync::Arc<AtomicU64>| {
        let (alive, labels) = (std::sync::Arc::downgrade(alive), labels.clone());
        registry.source_of("upstream", &labels.clone(), move |out: &mut Collector| {
            out.gauge("weft_g", "G.", &labels, value);
            alive.upgrade().is_some()
        });
    };
    let (old, new) = (std::sync::Arc::new(AtomicU64::new(0)), std::sync::Arc::new(AtomicU64::new(0)));
    say(1.0, &old);
    say(2.0, &new);
    let text = registry.render(Format::Prometheus);
    assert!(text.contains("weft_g{service=\"a\"} 2\n") && text.matches("weft_g{").count() == 1, "{text}");
    assert_eq!(std::sync::Arc::weak_count(&old), 0, "nothing of it is left");
    drop(new);
    registry.expire(start);
    assert!(!registry.render(Format::Prometheus).contains("weft_g{"), "nobody has to read for it to go");
}

#[test]
fn a_source_that_has_no_more_to_say_is_dropped() {
    let registry = Registry::default();
    let asked = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&asked);
    registry.source(move |out| {
        counted.fetch_add(1, Ordering::Relaxed);
        out.gauge("weft_g", "G.", &Labels::new(&[]), 1.5);
        false
    });
    assert!(registry.render(Format::Prometheus).contains("weft_g 1.5\n"));
    assert!(!registry.render(Format::Prometheus).contains("weft_g"));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[test]
fn an_exemplar_is_never_a_mixture_of_two() {
    let histogram = Histogram::default();
    std::thread::scope(|scope| {
        for writer in 1..=3_u8 {
            let histogram = &histogram;
            // All three fall into the same bucket.
            let duration = Duration::from_micros(400 + u64::from(writer));
            scope.spawn(move || (0..50_000).for_each(|_| histogram.record(duration, Some(TraceId([writer; 16])))));
        }
        for _ in 0..50_000 {
            if let Some(exemplar) = histogram.value().exemplars[0] {
                let first = exemplar.trace.0[0];
                assert_eq!(exemplar.trace, TraceId([first; 16]));
                assert_eq!(exemplar.micros, 400 + u64::from(first));
            }
        }
    });
    assert_eq!(histogram.value().count(), 150_000);
}

#[test]
fn the_process_says_what_it_uses() {
    let registry = Registry::default();
    crate::process::register(&registry);
    let snapshot = registry.snapshot();
    let value = |name: &str| snapshot.samples(name).first().map(crate::Sample::number).expect("there");
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_resident_memory_bytes") > 100_000.0);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((now - 86_400.0..now + 5.0).contains(&value("process_start_time_seconds")));
}
