//! Objects and lists in the form that a request accepts: JSON, Table or PartialObjectMetadata, with warnings.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::jiff::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    kinds::Kind,
    status::ApiError,
    table::{self, Include},
};
use crate::store::{Revision, Stored};

/// What is handed to a client at a time of a large answer.
const PART: usize = 64 * 1024;
/// How long a client may take nothing of it.
const PATIENCE: Duration = Duration::from_secs(30);

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
            Self::Metadata => partial(object["metadata"].clone()),
            Self::Table => {
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let own = object["metadata"].clone();
                table::table(kind, [(&object, own)].into_iter(), &metadata, include, Timestamp::now())
            }
        }
    }

    /// A list in this form, as JSON text: it is written from the objects as they are, without a copy of them.
    #[must_use]
    pub fn list(self, kind: &Kind, objects: &[&Arc<Stored>], metadata: &Value, include: Include) -> Vec<u8> {
        let shown = || objects.iter().map(|stored| Shown::of(stored));
        let text = match self {
            Self::Json => serde_json::to_vec(&List {
                kind: &format!("{}List", kind.kind),
                api_version: &kind.api_version(),
                metadata,
                items: shown().collect::<Vec<_>>(),
            }),
            Self::Metadata => serde_json::to_vec(&List {
                kind: "PartialObjectMetadataList",
                api_version: "meta.k8s.io/v1",
                metadata,
                items: shown().map(|object| partial(object.metadata())).collect::<Vec<_>>(),
            }),
            Self::Table => {
                let objects = objects.iter().map(|stored| (&*stored.object, Shown::of(stored).metadata()));
                serde_json::to_vec(&table::table(kind, objects, metadata, include, Timestamp::now()))
            }
        };
        // Maps with keys of text into memory: nothing of this can fail.
        text.unwrap_or_default()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a, T> {
    kind: &'a str,
    api_version: &'a str,
    metadata: &'a Value,
    items: Vec<T>,
}

/// An object with its resourceVersion, which the store keeps beside it.
struct Shown<'a> {
    object: &'a Value,
    revision: Revision,
}

fn partial(metadata: Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
}

impl<'a> Shown<'a> {
    fn of(stored: &'a Stored) -> Self {
        Self { object: &stored.object, revision: stored.revision }
    }

    fn metadata(&self) -> Value {
        let mut metadata = self.object["metadata"].clone();
        if let Some(fields) = metadata.as_object_mut() {
            fields.insert("resourceVersion".into(), self.revision.to_string().into());
        }
        metadata
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(fields) = self.object.as_object() else { return self.object.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (name, value) in fields {
            if name == "metadata" {
                map.serialize_entry(name, &self.metadata())?;
            } else {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
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

/// JSON text as an answer.
#[must_use]
pub fn json(text: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The same for a text that may be large: the permit is kept until the client has taken it. One that takes nothing for
/// [`PATIENCE`] is left.
#[must_use]
pub fn at_leisure(text: Vec<u8>, permit: OwnedSemaphorePermit) -> Response {
    if text.len() <= PART {
        return json(text);
    }
    let length = text.len();
    let (sender, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        let mut rest = Bytes::from(text);
        while !rest.is_empty() {
            let part = rest.split_to(PART.min(rest.len()));
            match timeout(PATIENCE, sender.send(Ok(part))).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
        drop(permit);
    });
    let headers = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
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
