//! What of a request becomes the object that is kept: identity, system metadata, validation. Pure.

use k8s_openapi::jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value};

use super::{
    defaults,
    kinds::Kind,
    status::{ApiError, text, unknown_field},
    target::{FieldValidation, Target},
};
use crate::source::{self, Problem};

/// An object that may be kept, and what its author should know.
#[derive(Debug)]
pub struct Admitted {
    /// The object, without resourceVersion.
    pub object: Value,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

/// Metadata that only the API writes.
const SYSTEM: [&str; 5] = ["creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "uid"];
/// Letters of generated names: without those that make words or look alike, as in Kubernetes.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// The time as metadata has it.
#[must_use]
pub fn timestamp(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// A new object.
///
/// # Errors
/// 400 when it is another than the path says, 422 when it breaks rules.
pub fn create(
    target: &Target,
    body: Value,
    duplicates: &[Problem],
    mode: FieldValidation,
    now: Timestamp,
) -> Result<Admitted, ApiError> {
    let mut object = identified(target, body)?;
    let metadata = metadata(&mut object)?;
    if text_of(metadata, "resourceVersion").is_some_and(|version| !version.is_empty()) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    clean(metadata);
    let prefix = text_of(metadata, "generateName").map(str::to_owned).unwrap_or_default();
    if text_of(metadata, "name").is_none_or(str::is_empty) {
        if prefix.is_empty() {
            let message = "metadata.name is missing: give a name, or a prefix in metadata.generateName";
            return Err(ApiError::invalid(target.kind, "", &[problem("metadata.name", message)]));
        }
        metadata.insert("name".into(), generated(&prefix).into());
    }
    SYSTEM.iter().for_each(|name| _ = metadata.remove(*name));
    let name = text_of(metadata, "name").unwrap_or_default().to_owned();
    remove_status(target.kind, &mut object);
    let warnings = validate(target.kind, &name, &mut object, duplicates, mode)?;
    let metadata = self::metadata(&mut object)?;
    metadata.insert("uid".into(), uid().into());
    metadata.insert("creationTimestamp".into(), timestamp(now).into());
    metadata.insert("generation".into(), 1.into());
    Ok(Admitted { object, warnings })
}

/// The object that `body` makes of `old`: its status stays.
///
/// # Errors
/// 400 when it is another than the path says, 409 when it is an older one of that name, 422 when it breaks rules.
pub fn update(
    target: &Target,
    old: &Value,
    body: Value,
    duplicates: &[Problem],
    mode: FieldValidation,
) -> Result<Admitted, ApiError> {
    let mut object = identified(target, body)?;
    let was = old["metadata"].as_object().cloned().unwrap_or_default();
    let metadata = metadata(&mut object)?;
    same_uid(target, &was, metadata)?;
    clean(metadata);
    metadata.insert("name".into(), target.name().into());
    for name in SYSTEM {
        metadata.remove(name);
        if let Some(value) = was.get(name) {
            metadata.insert(name.into(), value.clone());
        }
    }
    remove_status(target.kind, &mut object);
    let warnings = validate(target.kind, target.name(), &mut object, duplicates, mode)?;
    added_finalizers(target.kind, &was, &object)?;
    if let Some(status) = old.get("status")
        && let Some(fields) = object.as_object_mut()
    {
        fields.insert("status".into(), status.clone());
    }
    if content(old) != content(&object) {
        let generation = was.get("generation").and_then(Value::as_u64).unwrap_or(0) + 1;
        self::metadata(&mut object)?.insert("generation".into(), generation.into());
    }
    Ok(Admitted { object, warnings })
}

/// The object with the status of `body`: nothing else changes.
///
/// # Errors
/// As [`update`].
pub fn status(
    target: &Target,
    old: &Value,
    body: Value,
    duplicates: &[Problem],
    mode: FieldValidation,
) -> Result<Admitted, ApiError> {
    let mut given = identified(target, body)?;
    let was = old["metadata"].as_object().cloned().unwrap_or_default();
    same_uid(target, &was, metadata(&mut given)?)?;
    let mut object = old.clone();
    if let Some(fields) = object.as_object_mut() {
        match given.as_object_mut().and_then(|given| given.remove("status")).filter(|status| !status.is_null()) {
            Some(status) => fields.insert("status".into(), status),
            None => fields.remove("status"),
        };
    }
    let warnings = validate(target.kind, target.name(), &mut object, duplicates, mode)?;
    Ok(Admitted { object, warnings })
}

/// Everything but metadata and status: what a generation counts.
fn content(object: &Value) -> Vec<(&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status")).collect()
}

/// Checks apiVersion, kind, namespace and name against the path, and fills in what is left out.
fn identified(target: &Target, body: Value) -> Result<Value, ApiError> {
    let Value::Object(mut fields) = body else {
        let kind = target.kind.kind;
        return Err(ApiError::bad_request(if body.is_null() {
            format!(
                "the body is empty: send an object of kind {kind}, with Content-Length or Transfer-Encoding: chunked"
            )
        } else {
            format!("the body is not an object of kind {kind}")
        }));
    };
    for (field, wanted) in [("apiVersion", target.kind.api_version()), ("kind", target.kind.kind.to_owned())] {
        match fields.get(field) {
            None | Some(Value::Null) => _ = fields.insert(field.into(), wanted.into()),
            Some(Value::String(given)) if *given == wanted => {}
            Some(given) => {
                let message = format!("{field} of the body is {given}, but the path is that of \"{wanted}\"");
                return Err(ApiError::bad_request(message));
            }
        }
    }
    let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else {
        return Err(ApiError::bad_request(format!("metadata is not an object: {metadata}")));
    };
    metadata.retain(|_, value| !value.is_null());
    match (&target.namespace, text_of(metadata, "namespace").filter(|text| !text.is_empty())) {
        (Some(wanted), None) => _ = metadata.insert("namespace".into(), wanted.as_str().into()),
        (Some(wanted), Some(given)) if wanted != given => {
            let message =
                format!("the namespace of the object ({given}) does not match that of the request ({wanted})");
            return Err(ApiError::bad_request(message));
        }
        (None, _) => _ = metadata.remove("namespace"),
        _ => {}
    }
    if let (Some(wanted), Some(given)) = (&target.name, text_of(metadata, "name"))
        && wanted != given
    {
        let message = format!("the name of the object ({given}) does not match that of the request ({wanted})");
        return Err(ApiError::bad_request(message));
    }
    Ok(Value::Object(fields))
}

fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| ApiError::bad_request("metadata is not an object"))
}

fn text_of<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// Drops what is not kept: the store knows the version, and nobody keeps track of field managers.
fn clean(metadata: &mut Map<String, Value>) {
    for name in ["managedFields", "resourceVersion", "selfLink"] {
        metadata.remove(name);
    }
    for name in ["annotations", "finalizers", "labels", "ownerReferences"] {
        let empty = match metadata.get(name) {
            Some(Value::Object(fields)) => fields.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            _ => false,
        };
        if empty {
            metadata.remove(name);
        }
    }
}

fn remove_status(kind: &Kind, object: &mut Value) {
    if kind.has_status()
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
}

fn same_uid(target: &Target, was: &Map<String, Value>, now: &Map<String, Value>) -> Result<(), ApiError> {
    match (was.get("uid"), now.get("uid")) {
        (Some(was), Some(now)) if was != now => {
            let why = format!("Precondition failed: UID in precondition: {now}, UID in object meta: {was}");
            Err(ApiError::conflict(target.kind, target.name(), &why))
        }
        _ => Ok(()),
    }
}

/// An object that is being deleted gets no new finalizers: it would never go.
fn added_finalizers(kind: &Kind, was: &Map<String, Value>, object: &Value) -> Result<(), ApiError> {
    if !was.contains_key("deletionTimestamp") {
        return Ok(());
    }
    let held = was.get("finalizers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let added = object["metadata"]["finalizers"].as_array().into_iter().flatten().find(|item| !held.contains(item));
    let name = text_of(was, "name").unwrap_or_default();
    match added {
        None => Ok(()),
        Some(added) => {
            let message = format!("{added} cannot be added: the object is being deleted");
            Err(ApiError::invalid(kind, name, &[problem("metadata.finalizers", &message)]))
        }
    }
}

/// Checks the object with the code that checks resource files; drops unknown fields if that is wanted.
fn validate(
    kind: &Kind,
    name: &str,
    object: &mut Value,
    duplicates: &[Problem],
    mode: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    defaults::fill(kind, object);
    let loaded = source::from_json(object);
    let unknown: Vec<Problem> = loaded.unknown.into_iter().chain(duplicates.iter().cloned()).collect();
    let strict = mode == FieldValidation::Strict;
    if !loaded.wrong.is_empty() {
        let all: Vec<Problem> = if strict { unknown.into_iter().chain(loaded.wrong).collect() } else { loaded.wrong };
        return Err(ApiError::invalid(kind, name, &all));
    }
    if strict && !unknown.is_empty() {
        return Err(ApiError::strict(kind, name, &unknown));
    }
    for problem in unknown.iter().filter(|problem| problem.message.starts_with("unknown")) {
        prune(object, &problem.path);
    }
    let warn = mode == FieldValidation::Warn;
    Ok(unknown.iter().filter(|_| warn).map(unknown_field).collect())
}

/// Removes the field at a path such as `spec.ports[0].naem`. Names may have dots in them.
fn prune(value: &mut Value, path: &str) {
    match value {
        Value::Object(fields) => {
            if fields.remove(path).is_some() {
                return;
            }
            for (name, inner) in fields {
                match path.strip_prefix(name.as_str()) {
                    Some(rest) if rest.starts_with('.') => prune(inner, &rest[1..]),
                    Some(rest) if rest.starts_with('[') => prune(inner, rest),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some((index, rest)) = path.strip_prefix('[').and_then(|path| path.split_once(']')) else { return };
            let item = index.parse().ok().and_then(|index: usize| items.get_mut(index));
            if let Some(item) = item {
                prune(item, rest.strip_prefix('.').unwrap_or(rest));
            }
        }
        _ => {}
    }
}

fn problem(path: &str, message: &str) -> Problem {
    Problem { path: path.into(), message: message.into(), ..Problem::default() }
}

fn generated(prefix: &str) -> String {
    let mut random = rand::rng();
    let suffix = (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]));
    // The whole has room in a label.
    prefix.chars().take(58).chain(suffix).collect()
}

/// A random UUID, RFC 9562 version 4.
#[must_use]
pub fn uid() -> String {
    let random: u128 = rand::rng().random();
    let marked = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{marked:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What the caller should know of problems with other objects: text for a warning.
#[must_use]
pub fn warning(problem: &Problem) -> String {
    format!("{}: {}", problem.path, text(problem))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_uid_is_a_random_uuid_of_version_4() {
        let (a, b) = (uid(), uid());
        assert_ne!(a, b);
        assert_eq!(a.len(), 36);
        assert_eq!(&a[14..15], "4");
        assert!("89ab".contains(&a[19..20]), "{a}");
    }

    #[test]
    fn an_unknown_field_is_pruned_wherever_it_is() {
        let mut object =
            json!({ "a.b": { "x": 1 }, "spec": { "ports": [{ "port": 1 }, { "port": 2, "naem": 3 }] }, "y": 1 });
        prune(&mut object, "spec.ports[1].naem");
        prune(&mut object, "a.b.x");
        prune(&mut object, "y");
        assert_eq!(object, json!({ "a.b": {}, "spec": { "ports": [{ "port": 1 }, { "port": 2 }] } }));
    }

    #[test]
    fn generated_names_have_five_letters_more() {
        let name = generated("cart-");
        assert_eq!(name.len(), 10);
        assert!(name.starts_with("cart-") && source::is_dns_label(&name));
    }
}
