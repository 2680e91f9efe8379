//! `kubectl auth whoami` and `kubectl auth can-i`: who the caller is, and whether it may do something.

mod binary;

use axum::{Json, extract::Extension, http::StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Caller,
    rules::{Asked, Forbidden},
};
use crate::api::{body::Sent, status::ApiError};

/// Path of `kubectl auth whoami`.
pub const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
/// Path of `kubectl auth can-i`.
pub const CAN: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// POST [`WHO`].
pub async fn who(Extension(caller): Extension<Caller>) -> (StatusCode, Json<Value>) {
    let mut extra = json!({ "weft.dev/role": [caller.role.to_string()] });
    if let Some(namespace) = &caller.namespace {
        extra["weft.dev/namespace"] = json!([namespace]);
    }
    let body = json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "status": { "userInfo": { "username": caller.name, "extra": extra } },
    });
    (StatusCode::CREATED, Json(body))
}

#[derive(Deserialize)]
struct Review {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    resource_attributes: Option<Attributes>,
    non_resource_attributes: Option<PathAttributes>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attributes {
    namespace: String,
    verb: String,
    group: String,
    resource: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PathAttributes {
    path: String,
    verb: String,
}

impl Spec {
    fn asked(self) -> Option<Asked> {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        match self {
            Self { resource_attributes: Some(of), non_resource_attributes: None } => {
                let resource = if of.group.is_empty() { of.resource } else { format!("{}.{}", of.resource, of.group) };
                let (namespace, name) = (some(of.namespace), some(of.name));
                Some(Asked::Resource { verb: of.verb, resource, namespace, name })
            }
            Self { resource_attributes: None, non_resource_attributes: Some(of) } => {
                Some(Asked::Path { verb: of.verb, path: of.path, namespaces: Vec::new() })
            }
            _ => None,
        }
    }
}

/// POST [`CAN`].
///
/// # Errors
/// When the body is no such review.
pub async fn can(
    Extension(caller): Extension<Caller>,
    Sent(body): Sent,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let wrong = |why: &str| ApiError::bad_request(format!("the body is no SelfSubjectAccessReview: {why}"));
    let (spec, mut sent) = match binary::spec(&body) {
        Some(spec) => (spec, json!({ "spec": {} })),
        None => {
            let sent: Value = serde_json::from_slice(&body).map_err(|error| wrong(&error.to_string()))?;
            // A list would pass for a structure.
            if !sent.is_object() {
                return Err(wrong("it is no object"));
            }
            (Review::deserialize(&sent).map_err(|error| wrong(&error.to_string()))?.spec, sent)
        }
    };
    let needed = "spec has exactly one of resourceAttributes and nonResourceAttributes";
    let asked = spec.asked().ok_or_else(|| wrong(needed))?;
    sent["kind"] = "SelfSubjectAccessReview".into();
    sent["apiVersion"] = "authorization.k8s.io/v1".into();
    sent["status"] = match asked.allowed(&caller) {
        Ok(()) => json!({ "allowed": true, "reason": format!("the role is {}", caller.role) }),
        Err(Forbidden::Role) => json!({ "allowed": false, "reason": format!("the role is {}", caller.role) }),
        Err(Forbidden::Namespace) => {
            let own = caller.namespace.unwrap_or_default();
            json!({ "allowed": false, "reason": format!("the token is for namespace {own:?}") })
        }
    };
    Ok((StatusCode::CREATED, Json(sent)))
}
