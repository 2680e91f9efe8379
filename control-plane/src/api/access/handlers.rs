//! `/weft/v1/tokens`: made, listed and revoked by administrators. The secret is in the answer that makes one, and
//! nowhere else. There are two kinds: the operators' own are here, those with which workloads enrol in [`super::joins`].

use axum::{
    Json,
    extract::{Extension, Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Caller, joins,
    rules::Role,
    tokens::{ChangeError, NewToken, Token, Tokens},
};
use crate::api::{ApiState, body::Sent, status::ApiError};

/// The longest life of a token that ends, in seconds: a hundred years.
const MAX_LIFE: u64 = 100 * 366 * 86_400;

/// Body of POST `/weft/v1/tokens`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    #[serde(default, rename = "kind")]
    _kind: Kind,
    name: String,
    role: Role,
    namespace: Option<String>,
    expires_in_seconds: Option<u64>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// The operator API.
    #[default]
    Api,
    /// The first certificate of a workload.
    Join,
}

/// What decides how the rest of a body is read.
#[derive(Deserialize)]
struct Kinded {
    #[serde(default)]
    kind: Kind,
}

/// POST: makes a token; the answer is the only one with its secret.
///
/// # Errors
/// What is wrong with the body, or why it could not be kept.
pub async fn create(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Sent(body): Sent,
) -> Result<Response, ApiError> {
    if serde_json::from_slice(&body).is_ok_and(|kinded: Kinded| kinded.kind == Kind::Join) {
        return joins::create(&state, &caller, &body).await;
    }
    let tokens = tokens(&state)?;
    let wanted: Wanted = serde_json::from_slice(&body).map_err(|error| {
        let form = r#"{"name": "ci", "role": "viewer|editor|admin", "namespace": "...", "expiresInSeconds": N}"#;
        ApiError::bad_request(format!("the body is not {form} (or has \"kind\": \"join\"): {error}"))
    })?;
    let now = Timestamp::now();
    let expires = wanted.expires_in_seconds.map(|seconds| expiry(now, seconds)).transpose()?;
    let new = NewToken { name: wanted.name, role: wanted.role, namespace: wanted.namespace, expires };
    let (token, text) = blocking(move || tokens.create(new, now)).await?;
    audit(&caller, &token, "token made");
    let mut body = shown(&token);
    body["token"] = text.as_str().into();
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

fn expiry(now: Timestamp, seconds: u64) -> Result<Timestamp, ApiError> {
    let life = i64::try_from(seconds).ok().filter(|_| (1..=MAX_LIFE).contains(&seconds));
    life.and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok()).ok_or_else(|| {
        ApiError::bad_request(format!("expiresInSeconds: {seconds} is not 1 to {MAX_LIFE}; leave it out for no end"))
    })
}

/// GET: all tokens, without secrets.
///
/// # Errors
/// When the join tokens cannot be read.
pub async fn list(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    // With `--dev` operators have none.
    let own = state.access.0.tokens.as_ref().map(Tokens::list).unwrap_or_default();
    let mut items: Vec<Value> = own.iter().map(shown).collect();
    items.extend(joins::list(&state).await?);
    Ok(Json(json!({ "items": items })))
}

/// DELETE `/weft/v1/tokens/{id}`: revokes a token.
///
/// # Errors
/// 404; or when the file could not be written.
pub async fn revoke(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if let Some(revoked) = joins::revoke(&state, &caller, &id).await? {
        return Ok(Json(revoked));
    }
    let tokens = tokens(&state)?;
    let token = blocking(move || tokens.revoke(&id)).await?;
    audit(&caller, &token, "token revoked");
    Ok(Json(shown(&token)))
}

fn tokens(state: &ApiState) -> Result<Tokens, ApiError> {
    let none = || {
        let message = "there are no tokens of operators with --dev: the local user is served without one";
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", message)
    };
    state.access.0.tokens.clone().ok_or_else(none)
}

/// The file is synced, which may take long.
async fn blocking<T: Send + 'static>(
    change: impl FnOnce() -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, ApiError> {
    let result = tokio::task::spawn_blocking(change).await.map_err(|error| internal(&error.to_string()))?;
    result.map_err(|error| {
        let text = error.to_string();
        match error {
            ChangeError::Exists(_) => ApiError::new(StatusCode::CONFLICT, "AlreadyExists", text),
            ChangeError::Invalid(_) => ApiError::bad_request(text),
            ChangeError::NotFound(_) => ApiError::new(StatusCode::NOT_FOUND, "NotFound", text),
            ChangeError::Write { source, .. } => {
                tracing::error!(error = format!("{source:#}"), "the tokens cannot be written");
                internal(&text)
            }
        }
    })
}

pub(super) fn internal(text: &str) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", text)
}

fn audit(caller: &Caller, token: &Token, what: &str) {
    let Token { id, name, role, namespace, .. } = token;
    let namespace = namespace.as_deref().unwrap_or("*");
    tracing::info!(target: "audit", user = caller.name, token = id, name, %role, namespace, "{what}");
}

fn shown(token: &Token) -> Value {
    json!({
        "kind": "api", "id": token.id, "name": token.name, "role": token.role, "namespace": token.namespace,
        "created": token.created.to_string(), "expires": token.expires.map(|time| time.to_string()),
        "lastUsed": token.last_used.map(|day| day.to_string()), "expired": token.is_expired(Timestamp::now()),
    })
}
