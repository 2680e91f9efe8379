//! Requests for resources: which handler serves them. Reads are here, writes in `write`, watches in `watch`.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    ApiState, Caller, body, held,
    respond::{self, Form, answer, shown},
    status::ApiError,
    target::{Options, Target},
    watch, write,
};
use crate::store::{Key, Revision, State as Objects, Stored};

/// Snapshots that lists in pages go on from.
const PAGED: usize = 32;

/// One request, taken apart.
pub struct Call {
    /// Method.
    pub method: Method,
    /// What it is about.
    pub target: Target,
    /// Its query.
    pub options: Options,
    /// Its headers.
    pub headers: HeaderMap,
    /// The form of the answer.
    pub form: Form,
    /// Who asks.
    pub caller: Caller,
}

/// Serves `/api/v1/...` and `/apis/GROUP/VERSION/...`.
pub async fn serve(State(state): State<ApiState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match route(&state, parts, body).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn route(state: &ApiState, parts: Parts, body: Body) -> Result<Response, ApiError> {
    let target = Target::parse(parts.uri.path())?;
    let allowed = match (&target.name, target.status) {
        (None, _) if target.kind.namespaced && target.namespace.is_none() => "GET, DELETE",
        (None, _) => "GET, POST, DELETE",
        (Some(_), false) => "GET, PUT, PATCH, DELETE",
        (Some(_), true) => "GET, PUT, PATCH",
    };
    let method = if parts.method == Method::HEAD { Method::GET } else { parts.method };
    if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        return Err(ApiError::method(&method, allowed));
    }
    let options = Options::parse(&parts.uri)?;
    let form = Form::accepted(&parts.headers)?;
    let caller = parts.extensions.get::<Caller>().cloned().ok_or_else(ApiError::nobody)?;
    let call = Call { method, target, options, headers: parts.headers, form, caller };
    if call.method == Method::GET {
        return read(state, call);
    }
    if !call.options.dry_run {
        state.refuse_elsewhere()?;
    }
    let _permit = state.writes.try_acquire().map_err(|_| ApiError::too_many("writes"))?;
    let bytes = body::read(&call.headers, body).await?;
    match (call.method.as_str(), call.target.name.is_some()) {
        ("POST", _) => write::create(state, &call, &bytes).await,
        ("PUT", _) => write::replace(state, &call, &bytes).await,
        ("PATCH", _) => write::patch(state, &call, &bytes).await,
        (_, true) => write::delete(state, &call, &bytes).await,
        (_, false) => write::delete_collection(state, &call, &bytes).await,
    }
}

/// The body in the media type of its header.
///
/// # Errors
/// 415 and 400, see [`body::parse`].
pub fn parse_body(call: &Call, bytes: &[u8]) -> Result<body::Body, ApiError> {
    let content_type = call.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    body::parse(&body::media_type(content_type), bytes)
}

fn read(state: &ApiState, call: Call) -> Result<Response, ApiError> {
    if call.options.watch {
        return watch::start(state, call);
    }
    let Some(name) = &call.target.name else { return list(state, &call) };
    let stored = state.held(&call.target.key(name)).ok_or_else(|| ApiError::not_found(call.target.kind, name))?;
    let body = call.form.object(call.target.kind, shown(&stored), call.options.include);
    Ok(answer(StatusCode::OK, body, &[]))
}

fn list(state: &ApiState, call: &Call) -> Result<Response, ApiError> {
    let permit = Arc::clone(&state.lists).try_acquire_owned().map_err(|_| ApiError::too_many("lists"))?;
    let (kind, options) = (call.target.kind, &call.options);
    let (objects, after) = match &options.continue_at {
        Some(token) => resume(state, token)?,
        None => (state.store.snapshot(), None),
    };
    let (head, wanted) = (objects.revision(), options.resource_version.unwrap_or(0));
    if after.is_none() && wanted > head {
        let message = format!("Too large resource version: {wanted}, current: {head}");
        return Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message));
    }
    if after.is_none() && options.exact && wanted != head {
        let message = format!("revision {wanted} is no longer kept for lists: the current one is {head}");
        return Err(ApiError::expired(message));
    }
    let namespace = call.target.namespace.as_deref();
    let files = Arc::clone(&state.files.borrow());
    let matching: Vec<&Arc<Stored>> = held::list(&objects, &files, kind.kind, namespace)
        .into_iter()
        .filter(|stored| after.as_ref().is_none_or(|after| stored.key > *after))
        .filter(|stored| options.selector.matches(&stored.object))
        .collect();
    let page = if options.limit == 0 { matching.len() } else { options.limit.min(matching.len()) };
    let mut metadata = json!({ "resourceVersion": head.to_string() });
    if let Some(last) = matching[..page].last().filter(|_| page < matching.len()) {
        metadata["continue"] = token(head, &last.key).into();
        metadata["remainingItemCount"] = (matching.len() - page).into();
        state.pages.keep(&objects);
    }
    Ok(respond::at_leisure(call.form.list(kind, &matching[..page], &metadata, options.include), permit))
}

/// States that unfinished lists are read from, so that their pages fit together. Cheap: states share structure.
#[derive(Clone, Default)]
pub struct Pages(Arc<std::sync::Mutex<VecDeque<Arc<Objects>>>>);

impl Pages {
    fn keep(&self, objects: &Arc<Objects>) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.retain(|held| held.revision() != objects.revision());
        kept.push_back(Arc::clone(objects));
        if kept.len() > PAGED {
            kept.pop_front();
        }
    }

    fn at(&self, revision: Revision) -> Option<Arc<Objects>> {
        let kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.iter().find(|held| held.revision() == revision).cloned()
    }
}

/// Where a list goes on: revision and last key.
fn token(revision: Revision, key: &Key) -> String {
    format!("{revision}.{}.{}.{}", key.kind, key.namespace, key.name)
}

fn resume(state: &ApiState, token: &str) -> Result<(Arc<Objects>, Option<Key>), ApiError> {
    let malformed = || ApiError::bad_request(format!("continue: {token:?} is not a token of this server"));
    let mut parts = token.splitn(4, '.');
    let mut next = || parts.next().ok_or_else(malformed);
    let revision: Revision = next()?.parse().map_err(|_| malformed())?;
    let (kind, namespace, name) = (next()?, next()?, next()?);
    let objects = state.pages.at(revision).ok_or_else(|| {
        ApiError::expired("The provided continue parameter is too old: begin the list again without it")
    })?;
    Ok((objects, Some(Key::new(kind, namespace, name))))
}
