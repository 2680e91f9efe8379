//! OpenAPI documents, made from the types that check the objects: for `kubectl explain` and its validation.

mod v2;

use std::sync::OnceLock;

use axum::{
    Json,
    extract::Path,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use schemars::generate::SchemaSettings;
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
        let content_type = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
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
            fields.insert("x-kubernetes-group-version-kind".into(), json!([group_version_kind(kind)]));
        }
        // The list schemas let clients that look for them know how lists look.
        found.insert(schema_name(kind), schema);
    }
    for (name, schema) in generator.take_definitions(true) {
        found.entry(name).or_insert(schema);
    }
    let mut all = Value::Object(found);
    plain(&mut all);
    if let Value::Object(found) = all { found } else { Map::new() }
}

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
            }
        }
    }
}
