//! Objects and lists in the form that a request accepts: JSON, Table or PartialObjectMetadata, with warnings.

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    kinds::Kind,
    status::ApiError,
    table::{self, Include},
};
use crate::store::{Revision, Stored};

/// The form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// The objects themselves.
    Json,
    /// Their metadata alone.
    Metadata,
    /// Rows and columns.
    Table,
}

impl Form {
    /// The first form of the Accept header that is served.
    ///
    /// # Errors
    /// 406 when there is none.
    pub fn accepted(headers: &HeaderMap) -> Result<Self, ApiError> {
        let texts: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        if texts.is_empty() {
            return Ok(Self::Json);
        }
        for wanted in texts.iter().flat_map(|text| text.split(',')) {
            let mut parts = wanted.split(';').map(str::trim);
            let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
            if !matches!(essence.as_str(), "application/json" | "application/*" | "*/*") {
                continue;
            }
            let parameters: Vec<&str> = parts.collect();
            let meta = parameters.contains(&"g=meta.k8s.io") && parameters.contains(&"v=v1");
            match parameters.iter().find_map(|parameter| parameter.strip_prefix("as=")) {
                None => return Ok(Self::Json),
                Some("Table") if meta => return Ok(Self::Table),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if meta => return Ok(Self::Metadata),
                Some(_) => {}
            }
        }
        let message = format!("none of {:?} is served: application/json is, also as=Table;v=v1;g=meta.k8s.io", texts);
        Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message))
    }

    /// One object in this form.
    #[must_use]
    pub fn object(self, kind: &Kind, object: Value, include: Include) -> Value {
        match self {
            Self::Json => object,
            Self::Metadata => partial(&object),
            Self::Table => {
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                table::table(kind, &[object], &metadata, include, Timestamp::now())
            }
        }
    }

    /// A list in this form.
    #[must_use]
    pub fn list(self, kind: &Kind, objects: Vec<Value>, metadata: &Value, include: Include) -> Value {
        match self {
            Self::Json => json!({
                "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
                "metadata": metadata, "items": objects,
            }),
            Self::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": objects.iter().map(partial).collect::<Vec<_>>(),
            }),
            Self::Table => table::table(kind, &objects, metadata, include, Timestamp::now()),
        }
    }
}

fn partial(object: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] })
}

/// The object as clients see it: with its resourceVersion, which the store keeps beside it.
#[must_use]
pub fn shown(stored: &Stored) -> Value {
    with_version((*stored.object).clone(), stored.revision)
}

/// The object with this resourceVersion.
#[must_use]
pub fn with_version(mut object: Value, revision: Revision) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
    object
}

/// An answer with `Warning` headers (RFC 9111's old code 299, as Kubernetes uses it).
#[must_use]
pub fn answer(code: StatusCode, body: Value, warnings: &[String]) -> Response {
    let mut response = (code, Json(body)).into_response();
    for warning in warnings {
        if let Ok(value) = HeaderValue::from_str(&quoted(warning)) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
    response
}

/// `299 - "text"` with what would end the text escaped and what a header cannot hold replaced.
fn quoted(text: &str) -> String {
    let mut value = String::from("299 - \"");
    for character in text.chars().take(1024) {
        match character {
            '"' | '\\' => value.extend(['\\', character]),
            ' '..='~' => value.push(character),
            _ => value.push('?'),
        }
    }
    value.push('"');
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(accept: &str) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().expect("a value"));
        Form::accepted(&headers).map_err(|error| error.code().as_u16())
    }

    #[test]
    fn the_first_form_that_is_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(kubectl), Ok(Form::Table));
        assert_eq!(accepted("application/json;as=Table;v=v9;g=meta.k8s.io, application/json"), Ok(Form::Json));
        assert_eq!(accepted("application/vnd.kubernetes.protobuf, */*"), Ok(Form::Json));
        assert_eq!(accepted("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"), Ok(Form::Metadata));
        assert_eq!(accepted("text/html"), Err(406));
    }

    #[test]
    fn a_warning_cannot_break_its_header() {
        assert_eq!(quoted("a \"b\" \\ c\r\nd\u{e9}"), "299 - \"a \\\"b\\\" \\\\ c??d?\"");
    }
}
