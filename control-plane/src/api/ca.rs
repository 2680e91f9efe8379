//! `/weft/v1/ca`: the certificate authority for administrators: its state, the steps of rotations, revocations, and the
//! record of what it did.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Extension, Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_policy::SpiffeId;

use super::{ApiState, Caller, body::Sent, status::ApiError};
use crate::ca::{
    Ca, Serial, Subject,
    rotation::{ChangeError, Step},
};

/// Characters of a reason.
const REASON: usize = 256;
/// Events of one answer.
const EVENTS: usize = 1000;

/// Body of POST `/weft/v1/ca/rotation`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rotation {
    step: Step,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    reason: String,
}

/// Body of POST `/weft/v1/ca/revocations`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    serial: Option<String>,
    identity: Option<String>,
    #[serde(default)]
    reason: String,
}

/// Query of GET `/weft/v1/ca/audit`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    before: Option<u64>,
    limit: Option<usize>,
}

/// GET: phase, certificates, revocations, and who is waited for.
///
/// # Errors
/// 404 without an authority.
pub async fn state(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let ca = ca(&state)?;
    Ok(Json(ca.view(&ca.waiting(&state.proxies.rows()))))
}

/// POST: takes a step, unless a connected sidecar is not ready for it; with `force` whatever that breaks.
///
/// # Errors
/// 409 when it does not go with the phase or would cut sidecars off, which are named.
pub async fn rotate(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Sent(body): Sent,
) -> Result<Json<Value>, ApiError> {
    let ca = ca(&state)?;
    let Rotation { step, force, reason } = serde_json::from_slice(&body).map_err(|error| {
        let steps = "issuer|root-prepare|root-switch|root-finish|root-rollback";
        ApiError::bad_request(format!(
            r#"the body is not {{"step": "{steps}", "force": BOOL, "reason": "..."}}: {error}"#
        ))
    })?;
    let reason = checked(reason)?;
    let hindrance = ca.hindrance(step, &state.proxies.rows());
    if let Some((why, names)) = hindrance.as_ref().filter(|_| !force) {
        let shown = names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if names.len() > 10 { ", ..." } else { "" };
        let text = format!("{}: {why}: {shown}{more}; wait for them, or force it and cut them off", step.as_str());
        return Err(ApiError::new(StatusCode::CONFLICT, "Conflict", text));
    }
    let reason = match hindrance {
        Some((why, _)) => format!("forced although {why}. {reason}"),
        None => reason,
    };
    let stepping = Arc::clone(&ca);
    blocking(move || stepping.step(step, &caller.name, &reason)).await?;
    Ok(Json(ca.view(&ca.waiting(&state.proxies.rows()))))
}

/// GET: what is revoked.
///
/// # Errors
/// 404 without an authority.
pub async fn revocations(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let mut view = ca(&state)?.view(&Default::default());
    Ok(Json(json!({ "items": view["revocations"].take() })))
}

/// POST: revokes a certificate by serial number, or all certificates of an identity so far.
///
/// # Errors
/// What is wrong with the body, or why it cannot be revoked.
pub async fn revoke(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Sent(body): Sent,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let ca = ca(&state)?;
    let form = r#"{"serial": "HEX" or "identity": "spiffe://...", "reason": "..."}"#;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request(format!("the body is not {form}: {error}")))?;
    let reason = checked(wanted.reason)?;
    let subject = match (wanted.serial, wanted.identity) {
        (Some(text), None) => Serial::parse(&text).map(Subject::Serial).ok_or_else(|| {
            ApiError::bad_request(format!("serial {text:?}: must be hexadecimal, 1 to 20 bytes, and not 0"))
        })?,
        (None, Some(text)) => Subject::Identity(
            SpiffeId::parse(&text)
                .map_err(|error| ApiError::bad_request(format!("identity {text:?}: not a SPIFFE id: {error}")))?,
        ),
        _ => {
            return Err(ApiError::bad_request(format!("the body is not {form}: one of serial and identity is needed")));
        }
    };
    let entry = blocking(move || ca.revoke(&subject, &caller.name, &reason)).await?;
    Ok((StatusCode::CREATED, Json(json!(entry))))
}

/// DELETE: withdraws a revocation.
///
/// # Errors
/// 404 when there is none.
pub async fn withdraw(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let ca = ca(&state)?;
    Ok(Json(json!(blocking(move || ca.withdraw(&id, &caller.name)).await?)))
}

/// GET: the record, newest first: `limit` events before the number `before`.
///
/// # Errors
/// What is wrong with the query.
pub async fn audit(
    State(state): State<ApiState>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(100).min(EVENTS);
    Ok(Json(json!({ "items": ca(&state)?.audit().entries(query.before, limit) })))
}

fn ca(state: &ApiState) -> Result<Arc<Ca>, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "NotFound", "there is no certificate authority here");
    state.ca.clone().ok_or_else(none)
}

fn checked(reason: String) -> Result<String, ApiError> {
    if reason.chars().count() > REASON || reason.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!(
            "reason: must be at most {REASON} characters, none of them control"
        )));
    }
    Ok(reason)
}

/// Files are synced, which may take long.
async fn blocking<T: Send + 'static>(
    change: impl FnOnce() -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, ApiError> {
    let internal = |text| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text);
    let result = tokio::task::spawn_blocking(change).await.map_err(|error| internal(error.to_string()))?;
    result.map_err(|error| match error {
        ChangeError::Conflict(text) => ApiError::new(StatusCode::CONFLICT, "Conflict", text),
        ChangeError::Invalid(text) => ApiError::bad_request(text),
        ChangeError::NotFound(text) => ApiError::new(StatusCode::NOT_FOUND, "NotFound", text),
        ChangeError::Failed(error) => {
            tracing::error!(error = format!("{error:#}"), "the certificate authority was not changed");
            internal(format!("{error:#}"))
        }
    })
}
