//! JSON trees to YAML text.

use serde_json::Value;

/// The tree as YAML.
pub fn text(value: &Value) -> String {
    // A tree of strings, numbers and lists always has a form in YAML; JSON is YAML too.
    serde_saphyr::to_string(value).unwrap_or_else(|_| format!("{value:#}\n"))
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
