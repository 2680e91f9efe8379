//! Status conditions that the API writes itself: of kinds that are kept but not acted upon yet. Never silence.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    admit::timestamp,
    kinds::{Kind, StatusShape},
};

/// `controllerName` of the entries that Weft writes.
pub const CONTROLLER: &str = "weft.dev/control-plane";

/// Writes the conditions of an object whose content is new; `old` is what it was, or null.
pub fn refresh(kind: &Kind, old: &Value, object: &mut Value, now: Timestamp) {
    if kind.enforced {
        return;
    }
    let generation = object["metadata"]["generation"].clone();
    let conditions = |before: &Value| conditions(kind, before, &generation, now);
    let entry = |field: &str, reference: Value, list: &Value| {
        let held = list.as_array().into_iter().flatten().find(|entry| entry[field] == reference);
        let before = held.map_or(Value::Null, |entry| entry["conditions"].clone());
        json!({ field: reference, "controllerName": CONTROLLER, "conditions": conditions(&before) })
    };
    let status = &old["status"];
    let new = match kind.status {
        StatusShape::None => return,
        StatusShape::Conditions => json!({ "conditions": conditions(&status["conditions"]) }),
        StatusShape::Parents => {
            let parents = object["spec"]["parentRefs"].as_array().cloned().unwrap_or_default();
            let entries = parents.into_iter().map(|parent| entry("parentRef", parent, &status["parents"]));
            json!({ "parents": entries.collect::<Vec<_>>() })
        }
        StatusShape::Ancestors => {
            let targets = object["spec"]["targetRefs"].as_array().cloned().unwrap_or_default();
            let whole = json!({ "kind": "Namespace", "name": object["metadata"]["namespace"] });
            let targets = if targets.is_empty() { vec![whole] } else { targets };
            let entries = targets.into_iter().map(|target| entry("ancestorRef", target, &status["ancestors"]));
            json!({ "ancestors": entries.collect::<Vec<_>>() })
        }
    };
    if let Some(fields) = object.as_object_mut() {
        fields.insert("status".into(), new);
    }
}

/// What a caller is told when such an object is written.
#[must_use]
pub fn warning(kind: &Kind) -> Option<String> {
    (!kind.enforced).then(|| message(kind))
}

fn message(kind: &Kind) -> String {
    format!("{} is checked and kept, but the sidecars do not act on it yet", kind.kind)
}

fn conditions(kind: &Kind, before: &Value, generation: &Value, now: Timestamp) -> Value {
    let condition = |name: &str, state: &str, reason: &str, message: String| {
        let held = before.as_array().into_iter().flatten().find(|held| held["type"] == name && held["status"] == state);
        let since = held.map_or_else(|| timestamp(now).into(), |held| held["lastTransitionTime"].clone());
        json!({
            "type": name, "status": state, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    };
    json!([
        condition("Accepted", "True", "Accepted", "it is valid".into()),
        condition("Programmed", "False", "NotImplemented", message(kind)),
    ])
}
