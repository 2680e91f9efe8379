//! OpenAPI documents, made from the types that check the objects: for `kubectl explain` and its validation.

mod v2;

use std::sync::OnceLock;

use axum::{
    Json,
    extract::Path,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    kinds::{self, Kind},
    status::ApiError,
};
use crate::source;

/// GET `/openapi/v3`: where the document of each group is.
pub async fn index() -> Json<Value> {
    let paths: Map<String, Value> = kinds::group_versions()
        .map(|(group, version)| {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
            (path, json!({ "serverRelativeURL": url }))
        })
        .collect();
    Json(json!({ "paths": paths }))
}

/// GET `/openapi/v3/api/v1`.
pub async fn core() -> Response {
    of_group("", "v1")
}

/// GET `/openapi/v3/apis/GROUP/VERSION`.
pub async fn group(Path((group, version)): Path<(String, String)>) -> Response {
    of_group(&group, &version)
}

fn of_group(group: &str, version: &str) -> Response {
    static DOCUMENTS: OnceLock<Vec<(&str, &str, Value)>> = OnceLock::new();
    let documents = DOCUMENTS.get_or_init(|| {
        kinds::group_versions().map(|(group, version)| (group, version, document(group, version))).collect()
    });
    match documents.iter().find(|found| (found.0, found.1) == (group, version)) {
        Some((.., document)) => Json(document).into_response(),
        None => ApiError::no_path(&format!("/openapi/v3/apis/{group}/{version}")).into_response(),
    }
}

/// GET `/openapi/v2`: all groups; in JSON, or as the protobuf message that clients in Go ask for.
pub async fn all(headers: HeaderMap) -> Response {
    static DOCUMENT: OnceLock<(String, Vec<u8>)> = OnceLock::new();
    let (json, protobuf) = DOCUMENT.get_or_init(|| {
        let schemas = kinds::group_versions().flat_map(|(group, version)| schemas(group, version)).collect();
        let document = v2::document(schemas, kinds::KINDS.iter().flat_map(paths).collect());
        (document.to_string(), v2::encode(&document))
    });
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("proto-openapi.spec.v2@v1.0+protobuf") {
        // The "@" that they ask with is no part of a media type: servers answer with a dot.
        let content_type = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        return ([(header::CONTENT_TYPE, content_type)], protobuf.clone()).into_response();
    }
    ([(header::CONTENT_TYPE, "application/json")], json.clone()).into_response()
}

fn document(group: &str, version: &str) -> Value {
    let paths: Map<String, Value> = kinds::of(group, version).flat_map(paths).collect();
    json!({
        "openapi": "3.0.0", "info": { "title": "Weft", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths, "components": { "schemas": schemas(group, version) },
    })
}

/// The name of a kind's schema, as Kubernetes builds it: the group backwards.
fn schema_name(kind: &Kind) -> String {
    match kind.group {
        kinds::CORE => format!("io.k8s.api.core.{}.{}", kind.version, kind.kind),
        kinds::DISCOVERY => format!("io.k8s.api.discovery.{}.{}", kind.version, kind.kind),
        group => {
            let reversed: Vec<&str> = group.rsplit('.').collect();
            format!("{}.{}.{}", reversed.join("."), kind.version, kind.kind)
        }
    }
}

fn group_version_kind(kind: &Kind) -> Value {
    json!({ "group": kind.group, "version": kind.version, "kind": kind.kind })
}

/// All schemas of a group, those of the kinds under their names in Kubernetes.
fn schemas(group: &str, version: &str) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let mut found = Map::new();
    for kind in kinds::of(group, version) {
        let Some(schema) = source::schema(&kind.api_version(), kind.kind, &mut generator) else { continue };
        let mut schema = schema.to_value();
        if let Some(fields) = schema.as_object_mut() {
            for name in ["$schema", "components", "title"] {
                fields.remove(name);
            }
            complete(fields, &mut generator);
            fields.insert("x-kubernetes-group-version-kind".into(), json!([group_version_kind(kind)]));
        }
        found.insert(schema_name(kind), schema);
    }
    for (name, schema) in generator.take_definitions(true) {
        found.entry(name).or_insert(schema);
    }
    // What a kind of Weft's own is for stands with its spec.
    for kind in kinds::of(group, version).filter(|kind| kind.group == kinds::WEFT) {
        let about = found.get(&format!("{}Spec", kind.kind)).map(|spec| spec["description"].clone());
        if let (Some(about), Some(schema)) = (about, found.get_mut(&schema_name(kind))) {
            schema["description"] = about;
        }
    }
    for (schema, property, key) in MERGED {
        let wanted = |name: &str| name == schema || name.ends_with(&format!(".{schema}"));
        let property =
            found.iter_mut().find(|(name, _)| wanted(name)).map(|(_, schema)| &mut schema["properties"][property]);
        let Some(fields) = property.and_then(Value::as_object_mut) else { continue };
        fields.insert("x-kubernetes-patch-strategy".into(), "merge".into());
        if !key.is_empty() {
            fields.insert("x-kubernetes-patch-merge-key".into(), key.into());
        }
    }
    let mut all = Value::Object(found);
    plain(&mut all);
    if let Value::Object(found) = all { found } else { Map::new() }
}

/// The schemas of the Gateway API's types begin with the spec.
fn complete(fields: &mut Map<String, Value>, generator: &mut SchemaGenerator) {
    let properties = fields.entry("properties").or_insert_with(|| json!({}));
    let Some(properties) = properties.as_object_mut() else { return };
    let metadata = generator.subschema_for::<ObjectMeta>().to_value();
    let text = |about: &str| json!({ "type": "string", "description": about });
    properties.entry("apiVersion").or_insert_with(|| text("Group and version."));
    properties.entry("kind").or_insert_with(|| text("The kind."));
    if !properties.get("metadata").is_some_and(|held| held.get("$ref").is_some() || held.get("allOf").is_some()) {
        properties.insert("metadata".into(), metadata);
    }
}

/// Lists that a strategic merge patch merges, with their keys: kubectl reads this to make patches. The server's side
/// of it is in `patch`.
const MERGED: [(&str, &str, &str); 5] = [
    ("NamespaceStatus", "conditions", "type"),
    ("ObjectMeta", "finalizers", ""),
    ("ObjectMeta", "ownerReferences", "uid"),
    ("ServiceSpec", "ports", "port"),
    ("ServiceStatus", "conditions", "type"),
];

/// Into the dialect of Kubernetes: `default: null` says nothing, and optional fields are not nullable there.
fn plain(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("default") == Some(&Value::Null) {
                fields.remove("default");
            }
            if fields.get("nullable").is_some_and(Value::is_boolean) {
                fields.remove("nullable");
            }
            // schemars wraps an optional reference in anyOf with null.
            if let Some(Value::Array(options)) = fields.get("anyOf")
                && let [one] = options.iter().filter(|option| !is_null(option)).collect::<Vec<_>>().as_slice()
                && options.len() <= 2
            {
                let one = (*one).clone();
                fields.remove("anyOf");
                fields.insert("allOf".into(), json!([one]));
            }
            fields.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

fn is_null(schema: &Value) -> bool {
    schema["type"] == "null"
        || schema["enum"] == json!([null])
        || schema["const"].is_null() && schema.get("const").is_some()
}

/// The paths of a kind with what clients look for: the kind, and that fieldValidation is understood.
fn paths(kind: &Kind) -> Vec<(String, Value)> {
    let base =
        if kind.group.is_empty() { format!("/api/{}", kind.version) } else { format!("/apis/{}", kind.api_version()) };
    let inside = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{inside}/{}", kind.plural);
    let read = ["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch", "timeoutSeconds"];
    let write = ["dryRun", "fieldManager", "fieldValidation"];
    let on_collection = json!({
        "get": operation(kind, "list", &read),
        "post": operation(kind, "post", &write),
        "delete": operation(kind, "deletecollection", &["dryRun", "labelSelector", "fieldSelector"]),
    });
    let on_object = json!({
        "get": operation(kind, "get", &[]),
        "put": operation(kind, "put", &write),
        "patch": operation(kind, "patch", &["dryRun", "fieldManager", "fieldValidation", "force"]),
        "delete": operation(kind, "delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
    });
    vec![(collection.clone(), on_collection), (format!("{collection}/{{name}}"), on_object)]
}

fn operation(kind: &Kind, action: &str, query: &[&str]) -> Value {
    let parameters: Vec<Value> = query
        .iter()
        .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } }))
        .collect();
    let schema = json!({ "$ref": format!("#/components/schemas/{}", schema_name(kind)) });
    let mut operation = json!({
        "operationId": format!("{action}{}", kind.kind),
        "parameters": parameters,
        "responses": { "200": { "description": "OK", "content": { "application/json": { "schema": schema } } } },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": group_version_kind(kind),
    });
    let patches: &[&str] = match (action, kind.strategic()) {
        ("patch", true) => &PATCHES,
        ("patch", false) => &PATCHES[..2],
        ("post" | "put", _) => &["application/json"],
        _ => &[],
    };
    if !patches.is_empty() {
        let content: Map<String, Value> =
            patches.iter().map(|media| ((*media).to_owned(), json!({ "schema": schema }))).collect();
        operation["requestBody"] = json!({ "content": content });
    }
    operation
}

const PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of the document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    found.push(reference.clone());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn lists_that_are_merged_say_so() {
        let schemas = Value::Object(schemas("", "v1"));
        let text = schemas.to_string();
        assert_eq!(text.matches("x-kubernetes-patch-strategy").count(), MERGED.len(), "{text}");
    }

    #[test]
    fn every_reference_leads_to_a_schema_and_every_kind_is_there() {
        for (group, version) in kinds::group_versions() {
            let document = document(group, version);
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                let name = reference.strip_prefix("#/components/schemas/").expect("a local reference");
                assert!(document["components"]["schemas"].get(name).is_some(), "{reference}");
            }
            for kind in kinds::of(group, version) {
                let schema = &document["components"]["schemas"][schema_name(kind)];
                assert_eq!(schema["type"], "object", "{}", kind.kind);
                assert!(schema["properties"]["metadata"].is_object(), "{}", kind.kind);
                let about = schema["description"].as_str().unwrap_or_default();
                assert!(kind.group != kinds::WEFT || !about.contains('`'), "{}", kind.kind);
            }
        }
    }
}
