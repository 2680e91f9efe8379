//! `weft explain`: which rule a request meets, why not the others, where it goes, and where each setting comes from.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;

use crate::{
    listing::{self, Output, text},
    server::{Server, ServerArgs, with_query},
    style::{self, GOOD, STRONG},
    table::Table,
};

/// Flags of `weft explain`.
#[derive(Args, Clone, Debug)]
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
    /// A header of the request, as NAME:VALUE; may be repeated
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header)]
    pub headers: Vec<String>,
    /// Form of the answer
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Prints the answer: exit code 3 when no rule takes the request.
pub async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let server = Server::new(&args.server).await?;
    let answer = server.get(&path(&args)).await;
    let answer = answer.with_context(|| format!("explain {} {}", args.method, args.url))?;
    let names = [format!("{} {}", text(&answer, "route"), text(&answer, "rule")).trim().to_owned()];
    match args.output {
        Output::Table | Output::Wide => anstream::print!("{}", render(&answer, style::width())),
        output => listing::print(output, &answer, &names, &Table::default(), ""),
    }
    let missed = list(&answer, "backends").is_empty();
    Ok(if missed { ExitCode::from(3) } else { server.exit_code() })
}

fn path(args: &ExplainArgs) -> String {
    let url = args.url.to_string();
    let mut pairs = vec![("method", Some(args.method.as_str())), ("url", Some(url.as_str()))];
    pairs.push(("from", args.from.as_deref()));
    pairs.extend(args.headers.iter().map(|header| ("header", Some(header.as_str()))));
    with_query("/weft/v1/explain", &pairs)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn render(answer: &Value, width: Option<usize>) -> String {
    let mut shown = String::new();
    for (name, field) in [("Service", "service"), ("Port", "port"), ("Route", "route"), ("Rule", "rule")] {
        let value = Some(text(answer, field)).filter(|value| !value.is_empty()).unwrap_or_else(|| "none".to_owned());
        shown.push_str(&format!("{STRONG}{:<9}{STRONG:#}{value}\n", format!("{name}:")));
    }
    let mut why = Table::new(&["", "ROUTE", "RULE", "BECAUSE"]);
    for step in list(answer, "why") {
        let mark = if step["matched"] == true { style::paint(GOOD, "✓") } else { "-".to_owned() };
        why.row([mark, text(step, "route"), text(step, "rule"), text(step, "because")]);
    }
    let mut backends = Table::new(&["BACKEND", "PORT", "WEIGHT", "SHARE"]);
    for backend in list(answer, "backends") {
        backends.row([
            text(backend, "service"),
            text(backend, "port"),
            text(backend, "weight"),
            share(&backend["share"]),
        ]);
    }
    let mut settings = Table::new(&["SETTING", "VALUE", "FROM"]);
    for section in ["timeouts", "retries", "policies"] {
        rows(section.trim_end_matches("policies"), &answer[section], &mut settings);
    }
    for (name, table) in [("Why", why), ("Backends", backends), ("Settings", settings)] {
        if !table.is_empty() {
            shown.push_str(&format!("\n{STRONG}{name}{STRONG:#}\n{}", table.render(width)));
        }
    }
    shown
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
    fn an_answer_is_told_with_its_reasons_and_shares() {
        let answer = json!({"service": "shop/catalog", "port": 80, "route": "shop/canary", "rule": "v2", "why": [
            {"route": "shop/canary", "rule": "v1", "matched": false, "because": "header x is missing"},
            {"route": "shop/canary", "rule": "v2", "matched": true, "because": "path / matches"}],
            "backends": [{"service": "shop/catalog-v2", "port": 80, "weight": 1, "share": 0.25}],
            "timeouts": {"request": {"value": "1s", "origin": "HTTPRoute shop/canary"}, "idle": "5m"}});
        let shown = anstream::adapter::strip_str(&render(&answer, None)).to_string();
        assert!(
            shown.starts_with("Service: shop/catalog\nPort:    80\nRoute:   shop/canary\nRule:    v2\n"),
            "{shown}"
        );
        assert!(shown.contains("-  shop/canary  v1    header x is missing\n"), "{shown}");
        assert!(shown.contains("shop/catalog-v2  80    1       25 %\n"), "{shown}");
        assert!(shown.contains("timeouts.idle     5m\n"), "{shown}");
        assert!(shown.contains("timeouts.request  1s     HTTPRoute shop/canary\n"), "{shown}");
    }

    #[test]
    fn an_answer_that_lacks_fields_is_still_told() {
        let shown = anstream::adapter::strip_str(&render(&json!({}), None)).to_string();
        assert_eq!(shown, "Service: none\nPort:    none\nRoute:   none\nRule:    none\n");
    }
}
