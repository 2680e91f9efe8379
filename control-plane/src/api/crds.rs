//! CustomResourceDefinitions of Weft's own kinds, made from the types that check the objects: what a cluster's API server
//! needs to keep them. Its schemas are structural, which is less than OpenAPI: no references, no alternatives.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::kinds::{KINDS, Kind, StatusShape, WEFT};
use crate::source;

/// What `kubectl get weft` lists.
const CATEGORY: &str = "weft";
/// Words of JSON schema that structural schemas do not have, or that say nothing there.
const DROPPED: [&str; 7] = ["$defs", "$schema", "components", "definitions", "nullable", "title", "writeOnly"];

/// All of them, by kind as the API lists them.
#[must_use]
pub fn all() -> Vec<Value> {
    KINDS.iter().filter(|kind| kind.group == WEFT).filter_map(definition).collect()
}

fn definition(kind: &Kind) -> Option<Value> {
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.resource(),
            "labels": { "app.kubernetes.io/part-of": "weft" },
        },
        "spec": {
            "group": kind.group,
            "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": kind.short,
                "categories": [CATEGORY],
            },
            "versions": [{
                "name": kind.version,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns(kind),
                "schema": { "openAPIV3Schema": schema(kind)? },
            }],
        },
    }))
}

/// The schema of a kind.
fn schema(kind: &Kind) -> Option<Value> {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    let mut generator = settings.into_generator();
    let mut schema = source::schema(&kind.api_version(), kind.kind, &mut generator)?.to_value();
    structural(&mut schema);
    let properties = schema.get_mut("properties")?.as_object_mut()?;
    let about = properties.get("spec")?["description"].clone();
    let status = properties.get_mut("status").and_then(|status| status.get_mut("properties"));
    if let Some(Value::Object(status)) = status {
        // Those of a policy are for each of its targets.
        status.remove(if kind.status == StatusShape::Ancestors { "conditions" } else { "ancestors" });
    }
    // The API server has its own idea of metadata.
    properties.insert("metadata".into(), json!({ "type": "object" }));
    let fields = schema.as_object_mut()?;
    fields.insert("description".into(), about);
    fields.insert("required".into(), json!(["spec"]));
    Some(schema)
}

/// Makes a schema structural.
fn structural(schema: &mut Value) {
    let Value::Object(fields) = schema else {
        // `true`: anything.
        *schema = json!({ "x-kubernetes-preserve-unknown-fields": true });
        return;
    };
    DROPPED.iter().for_each(|word| _ = fields.remove(*word));
    if fields.get("default") == Some(&Value::Null) {
        fields.remove("default");
    }
    if let Some(only) = fields.remove("const") {
        fields.insert("enum".into(), json!([only]));
    }
    for word in ["allOf", "anyOf", "oneOf"] {
        let Some(Value::Array(options)) = fields.remove(word) else { continue };
        let real = options.into_iter().filter(|option| option["type"] != "null" && option["enum"] != json!([null]));
        real.for_each(|option| merge(fields, option));
    }
    if let Some(Value::Array(types)) = fields.get("type") {
        let of = types.iter().find(|name| **name != "null").cloned();
        fields.insert("type".into(), of.unwrap_or_else(|| "object".into()));
    }
    if let Some(Value::Array(words)) = fields.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    match fields.get("format").and_then(Value::as_str) {
        Some("uint8" | "uint16" | "int8" | "int16") => _ = fields.insert("format".into(), "int32".into()),
        Some("uint32" | "uint64" | "uint") => _ = fields.insert("format".into(), "int64".into()),
        _ => {}
    }
    // What a field is not known is pruned, or refused, by the API server.
    if fields.get("additionalProperties").is_some_and(Value::is_boolean) {
        fields.remove("additionalProperties");
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for (name, property) in properties {
            structural(property);
            list(name, property);
        }
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(word) {
            structural(inner);
        }
    }
}

/// One alternative into the schema that has it: of several, which are words, all.
fn merge(fields: &mut Map<String, Value>, mut option: Value) {
    structural(&mut option);
    let Value::Object(option) = option else { return };
    for (name, value) in option {
        match (fields.get_mut(&name), value) {
            (Some(Value::Array(held)), Value::Array(more)) if name == "enum" => held.extend(more),
            // The text of the field says more than that of its type.
            (Some(_), _) => {}
            (None, value) => _ = fields.insert(name, value),
        }
    }
}

/// How lists of a status are merged, as Gateway API has it.
fn list(name: &str, schema: &mut Value) {
    match name {
        "conditions" => {
            schema["x-kubernetes-list-type"] = "map".into();
            schema["x-kubernetes-list-map-keys"] = json!(["type"]);
        }
        "ancestors" => schema["x-kubernetes-list-type"] = "atomic".into(),
        _ => {}
    }
}

/// The columns that the API shows too, as far as a path can say what they do.
fn columns(kind: &Kind) -> Vec<Value> {
    let shown = kind.columns.iter().filter_map(|column| {
        let (of, path) = path(kind, column.name)?;
        let priority = i32::from(column.wide);
        Some(json!({ "name": column.name, "type": of, "jsonPath": path, "description": column.description,
            "priority": priority }))
    });
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" });
    shown.chain([age]).collect()
}

fn path(kind: &Kind, column: &str) -> Option<(&'static str, String)> {
    let conditions =
        if kind.status == StatusShape::Ancestors { ".status.ancestors[*].conditions" } else { ".status.conditions" };
    Some(match column {
        "Accepted" | "Programmed" => ("string", format!("{conditions}[?(@.type==\"{column}\")].status")),
        "Action" => ("string", ".spec.action".into()),
        "Address" => ("string", ".spec.address".into()),
        "Dry-Run" => ("boolean", ".spec.dryRun".into()),
        "Mesh" => ("string", ".spec.meshAddress".into()),
        "Mode" => ("string", ".spec.mode".into()),
        "Peer-Mode" => ("string", ".spec.peerMode".into()),
        "Ports" => ("string", ".spec.ports[*].port".into()),
        "Retries" => ("integer", ".spec.retries.attempts".into()),
        "Targets" => ("string", ".spec.targetRefs[*].name".into()),
        "Timeout" => ("string", ".spec.timeouts.request".into()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
