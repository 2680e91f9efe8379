//! Strategic merge patch of the built-in kinds, as kubectl sends it: merge lists by key, and the `$` directives.
//!
//! Follows the text "strategic merge patch" of the Kubernetes API conventions. Lists are replaced unless the API
//! types of Kubernetes mark them as merged.

use serde_json::{Map, Value};

use super::PatchError;

/// How a list is patched.
#[derive(Clone, Copy, PartialEq)]
enum List {
    /// Items are objects, known by this field.
    By(&'static str),
    /// Replaced as a whole.
    Replaced,
    /// Plain values, each once.
    Set,
}

/// The strategies of the built-in kinds that the API serves: `patchMergeKey` of Kubernetes' types.
fn strategy(path: &str) -> List {
    match path {
        "metadata.finalizers" => List::Set,
        "metadata.ownerReferences" => List::By("uid"),
        "spec.ports" => List::By("port"),
        "status.conditions" => List::By("type"),
        _ => List::Replaced,
    }
}

/// Applies a strategic merge patch.
///
/// # Errors
/// When a directive is malformed or an item has no key.
pub fn strategic(target: Value, patch: Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("a strategic merge patch is an object".into()));
    };
    let fields = if let Value::Object(fields) = target { fields } else { Map::new() };
    Ok(map(fields, patch, "")?.map_or(Value::Null, Value::Object))
}

/// The patched map; none when the patch deletes it.
fn map(
    mut target: Map<String, Value>,
    mut patch: Map<String, Value>,
    path: &str,
) -> Result<Option<Map<String, Value>>, PatchError> {
    match patch.remove("$patch").as_ref().map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("delete") => return Ok(None),
        Some("replace") => return Ok(Some(bare(patch))),
        Some(other) => return Err(unknown_directive(path, other)),
    }
    if let Some(keys) = patch.remove("$retainKeys") {
        let keys = keys.as_array().ok_or_else(|| malformed(path, "$retainKeys is not a list"))?;
        target.retain(|name, _| keys.iter().any(|key| key == name));
    }
    let mut orders = Vec::new();
    let directives: Vec<String> = patch.keys().filter(|name| name.starts_with('$')).cloned().collect();
    for directive in directives {
        let Some(value) = patch.remove(&directive) else { continue };
        let items = if let Value::Array(items) = value {
            items
        } else {
            return Err(malformed(path, &format!("{directive} is not a list")));
        };
        match directive.split_once('/') {
            Some(("$deleteFromPrimitiveList", name)) => {
                if let Some(Value::Array(list)) = target.get_mut(name) {
                    list.retain(|item| !items.contains(item));
                }
            }
            Some(("$setElementOrder", name)) => orders.push((name.to_owned(), items)),
            _ => return Err(unknown_directive(path, &directive)),
        }
    }
    for (name, value) in patch {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let before = target.remove(&name);
        if let Some(after) = field(before, value, &inner)? {
            target.insert(name, after);
        }
    }
    for (name, order) in orders {
        let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if let Some(Value::Array(items)) = target.get_mut(&name) {
            arrange(items, &order, strategy(&inner));
        }
    }
    Ok(Some(target))
}

fn field(before: Option<Value>, patch: Value, path: &str) -> Result<Option<Value>, PatchError> {
    Ok(match (before, patch) {
        (_, Value::Null) => None,
        (Some(Value::Object(before)), Value::Object(patch)) => map(before, patch, path)?.map(Value::Object),
        // Also where nothing was before: directives must not end up in the object.
        (_, Value::Object(patch)) => map(Map::new(), patch, path)?.map(Value::Object),
        (before, Value::Array(patch)) => {
            let before = if let Some(Value::Array(before)) = before { before } else { Vec::new() };
            Some(Value::Array(list(before, patch, path)?))
        }
        (_, patch) => Some(patch),
    })
}

fn list(mut before: Vec<Value>, patch: Vec<Value>, path: &str) -> Result<Vec<Value>, PatchError> {
    let replaces = |item: &Value| item.get("$patch").is_some_and(|directive| directive == "replace");
    let how = strategy(path);
    // An item that is nothing but the directive stands for the whole list.
    if how == List::Replaced
        || patch.iter().any(|item| replaces(item) && item.as_object().is_some_and(|o| o.len() == 1))
    {
        return Ok(patch.into_iter().filter(|item| !replaces(item)).collect());
    }
    for item in patch {
        let List::By(key) = how else {
            if !before.contains(&item) {
                before.push(item);
            }
            continue;
        };
        let Value::Object(item) = item else {
            return Err(malformed(path, &format!("an item is not an object: {item}")));
        };
        let Some(value) = item.get(key) else {
            return Err(malformed(path, &format!("an item has no \"{key}\", by which items are merged")));
        };
        let place = before.iter().position(|have| have.get(key) == Some(value));
        let had = match place.and_then(|place| before.get_mut(place)) {
            Some(Value::Object(fields)) => std::mem::take(fields),
            _ => Map::new(),
        };
        match (map(had, item, &format!("{path}[]"))?, place) {
            (Some(merged), Some(place)) => before[place] = Value::Object(merged),
            (Some(merged), None) => before.push(Value::Object(merged)),
            (None, Some(place)) => _ = before.remove(place),
            (None, None) => {}
        }
    }
    Ok(before)
}

/// Puts the items in the order that the patch wants; the others keep their places among them.
fn arrange(items: &mut Vec<Value>, order: &[Value], how: List) {
    let rank = |item: &Value| {
        order.iter().position(|wanted| match how {
            List::By(key) => wanted.get(key) == item.get(key),
            _ => wanted == item,
        })
    };
    let ranked: Vec<(usize, Option<usize>, Value)> =
        std::mem::take(items).into_iter().enumerate().map(|(place, item)| (place, rank(&item), item)).collect();
    let (mut wanted, others): (Vec<_>, Vec<_>) = ranked.into_iter().partition(|(_, rank, _)| rank.is_some());
    wanted.sort_by_key(|(_, rank, _)| *rank);
    let mut others = others.into_iter().peekable();
    for (place, _, item) in wanted {
        while let Some((_, _, other)) = others.next_if(|(before, ..)| *before < place) {
            items.push(other);
        }
        items.push(item);
    }
    items.extend(others.map(|(_, _, item)| item));
}

/// Without directives.
fn bare(mut fields: Map<String, Value>) -> Map<String, Value> {
    fields.retain(|name, _| !name.starts_with('$'));
    fields
}

fn malformed(path: &str, why: &str) -> PatchError {
    PatchError::Malformed(format!("{}: {why}", if path.is_empty() { "patch" } else { path }))
}

fn unknown_directive(path: &str, directive: &str) -> PatchError {
    let known = "$patch (merge, replace, delete), $setElementOrder, $deleteFromPrimitiveList and $retainKeys are known";
    malformed(path, &format!("unknown directive {directive:?}: {known}"))
}
