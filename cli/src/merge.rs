//! Three-way merge without the third party: what was applied last, what is there, what is wanted, to one JSON merge
//! patch. The annotation is kubectl's, so that both tools see each other's work.

use serde_json::{Map, Value};

/// Where the object as it was applied last is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object with itself in the annotation.
pub fn annotated(object: &Value) -> Value {
    let mut bare = object.clone();
    let metadata = &mut bare["metadata"];
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = Value::Object(Map::new());
    }
    if let Some(annotations) = metadata["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    let mut with = bare.clone();
    with["metadata"]["annotations"][LAST_APPLIED] = format!("{bare}\n").into();
    with
}

/// What was applied last, null when nobody knows.
pub fn last_applied(live: &Value) -> Value {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

/// The patch that makes `live` what is wanted: an empty object when there is nothing to do. Fields that were applied
/// last and are no longer wanted go; fields that others set stay.
pub fn patch(last: &Value, live: &Value, wanted: &Value) -> Value {
    let nothing = Map::new();
    let fields = |value: &'_ Value| value.as_object().cloned();
    let (live_fields, last_fields) = (fields(live).unwrap_or_default(), fields(last).unwrap_or_default());
    let mut patch = Map::new();
    for (name, value) in wanted.as_object().unwrap_or(&nothing) {
        match live_fields.get(name) {
            Some(present) if present.is_object() && value.is_object() => {
                let inner = self::patch(last_fields.get(name).unwrap_or(&Value::Null), present, value);
                if inner.as_object().is_some_and(|inner| !inner.is_empty()) {
                    patch.insert(name.clone(), inner);
                }
            }
            Some(present) if present == value => {}
            // Null removes, and there is nothing to remove.
            None if value.is_null() => {}
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    for name in last_fields.keys().filter(|name| wanted.get(*name).is_none() && live_fields.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// RFC 7396, for showing what a patch would do.
pub fn apply(target: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut fields = target.as_object().cloned().unwrap_or_default();
    for (name, value) in changes {
        if value.is_null() {
            fields.remove(name);
        } else {
            let before = fields.get(name).cloned().unwrap_or_default();
            fields.insert(name.clone(), apply(&before, value));
        }
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_that_left_the_file_leaves_the_object_and_foreign_fields_stay() {
        let last = json!({"spec": {"a": 1, "b": {"c": 1, "d": 2}}});
        let live = json!({"spec": {"a": 1, "b": {"c": 1, "d": 2}, "foreign": true}, "status": {}});
        let wanted = json!({"spec": {"b": {"c": 3}}});
        let patch = patch(&last, &live, &wanted);
        assert_eq!(patch, json!({"spec": {"a": null, "b": {"c": 3, "d": null}}}));
        assert_eq!(apply(&live, &patch), json!({"spec": {"b": {"c": 3}, "foreign": true}, "status": {}}));
    }

    #[test]
    fn nothing_to_do_is_an_empty_patch() {
        let object = annotated(&json!({"metadata": {"name": "s"}, "spec": {"list": [1, {"a": 1}]}}));
        assert_eq!(patch(&last_applied(&object), &object, &object), json!({}));
        assert_eq!(patch(&Value::Null, &json!({}), &json!({"a": null})), json!({}));
    }

    #[test]
    fn a_list_is_replaced_and_a_scalar_becomes_an_object() {
        let patch = patch(&Value::Null, &json!({"l": [1, 2], "s": 1}), &json!({"l": [1], "s": {"a": 1}}));
        assert_eq!(patch, json!({"l": [1], "s": {"a": 1}}));
    }

    #[test]
    fn the_annotation_holds_the_object_without_itself() {
        let once = annotated(&json!({"metadata": {"name": "s"}}));
        assert_eq!(annotated(&once), once);
        assert_eq!(last_applied(&once), json!({"metadata": {"name": "s", "annotations": {}}}));
        assert_eq!(last_applied(&json!({})), Value::Null);
    }
}
