//! Join tokens in `/weft/v1/tokens`: `"kind": "join"`. With `--dev` too, where they are the way to bind names and labels.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use weft_policy::SpiffeId;

use super::{
    Caller,
    handlers::{Kind, internal},
};
use crate::{
    api::{ApiState, status::ApiError},
    ca::enrolment::{
        Enrolment,
        attested::Attested,
        joins::{DEFAULT_TTL, JoinError, JoinToken, Joins, NewJoin},
    },
};

/// Body of POST `/weft/v1/tokens` for a join token.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    #[serde(rename = "kind")]
    _kind: Kind,
    namespace: String,
    service_account: String,
    name: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    ttl_seconds: Option<u64>,
}

/// Makes a token; the answer is the only one with its secret, and has the roots that a sidecar needs beside it.
pub(super) async fn create(state: &ApiState, caller: &Caller, body: &[u8]) -> Result<Response, ApiError> {
    let enrolment = enrolment(state)?;
    let wanted: Wanted = serde_json::from_slice(body).map_err(|error| {
        let form = r#"{"kind": "join", "namespace": "...", "serviceAccount": "...", "name": "...", "labels": {}, "ttlSeconds": N}"#;
        ApiError::bad_request(format!("the body is not {form}: {error}"))
    })?;
    let own = weft_svid::control_plane_id(enrolment.ca().trust_domain());
    if SpiffeId::workload(enrolment.ca().trust_domain(), &wanted.namespace, &wanted.service_account) == own {
        return Err(ApiError::bad_request("serviceAccount: the control plane's own identity is not issued"));
    }
    let new = NewJoin {
        namespace: wanted.namespace,
        service_account: wanted.service_account,
        attested: Attested { name: wanted.name, labels: wanted.labels },
        ttl: wanted.ttl_seconds.map_or(DEFAULT_TTL, Duration::from_secs),
    };
    let by = caller.name.clone();
    let (token, text) = blocking(enrolment, move |joins| joins.create(new, &by, Timestamp::now())).await?;
    audit(caller, &token, "join token made");
    let mut body = shown(&token);
    body["token"] = text.as_str().into();
    body["roots"] = enrolment.ca().roots_pem().into();
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

/// All of them, without secrets.
pub(super) async fn list(state: &ApiState) -> Result<Vec<Value>, ApiError> {
    let Some(enrolment) = &state.enrolment else { return Ok(Vec::new()) };
    let all = blocking(enrolment, |joins| joins.list()).await?;
    Ok(all.iter().map(shown).collect())
}

/// Revokes one; none when there is no join token with this id.
pub(super) async fn revoke(state: &ApiState, caller: &Caller, id: &str) -> Result<Option<Value>, ApiError> {
    let Some(enrolment) = &state.enrolment else { return Ok(None) };
    let wanted = id.to_owned();
    let revoke = move |joins: &Joins| match joins.revoke(&wanted, Timestamp::now()) {
        Err(JoinError::NotFound(_)) => Ok(None),
        other => other.map(Some),
    };
    let Some(token) = blocking(enrolment, revoke).await? else { return Ok(None) };
    audit(caller, &token, "join token revoked");
    Ok(Some(shown(&token)))
}

fn enrolment(state: &ApiState) -> Result<&Enrolment, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "NotFound", "nobody enrols here");
    state.enrolment.as_ref().ok_or_else(none)
}

/// The file is synced, which may take long.
async fn blocking<T: Send + 'static>(
    enrolment: &Enrolment,
    run: impl FnOnce(&Joins) -> Result<T, JoinError> + Send + 'static,
) -> Result<T, ApiError> {
    let joins = enrolment.joins().clone();
    let result =
        tokio::task::spawn_blocking(move || run(&joins)).await.map_err(|error| internal(&error.to_string()))?;
    result.map_err(|error| {
        let text = error.to_string();
        match error {
            JoinError::Invalid(_) => ApiError::bad_request(text),
            JoinError::NotFound(_) => ApiError::new(StatusCode::NOT_FOUND, "NotFound", text),
            JoinError::Store(source) => {
                tracing::error!(error = format!("{source:#}"), "join tokens cannot be read or written");
                internal(&text)
            }
        }
    })
}

fn audit(caller: &Caller, token: &JoinToken, what: &str) {
    let JoinToken { id, namespace, service_account, attested, .. } = token;
    tracing::info!(target: "audit", user = caller.name, token = id, namespace, service_account, ?attested, "{what}");
}

fn shown(token: &JoinToken) -> Value {
    let now = Timestamp::now();
    json!({
        "kind": "join", "id": token.id, "name": token.attested.name, "namespace": token.namespace,
        "serviceAccount": token.service_account, "labels": token.attested.labels,
        "created": token.created.to_string(), "createdBy": token.created_by, "expires": token.expires.to_string(),
        "expired": token.expires <= now, "state": token.state(now),
        "used": token.used.as_ref().map(|used| used.at.to_string()),
        "serial": token.used.as_ref().map(|used| &used.serial),
    })
}
