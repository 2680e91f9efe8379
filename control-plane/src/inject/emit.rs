//! JSON trees to text in the manner of the tree that they come from: what is there already is written as it was.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use serde_saphyr::granit_parser::ScalarStyle;

use super::tree::{Kind, Node, Scalar};

/// Words that are no text when they stand alone, in YAML 1.1 or 1.2, in lower case.
const WORDS: [&str; 12] = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "="];

/// The value as YAML in block style, like `like` where that is the same.
pub fn yaml(value: &Value, like: &Node) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => mapping(fields, Some(like), 0, &mut out),
        Value::Array(items) if !items.is_empty() => sequence(items, Some(like), 0, &mut out),
        value => {
            let _ = writeln!(out, "{}", scalar(value, Some(like), 0));
        }
    }
    out
}

/// The value as JSON, its members in the order of `like`.
pub fn json(value: &Value, like: Option<&Node>, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent + 4);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut comma = "{\n";
            for name in order(fields, like) {
                let Some(member) = fields.get(name) else { continue };
                let _ = write!(out, "{comma}{pad}{}: ", quoted(name));
                json(member, like.and_then(|like| like.get(name)), indent + 4, out);
                comma = ",\n";
            }
            let _ = write!(out, "\n{}}}", " ".repeat(indent));
        }
        Value::Array(items) if !items.is_empty() => {
            let mut comma = "[\n";
            for item in items {
                let _ = write!(out, "{comma}{pad}");
                json(item, counterpart(item, like), indent + 4, out);
                comma = ",\n";
            }
            let _ = write!(out, "\n{}]", " ".repeat(indent));
        }
        Value::Number(_) => match like.map(|like| &like.kind) {
            Some(Kind::Scalar(written)) if written.value() == *value => out.push_str(&written.text),
            _ => {
                let _ = write!(out, "{value}");
            }
        },
        value => {
            let _ = write!(out, "{value}");
        }
    }
}

/// The names of the members: first those that were there, as they were, then new ones, a `name` before the others.
fn order<'a>(fields: &'a Map<String, Value>, like: Option<&'a Node>) -> Vec<&'a str> {
    let mut names: Vec<&str> = match like.map(|like| &like.kind) {
        Some(Kind::Mapping { entries, .. }) => {
            entries.iter().map(|(key, _)| key.text.as_str()).filter(|name| fields.contains_key(*name)).collect()
        }
        _ => Vec::new(),
    };
    let known: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    let mut new: Vec<&str> = fields.keys().map(String::as_str).filter(|name| !known.contains(name)).collect();
    new.sort_by_key(|name| *name != "name");
    names.extend(new);
    names
}

/// The item of a list that this one was: that of the same name, or an equal one.
fn counterpart<'a>(item: &Value, like: Option<&'a Node>) -> Option<&'a Node> {
    let Some(Kind::Sequence { items, .. }) = like.map(|like| &like.kind) else { return None };
    let name = |value: &Value| value.get("name").or_else(|| value.pointer("/metadata/name")).cloned();
    let called = name(item);
    let named = |node: &&Node| {
        let of = |node: &Node| node.get("name").or_else(|| node.get("metadata")?.get("name")).map(Node::value);
        called.is_some() && of(node) == called && node.get("kind").map(Node::value).as_ref() == item.get("kind")
    };
    items.iter().find(named).or_else(|| items.iter().find(|node| node.value() == *item))
}

fn key_of<'a>(like: Option<&'a Node>, name: &str) -> Option<&'a Scalar> {
    match like.map(|like| &like.kind) {
        Some(Kind::Mapping { entries, .. }) => entries.iter().map(|(key, _)| key).find(|key| key.text == name),
        _ => None,
    }
}

fn comments(lines: &[String], indent: usize, out: &mut String) {
    for line in lines {
        let indent = if line.is_empty() { 0 } else { indent };
        let _ = writeln!(out, "{:indent$}{line}", "");
    }
}

fn mapping(fields: &Map<String, Value>, like: Option<&Node>, indent: usize, out: &mut String) {
    for name in order(fields, like) {
        let Some(value) = fields.get(name) else { continue };
        let key = key_of(like, name);
        comments(key.map_or(&[], |key| &key.comments), indent, out);
        let shown = key.filter(|key| key.style == ScalarStyle::Plain).map_or_else(|| plain(name), |_| name.to_owned());
        let _ = write!(out, "{:indent$}{shown}:", "");
        member(value, like.and_then(|like| like.get(name)), key.and_then(|key| key.trailing.as_deref()), indent, out);
    }
}

/// What stands behind a key, to the end of its line and below.
fn member(value: &Value, like: Option<&Node>, trailing: Option<&str>, indent: usize, out: &mut String) {
    let behind = |out: &mut String| {
        if let Some(comment) = trailing {
            let _ = write!(out, " {comment}");
        }
    };
    match value {
        Value::Object(fields) if !fields.is_empty() && !same_flow(value, like) => {
            behind(out);
            out.push('\n');
            mapping(fields, like, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() && !same_flow(value, like) => {
            behind(out);
            out.push('\n');
            let indented =
                matches!(like.map(|like| &like.kind), Some(Kind::Sequence { indented: true, flow: false, .. }));
            sequence(items, like, if indented { indent + 2 } else { indent }, out);
        }
        value => line(value, like, trailing, indent, out),
    }
}

/// A value on one line with the comment behind it, or as a block below it.
fn line(value: &Value, like: Option<&Node>, behind: Option<&str>, indent: usize, out: &mut String) {
    let text = scalar(value, like, indent);
    let own = match like.map(|like| &like.kind) {
        Some(Kind::Scalar(scalar)) => scalar.trailing.as_deref(),
        _ => None,
    };
    // Behind the mark of a block, which has the first line for itself.
    let (first, below) = text.split_once('\n').map_or((text.as_str(), None), |(first, below)| (first, Some(below)));
    if !first.is_empty() {
        let _ = write!(out, " {first}");
    }
    if let Some(comment) = own.or(behind) {
        let _ = write!(out, " {comment}");
    }
    if let Some(below) = below {
        let _ = write!(out, "\n{below}");
    }
    out.push('\n');
}

fn sequence(items: &[Value], like: Option<&Node>, indent: usize, out: &mut String) {
    for item in items {
        let like = counterpart(item, like);
        comments(like.map_or(&[], |like| &like.comments), indent, out);
        match item {
            Value::Object(fields) if !fields.is_empty() && !same_flow(item, like) => {
                let mut below = String::new();
                mapping(fields, like, indent + 2, &mut below);
                // The first member stands behind the dash, unless a comment is before it.
                let first = below.get(indent + 2..).unwrap_or_default();
                let _ = write!(out, "{:indent$}- {first}", "");
            }
            Value::Array(nested) if !nested.is_empty() && !same_flow(item, like) => {
                let mut below = String::new();
                sequence(nested, like, indent + 2, &mut below);
                let _ = write!(out, "{:indent$}- {}", "", below.get(indent + 2..).unwrap_or_default());
            }
            item => {
                let _ = write!(out, "{:indent$}-", "");
                line(item, like, None, indent, out);
            }
        }
    }
}

/// Whether this was written in flow style, and is the same.
fn same_flow(value: &Value, like: Option<&Node>) -> bool {
    like.is_some_and(|like| {
        let flow = matches!(like.kind, Kind::Sequence { flow: true, .. } | Kind::Mapping { flow: true, .. });
        flow && like.value() == *value
    })
}

/// What fits behind a key or a dash.
fn scalar(value: &Value, like: Option<&Node>, indent: usize) -> String {
    if let Some(like) = like.filter(|like| like.value() == *value) {
        match &like.kind {
            Kind::Scalar(written) => return as_written(written, indent),
            _ if same_flow(value, Some(like)) => return flow(like),
            _ => {}
        }
    }
    match value {
        Value::String(text) if text.contains('\n') => block(text, indent),
        Value::String(text) => plain(text),
        Value::Null => "null".into(),
        value => value.to_string(),
    }
}

fn as_written(written: &Scalar, indent: usize) -> String {
    let text = &written.text;
    match written.style {
        // Over several lines it was folded: a line break in it is more than one.
        ScalarStyle::Plain if !text.contains('\n') => text.clone(),
        ScalarStyle::SingleQuoted if !text.contains(['\n', '\r']) => format!("'{}'", text.replace('\'', "''")),
        ScalarStyle::Literal | ScalarStyle::Folded => block(text, indent),
        _ => quoted(text),
    }
}

/// A flow node as it was, on one line.
fn flow(node: &Node) -> String {
    match &node.kind {
        Kind::Scalar(written) => match written.style {
            ScalarStyle::Plain | ScalarStyle::SingleQuoted => as_written(written, 0),
            _ => quoted(&written.text),
        },
        Kind::Sequence { items, .. } => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Kind::Mapping { entries, .. } => {
            let shown = entries.iter().map(|(key, node)| {
                let key = if key.style == ScalarStyle::Plain { key.text.clone() } else { quoted(&key.text) };
                format!("{key}: {}", flow(node)).trim_end().to_owned()
            });
            format!("{{{}}}", shown.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Text without quotation marks where nobody can take it for something else.
fn plain(text: &str) -> String {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_' | '.' | '$'));
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_./:=()$?&%+@, ".contains(c);
    let good = text.chars().all(inner) && !text.contains(": ") && !text.ends_with([':', ' ']);
    let word = WORDS.contains(&text.to_ascii_lowercase().as_str()) || text.starts_with('.') && text.len() > 1;
    let flag = text.starts_with("--") && text.len() > 2 && good;
    if (begins || flag) && good && !word {
        return text.to_owned();
    }
    let readable = text.contains('"') && !text.contains(|c: char| c == '\'' || c.is_control());
    if readable { format!("'{text}'") } else { quoted(text) }
}

/// In double quotes; a JSON string is one of YAML.
fn quoted(text: &str) -> String {
    Value::String(text.into()).to_string()
}

/// Lines as a literal block, or in quotes where a block cannot hold them.
fn block(text: &str, indent: usize) -> String {
    let odd = |c: char| c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}');
    let body = text.trim_end_matches('\n');
    let leading = body.trim_start_matches('\n');
    if leading.is_empty() || leading.starts_with([' ', '\t']) || text.contains(odd) {
        return quoted(text);
    }
    let ends = text.len() - body.len();
    let mut out = String::from(match ends {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            let _ = write!(out, "{:width$}{line}", "", width = indent + 2);
        }
    }
    // Each line break beyond the last line's own is an empty line.
    out.push_str(&"\n".repeat(ends.saturating_sub(1)));
    out
}
