//! Where the pods of an object are.

use serde_json::Value;

use super::problem;
use crate::source::Problem;

/// Calls `change` with each pod or pod template of an object, and its path in it. Objects without are left alone; the
/// result is how many there were.
pub fn each(
    object: &mut Value,
    path: &str,
    change: &mut dyn FnMut(&mut Value, &str, &str) -> Result<(), Problem>,
) -> Result<usize, Problem> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() || version.is_empty() {
        let missing = if kind.is_empty() { "kind" } else { "apiVersion" };
        let text = format!("{missing} is missing: this is no object of Kubernetes");
        return Err(problem(path, text, "each document needs apiVersion and kind"));
    }
    if kind.ends_with("List") && object.get("items").is_some_and(Value::is_array) {
        let mut count = 0;
        for (index, item) in object["items"].as_array_mut().into_iter().flatten().enumerate() {
            count += each(item, &join(path, &format!("items[{index}]")), change)?;
        }
        return Ok(count);
    }
    let Some(pointer) = template(&version, &kind) else { return Ok(0) };
    let at = join(path, &pointer.trim_start_matches('/').replace('/', "."));
    let name = object.pointer("/metadata/name").or_else(|| object.pointer("/metadata/generateName"));
    let name = format!("{}/{}", kind.to_ascii_lowercase(), name.and_then(Value::as_str).unwrap_or("?"));
    let pod = object.pointer_mut(pointer).filter(|pod| pod.is_object());
    let pod = pod.ok_or_else(|| problem(&at, "the pod template is missing", ""))?;
    change(pod, &name, &at)?;
    Ok(1)
}

/// The pointer to the pod of this kind.
fn template(version: &str, kind: &str) -> Option<&'static str> {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Pod") => Some(""),
        ("", "ReplicationController")
        | ("apps" | "extensions", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        ("", "PodTemplate") => Some("/template"),
        _ => None,
    }
}

/// A path below another one.
pub fn join(path: &str, field: &str) -> String {
    match (path, field) {
        ("", field) => field.into(),
        (path, "") => path.into(),
        (path, field) => format!("{path}.{field}"),
    }
}
