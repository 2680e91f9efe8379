//! `weft trace`: the newest traces that the control plane keeps, or one of them as a waterfall.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use serde_json::Value;

use crate::{
    args,
    listing::{self, Output, items, text},
    server::{Server, ServerArgs, with_query},
    style::{self, BAD, STRONG, WARNING},
    table::Table,
};

/// Columns of the bars.
const BAR: usize = 32;
/// Deepest indentation: what is below is drawn at this depth.
const DEEPEST: usize = 12;

/// Flags of `weft trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// A trace, as this command lists them [default: list the newest]
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// Traces with a span of this service only
    #[arg(long, value_name = "NAME", conflicts_with = "id")]
    pub service: Option<String>,
    /// Traces in which something failed only
    #[arg(long, conflicts_with = "id")]
    pub errors: bool,
    /// Traces with a span that took at least this long only
    #[arg(long, value_name = "TIME", value_parser = args::any_duration, conflicts_with = "id")]
    pub min_duration: Option<Duration>,
    /// Traces in the list
    #[arg(long, value_name = "N", default_value = "20", conflicts_with = "id")]
    pub limit: u32,
    /// Form of the listing
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the list or the waterfall.
pub async fn run(args: TraceArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    if let Some(id) = &args.id {
        let trace = server.get(&format!("/weft/v1/traces/{id}")).await?;
        match args.output {
            Output::Table | Output::Wide => anstream::print!("{}", waterfall(&trace, args.output == Output::Wide)),
            other => listing::print(other, &trace, std::slice::from_ref(id), &Table::default(), ""),
        }
        return Ok(server.exit_code());
    }
    let shortest = args.min_duration.map(|least| format!("{}ms", least.as_millis()));
    let limit = args.limit.to_string();
    let query = [
        ("service", args.service.as_deref()),
        ("errors", args.errors.then_some("true")),
        ("minDuration", shortest.as_deref()),
        ("limit", Some(limit.as_str())),
    ];
    let list = server.get(&with_query("/weft/v1/traces", &query)).await?;
    let names: Vec<String> = items(&list).iter().map(|item| text(item, "id")).collect();
    listing::print(args.output, &list, &names, &table(items(&list)), "no traces");
    Ok(server.exit_code())
}

fn table(traces: &[Value]) -> Table {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut table = Table::new(&["TRACE", "SERVICE", "NAME", "SPANS", "ERRORS", "TOOK", "AGO"]);
    for trace in traces {
        let errors = trace["errors"].as_u64().unwrap_or(0);
        let errors = if errors > 0 { style::paint(BAD, &errors.to_string()) } else { "-".to_owned() };
        let start = nanos(&trace["startUnixNano"]) / 1_000_000_000;
        let ago = listing::duration(i64::try_from(now.saturating_sub(start)).unwrap_or(i64::MAX));
        let took = took(trace["durationNanos"].as_u64().unwrap_or(0));
        let [id, service, name, spans] = ["id", "service", "name", "spans"].map(|field| text(trace, field));
        table.row([id, service, printable(&name), spans, errors, took, ago]);
    }
    table
}

/// One trace, a line for each span: who, what, when within the whole, how long, how it ended.
pub fn waterfall(trace: &Value, wide: bool) -> String {
    let spans = items(trace);
    let whole = trace["durationNanos"].as_u64().unwrap_or(0).max(1);
    let start = nanos(&trace["startUnixNano"]);
    let mut rows: Vec<[String; 4]> = Vec::new();
    for (depth, span) in ordered(spans) {
        let indent = "  ".repeat(depth.min(DEEPEST));
        let arrow = match text(span, "kind").as_str() {
            "client" => "→ ",
            "server" => "● ",
            _ => "· ",
        };
        let who = format!("{indent}{arrow}{}", printable(&text(span, "service")));
        let offset = nanos(&span["startUnixNano"]).saturating_sub(start);
        let length = span["durationNanos"].as_u64().unwrap_or(0);
        rows.push([who, printable(&text(span, "name")), bar(offset, length, whole), end(span, length)]);
    }
    let widths = [0, 1].map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let services: Vec<&str> = trace["services"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut out = format!(
        "{STRONG}trace {}{STRONG:#}  {}, {} in {}\n",
        text(trace, "id"),
        listing::number(spans.len(), "span"),
        services.join(", "),
        took(whole)
    );
    for ([who, name, bar, end], span) in rows.iter().zip(ordered(spans).into_iter().map(|(_, span)| span)) {
        let (a, b) = (widths[0], widths[1]);
        let line = format!("{who:<a$}  {name:<b$}  │{bar}│ {end}");
        out += line.trim_end();
        out.push('\n');
        let shown = |event: &&Value| wide || text(event, "name").starts_with("weft.");
        for event in span["events"].as_array().into_iter().flatten().filter(shown) {
            let details: Vec<String> = event["attributes"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| {
                    let value = printable(value.as_str().unwrap_or(&value.to_string()));
                    format!("{}={value}", key.rsplit('.').next().unwrap_or(key))
                })
                .collect();
            let name = text(event, "name");
            let note = format!("{} {}", name.strip_prefix("weft.").unwrap_or(&name), details.join(" "));
            out += &format!("{:<a$}  {}\n", "", style::paint(WARNING, note.trim_end()));
        }
    }
    out
}

/// The spans with their depth: children below their parent, by their start.
fn ordered(spans: &[Value]) -> Vec<(usize, &Value)> {
    let known = |id: &Value| spans.iter().any(|span| span["id"] == *id);
    let mut waiting: Vec<(usize, &Value)> =
        spans.iter().rev().filter(|span| !known(&span["parent"])).map(|span| (0, span)).collect();
    let mut found: Vec<(usize, &Value)> = Vec::with_capacity(spans.len());
    while let Some((depth, span)) = waiting.pop() {
        // Ids that are there twice, or a circle of parents, would never end.
        if found.len() >= spans.len() {
            break;
        }
        found.push((depth, span));
        let children = spans.iter().rev().filter(|child| child["parent"] == span["id"] && child["id"] != span["id"]);
        waiting.extend(children.map(|child| (depth + 1, child)));
    }
    found
}

/// Where within the whole.
fn bar(offset: u64, length: u64, whole: u64) -> String {
    let place = |nanos: u64| {
        let scaled = u128::from(nanos) * u128::try_from(BAR).unwrap_or(0) / u128::from(whole);
        usize::try_from(scaled).unwrap_or(BAR).min(BAR)
    };
    let from = place(offset).min(BAR - 1);
    let to = place(offset.saturating_add(length)).clamp(from + 1, BAR);
    format!("{}{}{}", " ".repeat(from), "█".repeat(to - from), " ".repeat(BAR - to))
}

/// How long it took, and how it ended.
fn end(span: &Value, length: u64) -> String {
    let attribute = |name: &str| match &span["attributes"][name] {
        Value::Null => None,
        Value::String(text) => Some(printable(text)),
        other => Some(other.to_string()),
    };
    let code = attribute("rpc.response.status_code").or_else(|| attribute("http.response.status_code"));
    let mut words = vec![format!("{:>8}", took(length))];
    words.extend(code);
    words.extend(attribute("weft.reason").or_else(|| attribute("error.type")).filter(|word| !words.contains(word)));
    let mut text = words.join(" ");
    if span["error"] == true {
        text = style::paint(BAD, &text);
    }
    if let Some(again) = attribute("http.request.resend_count") {
        text += &format!(" {}", style::paint(WARNING, &format!("retry {again}")));
    }
    text
}

/// `850 us`, `12.3 ms`, `1.20 s`.
fn took(nanos: u64) -> String {
    let micros = nanos / 1000;
    match micros {
        0..1000 => format!("{micros} us"),
        1000..1_000_000 => format!("{}.{} ms", micros / 1000, micros / 100 % 10),
        _ => format!("{}.{:02} s", micros / 1_000_000, micros / 10_000 % 100),
    }
}

fn nanos(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What apps and callers say is shown without the characters that terminals obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn span(id: &str, parent: Option<&str>, start: u64, length: u64) -> Value {
        json!({
            "id": id, "parent": parent, "kind": "server", "service": id, "name": "GET", "error": false,
            "startUnixNano": start.to_string(), "durationNanos": length, "attributes": {}, "events": [],
        })
    }

    fn plain(trace: &Value) -> Vec<String> {
        let text = anstream::adapter::strip_str(&waterfall(trace, false)).to_string();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn children_are_below_their_parent_by_their_start() {
        let mut again = span("c", Some("a"), 500, 500);
        again["attributes"] = json!({ "http.response.status_code": 200, "http.request.resend_count": 1 });
        let mut failed = span("b", Some("a"), 0, 250);
        failed["error"] = true.into();
        failed["attributes"] = json!({ "http.response.status_code": 503, "error.type": "503" });
        failed["events"] = json!([{ "name": "weft.retry", "attributes": { "weft.retry.after": "20ms" } }]);
        let spans = [span("a", None, 0, 1000), failed, again, span("d", Some("b"), 100, 100)];
        let trace = json!({
            "id": "t", "durationNanos": 1000, "startUnixNano": "0", "services": ["a", "b", "c", "d"], "items": spans,
        });
        let lines = plain(&trace);
        assert_eq!(lines[0], "trace t  4 spans, a, b, c, d in 1 us");
        let who: Vec<&str> = lines[1..].iter().map(|line| line.trim_start().split(' ').nth(1).unwrap_or("")).collect();
        assert_eq!(who, ["a", "b", "after=20ms", "d", "c"], "{lines:#?}");
        assert!(lines[1].contains(&format!("│{}│", "█".repeat(BAR))), "{}", lines[1]);
        assert!(lines[2].contains("503") && !lines[2].contains("503 503"), "{}", lines[2]);
        assert!(lines[5].ends_with("200 retry 1"), "{}", lines[5]);
        assert!(lines[5].contains(&format!("│{}{}│", " ".repeat(BAR / 2), "█".repeat(BAR / 2))), "{}", lines[5]);
    }

    #[test]
    fn spans_in_a_circle_or_with_one_id_end_and_terminals_obey_nobody() {
        let mut strange = span("a", Some("b"), 0, 1);
        strange["name"] = "\u{1b}[31mred".into();
        let spans = [strange, span("b", Some("a"), 0, 1), span("x", None, 0, 1), span("x", Some("x"), 0, 1)];
        let trace = json!({ "id": "t", "durationNanos": 1, "startUnixNano": "0", "services": [], "items": spans });
        let text = waterfall(&trace, true);
        assert!(!text.contains("\u{1b}[31mred"));
    }

    #[test]
    fn times_are_short() {
        for (nanos, text) in [(0, "0 us"), (999_000, "999 us"), (12_340_000, "12.3 ms"), (1_204_000_000, "1.20 s")] {
            assert_eq!(took(nanos), text);
        }
    }
}
