//! OpenAPI 2 as clients in Go before 1.27 ask for it: gnostic's protobuf message, reduced to what they read.
//!
//! Field numbers are those of `openapiv2/OpenAPIv2.proto` of github.com/google/gnostic-models.

use prost::Message;
use serde_json::{Map, Value, json};

/// The document in JSON, from schemas and paths of OpenAPI 3.
pub fn document(schemas: Map<String, Value>, paths: Map<String, Value>) -> Value {
    let mut definitions = Value::Object(schemas);
    relocate(&mut definitions);
    let mut old = Map::new();
    for (path, item) in paths {
        let operations = item.as_object().into_iter().flatten().map(|(method, operation)| {
            let parameters: Vec<Value> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|parameter| json!({ "name": parameter["name"], "in": "query", "type": "string" }))
                .collect();
            let consumes: Vec<&String> =
                operation["requestBody"]["content"].as_object().into_iter().flatten().map(|(media, _)| media).collect();
            let new = json!({
                "operationId": operation["operationId"], "parameters": parameters, "consumes": consumes,
                "produces": ["application/json"], "responses": { "200": { "description": "OK" } },
                "x-kubernetes-action": operation["x-kubernetes-action"],
                "x-kubernetes-group-version-kind": operation["x-kubernetes-group-version-kind"],
            });
            (method.clone(), new)
        });
        old.insert(path, Value::Object(operations.collect()));
    }
    json!({
        "swagger": "2.0", "info": { "title": "Weft", "version": env!("CARGO_PKG_VERSION") },
        "paths": old, "definitions": definitions,
    })
}

fn relocate(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // What version 2 does not have.
            for name in ["anyOf", "oneOf", "nullable"] {
                if fields.get(name).is_some_and(|value| value.is_array() || value.is_boolean()) {
                    fields.remove(name);
                }
            }
            // An optional reference: version 2 readers take a bare one.
            if let Some([one]) = fields.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
                && let Some(reference) = one.get("$ref").cloned()
            {
                fields.remove("allOf");
                fields.insert("$ref".into(), reference);
            }
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/definitions/");
            }
            fields.values_mut().for_each(relocate);
        }
        Value::Array(items) => items.iter_mut().for_each(relocate),
        _ => {}
    }
}

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Definitions>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "2")]
    non_body_parameter: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    location: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    response_code: Vec<NamedResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponse {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<ResponseText>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseText {
    #[prost(string, tag = "1")]
    description: String,
}

#[derive(Clone, PartialEq, Message)]
struct Definitions {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<AdditionalProperties>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Properties>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct AdditionalProperties {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Properties {
    #[prost(message, repeated, tag = "1")]
    additional_properties: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyYaml>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyYaml {
    #[prost(string, tag = "2")]
    yaml: String,
}

/// The document as protobuf.
pub fn encode(document: &Value) -> Vec<u8> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let path = document["paths"].as_object().into_iter().flatten();
    let path = path.map(|(name, item)| NamedPathItem { name: name.clone(), value: Some(path_item(item)) }).collect();
    Document {
        swagger: "2.0".into(),
        info: Some(Info { title: text(&document["info"]["title"]), version: text(&document["info"]["version"]) }),
        paths: Some(Paths { path }),
        definitions: Some(Definitions { additional_properties: named(&document["definitions"]) }),
    }
    .encode_to_vec()
}

fn named(schemas: &Value) -> Vec<NamedSchema> {
    let all = schemas.as_object().into_iter().flatten();
    all.map(|(name, value)| NamedSchema { name: name.clone(), value: Some(schema(value)) }).collect()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn schema(value: &Value) -> Schema {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let reference = text("$ref");
    // What refers says nothing else: readers take the one or the other.
    if !reference.is_empty() {
        return Schema { reference, description: text("description"), ..Schema::default() };
    }
    let kind = value["type"].as_str().map(|kind| TypeItem { value: vec![kind.to_owned()] });
    let additional = value["additionalProperties"]
        .is_object()
        .then(|| Box::new(AdditionalProperties { schema: Some(Box::new(schema(&value["additionalProperties"]))) }));
    Schema {
        reference,
        format: text("format"),
        description: text("description"),
        required: texts(&value["required"]),
        additional_properties: additional,
        kind,
        items: value["items"].is_object().then(|| ItemsItem { schema: vec![schema(&value["items"])] }),
        properties: value["properties"]
            .is_object()
            .then(|| Properties { additional_properties: named(&value["properties"]) }),
        vendor_extension: extensions(value),
    }
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let all = value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"));
    // JSON is YAML.
    all.map(|(name, value)| NamedAny { name: name.clone(), value: Some(AnyYaml { yaml: value.to_string() }) }).collect()
}

fn path_item(item: &Value) -> PathItem {
    let get = |method: &str| item.get(method).map(operation);
    PathItem { get: get("get"), put: get("put"), post: get("post"), delete: get("delete"), patch: get("patch") }
}

fn operation(value: &Value) -> Operation {
    let parameters = value["parameters"].as_array().into_iter().flatten().map(|parameter| {
        let query = QueryParameter {
            location: "query".into(),
            name: parameter["name"].as_str().unwrap_or_default().into(),
            kind: "string".into(),
        };
        let non_body_parameter = Some(NonBodyParameter { query: Some(query) });
        ParametersItem { parameter: Some(Parameter { non_body_parameter }) }
    });
    let ok = ResponseValue { response: Some(ResponseText { description: "OK".into() }) };
    Operation {
        operation_id: value["operationId"].as_str().unwrap_or_default().into(),
        produces: texts(&value["produces"]),
        consumes: texts(&value["consumes"]),
        parameters: parameters.collect(),
        responses: Some(Responses { response_code: vec![NamedResponse { name: "200".into(), value: Some(ok) }] }),
        vendor_extension: extensions(value),
    }
}
