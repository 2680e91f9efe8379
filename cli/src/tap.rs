//! `weft tap`: requests as they end, a line each. What does not get through is counted, and told at the end.

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    args,
    listing::{Output, json, number, shown, text},
    numbers::latency,
    server::{Server, ServerArgs, with_query},
    stat::full_name,
    style::{self, BAD, GOOD, WARNING},
    yaml,
};

/// Flags of `weft tap`.
#[derive(Args, Clone, Debug)]
pub struct TapArgs {
    /// Requests for this service: SERVICE or NAMESPACE/SERVICE [default: all]
    #[arg(value_name = "SVC")]
    pub service: Option<String>,
    /// Requests that sidecars of this namespace see; of a SERVICE without one
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Requests with this method
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Requests whose path begins so
    #[arg(long, value_name = "PREFIX")]
    pub path: Option<String>,
    /// Requests with this status, such as 503, 5xx or 500-504
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// Requests whose other end has this identity: a SPIFFE id or NAMESPACE/SERVICE-ACCOUNT
    #[arg(long, value_name = "ID")]
    pub peer: Option<String>,
    /// Requests that leave apps, or that come to them [default: both]
    #[arg(long, value_enum)]
    pub direction: Option<Way>,
    /// End after so many requests
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// End after this time, 10m at most
    #[arg(long, value_name = "TIME", value_parser = args::any_duration)]
    pub duration: Option<Duration>,
    /// Requests in one second of each sidecar, 1000 at most; more are dropped and counted [default: 100]
    #[arg(long, value_name = "N")]
    pub max_rate: Option<u32>,
    /// Show query strings, which may hold secrets; for administrators
    #[arg(long)]
    pub query: bool,
    /// Form of the lines; name is the trace, for weft trace
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Which way requests go, seen from the app.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Way {
    Inbound,
    Outbound,
}

/// Shows requests until the limit, the time or Ctrl-C; exit code 3 when some were dropped.
pub async fn run(args: TapArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let path = path(&args);
    let mut lines = server.lines(&path).await?;
    let (mut shown, mut dropped) = (0_u64, 0);
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { break };
        match line["type"].as_str() {
            Some("STARTED") => started(&line),
            Some("REQUEST") => {
                shown += 1;
                print(args.output, &line);
            }
            Some("STATUS" | "ENDED") => dropped = line["dropped"].as_u64().unwrap_or(dropped),
            _ => {}
        }
    }
    let shown = number(usize::try_from(shown).unwrap_or(usize::MAX), "request");
    if dropped == 0 {
        anstream::eprintln!("{shown}");
        return Ok(server.exit_code());
    }
    style::warn(&format!("{shown} shown, {dropped} dropped: narrow the filter, or raise --max-rate"));
    Ok(ExitCode::from(3))
}

fn path(args: &TapArgs) -> String {
    let service = args.service.as_ref().map(|service| full_name(service, args.namespace.as_deref()));
    let namespace = args.namespace.as_deref().filter(|_| service.is_none());
    let direction = args.direction.map(|way| if way == Way::Inbound { "inbound" } else { "outbound" });
    let [limit, seconds, rate] = [
        args.limit.map(|limit| limit.to_string()),
        args.duration.map(|time| time.as_secs().max(1).to_string()),
        args.max_rate.map(|rate| rate.to_string()),
    ];
    let query = [
        ("service", service.as_deref()),
        ("namespace", namespace),
        ("method", args.method.as_deref()),
        ("path", args.path.as_deref()),
        ("status", args.status.as_deref()),
        ("peer", args.peer.as_deref()),
        ("direction", direction),
        ("limit", limit.as_deref()),
        ("timeoutSeconds", seconds.as_deref()),
        ("maxRate", rate.as_deref()),
        ("query", args.query.then_some("true")),
    ];
    with_query("/weft/v1/tap", &query)
}

fn started(line: &Value) {
    let count = |field: &str| line[field].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    anstream::eprintln!("tapping {}; Ctrl-C ends it", number(count("sidecars"), "sidecar"));
    if count("silent") > 0 {
        style::warn(&format!("{} did not answer", number(count("silent"), "sidecar")));
    }
}

fn print(output: Output, line: &Value) {
    match output {
        Output::Json => anstream::println!("{}", json(line, false)),
        Output::Yaml => anstream::print!("---\n{}", yaml::text(line)),
        Output::Name => anstream::println!("{}", shown(&text(line, "traceId"))),
        Output::Table | Output::Wide => anstream::println!("{}", row(line, output == Output::Wide)),
    }
}

/// One request for people. Texts of callers are escaped: a path must not move a terminal's cursor.
fn row(line: &Value, wide: bool) -> String {
    let workload = format!("{}/{}", text(&line["workload"], "namespace"), text(&line["workload"], "name"));
    let identity = text(&line["peer"], "identity");
    let other = match identity.split_once("/ns/") {
        Some((_, rest)) => rest.replacen("/sa/", "/", 1),
        None if identity.is_empty() => {
            Some(text(&line["peer"], "address")).filter(|at| !at.is_empty()).unwrap_or_else(|| "-".to_owned())
        }
        None => identity.clone(),
    };
    let outbound = line["direction"] == "outbound";
    let service = Some(text(line, "service")).filter(|service| !service.is_empty()).unwrap_or_else(|| other.clone());
    let (way, from, to) = if outbound { ("out", workload, service) } else { ("in ", other.clone(), workload) };
    let time = text(line, "time");
    let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let status = match line["status"].as_u64() {
        None => style::paint(BAD, "---"),
        Some(status) => {
            let style = if status >= 500 {
                BAD
            } else if status >= 400 {
                WARNING
            } else {
                GOOD
            };
            style::paint(style, &status.to_string())
        }
    };
    let tls = if line["mtls"] == true { "mTLS" } else { "plaintext" };
    let took = latency(line["durationUs"].as_f64().map(|us| us / 1000.0));
    let mut row = format!(
        "{time:<12} {way} {} -> {} {tls} {} {} {status} {took}",
        shown(&from),
        shown(&to),
        shown(&text(line, "method")),
        shown(&text(line, "path")),
    );
    let mut more = |name: &str, value: String| {
        if !value.is_empty() {
            row.push_str(&format!(" {name}={}", shown(&value)));
        }
    };
    more("grpc", text(line, "grpcStatus"));
    more("reason", text(line, "reason"));
    let attempts = line["attempts"].as_u64().unwrap_or(1);
    more("attempts", if attempts > 1 { attempts.to_string() } else { String::new() });
    if wide {
        more("authority", text(line, "authority"));
        more("peer", if identity.is_empty() { text(&line["peer"], "address") } else { identity });
        more("route", text(line, "route"));
        more("protocol", text(line, "protocol"));
        more("trace", text(line, "traceId"));
    }
    row
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::args::{Cli, Command};

    fn example() -> Value {
        json!({
            "type": "REQUEST", "time": "2026-11-28T20:01:02.345Z", "direction": "outbound",
            "workload": {"namespace": "shop", "name": "web-x1", "identity": "spiffe://weft.local/ns/shop/sa/web"},
            "peer": {"identity": "spiffe://weft.local/ns/shop/sa/catalog", "address": "10.0.0.2:15008"}, "mtls": true,
            "service": "shop/catalog:80", "method": "GET", "authority": "catalog", "path": "/items", "status": 503,
            "reason": "no_endpoints", "durationUs": 1234, "attempts": 3, "protocol": "HTTP/2", "traceId": "4bf9",
        })
    }

    fn plain(line: &Value, wide: bool) -> String {
        anstream::adapter::strip_str(&row(line, wide)).to_string()
    }

    #[test]
    fn a_request_is_one_line_whichever_way_it_goes() {
        let out =
            "20:01:02.345 out shop/web-x1 -> shop/catalog:80 mTLS GET /items 503 1.2ms reason=no_endpoints attempts=3";
        assert_eq!(plain(&example(), false), out);
        let mut inbound = example();
        inbound["direction"] = "inbound".into();
        inbound["status"] = 200.into();
        assert!(plain(&inbound, false).starts_with("20:01:02.345 in  shop/catalog -> shop/web-x1 mTLS GET /items 200"));
        inbound["peer"] = json!({"identity": null, "address": "10.0.0.9:0"});
        inbound["mtls"] = false.into();
        assert!(plain(&inbound, false).contains("10.0.0.9:0 -> shop/web-x1 plaintext"), "{}", plain(&inbound, false));
        assert!(plain(&example(), true).ends_with("protocol=HTTP/2 trace=4bf9"));
    }

    #[test]
    fn a_path_does_not_move_the_cursor_of_a_terminal() {
        let mut line = example();
        line["path"] = "/a\x1b[2J\nb\u{9b}c".into();
        let text = row(&line, false);
        assert!(text.contains("/a\\u{1b}[2J\\u{a}b\\u{9b}c"), "{text:?}");
    }

    #[test]
    fn a_request_of_hours_has_a_duration() {
        let mut line = example();
        line["durationUs"] = 7_200_000_000_u64.into();
        assert!(!plain(&line, false).contains("503 - "), "{}", plain(&line, false));
    }

    #[test]
    fn flags_become_the_query() {
        let cli = Cli::try_parse_from([
            "weft",
            "tap",
            "catalog",
            "-n",
            "shop",
            "--method",
            "GET",
            "--path",
            "/a b",
            "--status",
            "5xx",
            "--peer",
            "shop/web",
            "--direction",
            "inbound",
            "--limit",
            "5",
            "--duration",
            "2m",
            "--max-rate",
            "7",
            "--query",
        ]);
        let Command::Tap(args) = cli.unwrap().command else { panic!("not tap") };
        let expected = "/weft/v1/tap?service=shop%2Fcatalog&method=GET&path=%2Fa+b&status=5xx&peer=shop%2Fweb\
             &direction=inbound&limit=5&timeoutSeconds=120&maxRate=7&query=true";
        assert_eq!(path(&args), expected);
    }
}
