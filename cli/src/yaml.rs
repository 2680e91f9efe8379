//! JSON trees to YAML text.

use serde_json::Value;

use crate::listing::{json, steers};

/// The tree as YAML. One with texts that would steer a terminal is written as JSON, which is YAML too and has escapes for
/// them.
pub fn text(value: &Value) -> String {
    // A tree of strings, numbers and lists always has a form in YAML.
    let text = serde_saphyr::to_string(value).ok();
    text.filter(|text| !text.contains(|c| steers(c) && c != '\n' && c != '\t'))
        .unwrap_or_else(|| format!("{}\n", json(value, true)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let value = json!({"a": ["yes", "1", 1, 1.5, true, null, "null", "~", "", " x ", "a: b", "#", "- a", "é", "0x1f"],
            "text": "one\ntwo\n", "nested": {"empty": {}, "none": [], "list": [{"k": "v", "w": [1]}]},
            "2024-01-01": "on", "key: odd": "2024-01-01T00:00:00Z", "json": "{\"a\":\"b\\n\"}\n"});
        let text = text(&value);
        let source = crate::objects::Source { file: String::new(), text: text.clone() };
        assert_eq!(crate::objects::parse(&source).unwrap(), [value], "{text}");
        assert!(text.contains("nested:\n"), "{text}");
    }
}
