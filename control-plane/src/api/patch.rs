//! Patches: what a patch makes of an object. Merge (RFC 7396), JSON (RFC 6902) and, in `strategic`, Kubernetes' own.

mod strategic;

use serde_json::{Map, Value};

pub use self::strategic::strategic;

/// Operations of one JSON patch.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that the copies of one JSON patch may add.
const MAX_COPIED: usize = super::body::MAX_BODY;
/// Nesting that a JSON patch may reach: what reads and drops a tree recurses.
const MAX_DEPTH: usize = 128;

/// Why a patch cannot be applied.
#[derive(Debug, Eq, PartialEq)]
pub enum PatchError {
    /// It is no patch.
    Malformed(String),
    /// It does not fit this object.
    Failed(String),
}

/// JSON merge patch, RFC 7396: null removes, objects merge, everything else replaces.
#[must_use]
pub fn merge(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    let mut fields = if let Value::Object(fields) = target { fields } else { Map::new() };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            let before = fields.remove(&name).unwrap_or_default();
            fields.insert(name, merge(before, value));
        }
    }
    Value::Object(fields)
}

/// JSON patch, RFC 6902: all operations in order, or none.
///
/// # Errors
/// Which operation is malformed or does not fit, and why.
pub fn json_patch(mut target: Value, patch: &Value) -> Result<Value, PatchError> {
    let malformed = |why: String| PatchError::Malformed(why);
    let operations = patch.as_array().ok_or_else(|| malformed("a JSON patch is a list of operations".into()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(malformed(format!("{} operations: at most {MAX_OPERATIONS} are taken", operations.len())));
    }
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        let at = |error| match error {
            PatchError::Malformed(why) => PatchError::Malformed(format!("operation {index}: {why}")),
            PatchError::Failed(why) => PatchError::Failed(format!("operation {index}: {why}")),
        };
        apply(&mut target, operation, &mut copied).map_err(at)?;
    }
    Ok(target)
}

fn apply(target: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), PatchError> {
    let text = |name: &str| {
        operation[name].as_str().ok_or_else(|| PatchError::Malformed(format!("\"{name}\" is missing or no text")))
    };
    let value = || operation.get("value").cloned().ok_or_else(|| PatchError::Malformed("\"value\" is missing".into()));
    if !operation.is_object() {
        return Err(PatchError::Malformed("is not an object".into()));
    }
    let path = text("path")?;
    match text("op")? {
        "add" => add(target, path, value()?),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            let value = value()?;
            shallow(&tokens(path)?, &value)?;
            *find(target, path)? = value;
            Ok(())
        }
        "move" => {
            let from = text("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(PatchError::Failed(format!("cannot move \"{from}\" into itself")));
            }
            let moved = remove(target, from)?;
            add(target, path, moved)
        }
        "copy" => {
            let copy = find(target, text("from")?)?.clone();
            *copied += copy.to_string().len();
            if *copied > MAX_COPIED {
                return Err(PatchError::Failed(format!("copies more than {MAX_COPIED} bytes")));
            }
            add(target, path, copy)
        }
        "test" => {
            let (have, want) = (find(target, path)?, value()?);
            if same(have, &want) {
                Ok(())
            } else {
                Err(PatchError::Failed(format!("testing value {path} failed: it is {have}, expected {want}")))
            }
        }
        other => Err(PatchError::Malformed(format!(
            "\"op\" is {other:?}, expected one of add, copy, move, remove, replace, test"
        ))),
    }
}

/// Equal as JSON: numbers by their value.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// The tokens of a JSON pointer, RFC 6901.
fn tokens(path: &str) -> Result<Vec<String>, PatchError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let rest = path
        .strip_prefix('/')
        .ok_or_else(|| PatchError::Malformed(format!("\"{path}\" is not a JSON pointer: it starts with \"/\"")))?;
    Ok(rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect())
}

fn missing(path: &str) -> PatchError {
    PatchError::Failed(format!("\"{path}\" does not exist"))
}

fn index(token: &str, length: usize) -> Option<usize> {
    let plain = token == "0" || !token.starts_with('0');
    let index: usize = token.parse().ok().filter(|_| plain && token.bytes().all(|byte| byte.is_ascii_digit()))?;
    (index < length).then_some(index)
}

fn find<'a>(target: &'a mut Value, path: &str) -> Result<&'a mut Value, PatchError> {
    walk(target, &tokens(path)?).ok_or_else(|| missing(path))
}

fn walk<'a>(target: &'a mut Value, tokens: &[String]) -> Option<&'a mut Value> {
    tokens.iter().try_fold(target, |value, token| match value {
        Value::Object(fields) => fields.get_mut(token),
        Value::Array(items) => index(token, items.len()).and_then(|index| items.get_mut(index)),
        _ => None,
    })
}

fn shallow(tokens: &[String], value: &Value) -> Result<(), PatchError> {
    if tokens.len() + depth(value) <= MAX_DEPTH {
        return Ok(());
    }
    Err(PatchError::Failed(format!("nests values deeper than {MAX_DEPTH} levels")))
}

/// Values come from a parser or from here, so the recursion has a bound.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let mut tokens = tokens(path)?;
    shallow(&tokens, &value)?;
    let Some(last) = tokens.pop() else {
        *target = value;
        return Ok(());
    };
    match walk(target, &tokens) {
        Some(Value::Object(fields)) => {
            fields.insert(last, value);
            Ok(())
        }
        Some(Value::Array(items)) => {
            let at = if last == "-" { Some(items.len()) } else { index(&last, items.len() + 1) };
            items.insert(at.ok_or_else(|| missing(path))?, value);
            Ok(())
        }
        _ => Err(missing(path)),
    }
}

fn remove(target: &mut Value, path: &str) -> Result<Value, PatchError> {
    let mut tokens = tokens(path)?;
    let Some(last) = tokens.pop() else { return Ok(std::mem::take(target)) };
    match walk(target, &tokens) {
        Some(Value::Object(fields)) => fields.remove(&last).ok_or_else(|| missing(path)),
        Some(Value::Array(items)) => {
            let at = index(&last, items.len()).ok_or_else(|| missing(path))?;
            Ok(items.remove(at))
        }
        _ => Err(missing(path)),
    }
}

#[cfg(test)]
mod tests;
