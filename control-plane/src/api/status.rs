//! Failures as Kubernetes' `Status` objects: what failed, with which value, why, what to do, in every case.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    access::{Caller, rules::Asked},
    kinds::Kind,
};
use crate::{source::Problem, store::AppendError};

/// A request that was not served.
#[derive(Debug)]
pub struct ApiError(Box<Failure>);

#[derive(Debug)]
struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: serde_json::Map<String, Value>,
    retry_after: Option<u32>,
}

impl ApiError {
    /// A failure with HTTP status and Kubernetes reason.
    #[must_use]
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        let (message, details) = (message.into(), serde_json::Map::new());
        Self(Box::new(Failure { code, reason, message, details, retry_after: None }))
    }

    /// The request makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// There is no such object.
    #[must_use]
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.resource());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).of(kind, name)
    }

    /// The caller may not do this.
    #[must_use]
    pub fn forbidden(caller: &Caller, asked: &Asked) -> Self {
        let mut role = format!("role {}", caller.role);
        if let Some(namespace) = &caller.namespace {
            role.push_str(&format!(" in namespace {namespace:?}"));
        }
        let message = format!("User {:?} ({role}) cannot {asked}", caller.name);
        let mut error = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        if let Asked::Resource { resource, name, .. } = asked {
            let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
            for (field, value) in [("name", name.as_deref().unwrap_or_default()), ("group", group), ("kind", plural)] {
                if !value.is_empty() {
                    error.0.details.insert(field.into(), value.into());
                }
            }
        }
        error
    }

    /// There is no such path.
    #[must_use]
    pub fn no_path(path: &str) -> Self {
        let message = format!("the server could not find the requested resource: {path:?}; /api and /apis list them");
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// The method does not go with the path.
    #[must_use]
    pub fn method(method: &axum::http::Method, allowed: &str) -> Self {
        let message = format!("{method} is not allowed here: allowed are {allowed}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// The object is there already.
    #[must_use]
    pub fn exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.resource());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).of(kind, name)
    }

    /// The object is not as the request expects it.
    #[must_use]
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.resource());
        Self::new(StatusCode::CONFLICT, "Conflict", message).of(kind, name)
    }

    /// The revision that a list or watch goes on from is gone.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// More than the server takes.
    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// More at once than the server takes.
    #[must_use]
    pub fn too_many(what: &str) -> Self {
        let message = format!("too many {what} at once: try again in a second");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        error.0.retry_after = Some(1);
        error
    }

    /// Neither JSON nor what else is taken here.
    #[must_use]
    pub fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// The object breaks rules: all of them, each with its path.
    #[must_use]
    pub fn invalid(kind: &Kind, name: &str, problems: &[Problem]) -> Self {
        let texts: Vec<String> = problems.iter().map(|problem| line(&problem.path, &text(problem))).collect();
        let joined = if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
        let message = format!("{}{group} \"{name}\" is invalid: {joined}", kind.kind);
        let causes = problems
            .iter()
            .map(|problem| json!({ "reason": cause(problem), "message": text(problem), "field": problem.path }));
        let causes: Value = causes.collect();
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).of(kind, name);
        error.0.details.insert("kind".into(), kind.kind.into());
        error.0.details.insert("causes".into(), causes);
        error
    }

    /// Fields that the kind does not have, refused because the request asked for it.
    #[must_use]
    pub fn strict(kind: &Kind, name: &str, unknown: &[Problem]) -> Self {
        let texts: Vec<String> = unknown.iter().map(unknown_field).collect();
        let message =
            format!("{} \"{name}\" cannot be handled: strict decoding error: {}", kind.kind, texts.join(", "));
        let causes = unknown
            .iter()
            .map(|problem| json!({ "reason": "FieldValueInvalid", "message": text(problem), "field": problem.path }));
        let causes: Value = causes.collect();
        let mut error = Self::bad_request(message).of(kind, name);
        error.0.details.insert("causes".into(), causes);
        error
    }

    /// The store did not take the write.
    #[must_use]
    pub fn append(kind: &Kind, name: &str, error: &AppendError) -> Self {
        match error {
            AppendError::Conflict { expected: crate::store::Expect::Absent, .. } => Self::exists(kind, name),
            AppendError::Conflict { actual: None, .. } => Self::not_found(kind, name),
            AppendError::Conflict { .. } => Self::conflict(kind, name, MODIFIED),
            AppendError::TooLarge { .. } => Self::too_large(error.to_string()),
            AppendError::Full { .. } => {
                let mut failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string());
                failure.0.retry_after = Some(1);
                failure
            }
            AppendError::Io { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string()),
            AppendError::Stopped { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string())
            }
        }
    }

    /// The same, said of an object.
    #[must_use]
    pub fn of(mut self, kind: &Kind, name: &str) -> Self {
        let details = &mut self.0.details;
        if !name.is_empty() {
            details.insert("name".into(), name.into());
        }
        if !kind.group.is_empty() {
            details.insert("group".into(), kind.group.into());
        }
        details.insert("kind".into(), kind.plural.into());
        self
    }

    /// HTTP status.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    /// The `Status` object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let failure = &self.0;
        let mut details = failure.details.clone();
        if let Some(seconds) = failure.retry_after {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": failure.message, "reason": failure.reason, "code": failure.code.as_u16(),
        });
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

/// Why a write with an old resourceVersion is refused, in the words of Kubernetes that tools look for.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = self.0.retry_after;
        let mut response = (self.code(), Json(self.to_json())).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// `message (hint)`.
pub fn text(problem: &Problem) -> String {
    if problem.hint.is_empty() { problem.message.clone() } else { format!("{} ({})", problem.message, problem.hint) }
}

/// In the form that kubectl knows, with the suggestion.
pub fn unknown_field(problem: &Problem) -> String {
    let hint = if problem.hint.is_empty() { String::new() } else { format!(" ({})", problem.hint) };
    let what = if problem.message.starts_with("unknown") { "unknown field" } else { "duplicate field" };
    format!("{what} \"{}\"{hint}", problem.path)
}

fn line(path: &str, text: &str) -> String {
    if path.is_empty() { text.to_owned() } else { format!("{path}: {text}") }
}

/// The cause in Kubernetes' words.
fn cause(problem: &Problem) -> &'static str {
    let message = &problem.message;
    if message.starts_with("missing field") || message.ends_with("is missing") {
        "FieldValueRequired"
    } else if message.contains("given twice") {
        "FieldValueDuplicate"
    } else if message.starts_with("unknown") {
        "FieldValueNotSupported"
    } else if message.starts_with("invalid type") {
        "FieldValueTypeInvalid"
    } else {
        "FieldValueInvalid"
    }
}
