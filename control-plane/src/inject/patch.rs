//! The difference between two JSON trees as a JSON patch (RFC 6902).

use serde_json::{Map, Value, json};

/// Operations that make `after` of `before`. A list that differs is replaced as a whole.
#[must_use]
pub fn diff(before: &Value, after: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    compare("", before, after, &mut operations);
    operations
}

fn compare(path: &str, before: &Value, after: &Value, operations: &mut Vec<Value>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(before), Value::Object(after)) => members(path, before, after, operations),
        (_, after) => operations.push(json!({ "op": "replace", "path": path, "value": after })),
    }
}

fn members(path: &str, before: &Map<String, Value>, after: &Map<String, Value>, operations: &mut Vec<Value>) {
    let below = |name: &str| format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        operations.push(json!({ "op": "remove", "path": below(name) }));
    }
    for (name, value) in after {
        match before.get(name) {
            Some(old) => compare(&below(name), old, value, operations),
            None => operations.push(json!({ "op": "add", "path": below(name), "value": value })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_has_what_differs_and_nothing_else() {
        let before = json!({"a": 1, "gone": {}, "same": {"x": [1]}, "list": [1, 2], "deep": {"w/e~b": 1}});
        let after = json!({"a": 2, "same": {"x": [1]}, "list": [1], "deep": {"w/e~b": 2, "new": null}});
        let expected = json!([
            {"op": "remove", "path": "/gone"},
            {"op": "replace", "path": "/a", "value": 2},
            {"op": "replace", "path": "/deep/w~1e~0b", "value": 2},
            {"op": "add", "path": "/deep/new", "value": null},
            {"op": "replace", "path": "/list", "value": [1]},
        ]);
        let (Value::Array(mut expected), mut found) = (expected, diff(&before, &after)) else { unreachable!() };
        let by_path = |operation: &Value| operation["path"].to_string();
        expected.sort_by_key(by_path);
        found.sort_by_key(by_path);
        assert_eq!(found, expected);
        assert!(diff(&before, &before).is_empty());
    }
}
