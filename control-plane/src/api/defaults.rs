//! Values that Kubernetes writes into built-in kinds when they are left out, so that they are visible here too.

use serde_json::{Map, Value};

use super::kinds::Kind;

/// Fills in what is left out.
pub fn fill(kind: &Kind, object: &mut Value) {
    match kind.kind {
        "Service" => service(object),
        "EndpointSlice" => ports(object.get_mut("ports")),
        _ => {}
    }
}

fn service(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    default(spec, "type", || "ClusterIP".into());
    default(spec, "sessionAffinity", || "None".into());
    ports(spec.get_mut("ports"));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        if let Some(number) = port.get("port").filter(|number| number.is_number()).cloned() {
            default(port, "targetPort", || number);
        }
    }
}

fn ports(list: Option<&mut Value>) {
    for port in list.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            default(port, "protocol", || "TCP".into());
        }
    }
}

fn default(fields: &mut Map<String, Value>, name: &str, value: impl FnOnce() -> Value) {
    if fields.get(name).is_none_or(Value::is_null) {
        fields.insert(name.into(), value());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::kinds::by_kind;

    #[test]
    fn a_service_gets_the_defaults_of_kubernetes_and_keeps_what_is_given() {
        let kind = by_kind("Service").expect("known");
        let mut object =
            json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80 }, { "port": 90, "targetPort": "web" }] } });
        fill(kind, &mut object);
        let ports = json!([
            { "port": 80, "targetPort": 80, "protocol": "TCP" },
            { "port": 90, "targetPort": "web", "protocol": "TCP" },
        ]);
        assert_eq!(object, json!({ "spec": { "type": "NodePort", "sessionAffinity": "None", "ports": ports } }));
        for mut odd in [json!({}), json!({ "spec": 1 }), json!({ "spec": { "ports": [1, { "port": "x" }] } })] {
            fill(kind, &mut odd);
        }
    }
}
