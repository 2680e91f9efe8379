//! `weft stat` and `weft edges`: what the sidecars count, by service, and by who calls whom.

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use http::Method;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    args,
    listing::{self, Output},
    numbers::{Answer, Item, bytes, colored, latency, rate},
    server::{Call, Server, ServerArgs, TIMEOUT, with_query},
    style::{self, GOOD, WARNING},
    table::Table,
    yaml,
};

/// Flags of `weft stat`.
#[derive(Args, Clone, Debug)]
pub struct StatArgs {
    #[command(flatten)]
    pub which: WhichArgs,
}

/// Flags of `weft edges`.
#[derive(Args, Clone, Debug)]
pub struct EdgesArgs {
    #[command(flatten)]
    pub which: WhichArgs,
}

/// Flags that both have.
#[derive(Args, Clone, Debug)]
pub struct WhichArgs {
    /// SERVICE or NAMESPACE/SERVICE [default: all services]
    #[arg(value_name = "SVC")]
    pub service: Option<String>,
    /// Only this namespace; of a SERVICE without one [default: all, and default for a SERVICE]
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Measure for this time [default: 1s, with --watch the last 10s]
    #[arg(long, value_name = "TIME", value_parser = args::any_duration)]
    pub window: Option<Duration>,
    /// Everything since the sidecars started, instead of a window
    #[arg(long, conflicts_with = "window")]
    pub since_start: bool,
    /// Show it again and again, until Ctrl-C
    #[arg(long, short)]
    pub watch: bool,
    /// Time between two looks with --watch
    #[arg(long, value_name = "TIME", value_parser = args::any_duration, default_value = "1s", requires = "watch")]
    pub interval: Duration,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What a listing is of.
#[derive(Clone, Copy)]
struct Listing {
    path: &'static str,
    table: fn(&Answer, bool) -> Table,
    name: fn(&Item) -> String,
    empty: &'static str,
}

/// `weft stat`.
pub async fn run(args: StatArgs) -> anyhow::Result<ExitCode> {
    let name = |item: &Item| item.called().to_owned();
    list(&args.which, Listing { path: "/weft/v1/stat", table: services, name, empty: "no traffic" }).await
}

/// `weft edges`.
pub async fn edges(args: EdgesArgs) -> anyhow::Result<ExitCode> {
    let name = |item: &Item| format!("{}->{}", item.caller(), item.called());
    list(&args.which, Listing { path: "/weft/v1/edges", table: pairs, name, empty: "no traffic" }).await
}

/// `namespace/name` of a service that was named.
pub fn full_name(service: &str, namespace: Option<&str>) -> String {
    if service.contains('/') { service.to_owned() } else { format!("{}/{service}", namespace.unwrap_or("default")) }
}

async fn list(args: &WhichArgs, of: Listing) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let path = with_query(of.path, &query(args).each_ref().map(|(name, value)| (*name, value.as_deref())));
    if !args.watch {
        let value = server
            .call_within(Call::new(Method::GET, &path), args.window.unwrap_or_default().saturating_add(TIMEOUT))
            .await?;
        let answer = answer(&value, server.url())?;
        let names: Vec<String> = answer.items.iter().map(of.name).collect();
        let wide = args.output == Output::Wide;
        listing::print(args.output, &value, &names, &(of.table)(&answer, wide), of.empty);
        tell(args.output, &answer);
        return Ok(if answer.sidecars.silent > 0 { ExitCode::from(3) } else { server.exit_code() });
    }
    let mut lines = server.lines(&path).await?;
    let mut silent = false;
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(value) = line else { break };
        let answer = answer(&value, server.url())?;
        silent = answer.sidecars.silent > 0;
        again(args.output, &value, &answer, of);
    }
    Ok(if silent { ExitCode::from(3) } else { server.exit_code() })
}

fn query(args: &WhichArgs) -> [(&'static str, Option<String>); 6] {
    let seconds = |time: Duration| time.as_secs().max(1).to_string();
    let service = args.service.as_ref().map(|service| full_name(service, args.namespace.as_deref()));
    let namespace = args.namespace.clone().filter(|_| service.is_none());
    [
        ("service", service),
        ("namespace", namespace),
        ("window", args.window.map(seconds)),
        ("since", args.since_start.then(|| "start".to_owned())),
        ("watch", args.watch.then(|| "true".to_owned())),
        ("interval", args.watch.then(|| seconds(args.interval))),
    ]
}

/// The JSON as numbers.
pub fn answer(value: &Value, url: &str) -> anyhow::Result<Answer> {
    Answer::deserialize(value).with_context(|| format!("{url}: not the expected JSON; do the versions match?"))
}

/// Of which time it is, and what is missing, beside what is printed.
fn tell(output: Output, answer: &Answer) {
    if matches!(output, Output::Table | Output::Wide) {
        anstream::eprintln!("{}", answer.about());
    }
    if let Some(missing) = answer.missing() {
        style::warn(&missing);
    }
}

/// One more listing of those that go on: on a terminal in place of the one before.
fn again(output: Output, value: &Value, answer: &Answer, of: Listing) {
    match output {
        Output::Json => anstream::println!("{value}"),
        Output::Yaml => anstream::print!("---\n{}", yaml::text(value)),
        Output::Name => answer.items.iter().for_each(|item| anstream::println!("{}", listing::shown(&(of.name)(item)))),
        Output::Table | Output::Wide => {
            if std::io::stdout().is_terminal() {
                // Clears the screen, and goes to its beginning.
                anstream::print!("\x1b[2J\x1b[H");
            }
            (of.table)(answer, output == Output::Wide).print();
            let missing = answer.missing().map_or_else(String::new, |missing| format!("; {missing}"));
            anstream::println!("{}{missing}\n", answer.about());
        }
    }
}

fn services(answer: &Answer, wide: bool) -> Table {
    let timed = answer.window.seconds.is_some();
    let mut heading = vec!["SERVICE", "SUCCESS", if timed { "RPS" } else { "REQUESTS" }, "P50", "P95", "P99", "MTLS"];
    heading.extend(["RETRIES", "ACTUAL"]);
    if wide {
        heading.extend(["REQUESTS", "FAILED", "TCP", "SENT", "RECEIVED"].into_iter().skip(usize::from(!timed)));
    }
    let mut table = Table::new(&heading);
    for item in &answer.items {
        let mut row = vec![listing::shown(item.called()), colored(item.success_rate)];
        row.push(if timed { rate(item.requests_per_second) } else { item.requests.to_string() });
        row.extend([item.latency_ms.p50, item.latency_ms.p95, item.latency_ms.p99].map(latency));
        row.extend([secured(item), item.retries.to_string(), crate::numbers::percent(item.actual_success_rate)]);
        if wide {
            let counts = [item.requests.to_string(), item.failed.to_string(), item.connections()];
            row.extend(counts.into_iter().skip(usize::from(!timed)));
            row.extend([item.tcp.sent_bytes, item.tcp.received_bytes].map(bytes));
        }
        table.row(row);
    }
    table
}

fn pairs(answer: &Answer, wide: bool) -> Table {
    let timed = answer.window.seconds.is_some();
    let mut heading = vec!["FROM", "TO", "MTLS", "SUCCESS", if timed { "RPS" } else { "REQUESTS" }, "P99", "TCP"];
    if wide {
        heading.extend(["P50", "P95", "REQUESTS", "FAILED", "RETRIES", "SENT", "RECEIVED", "IDENTITY"]);
    }
    let mut table = Table::new(&heading);
    for item in &answer.items {
        let mut row = vec![
            listing::shown(&item.caller()),
            listing::shown(item.called()),
            secured(item),
            colored(item.success_rate),
        ];
        row.push(if timed { rate(item.requests_per_second) } else { item.requests.to_string() });
        row.extend([latency(item.latency_ms.p99), item.connections()]);
        if wide {
            row.extend([item.latency_ms.p50, item.latency_ms.p95].map(latency));
            row.extend([item.requests, item.failed, item.retries].map(|count| count.to_string()));
            row.extend([item.tcp.sent_bytes, item.tcp.received_bytes].map(bytes));
            row.push(if item.from.identity.is_empty() { "-".to_owned() } else { listing::shown(&item.from.identity) });
        }
        table.row(row);
    }
    table
}

fn secured(item: &Item) -> String {
    let text = item.secured();
    match item.mtls_share {
        Some(share) if share >= 1.0 => style::paint(GOOD, &text),
        Some(_) => style::paint(WARNING, &text),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub fn example() -> Value {
        json!({
            "window": {"seconds": 1.0, "sinceStart": false}, "sidecars": {"counted": 2, "silent": 0},
            "items": [{
                "service": "shop/catalog:80", "from": {"namespace": "shop", "name": "web", "identity": "spiffe://x/y"},
                "to": {"service": "shop/catalog:80"}, "requests": 200, "failed": 1, "successRate": 0.995,
                "requestsPerSecond": 200.0, "latencyMs": {"p50": 1.25, "p95": 20.0, "p99": 250.0}, "mtlsShare": 1.0,
                "retries": 5, "actualSuccessRate": 0.970_732, "tcp": {"open": 1, "closed": 2, "sentBytes": 2048},
            }],
        })
    }

    fn plain(table: &Table) -> String {
        anstream::adapter::strip_str(&table.render(None)).to_string()
    }

    #[test]
    fn a_service_is_one_line_with_success_as_seen_and_as_it_was() {
        let answer = answer(&example(), "").unwrap();
        let text = plain(&services(&answer, false));
        assert!(
            text.starts_with("SERVICE          SUCCESS  RPS  P50    P95     P99    MTLS  RETRIES  ACTUAL\n"),
            "{text}"
        );
        assert!(
            text.ends_with("shop/catalog:80  99.50 %  200  1.2ms  20.0ms  250ms  mTLS  5        97.07 %\n"),
            "{text}"
        );
        let wide = plain(&services(&answer, true));
        assert!(wide.contains("200       1       1+2  2.0KiB  0B"), "{wide}");
    }

    #[test]
    fn names_do_not_move_the_cursor_of_a_terminal() {
        let mut value = example();
        value["items"][0]["service"] = "shop/\u{9b}2J".into();
        value["items"][0]["from"]["name"] = "\x1b[2J".into();
        let answer = answer(&value, "").unwrap();
        for text in [services(&answer, true).render(None), pairs(&answer, true).render(None)] {
            assert!(text.contains("\\u{9b}2J") && !text.contains("\x1b[2J"), "{text:?}");
        }
    }

    #[test]
    fn an_edge_says_who_calls_whom_and_whether_over_mutual_tls() {
        let mut value = example();
        value["items"][0]["service"].take();
        value["items"][0].as_object_mut().unwrap().remove("service");
        let mut outside = value["items"][0].clone();
        outside["from"] = json!({"outside": true});
        outside["mtlsShare"] = json!(0.0);
        value["items"].as_array_mut().unwrap().push(outside);
        let answer = answer(&value, "").unwrap();
        let text = plain(&pairs(&answer, false));
        assert!(text.contains("shop/web   shop/catalog:80  mTLS       99.50 %  200  250ms  1+2\n"), "{text}");
        assert!(text.contains("(outside)  shop/catalog:80  plaintext  99.50 %"), "{text}");
        assert!(plain(&pairs(&answer, true)).contains("spiffe://x/y\n"));
    }

    #[test]
    fn since_the_start_there_is_no_rate_and_the_answer_says_so() {
        let mut value = example();
        value["window"] = json!({"seconds": null, "sinceStart": true});
        value["sidecars"]["silent"] = json!(1);
        let answer = answer(&value, "").unwrap();
        assert!(plain(&services(&answer, false)).starts_with("SERVICE          SUCCESS  REQUESTS"));
        assert_eq!(answer.about(), "since the sidecars started, 2 sidecars");
        assert_eq!(answer.missing().unwrap(), "1 sidecar did not answer: their numbers are missing");
    }

    #[test]
    fn a_service_without_a_namespace_is_in_the_one_that_is_given_or_default() {
        assert_eq!(full_name("catalog", None), "default/catalog");
        assert_eq!(full_name("catalog", Some("shop")), "shop/catalog");
        assert_eq!(full_name("bank/vault", Some("shop")), "bank/vault");
    }
}
