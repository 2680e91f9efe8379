//! `weft explain`: which rule a request meets, why not the others, where it goes, and where each setting comes from.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use crate::{
    listing::{self, Output, text},
    server::{Server, ServerArgs, with_query},
    style::{self, BAD, GOOD, STRONG},
    table::Table,
};

/// Flags of `weft explain`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 when the request would be sent somewhere, also when the workloads there would refuse \
                        the caller; 3 when it would not."
)]
pub struct ExplainArgs {
    /// Method of the request
    #[arg(value_parser = method)]
    pub method: Method,
    /// URL of the request, such as http://catalog.shop/items?sort=name
    #[arg(value_parser = url)]
    pub url: Uri,
    /// Workload that would send it, as NAME or NAMESPACE/NAME
    #[arg(long, value_name = "WORKLOAD")]
    pub from: Option<String>,
    /// Namespace of the caller: what a host without one means
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// A header of the request, as NAME:VALUE; may be repeated
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    pub headers: Vec<String>,
    /// Form of the answer
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the answer: exit code 3 when the request would not be sent anywhere. That a workload would refuse it is part
/// of the answer, and no failure.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let answer = server.get(&path(&args)).await;
    let answer = answer.with_context(|| format!("explain {} {}", args.method, args.url))?;
    let names = [format!("{} {}", text(&answer, "route"), text(&answer, "rule")).trim().to_owned()];
    let names = names.map(|name| if name.is_empty() { "-".to_owned() } else { name });
    match args.output {
        Output::Table | Output::Wide => anstream::print!("{}", render(&answer, style::width())),
        output => listing::print(output, &answer, &names, &Table::default(), ""),
    }
    let missed = list(&answer, "backends").is_empty() || answer["status"].is_number();
    Ok(if missed { ExitCode::from(3) } else { server.exit_code() })
}

fn path(args: &ExplainArgs) -> String {
    let url = args.url.to_string();
    let mut pairs = vec![("method", Some(args.method.as_str())), ("url", Some(url.as_str()))];
    let from = match &args.from {
        Some(from) if from.contains('/') => from.clone(),
        Some(from) => format!("{}/{from}", args.namespace),
        None => args.namespace.clone(),
    };
    pairs.push(("from", Some(&from)));
    pairs.extend(args.headers.iter().map(|header| ("header", Some(header.as_str()))));
    with_query("/weft/v1/explain", &pairs)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn render(answer: &Value, width: Option<usize>) -> String {
    let mut shown = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            shown.push_str(&format!("{STRONG}{:<11}{STRONG:#}{value}\n", format!("{name}:")));
        }
    };
    let or_none = |value: String| if value.is_empty() { "none".to_owned() } else { value };
    line("Service", or_none(text(answer, "service")));
    line("Port", [text(answer, "port"), text(answer, "protocol")].join(" ").trim().to_owned());
    line("Route", route(answer));
    line("Rule", text(answer, "rule"));
    line("Because", text(answer, "because"));
    let status = text(answer, "status");
    line("Answer", if status.is_empty() { status } else { style::paint(BAD, &format!("{status} from the sidecar")) });
    line("Endpoints", answer["healthyEndpoints"].as_u64().map_or(String::new(), |count| format!("{count} healthy")));
    let mut why = Table::new(&["", "RULE", "MATCH", "BECAUSE"]);
    for step in list(answer, "why") {
        let wins = step["wins"].as_bool().unwrap_or(step["matched"] == true);
        let mark = if wins { style::paint(GOOD, "✓") } else { "-".to_owned() };
        let rule = [text(step, "route"), text(step, "rule")].join(" ").trim().to_owned();
        why.row([mark, rule, text(step, "conditions"), text(step, "because")]);
    }
    let mut backends = Table::new(&["BACKEND", "PORT", "WEIGHT", "SHARE"]);
    for backend in list(answer, "backends") {
        let service = if backend["invalid"] == true { "invalid: 500".to_owned() } else { text(backend, "service") };
        backends.row([service, text(backend, "port"), text(backend, "weight"), share(&backend["share"])]);
    }
    let mut settings = Table::new(&["SETTING", "VALUE", "FROM"]);
    for section in ["effective", "timeouts", "retries"] {
        rows(section.trim_start_matches("effective"), &answer[section], &mut settings);
    }
    let mut differing = Table::new(&["BACKEND", "SETTING", "VALUE", "FROM"]);
    for backend in list(answer, "backends") {
        let of = format!("{}:{}", text(backend, "service"), text(backend, "port"));
        for (name, setting) in backend["effective"].as_object().into_iter().flatten() {
            differing.row([of.clone(), name.clone(), text(setting, "value"), text(setting, "origin")]);
        }
    }
    let mut faults = Table::new(&["FAULT", "DELAY", "ABORT", "BANDWIDTH", "UNTIL"]);
    for fault in list(answer, "faults") {
        faults.row(["origin", "delay", "abort", "bandwidth", "until"].map(|name| text(fault, name)));
    }
    let mut limits = Table::new(&["RATE LIMIT", "VALUE"]);
    for limit in list(answer, "rateLimits") {
        limits.row([text(limit, "origin"), text(limit, "value")]);
    }
    let mut access = Table::new(&["WORKLOAD", "PORT", "MODE", "CALLER", "VERDICT", "BECAUSE"]);
    let mut policies = Table::new(&["", "POLICY", "ACTION", "DRY-RUN", "PORT"]);
    let mut tokens = Table::new(&["POLICY", "ISSUERS", "WITHOUT A TOKEN", "WITH A TOKEN", "PORT"]);
    for entry in list(answer, "access") {
        let columns = ["workload", "port", "mode", "caller", "verdict", "because"];
        let mut cells = columns.map(|name| text(entry, name));
        let origin = text(entry, "modeOrigin");
        if !origin.is_empty() {
            cells[2] = format!("{} ({origin})", cells[2]);
        }
        access.row(cells);
        let at = format!("{}:{}", text(entry, "workload"), text(entry, "port"));
        for policy in list(entry, "authentication") {
            let issuers = list(policy, "issuers").iter().map(|issuer| text(issuer, "issuer")).collect::<Vec<_>>();
            let [name, without, with] = ["name", "withoutToken", "withToken"].map(|field| text(policy, field));
            tokens.row([name, issuers.join(", "), without, with, at.clone()]);
        }
        for policy in list(entry, "policies") {
            let mark = if policy["matches"] == true { style::paint(GOOD, "✓") } else { "-".to_owned() };
            policies.row([mark, text(policy, "name"), text(policy, "action"), text(policy, "dryRun"), at.clone()]);
        }
    }
    let tables = [
        ("Why", why),
        ("Backends", backends),
        ("Settings", settings),
        ("Settings in which the backends differ", differing),
        ("Faults", faults),
        ("Rate limits", limits),
        ("Access", access),
        ("Policies that decide on access", policies),
        ("Tokens (RequestAuthentication)", tokens),
    ];
    for (name, table) in tables {
        if !table.is_empty() {
            shown.push_str(&format!("\n{STRONG}{name}{STRONG:#}\n{}", table.render(width)));
        }
    }
    shown
}

/// The route, or why there is none.
fn route(answer: &Value) -> String {
    let route = text(answer, "route");
    match text(answer, "decision").as_str() {
        _ if !route.is_empty() => route,
        "service" => "none: the service's own endpoints".to_owned(),
        "no_route" => "none matches".to_owned(),
        _ => "none".to_owned(),
    }
}

/// Values with their origins: `{name: {value, origin}}`, or `{name: value}`.
fn rows(prefix: &str, value: &Value, table: &mut Table) {
    for (name, setting) in value.as_object().into_iter().flatten() {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match setting {
            Value::Object(fields) if fields.contains_key("value") => {
                table.row([name, text(setting, "value"), text(setting, "origin")]);
            }
            Value::Object(_) => rows(&name, setting, table),
            _ => table.row([name.clone(), text(value, name.rsplit('.').next().unwrap_or_default()), String::new()]),
        }
    }
}

/// A part of 1 as per cent; text as it is.
fn share(value: &Value) -> String {
    match value.as_f64() {
        Some(part) => format!("{:.0} %", part * 100.0),
        None => value.as_str().unwrap_or_default().to_owned(),
    }
}

fn method(text: &str) -> Result<Method, String> {
    let method = text.to_uppercase().parse::<Method>().map_err(|_| format!("{text:?} is not an HTTP method"))?;
    if text.contains("://") {
        return Err("the method comes before the URL: weft explain GET http://...".to_owned());
    }
    Ok(method)
}

fn url(text: &str) -> Result<Uri, String> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: Uri = whole.parse().map_err(|error| format!("not a URL: {error}"))?;
    match uri.host() {
        Some(host) if !host.is_empty() => Ok(uri),
        _ => Err("the host is missing: http://SERVICE/PATH".to_owned()),
    }
}

fn header(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME:VALUE")?;
    let (name, value) = (name.trim(), value.trim());
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header's name"))?;
    HeaderValue::from_str(value).map_err(|_| format!("{value:?} is not a header's value"))?;
    Ok(format!("{name}:{value}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn the_request_is_asked_about_as_it_is_written() {
        let line =
            ["weft", "explain", "get", "catalog.shop/items?a=b", "-H", "x-user: ann", "-H", "a:b", "--from", "s/w"];
        let Command::Explain(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not explain") };
        assert_eq!(
            path(&args),
            "/weft/v1/explain?method=GET&url=http%3A%2F%2Fcatalog.shop%2Fitems%3Fa%3Db&from=s%2Fw\
             &header=x-user%3Aann&header=a%3Ab"
        );
        for bad in [["GET", "http://"], ["G T", "a"], ["http://a", "GET"]] {
            let line = ["weft", "explain"].into_iter().chain(bad);
            assert_eq!(Cli::try_parse_from(line).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        assert!(header("no value").is_err() && header("a b:c").is_err());
    }

    #[test]
    fn a_workload_without_a_namespace_is_in_the_one_of_the_flag() {
        for (flags, expected) in
            [(vec![], "default"), (vec!["-n", "s"], "s"), (vec!["-n", "s", "--from", "w"], "s%2Fw")]
        {
            let line = ["weft", "explain", "GET", "http://a/"].into_iter().chain(flags);
            let Command::Explain(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not explain") };
            assert!(path(&args).ends_with(&format!("&from={expected}")), "{}", path(&args));
        }
    }

    #[test]
    fn an_answer_is_told_with_its_reasons_and_shares() {
        let answer = json!({"service": "shop/catalog", "port": 80, "protocol": "http", "decision": "route",
            "route": "shop/canary", "rule": "v2", "healthyEndpoints": 2, "why": [
            {"rule": "shop/canary#v1", "conditions": "under /a", "matched": false, "wins": false, "because": "path"},
            {"rule": "shop/canary#v2", "conditions": "any path", "matched": true, "wins": true, "because": "first"},
            {"rule": "shop/canary#v3", "conditions": "any path", "matched": true, "wins": false, "because": "later"}],
            "backends": [{"service": "shop/catalog-v2", "port": 80, "weight": 1, "share": 0.25},
                {"invalid": true, "weight": 3, "share": 0.75}],
            "effective": {"timeouts.request": {"value": "1s", "origin": "HTTPRoute shop/canary"}}});
        let shown = anstream::adapter::strip_str(&render(&answer, None)).to_string();
        assert!(
            shown.starts_with("Service:   shop/catalog\nPort:      80 http\nRoute:     shop/canary\nRule:      v2\n"),
            "{shown}"
        );
        assert!(
            shown.contains("\n✓  shop/canary#v2  any path  first\n-  shop/canary#v3  any path  later\n"),
            "{shown}"
        );
        assert!(
            shown.contains("shop/catalog-v2  80    1       25 %\ninvalid: 500           3       75 %\n"),
            "{shown}"
        );
        assert!(shown.contains("timeouts.request  1s     HTTPRoute shop/canary\n"), "{shown}");
        let settings = json!({"timeouts": {"idle": "5m", "request": {"value": "1s", "origin": "x"}}});
        let shown = anstream::adapter::strip_str(&render(&settings, None)).to_string();
        assert!(shown.contains("timeouts.idle     5m\ntimeouts.request  1s     x\n"), "{shown}");
    }

    #[test]
    fn what_backends_differ_in_faults_and_rate_limits_have_tables_of_their_own() {
        let answer = json!({
            "backends": [{"service": "shop/a", "port": 80, "weight": 1, "share": 1.0,
                "effective": {"limits.requests": {"value": "7", "origin": "TrafficPolicy shop/a"}}}],
            "faults": [{"origin": "FaultInjection shop/slow", "delay": "1s for 50 %", "until": "2027-01-15T09:00:00Z"}],
            "rateLimits": [{"origin": "RateLimitPolicy shop/fair#0", "value": "5 per second"}]});
        let shown = anstream::adapter::strip_str(&render(&answer, None)).to_string();
        for line in [
            "shop/a:80  limits.requests  7      TrafficPolicy shop/a\n",
            "FaultInjection shop/slow  1s for 50 %                    2027-01-15T09:00:00Z\n",
            "RateLimitPolicy shop/fair#0  5 per second\n",
        ] {
            assert!(shown.contains(line), "{line}{shown}");
        }
    }

    #[test]
    fn who_is_let_in_is_told_with_mode_reason_and_every_policy() {
        let answer = json!({"access": [
            {"workload": "shop/db", "port": 5432, "mode": "Strict", "modeOrigin": "PeerAuthentication shop/db",
                "caller": "spiffe://td/ns/shop/sa/web", "verdict": "denied", "because": "AuthorizationPolicy shop/no denies it",
                "authentication": [{"name": "shop/users", "issuers": [{"issuer": "https://id"}, {"issuer": "https://b"}],
                    "withoutToken": "401", "withToken": "goes on"}],
                "policies": [
                    {"name": "shop/no", "action": "Deny", "dryRun": false, "matches": true},
                    {"name": "shop/yes", "action": "Allow", "dryRun": true, "matches": false}]},
            {"workload": "bank/*", "verdict": "not shown", "because": "you may not look into namespace bank"}]});
        let shown = anstream::adapter::strip_str(&render(&answer, None)).to_string();
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        for expected in [
            vec!["WORKLOAD", "PORT", "MODE", "CALLER", "VERDICT", "BECAUSE"],
            vec![
                "shop/db",
                "5432",
                "Strict (PeerAuthentication shop/db)",
                "spiffe://td/ns/shop/sa/web",
                "denied",
                "AuthorizationPolicy shop/no denies it",
            ],
            vec!["bank/*", "not shown", "you may not look into namespace bank"],
            vec!["✓", "shop/no", "Deny", "false", "shop/db:5432"],
            vec!["-", "shop/yes", "Allow", "true", "shop/db:5432"],
            vec!["shop/users", "https://id, https://b", "401", "goes on", "shop/db:5432"],
        ] {
            assert!(lines.contains(&expected), "{expected:?}\n{shown}");
        }
    }

    #[test]
    fn without_a_route_it_is_told_where_requests_go() {
        for (decision, told) in [("service", "none: the service's own endpoints"), ("no_route", "none matches")] {
            let shown = anstream::adapter::strip_str(&render(&json!({"decision": decision}), None)).to_string();
            assert_eq!(shown, format!("Service:   none\nRoute:     {told}\n"));
        }
    }

    #[test]
    fn an_answer_that_lacks_fields_is_still_told() {
        let shown = anstream::adapter::strip_str(&render(&json!({}), None)).to_string();
        assert_eq!(shown, "Service:   none\nRoute:     none\n");
    }
}
