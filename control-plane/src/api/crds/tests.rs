//! Whether an API server would take the definitions, and whether they refuse what is refused here.

use super::*;

fn schema_of(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// The rules of structural schemas, as far as a schema without alternatives can break them.
fn judge(schema: &Value, path: &str) {
    let fields = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema}"));
    const KNOWN: [&str; 17] = [
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-list-type",
    ];
    for name in fields.keys() {
        assert!(KNOWN.contains(&name.as_str()) || name == "x-kubernetes-list-map-keys", "{path}: {name}");
    }
    assert!(fields.get("type").is_some_and(Value::is_string), "{path}: every field has a type: {schema}");
    assert!(!(fields.contains_key("properties") && fields.contains_key("additionalProperties")), "{path}");
    let formats = ["date-time", "double", "int32", "int64"];
    assert!(fields.get("format").is_none_or(|format| formats.iter().any(|known| format == known)), "{path}: {schema}");
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(schema["properties"].get(required.as_str().expect("a name")).is_some(), "{path}: {required}");
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        judge(property, &format!("{path}.{name}"));
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get(word) {
            judge(inner, &format!("{path}[]"));
        }
    }
}

#[test]
fn every_kind_of_ours_has_a_definition_with_a_structural_schema_a_status_and_columns() {
    let all = all();
    assert_eq!(all.len(), KINDS.iter().filter(|kind| kind.group == WEFT).count());
    for definition in &all {
        let (spec, version) = (&definition["spec"], &definition["spec"]["versions"][0]);
        let kind = spec["names"]["kind"].as_str().expect("a kind");
        judge(schema_of(definition), kind);
        let fields: Vec<&String> = schema_of(definition)["properties"].as_object().expect("fields").keys().collect();
        assert_eq!(fields, ["apiVersion", "kind", "metadata", "spec", "status"], "{kind}");
        assert_eq!(schema_of(definition)["properties"]["metadata"], json!({ "type": "object" }));
        assert!(version["subresources"]["status"].is_object());
        let status = schema_of(definition)["properties"]["status"]["properties"].as_object().expect("fields");
        assert_eq!(status.len(), 1, "{kind}: conditions are in one place");
        assert_eq!(
            definition["metadata"]["name"],
            format!("{}.weft.dev", spec["names"]["plural"].as_str().expect("plural"))
        );
        // kubectl apply keeps the whole in an annotation.
        assert!(definition.to_string().len() < 200_000, "{kind}");
    }
}

#[test]
fn columns_are_those_of_the_api_but_for_what_no_path_can_say() {
    for kind in KINDS.iter().filter(|kind| kind.group == WEFT) {
        let shown = columns(kind);
        let has = |name: &str| shown.iter().any(|column| column["name"] == name);
        for column in kind.columns {
            assert_eq!(has(column.name), !["Rules", "Labels"].contains(&column.name), "{} {}", kind.kind, column.name);
        }
        assert!(has("Age"));
    }
}

/// One object of each kind with every field that the schema bounds.
fn examples() -> Vec<(&'static str, Value)> {
    let to = json!([{ "kind": "Service", "name": "web" }]);
    let traffic = json!({
        "retries": { "attempts": 1, "codes": [503], "grpcCodes": ["UNAVAILABLE"], "budget": { "percent": 20, "minPerSecond": 1 },
            "backoff": { "min": "1ms", "base": "1ms", "max": "1s" }, "hedgeAfter": "1s", "methods": ["GET"] },
        "timeouts": { "request": "5s", "backendRequest": "1s", "connect": "1s", "streamIdle": "1s" },
        "loadBalancing": { "algorithm": "Maglev", "hashOn": { "header": "x" }, "slowStart": "1s", "locality": ["Zone"] },
        "limits": { "connections": 1, "pending": 1, "requests": 1, "retries": 1 },
        "outlierDetection": { "consecutiveFailures": 1, "successPercent": 80, "minimumRequests": 1, "window": "1s",
            "baseEjection": "1s", "maxEjection": "2s", "maxEjectedPercent": 50 },
        "circuitBreaker": { "breakOn": "Never", "consecutiveFailures": 1, "baseOpen": "1s", "maxOpen": "2s" },
        "connection": { "idle": "1s", "maxAge": "1s", "maxStreams": 1 },
    });
    let tracing = json!({ "samplingPercent": 1, "headers": ["x"] });
    let log = json!({ "mode": "All", "format": "Json" });
    let with_targets = |spec: &Value| {
        let mut spec = spec.clone();
        spec["targetRefs"] = to.clone();
        spec
    };
    let percent = 50;
    vec![
        ("TrafficPolicy", with_targets(&traffic)),
        (
            "MeshConfig",
            json!({ "peerMode": "Strict", "outboundTraffic": "AllowAny", "traffic": traffic, "tracing": tracing,
            "accessLog": log }),
        ),
        ("TelemetryPolicy", json!({ "targetRefs": to, "tracing": tracing, "accessLog": log })),
        ("Workload", json!({ "address": "10.0.0.1", "ports": [{ "port": 80, "protocol": "http" }] })),
        ("PeerAuthentication", json!({ "targetRefs": to, "mode": "Strict", "ports": { "80": "Permissive" } })),
        (
            "AuthorizationPolicy",
            json!({ "targetRefs": to, "action": "Allow",
            "rules": [{ "to": [{ "ports": [80], "notPorts": [81] }] }] }),
        ),
        (
            "RateLimitPolicy",
            json!({ "targetRefs": to,
            "limits": [{ "requests": 1, "burst": 1, "per": "1s", "key": "Total" }] }),
        ),
        (
            "FaultInjection",
            json!({ "targetRefs": to, "delay": { "fixed": "1s", "percent": percent },
            "bandwidth": { "bytesPerSecond": 1, "percent": percent }, "abort": { "httpStatus": 500, "percent": percent },
            "expiresAfter": "1h" }),
        ),
        ("FaultInjection", json!({ "targetRefs": to, "abort": { "grpcStatus": "UNAVAILABLE" } })),
        (
            "RequestAuthentication",
            json!({ "targetRefs": to, "jwt": [{ "issuer": "https://i.example",
            "jwksUri": "https://i.example/keys", "algorithms": ["RS256"], "clockSkew": "60s" }] }),
        ),
    ]
}

/// A value at the line, and one beyond it.
type Line = (Option<Value>, Value);

/// Values at which a schema draws a line: the last good one (none for words) and one beyond it.
fn lines(schema: &Value) -> Vec<Line> {
    let mut found = Vec::new();
    if let Some(least) = schema["minimum"].as_f64() {
        found.push((Some(schema["minimum"].clone()), json!(least - 1.0)));
    }
    if let Some(most) = schema["maximum"].as_f64() {
        found.push((Some(schema["maximum"].clone()), json!(most + 1.0)));
    }
    if schema["enum"].is_array() || schema["pattern"].is_string() {
        found.push((None, "Nonsense!".into()));
    }
    found
}

/// Every bounded field of a schema: its pointer in an example, and its lines.
fn bounded(schema: &Value, pointer: &str, example: Option<&Value>, found: &mut Vec<(String, Vec<Line>)>) {
    let own = lines(schema);
    if !own.is_empty() {
        found.push((pointer.to_owned(), own));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        bounded(property, &format!("{pointer}/{name}"), example.and_then(|example| example.get(name)), found);
    }
    if let Some(items) = schema.get("items") {
        bounded(items, &format!("{pointer}/0"), example.and_then(|example| example.get(0)), found);
    }
    if let Some(values) = schema.get("additionalProperties") {
        let first = example.and_then(Value::as_object).and_then(|fields| fields.iter().next());
        let name = first.map_or("any", |(name, _)| name);
        bounded(values, &format!("{pointer}/{name}"), first.map(|(_, value)| value), found);
    }
}

/// What this control plane finds wrong with a spec.
fn wrong(kind: &str, spec: &Value) -> Vec<String> {
    let object = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": { "name": "x" }, "spec": spec });
    let loaded = source::from_json(&object);
    loaded.wrong.iter().chain(&loaded.unknown).map(ToString::to_string).collect()
}

/// Whole numbers as such, which is how people write them.
fn whole(value: &Value, integer: bool) -> Value {
    match value.as_f64() {
        Some(number) if integer => serde_json::from_str(&format!("{number:.0}")).expect("a number"),
        _ => value.clone(),
    }
}

#[test]
fn what_a_schema_refuses_is_refused_here_and_what_it_takes_at_the_line_is_taken() {
    let mut covered = std::collections::BTreeSet::new();
    let mut all_lines = std::collections::BTreeSet::new();
    let definitions = all();
    for (kind, spec) in examples() {
        assert_eq!(wrong(kind, &spec), Vec::<String>::new(), "{kind}");
        let definition = definitions.iter().find(|one| one["spec"]["names"]["kind"] == kind).expect("a definition");
        let mut fields = Vec::new();
        bounded(&schema_of(definition)["properties"]["spec"], "", Some(&spec), &mut fields);
        // MeshConfig has the settings of a policy, and no targets.
        fields.retain(|(pointer, _)| !pointer.starts_with("/traffic/targetRefs"));
        for (pointer, lines) in fields {
            all_lines.insert(format!("{kind} {pointer}"));
            let Some(held) = spec.pointer(&pointer) else { continue };
            covered.insert(format!("{kind} {pointer}"));
            let integer = held.is_u64();
            for (good, bad) in lines {
                let with = |value: &Value| {
                    let mut spec = spec.clone();
                    *spec.pointer_mut(&pointer).expect("there") = whole(value, integer);
                    wrong(kind, &spec)
                };
                assert_ne!(with(&bad), Vec::<String>::new(), "{kind} {pointer}: {bad} is refused by the schema alone");
                if let Some(good) = good {
                    let why = with(&good);
                    assert_eq!(why, Vec::<String>::new(), "{kind} {pointer}: {good} is taken by the schema");
                }
            }
        }
    }
    let missing: Vec<&String> = all_lines.difference(&covered).collect();
    assert!(missing.is_empty(), "no example has {missing:?}");
    assert!(covered.len() > 60, "{}", covered.len());
}
