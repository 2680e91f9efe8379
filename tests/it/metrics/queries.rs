//! The queries of rules and dashboards: which metrics and labels they name, and whether those exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Labels that Prometheus adds, and that its discovery is told.
const ADDED: [&str; 7] = ["instance", "job", "le", "workload", "workload_namespace", "app", "reporter"];
/// Made by Prometheus.
const OWN: [&str; 1] = ["up"];
/// Comes only with a refusal, whose reason is its label.
const RARE: [(&str, &str); 1] = [("weft_ca_refused_total", "reason")];
const WORDS: [&str; 14] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "inf",
    "nan",
    "atan2",
];

/// What a query names.
#[derive(Debug, Default, PartialEq)]
struct Named {
    /// Metrics, each with the labels of its selector.
    metrics: Vec<(String, Vec<String>)>,
    /// Labels of groupings and matchings.
    grouped: Vec<String>,
}

/// Reads a query as far as it takes to know its names.
fn named(query: &str) -> Named {
    let mut found = Named::default();
    let bytes = query.as_bytes();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = after_text(bytes, at),
            b'[' => at += query[at..].find(']').expect("a range ends") + 1,
            byte if byte.is_ascii_digit() => {
                while at < bytes.len() && (is_name(bytes[at]) || bytes[at] == b'.') {
                    at += 1;
                }
            }
            byte if is_name(byte) => {
                let start = at;
                while at < bytes.len() && is_name(bytes[at]) {
                    at += 1;
                }
                let word = &query[start..at];
                let rest = query[at..].trim_start();
                if matches!(word, "by" | "without" | "on" | "ignoring" | "group_left" | "group_right") {
                    let list = rest.strip_prefix('(').and_then(|rest| rest.split(')').next()).unwrap_or_default();
                    found
                        .grouped
                        .extend(list.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned));
                    at = at + (query[at..].len() - rest.len()) + list.len() + 2;
                } else if rest.starts_with('{') {
                    at += query[at..].len() - rest.len();
                    let end = selector(bytes, at);
                    found.metrics.push((word.to_owned(), labels(&query[at + 1..end])));
                    at = end + 1;
                } else if !(rest.starts_with('(') || is_grouped(rest) || WORDS.contains(&word)) {
                    found.metrics.push((word.to_owned(), Vec::new()));
                }
            }
            _ => at += 1,
        }
    }
    found
}

/// Whether what comes after a word says that the word aggregates.
fn is_grouped(rest: &str) -> bool {
    ["by", "without"].iter().any(|word| rest.strip_prefix(word).is_some_and(|rest| rest.trim_start().starts_with('(')))
}

/// Behind the end of the text in quotes that begins here.
fn after_text(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Where the selector ends that begins here.
fn selector(bytes: &[u8], start: usize) -> usize {
    let mut at = start;
    while bytes[at] != b'}' {
        at = if bytes[at] == b'"' { after_text(bytes, at) } else { at + 1 };
    }
    at
}

fn labels(selector: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (bytes, mut at, mut start) = (selector.as_bytes(), 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = after_text(bytes, at),
            b',' => {
                at += 1;
                start = at;
            }
            b'=' | b'!' if start <= at => {
                found.push(selector[start..at].trim().to_owned());
                start = usize::MAX;
                at += 1;
            }
            _ => at += 1,
        }
    }
    found
}

/// The expressions of the dashboards, with numbers in place of what Grafana fills in.
pub fn dashboards(deploy: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let files = std::fs::read_dir(deploy.join("grafana")).expect("there");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    assert_eq!(files.len(), 5, "{files:?}");
    for path in files {
        let text = std::fs::read_to_string(&path).expect("readable");
        let board: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let panels = board["panels"].as_array().expect("panels");
        let before = found.len();
        for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
            found.push(target["expr"].as_str().expect("a query").replace("$__rate_interval", "1m"));
        }
        assert!(found.len() - before > 8, "{path:?} has queries");
        for variable in board["templating"]["list"].as_array().expect("variables") {
            let query = variable["query"]["query"].as_str().unwrap_or_default();
            if let Some(inner) = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')) {
                let (metric, label) = inner.split_once(',').expect("a metric and a label");
                found.push(format!("count by ({}) ({metric})", label.trim()));
            }
        }
    }
    found
}

/// The expressions of the files of rules, and the names that they record with the labels that these have.
fn rules(deploy: &Path) -> (Vec<String>, BTreeMap<String, BTreeSet<String>>) {
    let (mut found, mut recorded) = (Vec::new(), BTreeMap::new());
    for file in ["recording.yml", "alerts.yml", "istio.yml"] {
        let text = std::fs::read_to_string(deploy.join("prometheus/rules").join(file)).expect("readable");
        let mut record: Option<String> = None;
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let trimmed = line.trim_start().trim_start_matches("- ");
            if let Some(name) = trimmed.strip_prefix("record: ") {
                record = Some(name.to_owned());
            } else if trimmed.starts_with("alert: ") {
                record = None;
            } else if let Some(query) = trimmed.strip_prefix("expr: ") {
                let mut query = query.trim_start_matches(">-").to_owned();
                let indent = |line: &str| line.len() - line.trim_start().len();
                while let Some(more) = lines.next_if(|next| indent(next) > indent(line) && !next.trim().is_empty()) {
                    query.push(' ');
                    query.push_str(more.trim());
                }
                if let Some(name) = record.take() {
                    let labels = named(&query).grouped.into_iter().chain(["service".into(), "direction".into()]);
                    recorded.insert(name, labels.collect());
                }
                found.push(query);
            }
        }
    }
    assert!(found.len() > 20, "{found:?}");
    (found, recorded)
}

/// What rules and dashboards ask for and nobody says.
pub fn check(deploy: &Path, exported: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let (mut all, recorded) = rules(deploy);
    all.extend(dashboards(deploy));
    let mut failures = Vec::new();
    for query in all {
        let Named { metrics, grouped } = named(&query);
        let mut known: BTreeSet<&str> = ADDED.into_iter().collect();
        // Labels that the query itself makes.
        let made = query.split("label_replace").skip(1).flat_map(|rest| rest.split('"').skip(1).step_by(2));
        known.extend(made);
        for (name, labels) in &metrics {
            let Some(of) = exported.get(name).or_else(|| recorded.get(name)) else {
                match RARE.iter().find(|(rare, _)| rare == name) {
                    Some((_, label)) => _ = known.insert(label),
                    None if OWN.contains(&name.as_str()) => {}
                    None => failures.push(format!("{name} is not exported: {query}")),
                }
                continue;
            };
            known.extend(of.iter().map(String::as_str));
            for label in labels.iter().filter(|label| !of.contains(*label) && !ADDED.contains(&label.as_str())) {
                failures.push(format!("{name} has no label {label}: {query}"));
            }
        }
        for label in grouped.iter().filter(|label| !known.contains(label.as_str())) {
            failures.push(format!("no metric here has the label {label}: {query}"));
        }
    }
    failures
}

#[test]
fn names_are_found_in_queries() {
    let found = named(
        "histogram_quantile(0.99, sum by (le, service) (rate(a_bucket{x=\"1,y={\",z!~\"b\"}[1m]))) > on (c) d:e:f or vector(0)",
    );
    let metrics = vec![("a_bucket".to_owned(), vec!["x".to_owned(), "z".to_owned()]), ("d:e:f".to_owned(), vec![])];
    let grouped = ["le", "service", "c"].map(str::to_owned).to_vec();
    assert_eq!(found, Named { metrics, grouped });
}
