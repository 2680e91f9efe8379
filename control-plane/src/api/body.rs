//! Request bodies: read within bounds, and made JSON trees, from JSON or YAML, with repeated keys noticed.

mod protobuf;

use std::{cell::RefCell, error::Error, fmt, time::Duration};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::status::ApiError;
use crate::source::{self, Problem};

/// Largest body in bytes, as in Kubernetes.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// Time for a body to arrive: it may hold one of the places for writes.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The bytes of a request, for handlers that take them as they are; bounded as those of [`read`].
pub struct Sent(pub Vec<u8>);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        read(&parts.headers, body).await.map(Self)
    }
}

/// Reads a body to its end.
///
/// # Errors
/// 413 when it is larger than [`MAX_BODY`], 408 when it takes longer than 30 s, 400 when it breaks off.
pub async fn read(headers: &HeaderMap, body: axum::body::Body) -> Result<Vec<u8>, ApiError> {
    let too_large = || ApiError::too_large(format!("the body is too large: at most {MAX_BODY} bytes are taken"));
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, MAX_BODY)).await.map_err(|_| {
        let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", message)
    })?;
    let bytes = read.map_err(|error| {
        let limited = error.source().is_some_and(|source| source.to_string().contains("length limit"));
        if limited { too_large() } else { ApiError::bad_request(format!("the body cannot be read: {error}")) }
    })?;
    Ok(bytes.into())
}

/// A tree and the keys that were given more than once in it; the last one counts.
#[derive(Debug, Default)]
pub struct Body {
    /// The tree; null for an empty body.
    pub value: Value,
    /// Keys given twice.
    pub duplicates: Vec<Problem>,
}

/// The media type without parameters, in lower case; JSON when there is none.
#[must_use]
pub fn media_type(header: Option<&str>) -> String {
    let essence = header.unwrap_or("application/json").split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// Parses a body of this media type.
///
/// # Errors
/// 415 for other types, 400 with line and column when it is malformed.
pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Body, ApiError> {
    match media_type {
        "application/json" => json(bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(bytes),
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::parse(bytes).map_err(|why| {
                let hint = "send JSON instead, with Content-Type: application/json";
                ApiError::media_type(format!("the protobuf of the body cannot be read: {why}; {hint}"))
            })?;
            Ok(Body { value, duplicates: Vec::new() })
        }
        other => {
            let taken = "application/json and application/yaml are taken here";
            Err(ApiError::media_type(format!("the body of type {other:?} is not supported: {taken}")))
        }
    }
}

/// Parses JSON.
///
/// # Errors
/// 400 with line and column when it is malformed.
pub fn json(bytes: &[u8]) -> Result<Body, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Body::default());
    }
    let duplicates = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let tree = Tree { path: String::new(), duplicates: &duplicates };
    let value = tree.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    let value = value.map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    Ok(Body { value, duplicates: duplicates.into_inner() })
}

/// Parses YAML of one document; keys given twice are refused by the parser.
///
/// # Errors
/// 400 with line and column when it is malformed.
pub fn yaml(bytes: &[u8]) -> Result<Body, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: byte {}", error.valid_up_to())))?;
    let mut documents = source::yaml_to_json(text).map_err(|problem| {
        let place = format!("line {} column {}", problem.line, problem.column);
        ApiError::bad_request(format!("the body cannot be read: {place}: {}", problem.message))
    })?;
    if documents.len() > 1 {
        let message = format!("the body has {} documents: send one object in a request", documents.len());
        return Err(ApiError::bad_request(message));
    }
    Ok(Body { value: documents.pop().unwrap_or_default(), duplicates: Vec::new() })
}

struct Tree<'a> {
    path: String,
    duplicates: &'a RefCell<Vec<Problem>>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that JSON cannot hold"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut found = Vec::new();
        let next = |index| Tree { path: format!("{}[{index}]", self.path), duplicates: self.duplicates };
        while let Some(item) = items.next_element_seed(next(found.len()))? {
            found.push(item);
        }
        Ok(Value::Array(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            let value = entries.next_value_seed(Tree { path: path.clone(), duplicates: self.duplicates })?;
            if found.insert(key, value).is_some() {
                let message = "duplicate field: the last value counts".to_owned();
                self.duplicates.borrow_mut().push(Problem { path, message, ..Problem::default() });
            }
        }
        Ok(Value::Object(found))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_given_twice_are_noticed_at_any_depth() {
        let body = json(br#"{"a":1,"b":[{"c":1,"c":2}],"a":3}"#).expect("valid");
        assert_eq!(body.value, serde_json::json!({ "a": 3, "b": [{ "c": 2 }] }));
        let paths: Vec<_> = body.duplicates.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["b[0].c", "a"]);
    }

    #[test]
    fn malformed_bodies_are_told_with_their_place() {
        let text = |result: Result<Body, ApiError>| result.expect_err("malformed").to_json()["message"].to_string();
        assert!(text(json(b"{\n \"a\": }")).contains("line 2 column 7"));
        assert!(text(json(b"{} x")).contains("line 1 column 4"));
        assert!(text(yaml(b"a: [1\nb: 2\n")).contains("line 2"));
        assert!(text(yaml(b"a: 1\n---\nb: 2\n")).contains("2 documents"));
        assert!(text(json("[".repeat(100_000).as_bytes())).contains("recursion limit"));
    }

    #[test]
    fn yaml_is_taken_as_well_as_json() {
        let body = parse(&media_type(Some("Application/YAML; charset=utf-8")), b"a: {b: [1, x]}\n").expect("valid");
        assert_eq!(body.value, json!({ "a": { "b": [1, "x"] } }));
        assert_eq!(parse("application/json", b" ").expect("empty").value, Value::Null);
    }
}
