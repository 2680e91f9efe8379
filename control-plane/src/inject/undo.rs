//! What an injection has to remember so that it can be taken back exactly, and taking it back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{INJECTED, REDIRECT, SIDECAR, VOLUME, object, problem};
use crate::source::Problem;

/// Content of the annotation [`INJECTED`].
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Who injected.
    version: String,
    /// Fields of containers as they were, by the container's name and the field's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    was: BTreeMap<String, Map<String, Value>>,
    /// Fields that were made, as JSON pointers: they go when they are empty again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    made: BTreeSet<String>,
}

impl Record {
    /// A field was made.
    pub fn made(&mut self, pointer: &str) {
        self.made.insert(pointer.into());
    }

    /// A field of a container was this.
    pub fn was(&mut self, container: &str, field: &str, value: Value) {
        self.was.entry(container.into()).or_default().insert(field.into(), value);
    }

    /// Puts the record into the annotations.
    pub fn write(mut self, pod: &mut Value) -> Result<(), Problem> {
        self.version = env!("CARGO_PKG_VERSION").into();
        let whole = pod.as_object_mut().ok_or_else(|| problem("", "a pod must be a mapping", ""))?;
        for (parent, field) in [("", "metadata"), ("/metadata", "annotations")] {
            let parent_object =
                if parent.is_empty() { &mut *whole } else { object_of(whole, parent.trim_start_matches('/'))? };
            let place = parent_object.entry(field).or_insert(Value::Null);
            if place.is_null() {
                *place = Value::Object(Map::new());
                self.made(&format!("{parent}/{field}"));
            }
        }
        let text = serde_json::to_string(&self).map_err(|error| problem("", error.to_string(), ""))?;
        object(pod, "/metadata/annotations")?.insert(INJECTED.into(), text.into());
        Ok(())
    }
}

fn object_of<'a>(whole: &'a mut Map<String, Value>, field: &str) -> Result<&'a mut Map<String, Value>, Problem> {
    whole.get_mut(field).and_then(Value::as_object_mut).ok_or_else(|| problem(field, "must be a mapping", ""))
}

/// Takes the sidecar out of a pod or pod template; whether there was one.
///
/// # Errors
/// When what the injection left for this cannot be read.
pub fn undo(pod: &mut Value) -> Result<bool, Problem> {
    let path = format!("metadata.annotations.{INJECTED}");
    let text =
        pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut).and_then(|all| all.remove(INJECTED));
    let Some(text) = text else { return Ok(false) };
    let record: Option<Record> = text.as_str().and_then(|text| serde_json::from_str(text).ok());
    let hint = "take the containers weft-redirect and weft-sidecar, the volume weft and this annotation out by hand";
    let record = record.ok_or_else(|| problem(&path, "what was injected here cannot be read", hint))?;
    for (field, names) in [("initContainers", [SIDECAR, REDIRECT].as_slice()), ("volumes", &[VOLUME])] {
        if let Some(all) = pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut) {
            all.retain(|item| !item["name"].as_str().is_some_and(|name| names.contains(&name)));
        }
    }
    for field in ["containers", "initContainers"] {
        for container in pod.pointer_mut(&format!("/spec/{field}")).and_then(Value::as_array_mut).into_iter().flatten()
        {
            let was = container["name"].as_str().and_then(|name| record.was.get(name)).cloned().unwrap_or_default();
            if let Some(container) = container.as_object_mut() {
                container.extend(was);
            }
        }
    }
    // The longest first: what was made in something that was made.
    for pointer in record.made.iter().rev() {
        let empty = match pod.pointer(pointer) {
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(fields)) => fields.is_empty(),
            _ => false,
        };
        let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(parent) = pod.pointer_mut(parent).and_then(Value::as_object_mut).filter(|_| empty) {
            parent.remove(field);
        }
    }
    Ok(true)
}
