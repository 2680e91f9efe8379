//! One listing in every form of `-o`.

use clap::ValueEnum;
use serde_json::Value;

use crate::{table::Table, yaml};

/// Forms of a listing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// JSON, as the API gives it
    Json,
    /// One name a line
    Name,
    /// Aligned columns
    Table,
    /// More columns
    Wide,
    /// The JSON as YAML
    Yaml,
}

/// Prints `value` in the form that was asked for; `empty` stands for a table without rows.
pub fn print(output: Output, value: &Value, names: &[String], table: &Table, empty: &str) {
    match output {
        Output::Json => anstream::println!("{}", json(value, true)),
        Output::Yaml => anstream::print!("{}", yaml::text(value)),
        Output::Name => names.iter().for_each(|name| anstream::println!("{}", shown(name))),
        Output::Table | Output::Wide if table.is_empty() => anstream::eprintln!("{empty}"),
        Output::Table | Output::Wide => table.print(),
    }
}

/// A field as text; empty when it is missing.
pub fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether it would move a terminal's cursor, or turn its writing around.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON for a terminal. It has escapes of its own for the controls below a space; the others that steer get theirs here,
/// and stay the same text for who reads JSON.
pub fn json(value: &Value, indented: bool) -> String {
    let plain = if indented { format!("{value:#}") } else { value.to_string() };
    let mut text = String::with_capacity(plain.len());
    for c in plain.chars() {
        // The only controls that JSON leaves between its texts.
        if steers(c) && c != '\n' {
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

/// A text of others for a terminal: what would move its cursor or turn its writing around is escaped.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// The items of a list.
pub fn items(value: &Value) -> &[Value] {
    value["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `1 file`, `2 files`.
pub fn number(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Seconds for people: `45s`, `12m`, `5h10m`, `3d4h`; negative ones are over.
pub fn duration(seconds: i64) -> String {
    let sign = if seconds < 0 { "-" } else { "" };
    let total = seconds.unsigned_abs();
    let (days, hours, minutes) = (total / 86_400, total / 3600 % 24, total / 60 % 60);
    let text = match total {
        0..60 => format!("{total}s"),
        60..3600 => format!("{minutes}m"),
        3600..86_400 if minutes > 0 => format!("{hours}h{minutes}m"),
        3600..86_400 => format!("{hours}h"),
        _ if hours > 0 => format!("{days}d{hours}h"),
        _ => format!("{days}d"),
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(shown("a\u{9b}\u{202e}\u{2066}é"), "a\\u{9b}\\u{202e}\\u{2066}é");
    }

    #[test]
    fn json_and_yaml_steer_no_terminal_and_are_the_same_value() {
        let value = serde_json::json!({"path": "/a\u{9b}2J\u{7f}\u{202e}b\u{1b}[2J\n", "number": 1, "k\u{85}": "é"});
        for text in [json(&value, false), json(&value, true), yaml::text(&value)] {
            assert!(!text.contains(|c| steers(c) && c != '\n'), "{text:?}");
            let source = crate::objects::Source { file: String::new(), text: text.clone() };
            assert_eq!(crate::objects::parse(&source).unwrap(), std::slice::from_ref(&value), "{text}");
        }
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        let cases =
            [(0, "0s"), (59, "59s"), (3599, "59m"), (3600, "1h"), (18_600, "5h10m"), (86_400, "1d"), (273_600, "3d4h")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(-61), "-1m");
    }
}
